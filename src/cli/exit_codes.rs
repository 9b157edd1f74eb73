//! The exit codes that the help of each verb lists. [`crate::exit`] and the verbs decide the code of a run.
//! docs/cli.md is rendered from these texts: each line is a code, two blanks and its meaning. A meaning may continue in
//! the next line, below its own column.

/// The exit codes of the daemon, and of every verb without a list of its own.
pub(super) const COMMON: &str = "\
Exit codes:
  0    done, or stopped as asked
  1    failed: a verb cannot reach a server (the daemon waits for it instead),
       server.bind is in use, an operation failed
  2    bad usage or configuration
  3    an operator must decide or look: the start is refused, a newer daemon has
       taken over, or with --until-end a partition is halted and the others are
       finished; a verb lists its own reasons in its help
  130  a verb was interrupted by Ctrl-C
  143  a verb was interrupted by SIGTERM";

pub(super) const STATUS: &str = "\
Exit codes:
  0  every partition is being read, or waits for new messages
  1  PostgreSQL or Kafka cannot be asked, or the topic does not exist
  3  a partition is halted or suspended, or offsets are unaccounted for";

pub(super) const PLAN: &str = "\
Exit codes:
  0  the start would take place
  1  a server cannot be asked
  3  the start would be refused, or a partition would halt";

pub(super) const VERIFY: &str = "\
Exit codes:
  0  nothing is missing, doubled, altered or damaged; accepted losses are shown
  1  the ledger has no findings, but not everything was compared with Kafka
  3  something is missing, doubled, altered or damaged";

pub(super) const RECEIPT: &str = "\
Exit codes:
  0  the outcome, the gap or the events are shown
  3  nothing is known of the message or transaction, or the message is missing";

pub(super) const REPLAY: &str = "\
Exit codes:
  0  every selected message has an outcome other than rejected
  3  messages are still rejected, or the range cannot be read again";

pub(super) const ACCEPT_LOSS: &str = "\
Exit codes:
  0  the range is recorded as lost
  2  there is no such partition, or FROM does not lie below TO
  3  refused: Kafka still has a part of the range, or the partition does not
     stand before it";

pub(super) const REBASE: &str = "\
Exit codes:
  0  a new generation begins
  2  the topic was never read into this ledger
  3  refused: another flag describes what happened, or messages that were never
     read must be given up with --accept-unread; the message has the command";

pub(super) const MIGRATE: &str = "\
Exit codes:
  0  the schema is up to date
  1  PostgreSQL cannot be asked, or a migration failed and left nothing
  3  this role may not migrate, or the ledger is not as this version needs it";

pub(super) const CHECK: &str = "\
Exit codes:
  0  a start would take place; warnings alone are no failure
  1  a start would wait or fail
  2  the configuration is wrong
  3  a start would be refused, or a partition would halt or is halted";

pub(super) const SHOW: &str = "\
Exit codes:
  0  the message is shown
  1  there is no such dead letter, or PostgreSQL cannot be asked";
