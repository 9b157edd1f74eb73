//! Text that must not be printed: passwords, and URLs with a password.

use std::fmt;
use std::path::Path;

use super::ConfigError;

/// A secret. Its `Debug` does not show the text. Only code that needs the text calls [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the secret from a file, without its final line breaks.
    pub fn read(file: &Path) -> std::io::Result<Self> {
        std::fs::read_to_string(file).map(|text| Self(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// The secret `inline`, or the one in `file`. `Err` if both are given or the file cannot be read.
    pub(super) fn inline_or_file(key: &'static str, inline: String, file: &str) -> Result<Self, ConfigError> {
        match (inline.is_empty(), file.is_empty()) {
            (_, true) => Ok(Self(inline)),
            (true, false) => Self::read(Path::new(file)).map_err(|source| ConfigError::Secret {
                key,
                path: Path::new(file).to_owned(),
                source,
            }),
            (false, false) => Err(ConfigError::key(key, "is given twice, in place and by a file; keep one")),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[not shown]")
    }
}
