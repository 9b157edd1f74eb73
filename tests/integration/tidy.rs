//! Rules of the source that the compiler does not check: which module uses which library, the layers of modules, the
//! length and beginning of files, names of SQL statements and log events, and that the mutant patches apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each external crate and the only files that may use it.
const LIBRARY_USERS: [(&str, &[&str]); 16] = [
    ("rdkafka", &["kafka/"]),
    ("rdkafka_sys", &["kafka/ffi.rs", "kafka/unpacking.rs"]),
    ("libz_sys", &["kafka/codecs.rs"]),
    ("zstd_sys", &["kafka/codecs.rs"]),
    ("tokio_postgres", &["postgres/", "ledger/"]),
    ("deadpool", &["postgres/pool.rs"]),
    ("deadpool_postgres", &["postgres/connector.rs"]),
    ("x509_cert", &["postgres/certificate.rs"]),
    ("refinery", &["ledger/migrations.rs", "ledger/start/schema.rs", "ledger/error.rs"]),
    ("refinery_core", &["ledger/start/schema.rs"]),
    ("axum", &["http.rs"]),
    ("clap", &["cli.rs", "main.rs"]),
    ("prometheus", &["observe/metrics.rs"]),
    ("indicatif", &["observe/progress.rs"]),
    ("sd_notify", &["observe/systemd.rs"]),
    ("whoami", &["ledger/decision.rs"]),
];

/// The top-level modules of `src`, lower layers first: a module imports from its own layer or a lower one.
const LAYERS: [&[&str]; 8] = [
    &["retry", "shutdown", "exit", "failpoints"],
    &["model"],
    &["formats", "config", "observe"],
    &["kafka", "postgres"],
    &["ledger"],
    &["pipeline"],
    &["http"],
    &["findings", "cli", "commands", "daemon", "main", "lib"],
];

const MAX_LINES: usize = 500;

struct Source {
    /// Relative to `src/`.
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of src") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(&root).expect("below src").display().to_string();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() > 20, "the sources were found");
    found
}

/// The text of a file without its unit tests.
fn code(source: &Source) -> &str {
    source.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&module))
}

#[test]
fn each_file_begins_with_its_purpose_and_is_short() {
    for source in sources() {
        assert!(source.text.starts_with("//!"), "{} does not begin with //!", source.path);
        let lines = source.text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", source.path);
    }
}

#[test]
fn each_library_is_used_only_by_its_module() {
    for source in sources() {
        for (library, users) in LIBRARY_USERS {
            let used = code(&source).lines().any(|line| {
                let line = line.trim_start();
                !line.starts_with("//")
                    && (line.contains(&format!("{library}::")) || line.contains(&format!("use {library} ")))
            });
            let is_allowed = users.iter().any(|user| source.path.starts_with(user));
            assert!(!used || is_allowed, "{} uses {library}, which only {users:?} may use", source.path);
        }
    }
}

/// Which modules below a folder of `src` import from which others there. `prefix` names the folder in a path.
fn imports(folder: &str, prefix: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        let Some(path) = source.path.strip_prefix(folder).filter(|path| *path != "mod.rs") else { continue };
        let own = path.split(['/', '.']).next().unwrap_or_default();
        let from = graph.entry(own.to_owned()).or_default();
        for line in code(&source).lines().filter(|line| !line.trim_start().starts_with("//")) {
            for path in line.split(prefix).skip(1) {
                // Also handles `use crate::{a, b}`; the names of a longer list are on the same line.
                let list = path.strip_prefix('{').and_then(|list| list.split('}').next()).unwrap_or(path);
                let names = if path.starts_with('{') { list.split(", ").collect() } else { vec![list] };
                let names = names
                    .iter()
                    .map(|name| name.split([':', ';', '}', ',', ' ', '(', '`', ')', '"']).next().unwrap_or_default());
                from.extend(names.filter(|name| **name != *own).map(ToOwned::to_owned));
            }
        }
    }
    let modules: BTreeSet<String> = graph.keys().cloned().collect();
    graph.values_mut().for_each(|from| from.retain(|name| modules.contains(name)));
    for (module, from) in &graph {
        println!("{folder}{module} <- {}", from.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    }
    graph
}

#[test]
fn no_module_imports_from_a_higher_layer_or_in_a_cycle() {
    let graph = imports("", "crate::");
    for (module, from) in &graph {
        let own = layer(module).unwrap_or_else(|| panic!("{module} has no layer"));
        for other in from {
            assert!(layer(other).is_some_and(|other| other <= own), "{module} imports from {other} of a higher layer");
        }
    }
    assert_no_cycle(graph);
}

/// Modules without remaining imports are removed repeatedly; the modules that stay form a cycle.
fn assert_no_cycle(mut left: BTreeMap<String, BTreeSet<String>>) {
    while let Some(module) =
        left.iter().find(|(_, from)| from.iter().all(|f| !left.contains_key(f))).map(|(r, _)| r.clone())
    {
        left.remove(&module);
    }
    assert!(left.is_empty(), "these modules import each other: {left:?}");
}

