//! The documents: pages that are rendered from the code say what the code says now, and links lead somewhere.
//! `make docs` writes the rendered pages.

mod cli;
mod configuration;
mod links;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The page is as it is rendered now; with `GAPLESS_WRITE_DOCS` it is written instead.
#[track_caller]
fn expect_page(path: &str, rendered: &str) {
    let file = root().join(path);
    if std::env::var_os("GAPLESS_WRITE_DOCS").is_some() {
        return std::fs::write(&file, rendered).expect("writing a page");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let differing = written.lines().zip(rendered.lines()).find(|(written, rendered)| written != rendered);
    assert!(written == rendered, "{path} is not as it is rendered from the code ({differing:?}): run `make docs`");
}
