//! Connections to PostgreSQL: each kind of failure has its own reason and remedy, and every connection string that psql
//! accepts leads to the same server with the same settings.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::support::certificates::Authority;
use crate::support::servers::{Sandbox, brokers};
use crate::support::wait::{stays, unique, until};
use crate::support::{Database, Gapless, Ledger, Topic};

/// A server that accepts connections and never answers.
struct SilentServer(TcpListener);

impl SilentServer {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }
}

/// A temporary directory whose path is short enough for a Unix socket.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = PathBuf::from("/tmp").join(unique("gp"));
        std::fs::create_dir(&path).unwrap();
        let opened = Command::new("chmod").arg("1777").arg(&path).status().unwrap();
        assert!(opened.success());
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes a file into the data directory of a private server, readable only by its owner.
fn put_file(server: &Database, name: &str, text: &str) {
    let lines = text.replace('\'', "''");
    let sql = format!(
        "copy (select unnest(string_to_array('{lines}', E'\\n'))) to program 'umask 077; cat > {name}' (format text)"
    );
    server.execute(&sql);
}

/// Makes a private server offer TLS with this certificate.
fn serve_tls(server: &Database, certificate: &str, key: &str) {
    put_file(server, "server.crt", certificate);
    put_file(server, "server.key", key);
    server.execute("alter system set ssl = on");
    server.execute("select pg_reload_conf()");
    server.wait_for("select (current_setting('ssl') = 'on')::int::bigint", 1);
}

/// A kind of failure: a word of its message that no other kind has, and a word of its remedy.
struct Failure {
    url: String,
    word: &'static str,
    remedy: &'static str,
}

fn failure(url: impl Into<String>, word: &'static str, remedy: &'static str) -> Failure {
    Failure { url: url.into(), word, remedy }
}

