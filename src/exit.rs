//! How the process ends: the exit codes of the contract, decided in one place.

use std::fmt::Display;

/// Ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or stopped as asked.
    Done,
}

/// Ended otherwise: a code and one line that says what, where and what to do.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    pub message: String,
}

impl Failure {
    /// 1: something failed.
    pub fn failed(message: impl Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    /// 2: bad usage or configuration.
    pub fn usage(message: impl Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// 3: an operator must decide.
    pub fn decide(message: impl Display) -> Self {
        Self { code: 3, message: message.to_string() }
    }

    /// 128 and the signal's number, as a shell says it of a program that a signal ended: a verb was interrupted.
    pub fn interrupted(signal: &str, number: u8) -> Self {
        Self { code: 128 + number, message: format!("interrupted by {signal}") }
    }
}

/// The process's exit code.
pub fn code(result: &Result<Exit, Failure>) -> u8 {
    match result {
        Ok(Exit::Done) => 0,
        Err(failure) => failure.code,
    }
}
