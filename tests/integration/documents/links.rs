//! Links between the documents, and names of documents in messages of the program, lead to existing files and anchors.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::root;

#[test]
fn every_link_between_documents_leads_to_a_file_and_an_anchor() {
    let mut count = 0;
    for document in documents() {
        let text = without_code(&std::fs::read_to_string(&document).expect("a document"));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.contains("://") {
                expect_target(&document, &document.with_file_name(""), target);
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn every_document_that_the_program_names_exists_with_its_anchor() {
    let mut count = 0;
    for file in files_below(&root().join("src")).into_iter().chain([root().join("config/default.toml")]) {
        let text = std::fs::read_to_string(&file).expect("a text");
        for (at, _) in text.match_indices("docs/") {
            let rest = &text[at..];
            let is_target = |c: char| c.is_ascii_alphanumeric() || "/._-#".contains(c);
            let target = rest.split(|c| !is_target(c)).next().unwrap_or_default().trim_end_matches('.');
            // An anchor that is formatted into the text is checked by the test below.
            let is_literal = !rest[target.len()..].starts_with('{');
            if target.contains(".md") && is_literal {
                expect_target(&file, &root(), target);
                count += 1;
            }
        }
    }
    assert!(count > 1, "{count}");
}

#[test]
fn every_reason_to_halt_has_an_anchor_that_its_remedy_names() {
    let source = std::fs::read_to_string(root().join("src/model/partition_state.rs")).expect("a source file");
    let names = source.split("impl HaltReason").nth(1).and_then(|rest| rest.split("pub fn name").nth(1));
    let names = names.and_then(|rest| rest.split("\n    }").next()).expect("the names of reasons");
    let reasons: Vec<&str> = names.split('"').skip(1).step_by(2).collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    let anchors = anchors(&std::fs::read_to_string(root().join("docs/operations.md")).expect("a document"));
    for reason in reasons {
        assert!(anchors.contains(&format!("halt-{reason}")), "docs/operations.md does not explain {reason}");
    }
}

#[track_caller]
fn expect_target(from: &Path, folder: &Path, target: &str) {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() { from.to_owned() } else { folder.join(path) };
    assert!(file.exists(), "{}: {target} leads nowhere", from.display());
    if !anchor.is_empty() {
        let text = std::fs::read_to_string(&file).expect("a document");
        assert!(anchors(&text).contains(anchor), "{}: {target} has no such anchor", from.display());
    }
}

/// README, CHANGELOG and the documents of docs/.
fn documents() -> Vec<PathBuf> {
    let mut found = files_below(&root().join("docs"));
    found.retain(|file| file.extension().is_some_and(|kind| kind == "md"));
    found.extend(["README.md", "CHANGELOG.md"].map(|name| root().join(name)));
    found
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// The text without its blocks of code, which have no links and no headings.
fn without_code(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The anchors that GitHub generates for headings, and explicit ones.
fn anchors(text: &str) -> BTreeSet<String> {
    let text = without_code(text);
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    });
    let written = text.split("<a id=\"").skip(1).filter_map(|rest| Some(rest.split('"').next()?.to_owned()));
    headings.chain(written).collect()
}
