//! The SQL that repairs a difference. Pure.

use super::text::one_line;
use super::{Catalogue, Key, Kind, Properties};

/// Added if the object's rows are lost with it: no SQL restores them.
const ROWS_LOST_NOTE: &str =
    " -- without its rows: restore a backup instead, or let `gapless verify` name what is missing";
const DOUBLED_NOTE: &str = " -- where it fails on doubled rows, `gapless verify` names them";

fn get<'a>(properties: &'a Properties, name: &str) -> &'a str {
    properties.get(name).map_or("", String::as_str)
}

/// Creates a missing object. A unique index with the constraint's name becomes the constraint; any other relation with
/// the object's name is renamed.
pub(crate) fn create(expected: &Catalogue, actual: &Catalogue, key: &Key, wanted: &Properties) -> String {
    if let Some(constraint) = by_index(actual, key, wanted) {
        return constraint;
    }
    create_beside(expected, actual, key, wanted)
}

/// Creates a missing object and renames any other relation with its name.
pub(crate) fn create_beside(expected: &Catalogue, actual: &Catalogue, key: &Key, wanted: &Properties) -> String {
    let name = key.name.strip_prefix("gapless.").unwrap_or(&key.name);
    let rename = if is_taken(actual, key) {
        let other = format!("{}_other", name.trim_matches('"'));
        format!("alter table gapless.{name} rename to {other}; ")
    } else {
        String::new()
    };
    rename + &create_statement(expected, key, wanted)
}

/// Creates a table of which another kind of relation has the name. That relation is renamed and keeps its rows.
pub(crate) fn replace_table(expected: &Catalogue, key: &Key, wanted: &Properties) -> String {
    let Key { name, .. } = key;
    let old = format!("{}_old", name.trim_start_matches("gapless."));
    let create = create_statement(expected, key, wanted).replace(ROWS_LOST_NOTE, "");
    format!("alter table {name} rename to {old}; {create} -- its rows are in gapless.{old}: insert them from there")
}

/// Returns true if the definition names this table.
pub(crate) fn uses(properties: &Properties, table: &str) -> bool {
    let mut words = get(properties, "definition").split(|c: char| !(c.is_alphanumeric() || "._".contains(c)));
    words.any(|word| word == table)
}

/// The SQL that makes a constraint of a unique index, if a user created such an index under the constraint's name.
fn by_index(actual: &Catalogue, key: &Key, wanted: &Properties) -> Option<String> {
    let Key { table, name, .. } = key;
    let (kind, columns) = get(wanted, "definition").split_once(" (")?;
    let index = Key { kind: Kind::Index, table: table.clone(), name: format!("gapless.{name}") };
    let found = actual.get(&index).filter(|_| key.kind == Kind::Constraint)?;
    let same = format!("CREATE UNIQUE INDEX {name} ON {table} USING btree ({columns}");
    let is_it = get(found, "definition") == same && get(found, "index") == "valid";
    is_it.then(|| format!("alter table {table} add constraint {name} {kind} using index {name}"))
}

/// Returns true if another relation has the name. Tables, views, indexes and sequences share one namespace.
fn is_taken(actual: &Catalogue, key: &Key) -> bool {
    let relation = |key: &Key, of: &Properties| match key.kind {
        Kind::Table | Kind::View | Kind::Index | Kind::Sequence => Some(key.name.clone()),
        Kind::Constraint if !get(of, "index").is_empty() => Some(format!("gapless.{}", key.name)),
        _ => None,
    };
    let needed = match key.kind {
        Kind::Constraint => format!("gapless.{}", key.name),
        _ => key.name.clone(),
    };
    actual.iter().any(|(other, of)| relation(other, of).is_some_and(|name| name == needed))
}

fn create_statement(expected: &Catalogue, key: &Key, wanted: &Properties) -> String {
    let Key { kind, table, name } = key;
    let definition = get(wanted, "definition");
    match kind {
        Kind::Type => match get(wanted, "labels") {
            "" => format!("create type {name} as ({})", get(wanted, "attributes")),
            labels => format!("create type {name} as enum ('{}'){ROWS_LOST_NOTE}", labels.replace(", ", "', '")),
        },
        Kind::Sequence => format!("create sequence {name} {definition}"),
        Kind::Table => format!("create table {name} ({}){ROWS_LOST_NOTE}", columns_of(expected, name)),
        Kind::Column => format!("alter table {table} add column {name} {}{ROWS_LOST_NOTE}", column(wanted)),
        Kind::Constraint => format!("alter table {table} add constraint {name} {definition}{}", doubled(definition)),
        Kind::View => view(name, wanted),
        Kind::Index | Kind::Function | Kind::Trigger | Kind::Rule => definition.to_owned(),
        Kind::RowSecurity => format!("alter table {name} enable row level security"),
        Kind::Policy => format!("create policy {name} on {table}"),
        Kind::Grant => String::new(),
    }
}

fn doubled(definition: &str) -> &'static str {
    if definition.starts_with("PRIMARY KEY") || definition.starts_with("UNIQUE") { DOUBLED_NOTE } else { "" }
}

fn view(name: &str, wanted: &Properties) -> String {
    format!("create view {name} as {}", one_line(get(wanted, "definition")).trim_end_matches(';'))
}

fn columns_of(expected: &Catalogue, table: &str) -> String {
    let mut columns: Vec<(u32, String)> = expected
        .iter()
        .filter(|(key, _)| key.kind == Kind::Column && key.table == table)
        .map(|(key, of)| (get(of, "place").parse().unwrap_or(u32::MAX), format!("{} {}", key.name, column(of))))
        .collect();
    columns.sort();
    columns.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", ")
}

