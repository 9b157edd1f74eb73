//! What to do about an error of PostgreSQL: the one list of answers.

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The server is away or not as it should be: wait and try again, never a dead letter.
    Environment,
    /// Another transaction was in the way: try again at once.
    Contention,
    /// What we assumed is no longer so: read the positions again.
    Moved,
    /// One row cannot be stored: find it and keep it as a dead letter.
    Data,
    /// A bug or a changed schema: stop the partition and say so.
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
