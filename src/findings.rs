//! What keeps a start from taking place, or a partition from being read: each with its effect and its
//! remedy, said in one place. `app` waits, refuses or ends by it, `check` lists it, and every verb that
//! meets the same error prints the same line with the same exit code. Pure.

use std::borrow::Cow;

use serde::Serialize;

use crate::exit::Failure;
use crate::source::SourceError;
use crate::start::Refusal;
use crate::store::{Class, MigrateError, StartError, StoreError};

/// What a finding does to a start, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// All is well.
    None,
    /// The start takes place; something is done without.
    Warns,
    /// The start waits until it is mended or passes.
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

/// One thing that was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: Cow<'static, str>,
    pub effect: Effect,
    pub detail: String,
    /// Empty where there is nothing to do.
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

    /// Finding and remedy in one line: the one way both are put together, in logs as on standard error.
    pub fn line(&self) -> String {
        match self.remedy.as_str() {
            // Some errors say the remedy themselves.
            "" => self.detail.clone(),
            remedy => format!("{}; {remedy}", self.detail),
        }
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

impl From<StoreError> for Finding {
    fn from(error: StoreError) -> Self {
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
                "nothing of it was kept; mend what the message names, then run `gapless migrate`",
            ),
            MigrateError::Version(_)
            | MigrateError::Encoding(_)
            | MigrateError::Newer { .. }
            | MigrateError::NotAllowed(_) => Self::new("schema", Effect::Refuses, error, ""),
        }
    }
}

impl From<StartError> for Finding {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => error.into(),
            StartError::Order(_) => Self::new("order", Effect::Misused, error, ""),
            StartError::Refused(_) => Self::new("order", Effect::Refuses, error, ""),
            StartError::OtherGroup { .. } | StartError::OtherIdentity { .. } => {
                Self::new("ledger", Effect::Refuses, error, "")
            }
            StartError::AnotherLife(_) => Self::new("topic", Effect::Refuses, error, ""),
        }
    }
}

impl From<Refusal> for Finding {
    fn from(refusal: Refusal) -> Self {
        Self::new("order", Effect::Refuses, refusal, "")
    }
}

impl From<SourceError> for Finding {
    fn from(error: SourceError) -> Self {
        let (what, effect) = match &error {
            SourceError::Client(_) | SourceError::Secret { .. } => ("kafka", Effect::Misused),
            SourceError::NoTopic(_) | SourceError::NoLeader { .. } => ("topic", Effect::Waits),
            SourceError::NoSettings => ("topic", Effect::Warns),
            SourceError::Thread(_) => ("machine", Effect::Fails),
            SourceError::Log { .. } => ("topic", Effect::Halts),
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
    fn the_effects_are_ordered_by_what_they_keep_from_being_read() {
        assert!(Effect::Warns < Effect::Waits && Effect::Waits < Effect::Halts && Effect::Halts < Effect::Refuses);
    }
}
