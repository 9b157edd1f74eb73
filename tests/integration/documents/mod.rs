//! The documents: rendered pages agree with the code, and links lead to existing targets. `make docs` writes the
//! rendered pages.

mod cli;
mod configuration;
mod links;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Asserts that a page equals its rendered text; with `GAPLESS_WRITE_DOCS` set, writes the page instead.
#[track_caller]
fn expect_page(path: &str, rendered: &str) {
    let file = root().join(path);
    if std::env::var_os("GAPLESS_WRITE_DOCS").is_some() {
        return std::fs::write(&file, rendered).expect("writing a page");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let differing = written.lines().zip(rendered.lines()).find(|(written, rendered)| written != rendered);
    assert!(
        written == rendered,
        "{path} differs from the text rendered from the code ({differing:?}): run `make docs`"
    );
}
