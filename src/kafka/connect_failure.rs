//! Why a connection to Kafka failed: a closed set of kinds, parsed from librdkafka's texts, each with its remedy.
//!
//! When a connection fails, librdkafka returns "Broker transport failure" to the caller for every reason. It passes the
//! reason only to its log and error callbacks; [`crate::kafka::failures`] keeps it. Pure.

use std::fmt;

/// The reason why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailureKind {
    UnknownHost,
    Refused,
    NoAnswer,
    /// The broker cannot be reached at the address that the cluster advertised for it.
    AdvertisedAddress,
    PlaintextPort,
    TlsPort,
    SaslPort,
    NotKafka,
    UntrustedCertificate,
    /// As `UntrustedCertificate`, and no CA is configured.
    NoCa,
    OtherHostName,
    ExpiredCertificate,
    /// librdkafka does not say more, and gapless's own handshake did not find the reason.
    BadCertificate,
    NoClientCertificate,
    RefusedClientCertificate,
    Mechanism,
    Credentials,
    AnswerTooLarge,
    TlsHandshake,
    Disconnected,
    Other,
}

use ConnectFailureKind as Kind;

impl ConnectFailureKind {
    /// One phrase that names the failure.
    fn words(self) -> &'static str {
        match self {
            Self::UnknownHost => "the host name does not resolve",
            Self::Refused => "connection refused, nothing listens there",
            Self::NoAnswer => "no answer",
            Self::AdvertisedAddress => "the broker's advertised address cannot be reached",
            Self::PlaintextPort => "TLS to a port that does not use TLS",
            Self::TlsPort => "plain text to a port that most likely uses TLS",
            Self::SaslPort => "the broker closed the connection, most likely because it requires a SASL login",
            Self::NotKafka => "this is no Kafka broker",
            Self::UntrustedCertificate => "the broker's certificate is not signed by a CA of kafka.ssl_ca_location",
            Self::NoCa => {
                "the broker's certificate is not signed by a CA of the system, and kafka.ssl_ca_location names none"
            }
            Self::OtherHostName => "the broker's certificate is for another host name",
            Self::ExpiredCertificate => "the broker's certificate has expired",
            Self::BadCertificate => "the broker's certificate could not be verified",
            Self::NoClientCertificate => "the broker requires a client certificate, and none is configured",
            Self::RefusedClientCertificate => "the broker refused the client certificate",
            Self::Mechanism => "the broker does not offer this SASL mechanism",
            Self::Credentials => "user name or password refused",
            Self::AnswerTooLarge => "the broker's answer is larger than allowed",
            Self::TlsHandshake => "the TLS handshake failed",
            Self::Disconnected => "the broker closed the connection",
            Self::Other => "the connection failed",
        }
    }

    /// What the operator can do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::UnknownHost => "correct kafka.brokers, or the name service (DNS, /etc/hosts)",
            Self::Refused => "start the broker, or correct host and port in kafka.brokers",
            Self::NoAnswer => "check the network, firewalls and kafka.brokers",
            Self::AdvertisedAddress => {
                "start that broker, or set its advertised.listeners to an address that gapless can reach"
            }
            Self::PlaintextPort => "use the broker's TLS port, or a kafka.security_protocol without ssl",
            Self::TlsPort => "set kafka.security_protocol to ssl or sasl_ssl, or use the broker's plaintext port",
            Self::SaslPort => "set kafka.security_protocol to sasl_plaintext or sasl_ssl, with mechanism and user name",
            Self::NotKafka => "correct host and port in kafka.brokers",
            Self::UntrustedCertificate => "set kafka.ssl_ca_location to the CA that signed the broker's certificate",
            Self::NoCa => "set kafka.ssl_ca_location to the CA that signed the broker's certificate",
            Self::OtherHostName => {
                "name a host of the certificate in kafka.brokers and advertised.listeners, or renew the certificate"
            }
            Self::ExpiredCertificate => "renew the broker's certificate",
            Self::BadCertificate => "check kafka.ssl_ca_location, and the certificate's host name and dates",
            Self::NoClientCertificate => "set kafka.ssl_certificate_location and kafka.ssl_key_location",
            Self::RefusedClientCertificate => {
                "give a certificate that is valid and signed by a CA that the broker trusts"
            }
            Self::Mechanism => "set kafka.sasl_mechanism to one that the broker offers",
            Self::Credentials => "correct kafka.sasl_username and the password, or create the user on the broker",
            Self::AnswerTooLarge => "raise kafka.max_unpacked_bytes",
            Self::TlsHandshake => "see the broker's log, and compare TLS versions and ciphers",
            Self::Disconnected | Self::Other => {
                "see the broker's log, and check kafka.brokers and kafka.security_protocol"
            }
        }
    }

    /// Returns true if the broker or gapless refused the other side: reading the files with secrets again may help.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::UntrustedCertificate
                | Self::NoCa
                | Self::ExpiredCertificate
                | Self::BadCertificate
                | Self::NoClientCertificate
                | Self::RefusedClientCertificate
                | Self::Credentials
                | Self::TlsHandshake
        )
    }

    /// How much the kind says about the reason, from 0 to 4. Of failures at several brokers the most specific one is
    /// shown: a broker that is down says nothing about the others.
    pub(crate) fn specificity(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::Disconnected => 1,
            Self::Refused | Self::NoAnswer | Self::AdvertisedAddress => 2,
            Self::UnknownHost => 3,
            _ => 4,
        }
    }
}

