//! An HTTP GET without a client library, and a parser of the Prometheus text format.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than the limit of every endpoint of gapless.
const LIMIT: Duration = Duration::from_secs(15);

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

pub(crate) fn try_get(address: SocketAddr, path: &str) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let bad = || std::io::Error::other(format!("no HTTP response: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
    Ok(Response { status, body })
}

#[track_caller]
pub(crate) fn get(address: SocketAddr, path: &str) -> Response {
    try_get(address, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
}

fn unchunk(mut body: &str) -> String {
    let mut decoded = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        decoded.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    decoded
}

impl Response {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }

    /// The sum of all samples of a metric whose labels contain each of `labels` (`outcome="stored"`); `None` without
    /// one.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let mut sum = None;
        for line in self.body.lines().filter(|line| !line.starts_with('#')) {
            let Some((sample, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (found, found_labels) = sample.split_once('{').unwrap_or((sample, ""));
            if found == name && labels.iter().all(|label| found_labels.contains(label)) {
                sum = Some(sum.unwrap_or(0.0) + value.parse::<f64>().unwrap_or(f64::NAN));
            }
        }
        sum
    }
}
