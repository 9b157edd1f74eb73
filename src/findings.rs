//! Findings: errors that prevent a start or the reading of a partition, each with its effect and its remedy, defined in
//! one place. The daemon waits, refuses or ends by them; `check` lists them; every verb with the same error prints the
//! same line with the same exit code. Pure.

use std::borrow::Cow;

use serde::Serialize;

use crate::exit::Failure;
use crate::kafka::SourceError;
use crate::ledger::error::LedgerError;
use crate::ledger::read::status::Recorded;
use crate::ledger::start::StartError;
use crate::ledger::start::rights::{MissingRight, RightsOf, merged};
use crate::ledger::start::schema::MigrateError;
use crate::model::error_class::Class;
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::start_order::Refusal;
use crate::model::topic::{IdentityMismatch, TopicPartition};

/// The effect of a finding on a start, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// No effect.
    None,
    /// The start takes place, with a restriction.
    Warns,
    /// The start waits until the cause is gone.
    Waits,
    /// The start ends with exit code 1.
    Fails,
    /// The command line or the configuration is wrong: exit code 2.
    Misused,
    /// The partition halts, the others are read.
    Halts,
    /// The start is refused: exit code 3.
    Refuses,
}

/// One finding with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject, such as `kafka` or `partition 3`.
    pub what: Cow<'static, str>,
    pub effect: Effect,
    pub detail: String,
    /// Empty if there is nothing to do.
    pub remedy: String,
}

impl Finding {
    pub fn new(
        what: impl Into<Cow<'static, str>>,
        effect: Effect,
        detail: impl ToString,
        remedy: impl Into<String>,
    ) -> Self {
        Self { what: what.into(), effect, detail: detail.to_string(), remedy: remedy.into() }
    }

    /// Finding and remedy in one line, for logs and standard error.
    pub fn line(&self) -> String {
        match self.remedy.as_str() {
            // The text of some errors includes the remedy.
            "" => self.detail.clone(),
            remedy => format!("{}; {remedy}", self.detail),
        }
    }
}

impl Finding {
    /// The finding of a partition that would halt, or is halted.
    pub fn of_halt(partition: &TopicPartition, halt: &Halt) -> Self {
        let detail = format!("halts as {}: {}", halt.reason.name(), halt.detail);
        Self::new(format!("partition {}", partition.partition), Effect::Halts, detail, halt.remedy(partition))
    }

    /// The finding of a partition that a daemon has recorded as halted or suspended.
    pub fn of_recorded(partition: i32, recorded: &Recorded) -> Self {
        let Recorded { state, reason, detail, since, remedy, .. } = recorded;
        let effect = if state == "halted" { Effect::Halts } else { Effect::Warns };
        let detail = format!("{state} since {since} ({reason}): {detail}");
        Self::new(format!("partition {partition}"), effect, detail, remedy.clone())
    }

    /// The missing rights of the role: one finding for the rights that the daemon needs, one for those of verbs.
    pub fn of_rights(missing: &[MissingRight]) -> Vec<Self> {
        let all = |effect, is_one: fn(&MissingRight) -> bool| {
            let these: Vec<MissingRight> = missing.iter().filter(|right| is_one(right)).cloned().collect();
            let these = merged(&these);
            let details: Vec<String> = these.iter().map(ToString::to_string).collect();
            let grants: Vec<String> = these.iter().map(MissingRight::grant).collect();
            let finding = || Self::new("rights", effect, details.join(", "), format!("run: {};", grants.join("; ")));
            (!these.is_empty()).then(finding)
        };
        let needed = all(Effect::Waits, |right| right.whose != RightsOf::OfVerbs);
        let of_verbs = all(Effect::Warns, |right| right.whose == RightsOf::OfVerbs);
        needed.into_iter().chain(of_verbs).collect()
    }
}

impl Finding {
    /// The finding of the missing rights that the daemon needs; `None` if it has them.
    pub fn denied(missing: &[MissingRight]) -> Option<Self> {
        Self::of_rights(missing).into_iter().find(|finding| finding.effect == Effect::Waits)
    }
}

impl Finding {
    /// A refusal whose text includes the remedy. `page`: its place in the documents.
    fn refused(what: &'static str, detail: impl ToString, page: &str) -> Self {
        Self::new(what, Effect::Refuses, detail, format!("see {page}"))
    }
}

/// The place in the documents that explains a refused order.
fn page(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::WouldSkip { .. } => "docs/operations.md#refused-skip",
        Refusal::BelowLogStart { .. } => "docs/operations.md#refused-log-start",
        Refusal::BeyondLogEnd { .. } => "docs/operations.md#refused-log-end",
    }
}

impl From<Finding> for Failure {
    fn from(finding: Finding) -> Self {
        match finding.effect {
            Effect::None | Effect::Warns | Effect::Waits | Effect::Fails => Self::failed(finding.line()),
            Effect::Misused => Self::usage(finding.line()),
            Effect::Halts | Effect::Refuses => Self::decide(finding.line()),
        }
    }
}

