//! Parses libpq's connection strings in both forms: a URI, and `key=value` pairs separated by spaces.
//!
//! Pure and strict: text that belongs to no parameter is an error. Each of libpq's parameters is either honoured (by
//! [`crate::postgres::target`]) or refused by its name. No message repeats a value, which may be part of a password.
//!
//! The rules: <https://www.postgresql.org/docs/current/libpq-connect.html>, "Connection Strings".

use std::collections::BTreeMap;

/// The remedy for text that belongs to no part of a URI.
const ENCODE: &str = "percent-encode each character that is no separator: \
    %40 for @, %2F for /, %3F for ?, %25 for %, %3A for :, %20 for a space";

/// Parameters that are honoured. Values that are not supported are refused by the code that reads them.
const HONOURED: [&str; 33] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssencmode",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "password",
    "port",
    "replication",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// libpq's other parameters, each with its remedy.
const REFUSED: [(&str, &str); 21] = [
    ("authtype", "leave it out"),
    ("gssdelegation", "GSSAPI is not supported; log in by password or client certificate"),
    ("gsslib", "GSSAPI is not supported; log in by password or client certificate"),
    ("krbsrvname", "Kerberos is not supported; log in by password or client certificate"),
    ("oauth_client_id", "OAuth is not supported; log in by password or client certificate"),
    ("oauth_client_secret", "OAuth is not supported; log in by password or client certificate"),
    ("oauth_issuer", "OAuth is not supported; log in by password or client certificate"),
    ("oauth_scope", "OAuth is not supported; log in by password or client certificate"),
    ("passfile", "give the password by database.password_file"),
    ("require_auth", "the server's pg_hba.conf sets the methods of login; leave it out"),
    ("requirepeer", "the owner of a socket is not checked; leave it out"),
    ("requiressl", "write sslmode=require"),
    ("scram_client_key", "give the password by database.password_file"),
    ("scram_server_key", "give the password by database.password_file"),
    ("service", "write the service's parameters into database.url"),
    ("servicefile", "write the service's parameters into database.url"),
    ("sslcrl", "revocation lists are not read; leave it out"),
    ("sslcrldir", "revocation lists are not read; leave it out"),
    ("sslkeylogfile", "session keys are never written to a file; leave it out"),
    ("sslpassword", "give an unencrypted sslkey that only gapless's user can read"),
    ("tty", "leave it out"),
];

/// An error in a connection string, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConninfoError(pub(crate) String);

fn error<T>(text: impl Into<String>) -> Result<T, ConninfoError> {
    Err(ConninfoError(text.into()))
}

/// The given parameters. An empty value counts as not given, as in libpq.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Parameters(BTreeMap<&'static str, String>);