/// The type and the clauses after it in a column definition.
fn column(of: &Properties) -> String {
    let mut text = get(of, "type").to_owned();
    if get(of, "not null") == "true" {
        text.push_str(" not null");
    }
    match (get(of, "default"), get(of, "identity")) {
        ("", "") => {}
        ("", identity) => text.push_str(&format!(" generated {identity} as identity")),
        (default, _) => text.push_str(&format!(" default {default}")),
    }
    text
}

/// An object that exists and differs.
pub(crate) struct Change<'a> {
    pub(crate) expected: &'a Catalogue,
    pub(crate) actual: &'a Catalogue,
    pub(crate) key: &'a Key,
    pub(crate) wanted: &'a Properties,
    pub(crate) found: &'a Properties,
}

impl Change<'_> {
    /// The SQL that repairs one property.
    pub(crate) fn remedy(&self, property: &str) -> String {
        let sql = change(self.key, property, self.wanted, self.found);
        if (self.key.kind, property) == (Kind::Column, "type") { self.without_views(&sql) } else { sql }
    }

    /// PostgreSQL cannot alter the type of a column that a view uses, so the table's views are dropped and created
    /// again.
    fn without_views(&self, sql: &str) -> String {
        let uses = |properties: &Properties| uses(properties, &self.key.table);
        let views = self
            .expected
            .iter()
            .filter(|(key, properties)| key.kind == Kind::View && uses(properties) && self.actual.contains_key(*key));
        let (dropped, made): (Vec<String>, Vec<String>) =
            views.map(|(key, of)| (format!("drop view {}; ", key.name), format!("; {}", view(&key.name, of)))).unzip();
        format!("{}{sql}{}", dropped.concat(), made.concat())
    }
}

fn change(key: &Key, property: &str, wanted: &Properties, found: &Properties) -> String {
    let Key { kind, table, name } = key;
    let value = get(wanted, property);
    let definition = get(wanted, "definition");
    match (kind, property) {
        (Kind::Type, "labels") => labels(name, value, get(found, "labels")),
        (Kind::Type, _) => {
            format!(
                "drop type {name} cascade; create type {name} as ({value}) -- and the objects that were dropped with it"
            )
        }
        (Kind::Sequence, "persistence") => format!("alter sequence {name} set logged"),
        (Kind::Sequence, _) => format!("alter sequence {name} {definition}"),
        (Kind::Table, "persistence") => format!("alter table {name} set logged"),
        // A relation of another kind is replaced as a whole.
        (Kind::Table, _) => String::new(),
        (Kind::Column, _) => format!("alter table {table} {}", alter_column(name, property, value, found)),
        (Kind::Constraint, "validated") => format!("alter table {table} validate constraint {name}"),
        (Kind::Constraint, "index") => format!("reindex index gapless.{name}{DOUBLED_NOTE}"),
        (Kind::Constraint, _) => {
            let doubled = doubled(definition);
            format!("alter table {table} drop constraint {name}, add constraint {name} {definition}{doubled}")
        }
        (Kind::Index, "index") => format!("reindex index {name}"),
        (Kind::Index, _) => format!("drop index {name}; {definition}"),
        (Kind::Function, _) if signature(definition) == signature(get(found, "definition")) => definition.to_owned(),
        (Kind::Function, _) => format!("drop routine {name}; {definition}"),
        (Kind::View, _) if get(wanted, "columns") == get(found, "columns") => {
            view(name, wanted).replacen("create view", "create or replace view", 1)
        }
        (Kind::View, _) => format!("drop view {name}; {}", view(name, wanted)),
        (Kind::Trigger, "enabled") => format!("alter table {table} enable trigger {name}"),
        (Kind::Trigger, _) => format!("drop trigger {name} on {table}; {definition}"),
        (Kind::Rule, _) => format!("drop rule {name} on {table}; {definition}"),
        (Kind::Policy | Kind::RowSecurity | Kind::Grant, _) => String::new(),
    }
}

/// The part of a function's definition that `create or replace` cannot change.
fn signature(definition: &str) -> String {
    one_line(definition).split(" LANGUAGE ").next().unwrap_or_default().to_owned()
}

fn alter_column(name: &str, property: &str, value: &str, found: &Properties) -> String {
    let action = match property {
        "type" => format!("type {value} using {name}::{value}"),
        "not null" if value == "true" => "set not null".to_owned(),
        "not null" => "drop not null".to_owned(),
        "default" if value.is_empty() => "drop default".to_owned(),
        "default" => format!("set default {value}"),
        "identity" if value.is_empty() => "drop identity".to_owned(),
        "identity" if get(found, "identity").is_empty() => format!("add generated {value} as identity"),
        "identity" => format!("set generated {value}"),
        _ => "drop expression".to_owned(),
    };
    format!("alter column {name} {action}")
}

/// The SQL that repairs the labels of an enum: one label was renamed, or labels are missing.
fn labels(name: &str, wanted: &str, found: &str) -> String {
    let (wanted, found): (Vec<&str>, Vec<&str>) = (wanted.split(", ").collect(), found.split(", ").collect());
    let missing: Vec<&&str> = wanted.iter().filter(|label| !found.contains(label)).collect();
    let unknown: Vec<&&str> = found.iter().filter(|label| !wanted.contains(label)).collect();
    match (missing.as_slice(), unknown.as_slice()) {
        ([missing], [unknown]) => format!("alter type {name} rename value '{unknown}' to '{missing}'"),
        ([], _) => format!("-- the labels of {name} must stand in the order {}: restore a backup", wanted.join(", ")),
        (missing, _) => {
            let add = |label: &&&str| format!("alter type {name} add value '{label}'");
            missing.iter().map(add).collect::<Vec<_>>().join("; ")
        }
    }
}
