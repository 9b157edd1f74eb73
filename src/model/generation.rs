//! Generations of a topic: why a new one begins, and which offsets of the earlier log were never read. Pure.
//!
//! `pipeline` and `ledger` name the command that begins a new generation; `commands` executes it.

use std::fmt;
use std::str::FromStr;

use crate::model::offset::{NextOffset, OffsetRange};

/// Why the offsets of a topic no longer name the same messages as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewGeneration {
    /// The topic was deleted and created again.
    Recreated,
    /// The topic is the same, but the log of a partition was truncated or replaced.
    LogReplaced,
    /// The topic is now read from another cluster.
    ClusterChanged,
}

impl NewGeneration {
    /// The flag of `gapless rebase` for this case. A re-created topic needs none: its topic id shows it.
    pub fn flag(self) -> Option<&'static str> {
        match self {
            Self::Recreated => None,
            Self::LogReplaced => Some("--log-replaced"),
            Self::ClusterChanged => Some("--cluster-changed"),
        }
    }

    /// The complete `gapless rebase` command; it accepts that the `unread` ranges are given up.
    pub fn command(self, topic: &str, unread: &[Unread]) -> String {
        let flag = self.flag().map(|flag| format!(" {flag}")).unwrap_or_default();
        let unread: String = unread.iter().map(|unread| format!(" --accept-unread {unread}")).collect();
        format!("gapless rebase {topic}{flag}{unread} --reason \"WHY\"")
    }
}

/// Offsets of a partition that existed in its log and were never read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    pub partition: i32,
    pub range: OffsetRange,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-{}", self.partition, self.range.from(), self.range.to())
    }
}

impl FromStr for Unread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (partition, range) = text.split_once(':')?;
            let (from, to) = range.split_once('-')?;
            let offset = |text: &str| text.parse().ok().and_then(NextOffset::new);
            let partition = partition.parse().ok().filter(|p| *p >= 0)?;
            Some(Self { partition, range: OffsetRange::new(offset(from)?, offset(to)?)? })
        };
        parse().ok_or_else(|| format!("{text:?} is not PARTITION:FROM-TO with FROM below TO"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unread_range_is_printed_in_the_form_that_is_parsed() {
        let unread: Unread = "3:16900-18267".parse().expect("valid");
        assert_eq!((unread.to_string().as_str(), unread.range.count()), ("3:16900-18267", 1367));
        for text in ["", "3", "3:5", "3:5-5", "3:6-5", "-1:0-5", "x:0-5", "3:0-5-6"] {
            assert!(text.parse::<Unread>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_names_flag_and_unread_ranges() {
        let unread = ["0:5-9".parse().expect("valid"), "2:1-4".parse().expect("valid")];
        assert_eq!(
            NewGeneration::LogReplaced.command("events", &unread),
            "gapless rebase events --log-replaced --accept-unread 0:5-9 --accept-unread 2:1-4 --reason \"WHY\""
        );
        assert_eq!(NewGeneration::Recreated.command("events", &[]), "gapless rebase events --reason \"WHY\"");
    }
}
