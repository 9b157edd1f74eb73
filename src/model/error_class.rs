//! The classes of PostgreSQL errors. A class decides how the writer handles the error.

/// How an error is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The server is away or misconfigured: wait and retry. The messages never become dead letters.
    Environment,
    /// Another transaction conflicts with ours: retry at once.
    Contention,
    /// Our assumption about the stored positions is no longer true: reload the positions.
    Moved,
    /// One row cannot be stored: find it and store its message as a dead letter.
    Data,
    /// A bug or a changed schema: halt the partition and report the reason.
    Halt,
}

impl Class {
    pub const ALL: [Self; 5] = [Self::Environment, Self::Contention, Self::Moved, Self::Data, Self::Halt];

    pub fn name(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Contention => "contention",
            Self::Moved => "moved",
            Self::Data => "data",
            Self::Halt => "halt",
        }
    }
}
