//! The command line: flags only. Their meaning is defined where they are used.

mod exit_codes;

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;

use crate::config::{Needs, Overrides};
use crate::model::event::Reason;
use crate::model::generation::Unread;

/// The width of the help in columns, on any terminal.
const HELP_WIDTH: usize = 80;

/// Stores every contract event a monitor publishes to Kafka in PostgreSQL exactly once, and can
/// prove that none is missing. Without a verb: the daemon.
#[derive(Debug, Parser)]
#[command(name = "gapless", version, args_conflicts_with_subcommands = false, term_width = HELP_WIDTH)]
#[command(after_help = exit_codes::COMMON)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub start: StartFlags,
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// Flags of the daemon and of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Configuration file (TOML); every key is in config/default.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Kafka bootstrap servers, HOST:PORT,…
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// The topic the monitor publishes to
    #[arg(long, global = true)]
    pub topic: Option<String>,
    /// Consumer group; belongs to the ledger for good
    #[arg(long, global = true)]
    pub group: Option<String>,
    /// postgres://USER:PASSWORD@HOST:PORT/DATABASE
    #[arg(long, global = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// How log lines are printed
    #[arg(long, global = true, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub log_format: Option<String>,
}

/// Flags of the daemon, and of the plan for it.
#[derive(Debug, Args)]
pub struct StartFlags {
    /// Where to begin: N, 0:1500,3:earliest, earliest, latest or time:2026-11-20T12:00:00Z. An order
    /// is carried out once: if the next start has the same order, it resumes
    #[arg(long, value_name = "WHERE", conflicts_with = "from_db", allow_hyphen_values = true)]
    pub offset: Option<String>,
    /// Resume at the stored positions (the default)
    #[arg(long)]
    pub from_db: bool,
    /// Skip the messages before --offset for good
    #[arg(long, requires = "offset")]
    pub allow_skip: bool,
    /// Carry out an --offset that was carried out before
    #[arg(long, requires = "offset")]
    pub again: bool,
    /// End at the last stable offsets that the start saw
    #[arg(long)]
    pub until_end: bool,
}

