//! The exit codes of the contract. Only this module assigns them.

use std::fmt::Display;

/// The process succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The work is done, or the process stopped on request.
    Done,
}

/// The process failed: an exit code, and one line that says what failed, where, and what to do.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    pub message: String,
}

impl Failure {
    /// 1: the work failed, e.g. because a server is away.
    pub fn failed(message: impl Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    /// 2: the usage or the configuration is wrong.
    pub fn usage(message: impl Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// 3: an operator must decide.
    pub fn decide(message: impl Display) -> Self {
        Self { code: 3, message: message.to_string() }
    }

    /// 128 + the signal's number, as a shell reports a program that a signal ended: a verb was interrupted.
    pub fn interrupted(signal: &str, number: u8) -> Self {
        Self { code: 128 + number, message: format!("interrupted by {signal}") }
    }
}

/// The exit code of the process.
pub fn code(result: &Result<Exit, Failure>) -> u8 {
    match result {
        Ok(Exit::Done) => 0,
        Err(failure) => failure.code,
    }
}