/// One failed connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectFailure {
    pub kind: ConnectFailureKind,
    /// `host:port`.
    pub address: String,
    /// The broker's id, if the cluster advertised the address.
    pub broker_id: Option<i32>,
    /// librdkafka's own text.
    pub detail: String,
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.broker_id {
            Some(id) => write!(f, "broker {id} at {}: {}", self.address, self.kind.words())?,
            None => write!(f, "{}: {}", self.address, self.kind.words())?,
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

impl ConnectFailure {
    /// Parses a text of librdkafka's error or log callback; `None` if it is not about a failed connection.
    pub fn read(text: &str) -> Option<Self> {
        // "[thrd:ssl://host:9093/bootstrap]: ssl://host:9093/bootstrap: SSL handshake failed: …"
        let (thread, text) = match text.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
            Some((thread, text)) => (Some(thread), text),
            None => (None, text),
        };
        let named = text.split_once(": ").and_then(|(name, rest)| Some((broker(name)?, rest)));
        let ((address, broker_id), text) = named.or_else(|| Some((broker(thread?)?, text)))?;
        let (detail, suffix) = text.rsplit_once(" (after ").unwrap_or((text, ""));
        let (ms, state) = suffix.split_once("ms in state ").unwrap_or_default();
        let soon = ms.parse::<u32>().is_ok_and(|ms| ms < 2000);
        let state = state.split([')', ',']).next().unwrap_or_default();
        let kind = kind(&detail.to_lowercase(), state, soon)?;
        Some(Self { kind, address: address.to_owned(), broker_id, detail: shorten(kind, detail) })
    }
}

/// Splits a broker's name into `host:port` and id: `ssl://host:9093/bootstrap`, `host:9092/1`.
fn broker(name: &str) -> Option<(&str, Option<i32>)> {
    let (address, id) = name.rsplit_once('/')?;
    let address = address.rsplit_once("//").map_or(address, |(_, address)| address);
    (address.contains(':') && !address.contains(' ')).then(|| (address, id.parse().ok()))
}

/// `None` for texts that also occur with a working connection. `text` is in lower case.
fn kind(text: &str, state: &str, soon: bool) -> Option<Kind> {
    let has = |part: &str| text.contains(part);
    let client_certificate =
        ["certificate required", "bad certificate", "unknown ca", "certificate unknown", "certificate expired"];
    Some(match () {
        () if has("failed to resolve") => Kind::UnknownHost,
        () if has("mechanism handshake failed") => Kind::Mechanism,
        () if has("sasl authentication error") || has("authentication failed") => Kind::Credentials,
        () if has("certificate verify failed") => Kind::BadCertificate,
        () if has("alert") && client_certificate.iter().any(|alert| has(alert)) => Kind::NoClientCertificate,
        () if has("client ssl authentication might be required") => Kind::NoClientCertificate,
        () if has("not sending any client certificates") => Kind::RefusedClientCertificate,
        () if has("plaintext broker listener") || has("wrong version number") || has("packet length too long") => {
            Kind::PlaintextPort
        }
        () if has("ssl handshake failed") => Kind::TlsHandshake,
        () if has("invalid response size") || has("invalid frame size") => too_large(text),
        () if has("refused") => Kind::Refused,
        () if has("timed out") || has("no route to host") || has("unreachable") => Kind::NoAnswer,
        () if has("disconnected") => match state {
            // librdkafka may see the end of the connection before the bytes that the broker sent.
            "SSL_HANDSHAKE" => Kind::PlaintextPort,
            "APIVERSION_QUERY" => Kind::TlsPort,
            // A broker closes a connection this soon if the client sent a request without a login.
            "UP" if soon || has("might require sasl") => Kind::SaslPort,
            _ => Kind::Disconnected,
        },
        () if has("failed") || has("error") => Kind::Other,
        () => return None,
    })
}

