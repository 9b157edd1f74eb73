//! The expected catalogue of schema `gapless`: the objects that this version's migrations create in an empty database,
//! embedded in the binary.
//!
//! `expected.jsonl` is generated: `make catalogue` writes it again after a migration was added, and a test compares it
//! with the migrations.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::text::one_line;
use super::{Catalogue, Key, Kind, Properties};
use crate::postgres::error::UniqueKey;

static EXPECTED: LazyLock<Catalogue> = LazyLock::new(|| parse(include_str!("expected.jsonl")));

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    key: Key,
    properties: Properties,
}

pub(crate) fn catalogue() -> &'static Catalogue {
    &EXPECTED
}

/// Returns true for a function of the migrations. `name` may be qualified or not, as PostgreSQL writes it into an
/// error's context.
pub(crate) fn is_our_function(name: &str) -> bool {
    static NAMES: LazyLock<HashSet<&str>> = LazyLock::new(|| {
        let functions = EXPECTED.keys().filter(|key| key.kind == Kind::Function);
        functions.filter_map(|key| key.name.split('(').next()?.strip_prefix("gapless.")).collect()
    });
    NAMES.contains(name.strip_prefix("gapless.").unwrap_or(name))
}

pub(crate) fn unique_key(constraint: &str) -> UniqueKey {
    static NUMBERS: LazyLock<BTreeMap<&str, bool>> = LazyLock::new(|| {
        let numbered: HashSet<(&str, &str)> = numbered_columns().map(|(_, table, column)| (table, column)).collect();
        let keys = EXPECTED.iter().filter(|(key, _)| key.kind == Kind::Constraint);
        keys.filter_map(|(key, properties)| {
            let definition = properties.get("definition")?;
            let columns = definition.strip_prefix("PRIMARY KEY (").or(definition.strip_prefix("UNIQUE ("))?;
            let column = columns.strip_suffix(')')?;
            Some((key.name.as_str(), numbered.contains(&(key.table.as_str(), column))))
        })
        .collect()
    });
    match NUMBERS.get(constraint) {
        Some(true) => UniqueKey::Number,
        Some(false) => UniqueKey::Contents,
        None => UniqueKey::NotOurs,
    }
}

/// Sequence, table and column, for each column that a sequence numbers and a unique key covers.
pub(crate) fn numbered_columns() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let identities = EXPECTED.iter().filter_map(|(key, properties)| {
        let of = (key.kind == Kind::Sequence).then(|| properties.get("of"))??;
        let (table, column) = of.rsplit_once('.')?;
        Some((key.name.as_str(), table, column))
    });
    // The daemon takes event ids before it inserts the events, so the catalogue does not connect this sequence with its
    // column.
    identities.chain([("gapless.event_ids", "gapless.stored_events", "id")])
}

fn parse(text: &str) -> Catalogue {
    text.lines()
        .map(|line| {
            let Line { key, properties } = serde_json::from_str(line).expect("a test reads every line");
            (key, properties)
        })
        .collect()
}

/// The text of `expected.jsonl` for the catalogue of a newly migrated database.
pub(crate) fn write(catalogue: Catalogue) -> String {
    let line = |(key, properties): (Key, Properties)| {
        let properties = properties.into_iter().map(|(name, value)| (name, one_line(&value))).collect();
        serde_json::to_string(&Line { key, properties }).expect("texts") + "\n"
    };
    catalogue.into_iter().filter(|(key, _)| key.kind.is_made_by_migrations()).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_on_sequence_numbers_differs_from_a_key_on_contents() {
        assert_eq!(unique_key("stored_events_identity_key"), UniqueKey::Contents);
        assert_eq!(unique_key("outcomes_pkey"), UniqueKey::Contents);
        for key in ["stored_events_pkey", "conflicting_events_pkey", "gaps_pkey", "positions_pkey", "writers_pkey"] {
            assert_eq!(unique_key(key), UniqueKey::Number, "{key}");
        }
        assert_eq!(unique_key("a_users_own_key"), UniqueKey::NotOurs);
    }

    #[test]
    fn our_functions_are_known_with_and_without_their_schema() {
        assert!(is_our_function("gapless.write_few") && is_our_function("advance"));
        assert!(!is_our_function("public.audit") && !is_our_function("gapless.audit"));
    }
}
