//! The migrations, embedded in the binary.

use refinery::{Migration, Runner};

mod embedded {
    refinery::embed_migrations!("migrations");
}

pub(crate) fn runner() -> Runner {
    embedded::migrations::runner()
}

/// The version of this program's newest migration.
pub(crate) fn known_version() -> i32 {
    runner().get_migrations().iter().map(Migration::version).max().unwrap_or(0)
}