#[test]
fn no_part_of_the_ledger_imports_in_a_cycle() {
    let graph = imports("ledger/", "crate::ledger::");
    assert!(graph["read"].contains("write"), "{graph:?}");
    assert_no_cycle(graph);
}

#[test]
fn the_library_without_the_daemon_depends_on_no_client_and_no_server() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--no-default-features", "--edges", "normal", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("sha2"), "{names:?}");
    let manifest = include_str!("../../Cargo.toml");
    let feature = manifest.split("\ndaemon = [").nth(1).and_then(|rest| rest.split(']').next()).expect("the feature");
    let of_the_daemon: Vec<&str> = feature.split('"').filter_map(|name| name.strip_prefix("dep:")).collect();
    assert!(of_the_daemon.contains(&"rdkafka") && of_the_daemon.contains(&"axum"), "{of_the_daemon:?}");
    for name in of_the_daemon {
        assert!(!names.contains(name), "{name} comes without the feature `daemon`");
    }
}

#[test]
fn the_image_is_built_from_every_file_that_the_source_includes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect(name);
    let (dockerfile, context) = (read("Dockerfile"), read(".dockerignore"));
    let copied: Vec<&str> =
        dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).flat_map(|line| line.split(' ')).collect();
    let kept: Vec<&str> = context.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let covers = |roots: &[&str], path: &str| roots.iter().any(|root| Path::new(path).starts_with(root));
    let mut included: BTreeSet<String> = ["Cargo.toml", "Cargo.lock", "build.rs"].map(ToOwned::to_owned).into();
    for source in sources() {
        for name in code(&source).split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let folder = root.join("src").join(&source.path).parent().expect("a folder").to_owned();
            let path = folder.join(name).canonicalize().expect("a file that the compiler found");
            included.insert(
                path.strip_prefix(root.canonicalize().expect("the root")).expect("below it").display().to_string(),
            );
        }
    }
    assert!(included.len() > 5, "{included:?}");
    for path in &included {
        assert!(covers(&kept, path), "{path} is not in .dockerignore's list of what the builder gets");
        assert!(covers(&copied, path), "{path} is copied by no COPY of the Dockerfile");
    }
}

#[test]
fn each_statement_begins_with_its_name() {
    for source in sources().iter().filter(|s| s.path.starts_with("ledger/") || s.path.starts_with("postgres/")) {
        let code = code(source);
        for (at, _) in code
            .match_indices("const ")
            .filter(|(at, _)| code[*at..].lines().next().is_some_and(|l| l.contains(": &str = \"")))
        {
            let text = code[at..].split('"').nth(1).unwrap_or_default();
            let is_sql =
                ["select", "insert", "update", "delete", "with"].iter().any(|verb| text.contains(&format!("{verb} ")));
            assert!(!is_sql || text.starts_with("-- "), "{}: {}", source.path, text.lines().next().unwrap_or_default());
        }
    }
}

#[test]
fn an_offset_is_incremented_only_in_model_offset() {
    for source in sources().iter().filter(|s| s.path != "model/offset.rs" && s.path != "failpoints.rs") {
        for line in code(source).lines().filter(|l| !l.trim_start().starts_with("//")) {
            assert!(!line.contains(".get() + 1"), "{}: {line}", source.path);
        }
    }
}

#[test]
fn every_mutant_patch_applies_to_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(root.join("tests/mutants")).expect("the mutants") {
        let patch = entry.expect("an entry").path();
        if patch.extension().is_some_and(|kind| kind == "patch") {
            // Outside the repository, since another user may own it.
            let apply = Command::new("git")
                .env("GIT_DIR", "none")
                .args(["apply", "--check"])
                .arg(&patch)
                .current_dir(root)
                .output();
            let checked = apply.expect("git");
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}

#[test]
fn every_log_line_from_info_up_names_its_event_first() {
    let mut count = 0;
    for source in sources() {
        let code = code(&source);
        for (at, name) in ["info!(", "warn!(", "error!("].iter().flat_map(|name| code.match_indices(name)) {
            let line = code[..at].lines().last().unwrap_or_default();
            let arguments = code[at + name.len()..].trim_start();
            let shown = arguments.lines().next().unwrap_or_default();
            assert!(
                line.trim_start().starts_with("//") || arguments.starts_with("event = \""),
                "{}: {name}{shown} does not begin with event = \"…\"",
                source.path
            );
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

/// The names in the first column of the table below a heading of a document.
fn first_column<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let section = document.split(heading).nth(1).expect("the heading").split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    rows.flat_map(|cell| cell.split('`').step_by(2)).collect()
}

#[test]
fn every_log_event_is_documented() {
    let documented: BTreeSet<&str> =
        first_column(include_str!("../../docs/operations.md"), "\n## Log events\n").into_iter().collect();
    let sources = sources();
    let logged: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| code(source).split("event = \"").skip(1))
        .map(|rest| rest.split('"').next().unwrap_or_default())
        .collect();
    assert!(logged.len() > 20, "{logged:?}");
    assert!(logged.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_')), "{logged:?}");
    assert_eq!(documented, logged, "left: the table \"Log events\" of docs/operations.md; right: the code");
}

#[test]
fn every_metric_is_documented() {
    let documented: BTreeSet<&str> = first_column(include_str!("../../docs/operations.md"), "\n## Metrics\n")
        .into_iter()
        .filter_map(|name| name.strip_prefix("gapless_")?.split('{').next())
        .collect();
    let metrics = include_str!("../../src/observe/metrics.rs");
    let made = metrics.split("pub fn new(").nth(1).and_then(|rest| rest.split("\n    }\n").next()).expect("new");
    // The name is the first argument of the call that makes the metric; no other first argument has only these letters.
    let registered: BTreeSet<&str> = made
        .split('(')
        .filter_map(|arguments| arguments.trim_start().strip_prefix('"')?.split('"').next())
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert!(registered.len() > 20 && registered.contains("build_info"), "{registered:?}");
    assert_eq!(documented, registered, "left: the table \"Metrics\" of docs/operations.md; right: `Metrics::new`");
}

/// The variants of an enum of this source, by the lines of its definition.
fn variants<'a>(code: &'a str, name: &str) -> BTreeSet<&'a str> {
    let definition = code.split(&format!("enum {name} {{\n")).nth(1).and_then(|rest| rest.split("\n}\n").next());
    let lines = definition.unwrap_or_else(|| panic!("no enum {name}")).lines();
    lines
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).next())
        .collect()
}

