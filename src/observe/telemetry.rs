//! Logs: one line for each log event on standard error, as text or JSON. Standard output is for data.

use std::ffi::OsStr;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    /// Parses the name in the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Log levels of libraries whose debug lines print statement parameters, and so payloads and secrets.
const LIBRARY_LEVELS: &str = "tokio_postgres=warn,refinery_core=warn,hyper=info,rdkafka=off";

/// Starts logging. `level` is a level or a list of directives.
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{level},{LIBRARY_LEVELS}")).map_err(|_| {
        format!(
            "configuration: log.level is {level:?}; write off, error, warn, info, debug or trace, or for parts of the \
             program a list as info,gapless::ledger=debug"
        )
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // If standard error cannot be written (a closed terminal, a full disk), an error message about it would panic.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder
            .with_ansi(is_coloured(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref()))
            .init(),
        LogFormat::Json => builder.json().with_current_span(false).init(),
    }
    Ok(())
}

/// Returns true on a terminal, unless `NO_COLOR` is set and not empty (<https://no-color.org>).
fn is_coloured(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_colours_only_on_a_terminal_without_no_color() {
        assert!(is_coloured(true, None) && is_coloured(true, Some(OsStr::new(""))));
        assert!(!is_coloured(true, Some(OsStr::new("1"))) && !is_coloured(false, None));
    }
}
