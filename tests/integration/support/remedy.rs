//! Extracts the commands that gapless prints as remedies and carries them out as an operator would.

use serde_json::Value;

use super::{Database, Ended, Gapless, Topic};

/// The commands between backticks in a text, or in the messages of a JSON log.
pub(crate) fn commands(text: &str) -> Vec<String> {
    let message = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(line) => line["fields"]["message"].as_str().unwrap_or_default().to_owned(),
        Err(_) => line.to_owned(),
    };
    let quoted =
        |line: &str| -> Vec<String> { message(line).split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect() };
    text.lines().flat_map(quoted).filter(|command| command.starts_with("gapless ")).collect()
}

/// The last printed command that contains `part`.
#[track_caller]
pub(crate) fn command(printed: &impl ToString, part: &str) -> String {
    let printed = printed.to_string();
    let found = commands(&printed).into_iter().rfind(|command| command.contains(part));
    found.unwrap_or_else(|| panic!("no command with {part:?} in\n{printed}"))
}

/// The call of a printed command for the test's topic and database. A start ends at the end of the log.
pub(crate) fn call(command: &str, topic: &Topic, database: &Database) -> Gapless {
    let words: Vec<&str> = command.split(' ').skip(1).map(|word| word.trim_matches('"')).collect();
    match words[0].starts_with('-') {
        true => Gapless::daemon(topic, database).args(words).until_end(),
        false => Gapless::verb(words[0], topic, database).args(words[1..].iter().copied()),
    }
}

/// Runs a printed command, which must exit with 0.
#[track_caller]
pub(crate) fn carry_out(command: &str, topic: &Topic, database: &Database) -> Ended {
    call(command, topic, database).run().expect_code(0)
}