impl StartFlags {
    pub fn is_given(&self) -> bool {
        self.offset.is_some() || self.from_db || self.until_end
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show positions, accounting and lag
    #[command(after_help = exit_codes::STATUS)]
    Status {
        /// How the data is printed
        #[arg(long, value_enum, default_value = "table")]
        format: OutputFormat,
    },
    /// Show what a start with --offset or --from-db would do, changing nothing
    #[command(after_help = exit_codes::PLAN)]
    Plan {
        #[command(flatten)]
        start: StartFlags,
        /// How the data is printed
        #[arg(long, value_enum, default_value = "table")]
        format: OutputFormat,
    },
    /// Compare the ledger with itself and with the log: report everything that is missing, doubled or altered
    #[command(after_help = exit_codes::VERIFY)]
    Verify {
        /// Compare every message with the log, not a sample of each partition
        #[arg(long)]
        deep: bool,
        /// How the data is printed
        #[arg(long, value_enum, default_value = "table")]
        format: OutputFormat,
    },
    /// Show the outcome of the message at TOPIC PARTITION OFFSET, or the events of TXN
    #[command(after_help = exit_codes::RECEIPT)]
    Receipt {
        /// The topic of a message, or the hash of a transaction
        #[arg(value_name = "TOPIC|TXN")]
        subject: String,
        /// The partition of the message
        #[arg(requires = "offset")]
        partition: Option<i32>,
        /// The offset of the message
        offset: Option<i64>,
        /// How the data is printed
        #[arg(long, value_enum, default_value = "table")]
        format: OutputFormat,
    },
    /// Decode dead letters again, or read a range below the position again and fill in what is missing
    #[command(after_help = exit_codes::REPLAY)]
    Replay {
        /// A range of the log instead of dead letters; the end is exclusive
        #[arg(long, value_name = "TOPIC:PARTITION:FROM-TO", conflicts_with_all = ["rejected_for", "id", "since", "until", "all"])]
        offsets: Option<String>,
        #[command(flatten)]
        dead_letters: DeadLetterFlags,
        /// Every open dead letter
        #[arg(long)]
        all: bool,
        /// The reason; kept in gapless.decisions
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Accept the loss of a range that Kafka no longer has, so that the halted partition continues behind it
    #[command(override_usage = "gapless accept-loss TOPIC PARTITION FROM TO --reason TEXT")]
    #[command(after_help = exit_codes::ACCEPT_LOSS)]
    AcceptLoss {
        // Its name differs from the flag --topic, which it replaces.
        /// The topic
        #[arg(value_name = "TOPIC")]
        named_topic: String,
        /// The partition that is halted
        partition: i32,
        /// The first offset that is lost: the position of the partition
        from: i64,
        /// The offset behind the last one that is lost
        to: i64,
        /// The reason; kept in gapless.decisions
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Begin the next generation of a topic that was deleted and re-created, or whose log was replaced
    #[command(after_help = exit_codes::REBASE)]
    Rebase {
        /// The topic
        #[arg(value_name = "TOPIC")]
        named_topic: String,
        /// The topic is the same; the log of a partition was truncated or replaced
        #[arg(long)]
        log_replaced: bool,
        /// The topic is now on another cluster
        #[arg(long, conflicts_with = "log_replaced")]
        cluster_changed: bool,
        /// Give up messages of the old log that were never read; the end is exclusive. Once per partition
        #[arg(long, value_name = "PARTITION:FROM-TO")]
        accept_unread: Vec<Unread>,
        /// The reason; kept in gapless.decisions
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// List, show and discard rejected messages
    DeadLetters {
        #[command(subcommand)]
        verb: DeadLettersVerb,
    },
    /// List events whose identity belongs to an event with other content
    Conflicts {
        #[command(subcommand)]
        verb: ConflictsVerb,
    },
    /// Create or update the schema
    #[command(after_help = exit_codes::MIGRATE)]
    Migrate,
    /// Check the configuration and both servers; each finding with its remedy
    #[command(after_help = exit_codes::CHECK)]
    Check {
        /// How the data is printed
        #[arg(long, value_enum, default_value = "table")]
        format: OutputFormat,
    },
}

/// The verbs of `gapless conflicts`.
#[derive(Debug, Subcommand)]
pub enum ConflictsVerb {
    /// List each conflict with its message and the id of the event that has its identity
    List {
        /// How the data is printed
        #[arg(long, value_enum, default_value = "table")]
        format: OutputFormat,
    },
}

/// The verbs of `gapless dead-letters`.
#[derive(Debug, Subcommand)]
pub enum DeadLettersVerb {
    /// List rejected messages, each with the reason
    List {
        #[command(flatten)]
        dead_letters: DeadLetterFlags,
        /// How the data is printed
        #[arg(long, value_enum, default_value = "table")]
        format: OutputFormat,
    },
    /// Show the bytes of one dead letter, as text or hexdump
    #[command(after_help = exit_codes::SHOW)]
    Show {
        /// The message at this partition and offset
        #[arg(value_name = "PARTITION:OFFSET", value_parser = dead_letter_id)]
        id: (i32, i64),
    },
    /// Give dead letters up: they stay in the ledger, but are no longer open
    Discard {
        /// Messages that were rejected for this reason, e.g. bad_field
        #[arg(long, value_name = "WHY", value_parser = reasons(), hide_possible_values = true)]
        rejected_for: Option<String>,
        /// The message at this partition and offset
        #[arg(long, value_name = "PARTITION:OFFSET", value_parser = dead_letter_id)]
        id: Option<(i32, i64)>,
        /// The reason; kept in gapless.decisions
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Flags that select dead letters.
#[derive(Debug, Args)]
pub struct DeadLetterFlags {
    /// Messages that were rejected for this reason, e.g. bad_field
    #[arg(long, value_name = "WHY", value_parser = reasons(), hide_possible_values = true)]
    pub rejected_for: Option<String>,
    /// The message at this partition and offset
    #[arg(long, value_name = "PARTITION:OFFSET", value_parser = dead_letter_id)]
    pub id: Option<(i32, i64)>,
    /// Messages that were first rejected at or after this time, e.g. 2026-11-20T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<Timestamp>,
    /// Messages that were first rejected before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<Timestamp>,
}

impl DeadLetterFlags {
    pub fn is_given(&self) -> bool {
        self.rejected_for.is_some() || self.id.is_some() || self.since.is_some() || self.until.is_some()
    }
}

/// The reasons for which a message may be rejected. clap refuses any other value and lists these.
fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.map(Reason::name))
}

fn dead_letter_id(text: &str) -> Result<(i32, i64), String> {
    let parse = || {
        let (partition, offset) = text.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{text:?} is not PARTITION:OFFSET"))
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Table,
    Json,
}

impl Cli {
    /// The servers that the call uses, which decide the keys that must be set.
    pub fn needs(&self) -> Needs {
        match &self.verb {
            Some(Verb::Migrate | Verb::Receipt { partition: None, .. }) => Needs::Database,
            Some(Verb::Receipt { .. } | Verb::Conflicts { .. } | Verb::DeadLetters { .. }) => Needs::Ledger,
            _ => Needs::Everything,
        }
    }

    /// The flags, and the topic that a verb names, as settings that override file and environment.
    pub fn overrides(&self) -> Overrides {
        let mut overrides = self.common.overrides();
        if let Some(
            Verb::AcceptLoss { named_topic, .. }
            | Verb::Rebase { named_topic, .. }
            | Verb::Receipt { subject: named_topic, partition: Some(_), .. },
        ) = &self.verb
        {
            overrides.push(("kafka.topic", named_topic.clone()));
        }
        overrides
    }
}

impl Common {
    /// The flags as settings that override file and environment.
    fn overrides(&self) -> Overrides {
        [
            ("kafka.brokers", &self.brokers),
            ("kafka.topic", &self.topic),
            ("kafka.group", &self.group),
            ("database.url", &self.database_url),
            ("log.format", &self.log_format),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.clone()?)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// The help of a command and of all its verbs, as `-h` and `--help` print it.
    fn helps(command: &mut clap::Command) -> Vec<(String, String)> {
        let name = command.get_name().to_owned();
        let mut all =
            vec![(name.clone(), command.render_help().to_string()), (name, command.render_long_help().to_string())];
        all.extend(command.get_subcommands_mut().filter(|verb| verb.get_name() != "help").flat_map(helps));
        all
    }

    #[test]
    fn every_help_fits_80_columns_and_has_the_common_flags_in_a_group_of_their_own() {
        use clap::CommandFactory;
        let mut command = Cli::command();
        command.build();
        let helps = helps(&mut command);
        assert!(helps.len() > 20, "the help of every verb");
        for (verb, help) in helps {
            for line in help.lines() {
                assert!(line.chars().count() <= HELP_WIDTH, "{verb}: {line}");
            }
            let (own, common) = help.split_once("Common options:").unwrap_or_else(|| panic!("{verb}: {help}"));
            for flag in ["--config", "--brokers", "--topic", "--group", "--database-url", "--log-format"] {
                assert!(!own.contains(&format!("{flag} <")) && common.contains(&format!("{flag} <")), "{verb}: {help}");
            }
        }
    }

    #[test]
    fn from_db_and_offset_exclude_each_other() {
        assert!(Cli::try_parse_from(["gapless", "--from-db", "--offset", "latest"]).is_err());
        assert!(Cli::try_parse_from(["gapless", "--allow-skip"]).is_err());
    }
}
