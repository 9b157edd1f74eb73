//! Connections to Kafka: each kind of failure has its own reason and remedy, and TLS and logins work.
//! The tests use one private broker with several differently configured listeners on loopback.

use std::path::PathBuf;

use crate::support::certificates::{Authority, ServerCertificate};
use crate::support::servers::Sandbox;
use crate::support::wait::{unique, until};
use crate::support::{Database, Gapless, Ledger, Topic};

const SCRAM: &str = "SCRAM-SHA-512";

/// The broker, its certificates and users. The user `alice` has the password "right".
struct Broker {
    sandbox: Sandbox,
    authority: Authority,
    stranger: Authority,
    files: PathBuf,
}

impl Broker {
    fn start() -> Self {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let files = std::env::temp_dir().join(unique("gapless-kafka-tls"));
        std::fs::create_dir(&files).unwrap();
        let tls = |listener: &str, certificate: ServerCertificate| {
            let store = files.join(format!("{listener}.pem"));
            std::fs::write(&store, certificate.key + &certificate.certificate).unwrap();
            let (listener, store, trusted) =
                (format!("listener.name.{listener}.ssl"), store.display(), authority.file.display());
            format!(
                "{listener}.keystore.type=PEM\n{listener}.keystore.location={store}\n{listener}.truststore.type=PEM\n{listener}.truststore.location={trusted}\n"
            )
        };
        let properties = [
            tls("tls", authority.certify("127.0.0.1")),
            tls("elsewhere", authority.certify("elsewhere.example")),
            tls("expired", authority.certify_until("127.0.0.1", 2020)),
            tls("mutual", authority.certify("127.0.0.1")),
            "listener.name.mutual.ssl.client.auth=required\n".to_owned(),
            tls("scram", authority.certify("127.0.0.1")),
            "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.scram.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             listener.name.scram.scram-sha-512.connections.max.reauth.ms=3000\n\
             listener.name.login.sasl.enabled.mechanisms=PLAIN\n\
             listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_alice=\"right\";\n"
                .to_owned(),
        ];
        let listeners = "TLS=SSL ELSEWHERE=SSL EXPIRED=SSL MUTUAL=SSL SCRAM=SASL_SSL LOGIN=SASL_PLAINTEXT AWAY=PLAINTEXT@127.0.0.1:1";
        let sandbox = Sandbox::kafka_listening(listeners, &properties.concat());
        Self { sandbox, authority, stranger, files }
    }

    fn set_password(&self, password: &str) {
        let config = format!("{SCRAM}=[password={password}]");
        let user = ["--entity-type", "users", "--entity-name", "alice"];
        self.sandbox
            .kafka_tool(&[&["kafka.admin.ConfigCommand", "--alter", "--add-config", &config][..], &user].concat());
    }