impl From<LedgerError> for Finding {
    fn from(error: LedgerError) -> Self {
        if let LedgerError::Schema(_) | LedgerError::LedgerRow { .. } = &error {
            return Self::new("ledger", Effect::Refuses, &error, error.remedy());
        }
        let effect = match error.class() {
            Class::Environment | Class::Contention | Class::Moved => Effect::Waits,
            Class::Data | Class::Halt => Effect::Fails,
        };
        Self::new("postgresql", effect, &error, error.remedy())
    }
}

impl From<MigrateError> for Finding {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Store(error) => error.into(),
            MigrateError::CutShort(_) => Self::new("schema", Effect::Waits, error, ""),
            MigrateError::Failed(_) => Self::new(
                "schema",
                Effect::Fails,
                error,
                "nothing of it was kept; correct the cause that the message names, then run `gapless migrate`",
            ),
            MigrateError::Version(_) | MigrateError::Encoding(_) => {
                Self::refused("schema", error, "docs/operations.md#refused-database")
            }
            MigrateError::Newer { .. } => Self::refused("schema", error, "docs/operations.md#refused-newer-schema"),
            MigrateError::NoHistory => Self::refused("schema", error, "docs/operations.md#refused-history"),
            MigrateError::NotAllowed(_) => Self::refused("schema", error, "docs/operations.md#refused-migrate"),
        }
    }
}

impl From<StartError> for Finding {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => error.into(),
            StartError::Order(_) => Self::new("order", Effect::Misused, error, ""),
            StartError::Refused(ref refusals) => {
                let page = refusals.first().map_or("docs/operations.md#it-refuses-to-start-exit-3", page);
                Self::refused("order", error, page)
            }
            StartError::OtherGroup { .. } => Self::refused("ledger", error, "docs/operations.md#refused-group"),
            StartError::OtherIdentity { .. } => Self::refused("ledger", error, "docs/operations.md#refused-identity"),
            StartError::NoLeader(_) => Self::new(
                "topic",
                Effect::Waits,
                error,
                "start the brokers that lead them, or elect leaders (kafka-leader-election.sh)",
            ),
            StartError::OtherTopicIdentity { topic, difference, unread } => {
                let halt = Halt { unread, ..Halt::new(reason(&difference), None, "") };
                Self::new("topic", Effect::Refuses, difference, halt.remedy(&topic.partition(0)))
            }
        }
    }
}

fn reason(difference: &IdentityMismatch) -> HaltReason {
    match difference {
        IdentityMismatch::Cluster { .. } => HaltReason::OtherCluster,
        IdentityMismatch::Topic { .. } => HaltReason::Recreated,
    }
}

impl From<Refusal> for Finding {
    fn from(refusal: Refusal) -> Self {
        Self::refused("order", &refusal, page(&refusal))
    }
}

impl From<SourceError> for Finding {
    fn from(error: SourceError) -> Self {
        let (what, effect) = match &error {
            SourceError::Client(_) | SourceError::Secret { .. } => ("kafka", Effect::Misused),
            SourceError::NoTopic(_) | SourceError::NoLeader { .. } => ("topic", Effect::Waits),
            SourceError::NoSettings => ("topic", Effect::Warns),
            SourceError::Thread(_) => ("machine", Effect::Fails),
            SourceError::Log { .. } | SourceError::NotUnpacked { .. } => ("topic", Effect::Halts),
            SourceError::Unreachable(_) | SourceError::Call { .. } | SourceError::Timeout { .. } => {
                ("kafka", Effect::Waits)
            }
        };
        let remedy = error.remedy();
        Self::new(what, effect, &error, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_and_its_remedy_are_one_line() {
        let finding = Finding::from(SourceError::NoTopic("events".into()));
        assert_eq!(
            finding.line(),
            "topic events does not exist; create the topic, or correct kafka.topic; gapless never creates one"
        );
        assert_eq!(Finding::new("order", Effect::Refuses, "no", "").line(), "no");
    }

    #[test]
    fn missing_rights_come_with_the_sql_that_grants_them() {
        let missing = |right: &str, whose| MissingRight {
            role: "w".into(),
            right: right.into(),
            object: "gapless.gaps".into(),
            whose,
        };
        let findings = Finding::of_rights(&[missing("INSERT", RightsOf::Ours), missing("DELETE", RightsOf::OfVerbs)]);
        let effects: Vec<Effect> = findings.iter().map(|f| f.effect).collect();
        assert_eq!(effects, [Effect::Waits, Effect::Warns]);
        assert_eq!(findings[0].remedy, "run: grant INSERT on gapless.gaps to w;");
        assert!(Finding::of_rights(&[]).is_empty());
    }

    #[test]
    fn effects_are_ordered_by_severity() {
        assert!(Effect::Warns < Effect::Waits && Effect::Waits < Effect::Halts && Effect::Halts < Effect::Refuses);
    }
}
