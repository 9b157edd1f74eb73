//! docs/configuration.md is rendered from config/default.toml, which has every key that the program knows.

use std::collections::BTreeSet;
use std::fmt::Write;

const INTRODUCTION: &str = r#"# Configuration

<!-- Rendered from config/default.toml by `make docs`. Edit the comments there. -->

Built-in defaults < configuration file (`--config FILE`, TOML) < environment < flags: each layer overrides those before it. A
file needs only the keys that it changes:

```toml
[kafka]
brokers = "kafka-1:9092,kafka-2:9092"
topic = "contract-events"

[database]
url_file = "/etc/gapless/database-url"
```

- Each key can be set by an environment variable: `GAPLESS__SECTION__KEY`. A list has commas (`txn,event_type`) or is JSON
  (`["txn","event_type"]`).
- Unknown keys and misspelt variables are errors (exit code 2) that name the key, the value and what to write instead.
- Secrets may come from files (`database.url_file`, `database.password_file`, `kafka.sasl_password_file`). They are never
  printed.
- `gapless check` checks the configuration and both servers before a start.
"#;

struct Section {
    name: String,
    purpose: String,
    keys: Vec<Key>,
}

struct Key {
    /// The name with its section: `kafka.topic`.
    name: String,
    /// The default value in TOML.
    default: String,
    meaning: String,
}

#[test]
fn the_page_of_the_configuration_is_rendered_from_the_default_file() {
    super::expect_page("docs/configuration.md", &page(&sections(gapless::config::DEFAULTS)));
}

#[test]
fn the_default_file_has_every_key_that_the_program_knows_each_with_its_meaning() {
    let sections = sections(gapless::config::DEFAULTS);
    assert!(sections.iter().all(|section| !section.purpose.is_empty()), "each section has a purpose");
    let keys: Vec<&Key> = sections.iter().flat_map(|section| &section.keys).collect();
    for key in &keys {
        assert!(!key.meaning.is_empty(), "{} has no comment in config/default.toml", key.name);
    }
    let documented: BTreeSet<String> = keys.iter().map(|key| key.name.clone()).collect();
    assert_eq!(documented.len(), keys.len(), "each key is listed once");
    assert_eq!(documented, known_keys(), "left: config/default.toml; right: the fields of src/config");
}

/// The fields of the structs of the raw sections, such as `RawKafka`.
fn known_keys() -> BTreeSet<String> {
    let sources = ["mod.rs", "kafka.rs", "database.rs"]
        .map(|name| std::fs::read_to_string(super::root().join("src/config").join(name)).expect("a source file"));
    let structs = sources.iter().flat_map(|source| source.split("struct Raw").skip(1));
    let keys: BTreeSet<String> = structs
        .filter_map(|text| text.split_once(" {"))
        // `Raw` itself contains the sections.
        .filter(|(section, _)| !section.is_empty())
        .flat_map(|(section, fields)| {
            let fields = fields.split('}').next().unwrap_or_default();
            fields.lines().filter_map(move |line| {
                let (name, _) = line.trim().strip_suffix(',')?.split_once(": ")?;
                Some(format!("{}.{name}", section.to_lowercase()))
            })
        })
        .collect();
    assert!(keys.len() > 20, "{keys:?}");
    keys
}

/// Parses the file. A comment precedes its key or section; the head of the file ends with a blank line.
fn sections(file: &str) -> Vec<Section> {
    let (mut sections, mut comment): (Vec<Section>, Vec<&str>) = (Vec::new(), Vec::new());
    let (_, body) = file.split_once("\n\n").expect("the head of the file");
    for line in body.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
            continue;
        }
        let meaning = std::mem::take(&mut comment).join(" ");
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            match name.split_once('.') {
                None => sections.push(Section { name: name.to_owned(), purpose: meaning, keys: Vec::new() }),
                // A table within a section is one of its keys.
                Some(_) => add(&mut sections, Key { name: name.to_owned(), default: "{}".to_owned(), meaning }),
            }
        } else if let Some((key, default)) = line.split_once(" = ") {
            let section = sections.last().expect("a section").name.clone();
            add(&mut sections, Key { name: format!("{section}.{key}"), default: default.to_owned(), meaning });
        } else {
            assert!(line.is_empty() && meaning.is_empty(), "{line:?} {meaning:?} belongs to no key");
        }
    }
    sections
}

fn add(sections: &mut [Section], key: Key) {
    sections.last_mut().expect("a section").keys.push(key);
}

fn page(sections: &[Section]) -> String {
    let mut page = INTRODUCTION.to_owned();
    for section in sections {
        let _ = write!(page, "\n## [{}]\n\n{}\n", section.name, linked(&section.purpose));
        for key in &section.keys {
            let Key { name, meaning, .. } = key;
            let _ = write!(page, "\n### `{name}`\n\n{}\n\n{}\n", facts(key), linked(meaning));
        }
    }
    page
}

/// Variable, type, unit and default in one line.
fn facts(key: &Key) -> String {
    let Key { name, default, .. } = key;
    let kind = match default.as_bytes() {
        [b'"', ..] => "string",
        [b'[', ..] => "list of strings",
        [b'{', ..] => "table of strings",
        digits if digits.contains(&b'.') => "number",
        _ => "integer",
    };
    let unit = match name.rsplit('_').next() {
        Some("ms") => ", milliseconds",
        Some("bytes") => ", bytes",
        Some("share") => ", 0 to 1",
        _ => "",
    };
    let variable = match kind {
        "table of strings" => format!("GAPLESS__{}__NAME", name.replace('.', "__").to_uppercase()),
        _ => format!("GAPLESS__{}", name.replace('.', "__").to_uppercase()),
    };
    let default = match default.as_str() {
        "\"\"" | "{}" => "empty".to_owned(),
        value => format!("`{value}`{}", readable(value, unit)),
    };
    format!("`{variable}` · {kind}{unit} · default: {default}")
}

/// A large number in units that are easier to read.
fn readable(value: &str, unit: &str) -> String {
    let Ok(number) = value.parse::<u64>() else { return String::new() };
    match (unit, number) {
        (", bytes", n) if n % (1 << 20) == 0 => format!(" ({} MiB)", n >> 20),
        (", milliseconds", n) if n % 3_600_000 == 0 => format!(" ({} h)", n / 3_600_000),
        (", milliseconds", n) if n % 1000 == 0 => format!(" ({} s)", n / 1000),
        _ => String::new(),
    }
}

/// Replaces the names of documents in a comment by links.
fn linked(text: &str) -> String {
    text.replace("docs/deployment.md", "[deployment.md](deployment.md)")
}
