//! Compares the actual catalogue with the expected one: differences, and objects that users added. Pure.

use std::collections::HashSet;

use super::text::essence;
use super::{Catalogue, Difference, Key, Kind, Properties, remedy};

/// Properties that are needed to create an object and may differ.
const NOT_COMPARED: [&str; 3] = ["place", "of", "function"];

pub(crate) fn differences(expected: &Catalogue, actual: &Catalogue) -> Vec<Difference> {
    let replaced = replaced_tables(expected, actual);
    let mut found: Vec<(u8, Difference)> = Vec::new();
    for (key, wanted) in expected {
        let differences = match actual.get(key) {
            _ if key.kind == Kind::Column && replaced.contains(key.table.as_str()) => Vec::new(),
            Some(properties) if key.kind == Kind::Table && replaced.contains(key.name.as_str()) => {
                vec![replaced_table(expected, key, wanted, properties)]
            }
            _ if replaced.contains(key.table.as_str()) => vec![Difference {
                object: key.to_string(),
                difference: "is missing".to_owned(),
                remedy: remedy::create_beside(expected, actual, key, wanted),
            }],
            None if comes_with_another(key, wanted, actual) => Vec::new(),
            None => vec![missing(expected, actual, key, wanted)],
            Some(properties) => {
                let change = remedy::Change { expected, actual, key, wanted, found: properties };
                match changed(&change) {
                    changed if changed.is_empty() => moved(&change, &replaced).into_iter().collect(),
                    changed => changed,
                }
            }
        };
        found.extend(differences.into_iter().map(|difference| (rank(key, wanted), difference)));
    }
    // The order in which the remedies work: foreign keys need the keys that they refer to, functions and views need all
    // other objects.
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, difference)| difference).collect()
}

/// Tables of which another kind of relation has the name. They must be created again, with all objects that belong to
/// them.
fn replaced_tables<'a>(expected: &'a Catalogue, actual: &Catalogue) -> HashSet<&'a str> {
    let storage = |properties: &Properties| properties.get("storage").cloned();
    let tables = expected.iter().filter(|(key, _)| key.kind == Kind::Table);
    let is_replaced =
        |(key, wanted): &(&Key, &Properties)| actual.get(*key).is_some_and(|found| storage(found) != storage(wanted));
    tables.filter(is_replaced).map(|(key, _)| key.name.as_str()).collect()
}

fn replaced_table(expected: &Catalogue, key: &Key, wanted: &Properties, found: &Properties) -> Difference {
    let [wanted_storage, found_storage] = [wanted, found].map(|of| of.get("storage").map_or("", String::as_str));
    Difference {
        object: key.to_string(),
        difference: described(key, "storage", wanted_storage, found_storage),
        remedy: remedy::replace_table(expected, key, wanted),
    }
}

/// A view or a foreign key that has the expected definition but refers to the relation in place of a table. PostgreSQL
/// keeps that reference when the relation is renamed.
fn moved(change: &remedy::Change<'_>, replaced: &HashSet<&str>) -> Option<Difference> {
    let table = replaced.iter().find(|table| remedy::uses(change.wanted, table))?;
    let can_move = matches!(change.key.kind, Kind::View | Kind::Constraint);
    can_move.then(|| Difference {
        object: change.key.to_string(),
        difference: format!("refers to the relation that is in place of {table}"),
        remedy: change.remedy("definition"),
    })
}

fn rank(key: &Key, wanted: &Properties) -> u8 {
    let foreign = wanted.get("definition").is_some_and(|definition| definition.starts_with("FOREIGN KEY"));
    2 * key.kind as u8 + u8::from(key.kind == Kind::Constraint && foreign)
}

/// Columns are created with their table, and sequences with their identity column.
fn comes_with_another(key: &Key, wanted: &Properties, actual: &Catalogue) -> bool {
    let has_table =
        |table: &str| actual.contains_key(&Key { kind: Kind::Table, table: String::new(), name: table.to_owned() });
    match key.kind {
        Kind::Column => !has_table(&key.table),
        Kind::Sequence => wanted.get("of").is_some_and(|of| !of.is_empty()),
        _ => false,
    }
}

fn missing(expected: &Catalogue, actual: &Catalogue, key: &Key, wanted: &Properties) -> Difference {
    Difference {
        object: key.to_string(),
        difference: "is missing".to_owned(),
        remedy: remedy::create(expected, actual, key, wanted),
    }
}