/// The first four bytes of another protocol are reported as a "size".
fn too_large(text: &str) -> Kind {
    match size_in(text).map(u32::to_be_bytes) {
        Some([0, ..]) | None => Kind::AnswerTooLarge,
        // A TLS record, most likely an alert.
        Some([0x14..=0x17, 3, ..]) => Kind::TlsPort,
        Some([first, ..]) if first.is_ascii_alphabetic() => Kind::NotKafka,
        Some(_) => Kind::AnswerTooLarge,
    }
}

fn size_in(text: &str) -> Option<u32> {
    let after = text.split(" size ").nth(1)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Removes librdkafka's advice, which uses librdkafka's names of settings, and OpenSSL's numbers.
fn shorten(kind: Kind, detail: &str) -> String {
    match kind {
        Kind::NotKafka => match size_in(&detail.to_lowercase()).map(u32::to_be_bytes) {
            Some([b'E', 0, ..]) => "it answers as PostgreSQL does".to_owned(),
            Some([b'H', b'T', b'T', b'P']) => "it answers as an HTTP server does".to_owned(),
            _ => "its answer has another form".to_owned(),
        },
        _ => {
            let advice = [
                ": broker certificate could not be verified",
                ": connecting to a PLAINTEXT",
                ": requesting ApiVersion",
                ": verify that security.protocol",
                ": client SSL authentication",
                ": increase receive",
                ": receive 0 after POLLIN",
            ];
            let end = advice.iter().filter_map(|text| detail.find(text)).min().unwrap_or(detail.len());
            let text = &detail[..end];
            match text.find("error:").and_then(|at| Some((at, text[at..].find("routines::")?))) {
                Some((at, length)) => format!("{}{}", &text[..at], &text[at + length + "routines::".len()..]),
                None => text.to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that librdkafka 2.12.1 wrote about real servers with wrong settings.
    const TEXTS: [(&str, Kind, &str); 18] = [
        (
            "[thrd:127.0.0.1:1/1]: 127.0.0.1:1/1: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
            Kind::Refused,
            "broker 1 at 127.0.0.1:1: connection refused, nothing listens there (Connect to ipv4#127.0.0.1:1 failed: Connection refused)",
        ),
        (
            "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 36ms in state CONNECT)",
            Kind::Refused,
            "127.0.0.1:1: connection refused, nothing listens there (Connect to ipv4#127.0.0.1:1 failed: Connection refused)",
        ),
        (
            "[thrd:ssl://localhost:28508/bootstrap]: ssl://localhost:28508/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA certificates are installed (install ca-certificates package) (after 40ms in state SSL_HANDSHAKE)",
            Kind::BadCertificate,
            "localhost:28508: the broker's certificate could not be verified (SSL handshake failed: certificate verify failed)",
        ),
        (
            "[thrd:ssl://localhost:22251/bootstrap]: ssl://localhost:22251/bootstrap: error:0A000086:SSL routines::certificate verify failed (after 121ms in state SSL_HANDSHAKE)",
            Kind::BadCertificate,
            "localhost:22251: the broker's certificate could not be verified (certificate verify failed)",
        ),
        (
            "[thrd:ssl://localhost:21245/bootstrap]: No matching issuer found in server trusted certificate authorities, not sending any client certificates",
            Kind::RefusedClientCertificate,
            "localhost:21245: the broker refused the client certificate (No matching issuer found in server trusted certificate authorities, not sending any client certificates)",
        ),
        (
            "[thrd:ssl://localhost:21245/bootstrap]: ssl://localhost:21245/bootstrap: Receive failed: error:0A000412:SSL routines::sslv3 alert bad certificate: SSL alert number 42 (after 38ms in state APIVERSION_QUERY)",
            Kind::NoClientCertificate,
            "localhost:21245: the broker requires a client certificate, and none is configured (Receive failed: sslv3 alert bad certificate: SSL alert number 42)",
        ),
        (
            "[thrd:10.255.255.1:9092/bootstrap]: 10.255.255.1:9092/bootstrap: Receive failed: Invalid response size 1213486160 (0..100000000): increase receive.message.max.bytes (after 0ms in state APIVERSION_QUERY)",
            Kind::NotKafka,
            "10.255.255.1:9092: this is no Kafka broker (it answers as an HTTP server does)",
        ),
        (
            "[thrd:127.0.0.1:23879/bootstrap]: 127.0.0.1:23879/bootstrap: Receive failed: Invalid response size 1157627904 (0..100000000): increase receive.message.max.bytes (after 12ms in state APIVERSION_QUERY)",
            Kind::NotKafka,
            "127.0.0.1:23879: this is no Kafka broker (it answers as PostgreSQL does)",
        ),
        (
            "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: Receive failed: Invalid response size 104857712 (0..100000000): increase receive.message.max.bytes (after 12ms in state UP)",
            Kind::AnswerTooLarge,
            "broker 1 at 127.0.0.1:9092: the broker's answer is larger than allowed (Receive failed: Invalid response size 104857712 (0..100000000))",
        ),
        (
            "[thrd:localhost:22251/bootstrap]: localhost:22251/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 8ms in state APIVERSION_QUERY)",
            Kind::TlsPort,
            "localhost:22251: plain text to a port that most likely uses TLS (Disconnected: connection closed by peer)",
        ),
        (
            "[thrd:localhost:27177/bootstrap]: localhost:27177/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 21ms in state UP)",
            Kind::SaslPort,
            "localhost:27177: the broker closed the connection, most likely because it requires a SASL login (Disconnected: connection closed by peer)",
        ),
        (
            "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: Disconnected: connection closed by peer: receive 0 after POLLIN (after 60021ms in state UP, 1 identical error(s) suppressed)",
            Kind::Disconnected,
            "broker 1 at 127.0.0.1:9092: the broker closed the connection (Disconnected: connection closed by peer)",
        ),
        (
            "[thrd:ssl://localhost:28053/bootstrap]: ssl://localhost:28053/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker listener? (after 45ms in state SSL_HANDSHAKE)",
            Kind::PlaintextPort,
            "localhost:28053: TLS to a port that does not use TLS (SSL handshake failed: Disconnected: SSL connection closed by peer)",
        ),
        (
            "[thrd:ssl://127.0.0.1:22949/bootstrap]: ssl://127.0.0.1:22949/bootstrap: Disconnected: SSL connection closed by peer (after 2ms in state SSL_HANDSHAKE)",
            Kind::PlaintextPort,
            "127.0.0.1:22949: TLS to a port that does not use TLS (Disconnected: SSL connection closed by peer)",
        ),
        (
            "[thrd:sasl_plaintext://localhost:27177/bootstrap]: sasl_plaintext://localhost:27177/bootstrap: SASL authentication error: Authentication failed: Invalid username or password (after 365ms in state AUTH_REQ)",
            Kind::Credentials,
            "localhost:27177: user name or password refused (SASL authentication error: Authentication failed: Invalid username or password)",
        ),
        (
            "[thrd:sasl_ssl://localhost:22919/bootstrap]: sasl_ssl://localhost:22919/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512 (after 119ms in state AUTH_REQ)",
            Kind::Credentials,
            "localhost:22919: user name or password refused (SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512)",
        ),
        (
            "[thrd:nowhere.invalid:9092/bootstrap]: nowhere.invalid:9092/bootstrap: Failed to resolve 'nowhere.invalid:9092': Name or service not known (after 6ms in state CONNECT)",
            Kind::UnknownHost,
            "nowhere.invalid:9092: the host name does not resolve (Failed to resolve 'nowhere.invalid:9092': Name or service not known)",
        ),
        (
            "[thrd:sasl_plaintext://localhost:27177/bootstrap]: sasl_plaintext://localhost:27177/bootstrap: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN (after 178ms in state AUTH_HANDSHAKE)",
            Kind::Mechanism,
            "localhost:27177: the broker does not offer this SASL mechanism (SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN)",
        ),
    ];

    #[test]
    fn each_text_of_librdkafka_becomes_a_kind_and_one_line() {
        for (text, kind, line) in TEXTS {
            let failure = ConnectFailure::read(text).unwrap_or_else(|| panic!("not read: {text}"));
            assert_eq!(failure.kind, kind, "{text}");
            assert_eq!(failure.to_string(), line);
        }
    }

    #[test]
    fn a_text_about_no_broker_is_no_failed_connection() {
        for text in ["1/1 brokers are down", "[thrd:app]: librdkafka v2.12.1 initialized", ""] {
            assert_eq!(ConnectFailure::read(text), None, "{text}");
        }
    }
}