    /// Certificate and key of a client.
    fn client(&self, authority: &Authority) -> (PathBuf, PathBuf) {
        let client = authority.certify("client");
        let (certificate, key) = (self.files.join(unique("client")), self.files.join(unique("key")));
        std::fs::write(&certificate, client.certificate).unwrap();
        std::fs::write(&key, client.key).unwrap();
        (certificate, key)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

/// A call with settings of section `[kafka]`.
fn with(gapless: Gapless, settings: &[(&str, &str)]) -> Gapless {
    settings.iter().fold(gapless, |gapless, (key, value)| gapless.env(&format!("GAPLESS__KAFKA__{key}"), value))
}

struct Fault {
    name: &'static str,
    brokers: String,
    settings: Vec<(&'static str, String)>,
    /// A part of the message that no other fault has.
    says: &'static str,
    remedy: &'static str,
}

fn fault<const N: usize>(
    name: &'static str,
    brokers: &str,
    settings: [(&'static str, &str); N],
    says: &'static str,
    remedy: &'static str,
) -> Fault {
    let settings = settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    Fault { name, brokers: brokers.to_owned(), settings, says, remedy }
}

#[expect(clippy::too_many_lines, reason = "a table with one entry per fault")]
fn faults(broker: &Broker, postgres: &str) -> Vec<Fault> {
    let at = |listener| broker.sandbox.listener(listener);
    let right = broker.authority.file.to_str().unwrap();
    let wrong = broker.stranger.file.to_str().unwrap();
    let (certificate, key) = broker.client(&broker.stranger);
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let ssl = ("SECURITY_PROTOCOL", "ssl");
    let ca = ("SSL_CA_LOCATION", right);
    let plain = ("SECURITY_PROTOCOL", "SASL_PLAINTEXT");
    let scram = [("SECURITY_PROTOCOL", "SASL_SSL"), ca, ("SASL_MECHANISM", SCRAM)];
    let user = |name| ("SASL_USERNAME", name);
    let password = |word| ("SASL_PASSWORD", word);
    vec![
        fault(
            "wrong CA",
            &at("TLS"),
            [ssl, ("SSL_CA_LOCATION", wrong)],
            "not signed by a CA of kafka.ssl_ca_location",
            "ssl_ca_location to the CA",
        ),
        fault("no CA", &at("TLS"), [ssl], "kafka.ssl_ca_location names none", "set kafka.ssl_ca_location"),
        fault(
            "expired certificate",
            &at("EXPIRED"),
            [ssl, ca],
            "has expired (it was valid until 2020-01-01",
            "renew the broker's certificate",
        ),
        fault(
            "another host name",
            &at("ELSEWHERE"),
            [ssl, ca],
            "is for another host name",
            "advertised.listeners, or renew",
        ),
        fault(
            "no client certificate",
            &at("MUTUAL"),
            [ssl, ca],
            "requires a client certificate, and none is configured",
            "set kafka.ssl_certificate_location",
        ),
        fault(
            "client certificate of a stranger",
            &at("MUTUAL"),
            [ssl, ca, ("SSL_CERTIFICATE_LOCATION", certificate), ("SSL_KEY_LOCATION", key)],
            "refused the client certificate",
            "signed by a CA that the broker trusts",
        ),
        fault(
            "wrong password, PLAIN",
            &at("LOGIN"),
            [plain, user("alice"), password("wrong")],
            "refused (user alice: ",
            "or create the user",
        ),
        fault(
            "unknown user, PLAIN",
            &at("LOGIN"),
            [plain, user("nobody"), password("right")],
            "refused (user nobody: ",
            "or create the user",
        ),
        fault(
            "wrong password, SCRAM",
            &at("SCRAM"),
            [scram[0], scram[1], scram[2], user("alice"), password("wrong")],
            "refused (user alice: ",
            "or create the user",
        ),
        fault(
            "unknown user, SCRAM",
            &at("SCRAM"),
            [scram[0], scram[1], scram[2], user("nobody"), password("right")],
            "refused (user nobody: ",
            "or create the user",
        ),
        fault(
            "wrong mechanism",
            &at("LOGIN"),
            [plain, ("SASL_MECHANISM", "SCRAM-SHA-256"), user("alice"), password("right")],
            "does not offer this SASL mechanism",
            "set kafka.sasl_mechanism",
        ),
        fault("no login", &at("LOGIN"), [], "requires a SASL login", "to sasl_plaintext or sasl_ssl"),
        fault(
            "TLS to a plain port",
            &broker.sandbox.brokers,
            [ssl, ca],
            "TLS to a port that does not use TLS",
            "without ssl",
        ),
        fault(
            "plain text to a TLS port",
            &at("TLS"),
            [],
            "plain text to a port that most likely uses TLS",
            "to ssl or sasl_ssl",
        ),
        fault("unknown host", "nowhere.invalid:9092", [], "the host name does not resolve", "DNS, /etc/hosts"),
        fault("PostgreSQL's port", postgres, [], "it answers as PostgreSQL does", "correct host and port"),
        fault("closed port", "127.0.0.1:1", [], "127.0.0.1:1: connection refused", "start the broker"),
        fault(
            "advertised address",
            &at("AWAY"),
            [],
            "broker 1 at 127.0.0.1:1: the broker's advertised address",
            "advertised.listeners",
        ),
    ]
}

#[test]
fn each_kafka_connection_failure_reports_its_own_reason_and_remedy() {
    let broker = Broker::start();
    broker.set_password("right");
    let database = Database::new();
    Gapless::bare().args(["migrate"]).database_url(&database.url).run().expect_code(0);
    let topic = Topic::on(&broker.sandbox.brokers, 1, &[]);
    let faults = faults(&broker, &database.address().to_string());
    let call = |fault: &Fault, arguments: &[&str]| {
        let gapless = Gapless::bare().args(arguments.iter().copied()).args(["--topic", &topic.name]);
        let settings: Vec<_> = fault.settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        with(gapless, &settings).brokers(&fault.brokers).database_url(&database.url).start()
    };
    // All processes run at once, since each waits for the timeouts of its client.
    let daemons: Vec<_> = faults.iter().map(|fault| (fault, call(fault, &[]))).collect();
    let checks: Vec<_> = faults.iter().map(|fault| (fault, call(fault, &["check"]))).collect();
    for (fault, daemon) in daemons {
        let address = daemon.address();
        until(&format!("{}: /readyz to contain {:?}", fault.name, fault.says), || match crate::support::http::try_get(
            address, "/readyz",
        ) {
            Ok(response) if response.status == 503 && response.body.contains(fault.says) => Ok(()),
            other => Err(other.map_or_else(|error| error.to_string(), |response| response.body)),
        });
        let reasons = daemon.get("/health").json()["reasons"].to_string();
        assert!(reasons.contains(fault.remedy), "{}: {reasons}", fault.name);
        let line = daemon.wait_for(fault.says).to_string();
        assert!(line.contains("waiting_to_start") && line.contains(fault.remedy), "{}: {line}", fault.name);
        let ended = daemon.terminate().expect_code(0);
        assert!(!ended.says("BrokerTransportFailure"), "{}: {ended}", fault.name);
    }
    for (fault, check) in checks {
        check.wait().expect_code(1).expect_says(&[fault.says, fault.remedy]);
    }
}

#[test]
fn messages_are_read_with_a_scram_login_over_tls_and_with_a_client_certificate() {
    let broker = Broker::start();
    broker.set_password("right");
    let topic = Topic::on(&broker.sandbox.brokers, 2, &[]);
    let (certificate, key) = broker.client(&broker.authority);
    let ca = ("SSL_CA_LOCATION", broker.authority.file.to_str().unwrap());
    let login = [
        ("SECURITY_PROTOCOL", "SASL_SSL"),
        ca,
        ("SASL_MECHANISM", SCRAM),
        ("SASL_USERNAME", "alice"),
        ("SASL_PASSWORD", "right"),
    ];
    let mutual = [
        ("SECURITY_PROTOCOL", "SSL"),
        ca,
        ("SSL_CERTIFICATE_LOCATION", certificate.to_str().unwrap()),
        ("SSL_KEY_LOCATION", key.to_str().unwrap()),
    ];
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 20);
    ledger.send_events(1, 20);
    for (listener, settings) in [("SCRAM", &login[..]), ("MUTUAL", &mutual[..])] {
        let database = Database::new();
        let daemon = Gapless::daemon(&topic, &database).brokers(&broker.sandbox.listener(listener));
        with(daemon, settings).until_end().run().expect_code(0);
        ledger.assert_complete(&database);
    }
}

#[test]
fn a_password_that_was_rotated_is_read_again_without_a_restart() {
    let broker = Broker::start();
    broker.set_password("right");
    let (topic, database) = (Topic::on(&broker.sandbox.brokers, 1, &[]), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let password = broker.files.join("password");
    std::fs::write(&password, "right\n").unwrap();
    let settings = [
        ("SECURITY_PROTOCOL", "SASL_SSL"),
        ("SSL_CA_LOCATION", broker.authority.file.to_str().unwrap()),
        ("SASL_MECHANISM", SCRAM),
        ("SASL_USERNAME", "alice"),
        ("SASL_PASSWORD_FILE", password.to_str().unwrap()),
    ];
    let daemon = Gapless::daemon(&topic, &database).brokers(&broker.sandbox.listener("SCRAM"));
    let daemon = with(daemon, &settings).start();
    database.wait_for_outcomes(10);
    // The broker requires a new login every three seconds.
    broker.set_password("rotated");
    let lost = daemon.wait_for_event("kafka_lost").to_string();
    assert!(lost.contains("user name or password refused (user alice"), "{lost}");
    until("the lag to be unknown, not 0", || match daemon.get("/metrics").metric("gapless_lag", &[]) {
        None => Ok(()),
        lag => Err(format!("{lag:?}")),
    });
    std::fs::write(&password, "rotated\n").unwrap();
    daemon.wait_for_event("kafka_returned");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(20);
    daemon.wait_until_ready();
    let ended = daemon.terminate().expect_code(0);
    assert_eq!(ended.count_of_event("secrets_reloaded"), 1, "{ended}");
    assert!(!ended.says("rotated\\n") && !ended.says("right"), "a secret was printed: {ended}");
    ledger.assert_complete(&database);
}

#[test]
fn a_client_certificate_and_a_ca_that_were_rotated_are_read_again_without_a_restart() {
    let broker = Broker::start();
    let (topic, database) = (Topic::on(&broker.sandbox.brokers, 1, &[]), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let (certificate, key) = broker.client(&broker.authority);
    let ca = broker.files.join("ca");
    std::fs::copy(&broker.authority.file, &ca).unwrap();
    let settings = [
        ("SECURITY_PROTOCOL", "SSL"),
        ("SSL_CA_LOCATION", ca.to_str().unwrap()),
        ("SSL_CERTIFICATE_LOCATION", certificate.to_str().unwrap()),
        ("SSL_KEY_LOCATION", key.to_str().unwrap()),
    ];
    let daemon = Gapless::daemon(&topic, &database).brokers(&broker.sandbox.listener("MUTUAL"));
    let daemon = with(daemon, &settings).start();
    database.wait_for_outcomes(10);
    // The broker restarts with a certificate of another authority and trusts only clients of that authority.
    broker.sandbox.control_kafka("stop");
    let server = broker.stranger.certify("127.0.0.1");
    std::fs::write(broker.files.join("mutual.pem"), server.key + &server.certificate).unwrap();
    std::fs::copy(&broker.stranger.file, &broker.authority.file).unwrap();
    broker.sandbox.control_kafka("start");
    until("the certificate to be refused", || {
        let health = daemon.get("/health").body;
        if health.contains("is not signed by a CA") { Ok(()) } else { Err(health) }
    });
    let client = broker.stranger.certify("client");
    std::fs::write(&certificate, client.certificate).unwrap();
    std::fs::write(&key, client.key).unwrap();
    std::fs::copy(&broker.stranger.file, &ca).unwrap();
    daemon.wait_for_event("kafka_returned");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(20);
    daemon.wait_until_ready();
    let ended = daemon.terminate().expect_code(0);
    assert!(ended.has_event("secrets_reloaded"), "{ended}");
    ledger.assert_complete(&database);
}