fn changed(change: &remedy::Change<'_>) -> Vec<Difference> {
    let remedy::Change { key, wanted, found, .. } = change;
    let compared = wanted.iter().filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()));
    let changed = compared.filter_map(|(name, wanted_value)| {
        let value = found.get(name).map_or("", String::as_str);
        let same = match name.as_str() {
            "labels" => has_all_in_order(wanted_value, value),
            _ => essence(wanted_value) == essence(value),
        };
        (!same).then(|| Difference {
            object: key.to_string(),
            difference: described(key, name, wanted_value, value),
            remedy: change.remedy(name),
        })
    });
    // If a view's definition differs, its columns may differ too, and one statement repairs both.
    let mut seen = HashSet::new();
    changed.filter(|difference| seen.insert(difference.remedy.clone())).collect()
}

/// Additional labels of users are accepted.
fn has_all_in_order(wanted: &str, found: &str) -> bool {
    let mut found = found.split(", ");
    wanted.split(", ").all(|label| found.any(|other| other == label))
}

fn described(key: &Key, property: &str, wanted: &str, found: &str) -> String {
    match (key.kind, property) {
        (Kind::View | Kind::Function, _) => "is not the one that this version made".to_owned(),
        (_, "index") => format!("is {found}"),
        (_, "validated") => "is not validated".to_owned(),
        (_, "triggers") => "is not enforced: its triggers are disabled".to_owned(),
        (_, "enabled") => "is disabled".to_owned(),
        (_, "not null") if wanted == "true" => "may be null".to_owned(),
        (_, "not null") => "may not be null".to_owned(),
        (_, "persistence" | "storage") => format!("is {found}, needed is {wanted}"),
        (_, name) if found.is_empty() => format!("has no {name}, needed is {wanted}"),
        (_, name) if wanted.is_empty() => format!("has {name} {found}, needed is none"),
        (_, name) => format!("has {name} {found}, needed is {wanted}"),
    }
}

/// Descriptions of the objects that users added to the ledger. An addition is no difference.
pub(crate) fn additions(expected: &Catalogue, actual: &Catalogue) -> Vec<String> {
    let is_ours = |kind, name: &str| expected.contains_key(&Key { kind, table: String::new(), name: name.to_owned() });
    let added = actual.iter().filter(|(key, properties)| {
        // Objects that belong to a user's own table are not listed besides the table.
        let of_own_table =
            !key.table.is_empty() && !is_ours(Kind::Table, &key.table) && !is_ours(Kind::View, &key.table);
        let numbers_a_column = key.kind == Kind::Sequence && properties.get("of").is_some_and(|of| !of.is_empty());
        !expected.contains_key(*key) && !of_own_table && !numbers_a_column
    });
    let mut added: Vec<String> = added.map(|(key, properties)| described_addition(key, properties)).collect();
    added.extend(labels_added(expected, actual));
    added
}

fn labels_added(expected: &Catalogue, actual: &Catalogue) -> impl Iterator<Item = String> {
    expected.iter().filter_map(|(key, wanted)| {
        let (wanted, found) = (wanted.get("labels")?, actual.get(key)?.get("labels")?);
        let wanted: HashSet<&str> = wanted.split(", ").collect();
        let added: Vec<&str> = found.split(", ").filter(|label| !wanted.contains(label)).collect();
        (!added.is_empty()).then(|| format!("label {} of {key}", added.join(", ")))
    })
}

fn described_addition(key: &Key, properties: &Properties) -> String {
    let property = |name: &str| properties.get(name).map_or("", String::as_str);
    match key.kind {
        Kind::Trigger if property("enabled") == "yes" => format!("{key} executes {}", property("function")),
        Kind::Trigger => format!("{key} executes {} (disabled)", property("function")),
        Kind::Column if property("not null") == "true" && (property("default"), property("identity")) == ("", "") => {
            format!("{key} (without a default and not null: no row can be inserted)")
        }
        Kind::RowSecurity if property("active") == "true" => format!("{key} (it applies to this role)"),
        Kind::Grant => format!("{key}: {} on {} relations", property("privileges"), property("relations")),
        Kind::Constraint | Kind::Index => format!("{key}: {}", property("definition")),
        _ => key.to_string(),
    }
}