/// Wrong configurations of servers and URLs, with the expected messages.
fn failures(sandbox: &Sandbox, database: &Database, silent: &SilentServer) -> Vec<Failure> {
    let server = Database::on(&sandbox.database_url);
    let (right, wrong) = (Authority::new(), Authority::new());
    let certificate = right.certify("elsewhere.example");
    serve_tls(&server, &certificate.certificate, &certificate.key);
    let hba = "host all nobody_at_all 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256";
    put_file(&server, "pg_hba.conf", hba);
    server.execute("create role limited login password 'limited' connection limit 0");
    server.execute("select pg_reload_conf()");
    until("the rules to be read", || {
        match server.try_rows("select 1 from pg_hba_file_rules where 'nobody_at_all' = any(user_name)", &[]) {
            Ok(rows) if rows.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let (address, name) = (database.address(), database.name());
    let tls = |authority: &Authority, mode: &str| {
        let file = std::env::temp_dir().join(unique("gapless-root"));
        std::fs::copy(&authority.file, &file).unwrap();
        format!("{}?sslmode={mode}&sslrootcert={}", database.url, file.display())
    };
    vec![
        failure(database.url_with_password("wrong"), "password authentication failed", "database.password_file"),
        failure(
            format!("postgres://nobody_at_all@{address}/{name}"),
            "role \\\"nobody_at_all\\\" does not exist",
            "create the role",
        ),
        failure(
            format!("postgres://gapless:gapless@{address}/no_such_base"),
            "database \\\"no_such_base\\\" does not exist",
            "create the database",
        ),
        failure(
            format!("postgres://limited:limited@{address}/{name}"),
            "too many connections for role",
            "connection limit",
        ),
        failure("postgres://gapless:gapless@no-such-host.invalid:5432/x", "does not resolve", "correct the host"),
        failure("postgres://gapless:gapless@127.0.0.1:1/x", "connection refused", "start PostgreSQL"),
        failure(format!("postgres://gapless:gapless@{}/x", silent.address()), "no answer within 700 ms", "firewalls"),
        failure(
            format!("postgres://gapless:gapless@{}/x", brokers()),
            "does not speak PostgreSQL's protocol",
            "another program",
        ),
        failure(tls(&wrong, "verify-ca"), "not signed by an authority", "sslrootcert"),
        failure(tls(&right, "verify-full"), "not for 127.0.0.1 but for elsewhere.example", "Certificates"),
        failure(
            database.url.clone() + "?sslmode=disable&target_session_attrs=standby",
            "is no standby",
            "target_session_attrs",
        ),
        failure(crate::support::servers::database_url() + "?sslmode=require", "does not offer TLS", "sslmode=disable"),
        failure("host=/tmp/no-such-directory dbname=x user=gapless", "no such socket", "unix_socket_directories"),
    ]
}

#[test]
fn each_postgresql_connection_failure_reports_its_own_reason_and_remedy() {
    let sandbox = Sandbox::postgres();
    let (topic, database, silent) = (Topic::new(1), Database::on(&sandbox.database_url), SilentServer::new());
    let failures = failures(&sandbox, &database, &silent);
    for Failure { url, word, remedy } in &failures {
        let call = |gapless: Gapless| gapless.database_url(url).env("GAPLESS__DATABASE__CONNECT_TIMEOUT_MS", "700");
        let daemon = call(Gapless::daemon(&topic, &database)).start();
        let line = daemon.wait_for_event("waiting_to_start").to_string();
        let plain = word.replace("\\\"", "\"");
        until(&format!("{plain} in /readyz"), || match daemon.wait_until_ready_is(503) {
            body if body.contains(&plain) => Ok(()),
            body => Err(body),
        });
        let check = call(Gapless::verb("check", &topic, &database)).run();
        assert!(check.status().code() != Some(0), "{check}");
        assert!(check.says(&plain) && check.says(remedy), "{word}, {remedy}: {check}");
        assert!(line.contains(word) && line.contains(remedy), "{word}, {remedy}: {line}");
        let server = url.split('@').next_back().unwrap().split('/').next().unwrap();
        assert!(url.starts_with("host=") || line.contains(server), "{server} is named in {line}");
        for other in failures.iter().filter(|other| other.word != *word) {
            assert!(!line.contains(other.word), "{line} also contains {}", other.word);
        }
        for wording in ["object", "db error", "error connecting", "error communicating", "error performing", "begin:"] {
            assert!(!line.contains(wording), "the wording of a library: {line}");
        }
        let ended = daemon.terminate().expect_code(0);
        assert!(!ended.says("gapless:gapless") && !ended.says("limited:limited"), "a secret was printed: {ended}");
    }
}

#[test]
fn a_question_mark_in_a_password_does_not_disable_tls() {
    let (topic, database) = (Topic::new(1), Database::new());
    let role = database.name();
    database.execute(&format!("create role {role} login superuser password 'a?b'"));
    let url = |query: &str| format!("postgres://{role}:a?b@{}/{role}{query}", database.address());
    // The server has no TLS: with sslmode=require nothing may be sent to this server.
    let refused = Gapless::verb("migrate", &topic, &database).database_url(&url("?sslmode=require")).run();
    refused.expect_code(1).expect_says(&["does not offer TLS"]);
    assert!(!database.has_ledger());
    Gapless::verb("migrate", &topic, &database).database_url(&url("")).run().expect_code(0);
    let quoted = format!("host=127.0.0.1 port={} user={role} dbname={role} password='a b'", database.address().port());
    database.execute(&format!("alter role {role} password 'a b'"));
    Gapless::verb("status", &topic, &database).database_url(&quoted).run().expect_says(&[&topic.name]);
    database.drop_role(role);
}

#[test]
fn an_invalid_connection_string_is_bad_configuration_and_is_not_printed() {
    let (topic, database) = (Topic::new(1), Database::new());
    for (url, word) in [
        ("postgres://u:se@cret@h/db", "%40"),
        ("postgres://u:se/cret@h/db", "%2F"),
        ("postgres://h/db?sslmod=require", "sslmod"),
        ("postgres://h/db?passfile=/secret", "database.password_file"),
        ("postgres://h/db?sslcrl=/x", "sslcrl"),
        ("host=h password='se cret", "quoted"),
    ] {
        let ended = Gapless::verb("migrate", &topic, &database).database_url(url).run().expect_code(2);
        let printed = ended.to_string();
        let printed = printed.split("log:").nth(1).unwrap();
        assert!(printed.contains(word) && !printed.contains("cret"), "{url}: {printed}");
    }
}

#[test]
fn a_unix_socket_is_reached_by_every_spelling_that_psql_accepts_with_any_sslmode() {
    let sandbox = Sandbox::postgres();
    let directory = Directory::new();
    let (topic, database) = (Topic::new(1), Database::on(&sandbox.database_url));
    let path = directory.0.display();
    // By default the client looks for the socket in the directory that packages use, and then in /tmp.
    database.execute(&format!("alter system set unix_socket_directories = '{path}', '/tmp'"));
    put_file(&database, "pg_hba.conf", "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256");
    sandbox.control_postgres("stop");
    sandbox.control_postgres("start");
    let (port, name) = (database.address().port(), database.name());
    let encoded = path.to_string().replace('/', "%2F");
    for url in [
        format!("postgres://gapless:gapless@:{port}/{name}"),
        format!("postgres:///{name}?host={path}&port={port}&user=gapless&password=gapless"),
        format!("postgres://{encoded}:{port}/{name}?user=gapless&password=gapless"),
        format!("postgres://gapless:gapless@{encoded}:{port}/{name}"),
        format!("host={path} port={port} dbname={name} user=gapless password=gapless"),
        format!("dbname={name} port={port} user=gapless password=gapless"),
        format!("host='' dbname={name} port={port} user=gapless password=gapless sslmode=disable"),
        format!("host={path} port={port} dbname={name} user=gapless password=gapless sslmode=require"),
        format!(
            "host={path} port={port} dbname={name} user=gapless password=gapless sslmode=verify-full sslrootcert=/none"
        ),
    ] {
        Gapless::verb("migrate", &topic, &database).database_url(&url).run().expect_code(0);
    }
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 200);
    let url = format!("postgres://gapless:gapless@{encoded}:{port}/{name}");
    Gapless::daemon(&topic, &database).database_url(&url).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn a_host_that_does_not_answer_leaves_time_for_the_other_hosts() {
    let (topic, database, silent) = (Topic::new(1), Database::new(), SilentServer::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let url = |host: &str, query: &str| {
        let at = database.url.find('@').unwrap() + 1;
        let joint = if database.url.contains('?') { '&' } else { '?' };
        format!("{}{host},{}{joint}{query}", &database.url[..at], &database.url[at..])
    };
    let hosts = format!("{},127.0.0.1:1,no-such-host.invalid", silent.address());
    let named = url(&hosts, "application_name=etl&connect_timeout=2");
    let daemon = Gapless::daemon(&topic, &database).database_url(&named).start();
    database.wait_for_outcomes(ledger.len());
    daemon.wait_until_ready();
    let sessions =
        "select count(*) > 0 from pg_stat_activity where datname = current_database() and application_name = 'etl'";
    assert!(database.value::<bool>(sessions), "the application name is the user's");
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn with_several_hosts_the_daemon_skips_a_standby_and_a_read_only_verb_uses_it() {
    let primary = Sandbox::postgres();
    let standby = Sandbox::second_postgres(Some(&primary.database_url));
    let (topic, database) = (Topic::new(1), Database::on(&primary.database_url));
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 10);
    let (name, first) = (database.name(), Database::known(&standby.database_url, database.name()).address());
    let url = |query: &str| format!("postgres://gapless:gapless@{first},{}/{name}{query}", database.address());
    Gapless::daemon(&topic, &database).database_url(&url("")).until_end().run().expect_code(0);
    ledger.assert_complete(&database);
    Gapless::daemon(&topic, &database)
        .database_url(&url("?target_session_attrs=primary"))
        .until_end()
        .run()
        .expect_code(0);
    // With `target_session_attrs=any` the daemon connects to the standby and waits for it to become writable.
    let waiting = Gapless::daemon(&topic, &database).database_url(&url("?target_session_attrs=any")).start();
    waiting.wait_for("standby");
    waiting.terminate().expect_code(0);
    let replica = Database::known(&standby.database_url, name);
    until("the replica to follow", || match replica.try_rows("select 1 from gapless.events limit 1", &[]) {
        Ok(rows) if rows.len() == 1 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let alone = format!("postgres://gapless:gapless@{first}/{name}");
    let status = Gapless::verb("status", &topic, &database).database_url(&alone).run().expect_code(0);
    assert!(status.output.contains(&topic.name), "{status}");
    Gapless::verb("verify", &topic, &database).database_url(&alone).run().expect_code(0);
    std::mem::forget(replica);
}

#[test]
fn a_rotated_password_needs_no_restart() {
    let (topic, database) = (Topic::new(1), Database::new());
    let role = database.name();
    database.execute(&format!("create role {role} login superuser password 'first'"));
    let directory = Directory::new();
    let file = directory.file("password");
    std::fs::write(&file, "first\n").unwrap();
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database)
        .database_url(&format!("postgres://{role}@{}/{role}", database.address()))
        .env("GAPLESS__DATABASE__PASSWORD_FILE", &file)
        .start();
    daemon.wait_until_ready();
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    database.execute(&format!("alter role {role} password 'second'"));
    let end_sessions =
        format!("select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = '{role}'");
    database.value::<i64>(&end_sessions);
    daemon.wait_for_metric("gapless_database_up", &[], 0.0);
    std::fs::write(&file, "second\n").unwrap();
    daemon.wait_for_event("database_credentials_reread");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    daemon.wait_until_ready();
    // While the file is missing, the password that was read before is used.
    std::fs::remove_file(&file).unwrap();
    database.value::<i64>(&end_sessions);
    daemon.wait_for_event("database_credentials_unreadable");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    let ended = daemon.terminate().expect_code(0);
    assert_eq!(ended.count_of_event("database_credentials_reread"), 1, "{ended}");
    assert!(!ended.says("second"), "a secret was printed: {ended}");
    ledger.assert_complete(&database);
    database.drop_role(role);
}

#[test]
fn a_client_certificate_that_was_rotated_is_read_again_without_a_restart() {
    let sandbox = Sandbox::postgres();
    let (topic, database, directory) = (Topic::new(1), Database::on(&sandbox.database_url), Directory::new());
    let role = database.name();
    database.execute(&format!("create role {role} login superuser"));
    let (first, second) = (Authority::new(), Authority::new());
    let trust = |authority: &Authority| {
        put_file(&database, "clients.crt", &std::fs::read_to_string(&authority.file).unwrap());
        database.execute("select pg_reload_conf()");
    };
    let (certificate, key) = (directory.file("client.crt"), directory.file("client.key"));
    let give = |authority: &Authority| {
        let client = authority.certify(role);
        std::fs::write(&certificate, client.certificate).unwrap();
        std::fs::write(&key, client.key).unwrap();
        assert!(Command::new("chmod").args(["600", &key]).status().unwrap().success());
    };
    let rules = format!("hostssl all {role} 127.0.0.1/32 cert\nhost all all 127.0.0.1/32 scram-sha-256");
    put_file(&database, "pg_hba.conf", &rules);
    database.execute("alter system set ssl_ca_file = 'clients.crt'");
    put_file(&database, "clients.crt", &std::fs::read_to_string(&first.file).unwrap());
    let server = first.certify("127.0.0.1");
    serve_tls(&database, &server.certificate, &server.key);
    give(&first);
    let url =
        format!("postgres://{role}@{}/{role}?sslmode=require&sslcert={certificate}&sslkey={key}", database.address());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).database_url(&url).start();
    daemon.wait_until_ready();
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    trust(&second);
    database.value::<i64>(&format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = '{role}'"
    ));
    daemon.wait_for_metric("gapless_database_up", &[], 0.0);
    give(&second);
    daemon.wait_for_event("database_credentials_reread");
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    daemon.wait_until_ready();
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

/// Runs openssl with the arguments of PostgreSQL's documentation.
fn openssl(directory: &Directory, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(&directory.0).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn certificates_made_as_in_postgresqls_documentation_are_accepted_or_named_in_the_error() {
    let sandbox = Sandbox::postgres();
    let (topic, database, directory) = (Topic::new(1), Database::on(&sandbox.database_url), Directory::new());
    openssl(&directory, "req -new -x509 -days 365 -nodes -text -out self.crt -keyout self.key -subj /CN=localhost");
    openssl(&directory, "req -new -nodes -text -out root.csr -keyout root.key -subj /CN=root.example");
    openssl(
        &directory,
        "x509 -req -in root.csr -text -days 3650 -extfile /etc/ssl/openssl.cnf -extensions v3_ca -signkey root.key -out root.crt",
    );
    for name in ["old", "named"] {
        openssl(&directory, &format!("req -new -nodes -text -out {name}.csr -keyout {name}.key -subj /CN=localhost"));
    }
    std::fs::write(directory.0.join("names"), "subjectAltName=DNS:localhost").unwrap();
    let sign = "x509 -req -text -days 365 -CA root.crt -CAkey root.key -CAcreateserial";
    openssl(&directory, &format!("{sign} -in old.csr -out old.crt"));
    openssl(&directory, &format!("{sign} -in named.csr -out named.crt -extfile names"));
    let port = database.address().port();
    let migrate = |query: &str| {
        let url = format!("postgres://gapless:gapless@localhost:{port}/{}?{query}", database.name());
        Gapless::verb("migrate", &topic, &database).database_url(&url).run()
    };
    let serve = |name: &str| {
        let read = |kind: &str| std::fs::read_to_string(directory.0.join(format!("{name}.{kind}"))).unwrap();
        serve_tls(&database, &read("crt"), &read("key"));
    };
    put_file(
        &database,
        "pg_hba.conf",
        "host all all 127.0.0.1/32 scram-sha-256\nhostssl all all ::1/128 scram-sha-256",
    );
    let root = |name: &str| format!("sslrootcert={}", directory.file(name));
    serve("self");
    for query in ["sslmode=require", "sslmode=prefer"] {
        migrate(query).expect_code(0);
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        migrate(&format!("sslmode={mode}&{}", root("self.crt"))).expect_code(0);
        migrate(&format!("sslmode={mode}&{}", root("root.crt")))
            .expect_code(1)
            .expect_says(&["certificate", "Certificates"]);
    }
    serve("old");
    for query in ["sslmode=require", "sslmode=prefer", "sslmode=require&ssl_max_protocol_version=TLSv1.2"] {
        migrate(query).expect_code(0);
    }
    migrate(&format!("sslmode=verify-full&{}", root("old.crt"))).expect_code(0);
    migrate(&format!("sslmode=verify-ca&{}", root("root.crt")))
        .expect_code(1)
        .expect_says(&["X.509 version 1", "Certificates"]);
    serve("named");
    migrate(&format!("sslmode=verify-full&{}", root("root.crt"))).expect_code(0);
    migrate(&format!("sslmode=verify-ca&{}", root("self.crt")))
        .expect_code(1)
        .expect_says(&["not signed by an authority"]);
}

#[test]
fn idle_sessions_ended_by_the_server_are_not_reported_as_an_outage() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    database.execute(&format!("alter database {} set idle_session_timeout = '700ms'", database.name()));
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    daemon.wait_until_ready();
    stays("the daemon stays ready", Duration::from_secs(9), || match daemon.get("/readyz").status {
        200 => Ok(()),
        status => Err(format!("{status}")),
    });
    ledger.send_events(0, 10);
    database.wait_for_outcomes(ledger.len());
    let ended = daemon.terminate().expect_code(0);
    assert_eq!(ended.count_of("\"WARN\""), 0, "{ended}");
    ledger.assert_complete(&database);
}