/// The compiler checks the number of values in `ALL`, but not that each variant is among them.
#[test]
fn the_constant_all_of_an_enum_has_each_of_its_variants() {
    let mut checked = Vec::new();
    for source in sources() {
        let code = code(&source);
        for (at, _) in code.match_indices("const ALL: [Self; ") {
            let name = code[..at].rsplit("\nimpl ").next().and_then(|rest| rest.split(' ').next()).expect("the enum");
            let list = code[at..].split_once('=').and_then(|(_, rest)| rest.split("];").next()).expect("the values");
            let listed: BTreeSet<&str> = list
                .split("Self::")
                .skip(1)
                .filter_map(|value| value.split(|c: char| !c.is_ascii_alphanumeric()).next())
                .collect();
            assert_eq!(listed, variants(code, name), "{name} of {}; left: ALL, right: the enum", source.path);
            checked.push(name.to_owned());
        }
    }
    assert!(checked.len() > 5, "{checked:?}");
}

/// Each reason to halt, with the file and the test that carries out its remedy.
const REMEDY_TESTS: [(&str, &str, &str); 12] = [
    ("expired", "rebase.rs", "accept_loss_of_a_wrong_range_prints_the_command_that_is_accepted"),
    ("beyond_log_end", "remedies.rs", "every_loss_of_a_brokers_log_is_resolved_by_the_commands_that_its_halt_prints"),
    ("differs", "remedies.rs", "every_loss_of_a_brokers_log_is_resolved_by_the_commands_that_its_halt_prints"),
    ("recreated", "rebase.rs", "a_running_daemon_begins_the_new_generation_by_itself"),
    ("other_cluster", "remedies.rs", "both_remedies_for_another_cluster_work"),
    ("replaced", "remedies.rs", "every_loss_of_a_brokers_log_is_resolved_by_the_commands_that_its_halt_prints"),
    ("unreadable", "remedies.rs", "every_loss_of_a_brokers_log_is_resolved_by_the_commands_that_its_halt_prints"),
    (
        "unpacked_too_large",
        "unpacked.rs",
        "a_gzip_batch_above_the_unpacking_limit_halts_and_is_read_with_the_limit_that_the_halt_names",
    ),
    ("out_of_memory", "unpacked.rs", "a_lack_of_memory_is_not_reported_as_damage_and_the_size_is_named"),
    ("database", "remedies.rs", "a_halt_for_the_database_names_the_change_to_undo"),
    (
        "too_many_rejected",
        "remedies.rs",
        "too_many_rejected_messages_become_dead_letters_with_the_settings_that_the_halt_names",
    ),
    (
        "schema_changed",
        "catalogue_while_running.rs",
        "a_key_dropped_while_the_daemon_runs_halts_it_and_verify_names_the_doubled_events",
    ),
];

#[test]
fn each_reason_to_halt_has_a_test_that_carries_out_its_remedy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let state = std::fs::read_to_string(root.join("src/model/partition_state.rs")).expect("the reasons");
    let reasons = state.split("impl HaltReason").nth(1).and_then(|rest| rest.split("pub enum").next()).expect("names");
    let names: Vec<&str> =
        reasons.split("=> \"").skip(1).map(|rest| rest.split('"').next().unwrap_or_default()).collect();
    let tested = REMEDY_TESTS.map(|(reason, ..)| reason);
    assert_eq!(names, tested, "src/model/partition_state.rs names the reasons");
    for (reason, file, test) in REMEDY_TESTS {
        let text = std::fs::read_to_string(root.join("tests/integration").join(file)).expect("a file of tests");
        assert!(text.contains(&format!("#[test]\nfn {test}() {{")), "{reason}: {file} has no test {test}");
    }
}