impl Parameters {
    pub(crate) fn parse(text: &str) -> Result<Self, ConninfoError> {
        let text = text.trim();
        match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            Some(rest) => uri(rest),
            None => pairs(text),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        debug_assert!(HONOURED.contains(&key), "{key}");
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn set(&mut self, key: &str, value: String) -> Result<Option<String>, ConninfoError> {
        if let Some(known) = HONOURED.iter().find(|known| **known == key) {
            return Ok(self.0.insert(known, value));
        }
        match REFUSED.iter().find(|(known, _)| *known == key) {
            Some((known, remedy)) => error(format!("{known} is not supported: {remedy}")),
            // The key may be a part of an unescaped password that contains a `=`: such a part is not printed.
            None if is_word(key) => error(format!("{key} is no parameter of libpq; correct it or leave it out")),
            None => error(format!("it contains a parameter that libpq does not have; {ENCODE}")),
        }
    }
}

fn is_word(key: &str) -> bool {
    !key.is_empty() && key.len() <= 32 && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Splits `[user[:password]@][host[:port][,...]][/database][?key=value[&...]]` as libpq does: the user's part ends at
/// the first `@`, if there is no `/` before it.
fn uri(rest: &str) -> Result<Parameters, ConninfoError> {
    let mut found = Parameters::default();
    let rest = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => {
            let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
            if user.contains('?') {
                return error(format!("the user's name contains a `?`; {ENCODE}"));
            }
            found.set("user", decoded(user)?)?;
            found.set("password", decoded(password)?)?;
            &rest[at..][1..]
        }
        _ => rest,
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let (servers, database) = place.split_once('/').unwrap_or((place, ""));
    if servers.contains('@') || database.contains(['@', '/']) {
        return error(format!("host, port or database contains a `@` or `/`; {ENCODE}"));
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for server in servers.split(',') {
        let (host, port) = host_and_port(server)?;
        hosts.push(decoded(host)?);
        ports.push(decoded(port)?);
    }
    found.set("host", hosts.join(","))?;
    let no_ports = ports.iter().all(String::is_empty);
    found.set("port", if no_ports { String::new() } else { ports.join(",") })?;
    found.set("dbname", decoded(database)?)?;
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        parameters(query, &mut found)?;
    }
    Ok(found)
}

fn host_and_port(server: &str) -> Result<(&str, &str), ConninfoError> {
    if let Some(rest) = server.strip_prefix('[') {
        return match rest.split_once(']') {
            Some(("", _)) | None => error("an IPv6 address is written [ADDRESS]:PORT"),
            Some((address, "")) => Ok((address, "")),
            Some((address, after)) => match after.strip_prefix(':') {
                Some(port) => Ok((address, port)),
                None => error("after an IPv6 address in brackets only :PORT may follow"),
            },
        };
    }
    let (host, port) = server.split_once(':').unwrap_or((server, ""));
    if port.contains(':') {
        return error(format!("an IPv6 address is written [ADDRESS]:PORT; if it is a password, {ENCODE}"));
    }
    Ok((host, port))
}

fn parameters(query: &str, found: &mut Parameters) -> Result<(), ConninfoError> {
    let mut given = Vec::new();
    for pair in query.split('&') {
        let Some((key, value)) = pair.split_once('=') else {
            return error(format!("after the `?` there is a parameter without `=`; {ENCODE}"));
        };
        if value.contains('=') {
            return error("a parameter after the `?` has a second `=`; write %3D for it");
        }
        let (key, value) = (decoded(key)?, decoded(value)?);
        // JDBC's form, which libpq accepts too.
        let (key, value) = match (key.as_str(), value.as_str()) {
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
            _ => (key, value),
        };
        if given.contains(&key) {
            return error(format!("{key} is given twice after the `?`; keep one"));
        }
        // It replaces a value from before the `?`, as in libpq.
        found.set(&key, value)?;
        given.push(key);
    }
    Ok(())
}

fn decoded(text: &str) -> Result<String, ConninfoError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match byte {
            None => return error("a `%` is not followed by two hexadecimal digits; write %25 for a `%`"),
            Some(0) => return error("it contains %00, which no parameter can have"),
            Some(byte) => bytes.push(byte),
        }
        rest = &tail[2..];
    }
    String::from_utf8(bytes).or_else(|_| error("a percent-encoded value is not UTF-8"))
}

/// Parses `key = 'value with spaces' key=value\ with\ spaces`.
fn pairs(text: &str) -> Result<Parameters, ConninfoError> {
    let mut found = Parameters::default();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once('=') else {
            return error(
                "it is neither postgres://USER:PASSWORD@HOST:PORT/DATABASE nor key=value pairs separated by spaces",
            );
        };
        let key = key.trim_end();
        if key.contains(char::is_whitespace) {
            return error("there is text without `=` between the key=value pairs; put a value with spaces between '…'");
        }
        let text = after.trim_start();
        let (value, remaining) = value(text)?;
        // libpq would read `sslmode=require` in `password= sslmode=require` as the password.
        if text.len() < after.len() && !text.starts_with('\'') && value.contains('=') {
            return error(format!(
                "after `{key}=` there is a space and then another `=`; put the value between '…', '' if it is empty"
            ));
        }
        if found.set(key, value)?.is_some() {
            return error(format!("{key} is given twice; keep one"));
        }
        rest = remaining.trim_start();
    }
    Ok(found)
}

/// The value at the beginning of a text, and the rest of the text.
fn value(text: &str) -> Result<(String, &str), ConninfoError> {
    let quoted = text.strip_prefix('\'');
    let mut value = String::new();
    let mut characters = quoted.unwrap_or(text).char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some((_, escaped)) => value.push(escaped),
                None => return error("it ends with a `\\`; write `\\\\` for one"),
            },
            '\'' if quoted.is_some() => {
                let after = &quoted.unwrap_or(text)[at..][1..];
                return match after.is_empty() || after.starts_with(char::is_whitespace) {
                    true => Ok((value, after)),
                    false => error("after a quoted value there must be a space; write \\' for a quote in the value"),
                };
            }
            space if space.is_whitespace() && quoted.is_none() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted.is_some() { error("a quoted value does not end") } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests;
