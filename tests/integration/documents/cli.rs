//! docs/cli.md is rendered from the definition of the command line.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};
use gapless::cli::Cli;

const INTRODUCTION: &str = "\
# Command line

<!-- Rendered from src/cli.rs by `make docs`. Edit the texts there. -->

`gapless` without a verb is the daemon; `gapless VERB` does one thing and ends. `--help` prints the same texts. Standard output
is for data, standard error for the log and for progress. Flags override the environment, the environment overrides the
configuration file: [configuration.md](configuration.md). Every verb that changes something leaves a row in
`gapless.decisions`.
";

#[test]
fn the_page_of_the_command_line_is_rendered_from_its_definition() {
    let mut command = Cli::command();
    command.build();
    super::expect_page("docs/cli.md", &page(&mut command));
}

fn page(command: &mut Command) -> String {
    let mut page = INTRODUCTION.to_owned();
    section(&mut page, "## Exit codes", &exit_codes(command));
    let common = arguments(command.get_arguments().filter(|arg| arg.is_global_set()));
    section(&mut page, "## Common options\n\nThe daemon and every verb take them.", &common);
    let daemon =
        "## gapless: the daemon\n\nReads the topic into the ledger until it is stopped.\n\n```\ngapless [OPTIONS]\n```";
    section(&mut page, daemon, &arguments(command.get_arguments().filter(|arg| !arg.is_global_set())));
    for verb in command.get_subcommands_mut() {
        describe(&mut page, verb, "gapless");
    }
    page
}

/// Writes the section of a verb, or of each of its subcommands.
fn describe(page: &mut String, verb: &mut Command, above: &str) {
    if verb.get_name() == "help" {
        return;
    }
    let name = format!("{above} {}", verb.get_name());
    if verb.has_subcommands() {
        return verb.get_subcommands_mut().for_each(|below| describe(page, below, &name));
    }
    let usage = verb.render_usage().to_string();
    let about = verb.get_about().expect("the description of the verb").to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let title = format!("## {name}\n\n{}.\n\n```\n{usage}\n```", code_words(about.trim_end_matches('.')));
    section(page, &title, &arguments(verb.get_arguments().filter(|arg| !arg.is_global_set())));
    section(page, "", &exit_codes(verb));
}

fn section(page: &mut String, title: &str, body: &str) {
    for part in [title, body].into_iter().filter(|part| !part.is_empty()) {
        let _ = write!(page, "\n{}\n", part.trim_end());
    }
}

/// The exit codes of the help text, as a table.
fn exit_codes(command: &Command) -> String {
    let Some(help) = command.get_after_help() else { return String::new() };
    let mut table = "| exit code | meaning |\n| --- | --- |".to_owned();
    for line in help.to_string().lines().skip(1) {
        match line.trim_start().split_once("  ") {
            Some((code, meaning)) => {
                let end = if table.ends_with("| --- | --- |") { "" } else { " |" };
                let _ = write!(table, "{end}\n| {code} | {}", code_words(meaning.trim()));
            }
            None => {
                let _ = write!(table, " {}", code_words(line.trim()));
            }
        }
    }
    table + " |"
}

fn arguments<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let rows: String = arguments.filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())).map(row).collect();
    if rows.is_empty() { rows } else { format!("| argument | meaning |\n| --- | --- |\n{rows}") }
}

fn row(arg: &Arg) -> String {
    let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default();
    let name = match arg.get_long() {
        Some(long) if arg.get_action().takes_values() => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
        None => value,
    };
    let help = arg.get_long_help().or(arg.get_help()).unwrap_or_else(|| panic!("{name} has no help")).to_string();
    let mut meaning = code_words(&help.replace('\n', " "));
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if arg.get_action().takes_values() && !values.is_empty() {
        let _ = write!(meaning, ". One of {}", values.join(", "));
    }
    if let ([default], true) = (arg.get_default_values(), arg.get_action().takes_values()) {
        let _ = write!(meaning, ". Default: `{}`", default.display());
    }
    if arg.is_required_set() {
        meaning.push_str(". Required");
    }
    format!("| `{}` | {} |\n", name.replace('|', "\\|"), meaning.replace('|', "\\|"))
}

/// Formats the flags within a text as code.
fn code_words(text: &str) -> String {
    let word = |word: &str| match word.starts_with("--") {
        true => {
            let flag = word.trim_end_matches([',', ';', '.', ')']);
            format!("`{flag}`{}", &word[flag.len()..])
        }
        false => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
