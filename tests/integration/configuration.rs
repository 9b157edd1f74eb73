//! Flags, environment and configuration file: precedence, refused values, and that no secret is ever printed.

use std::path::PathBuf;

use crate::support::certificates::Authority;
use crate::support::servers::Sandbox;
use crate::support::wait::unique;
use crate::support::{Database, Gapless, Ledger, Topic};

struct File(PathBuf);

impl File {
    fn with(text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(unique("gapless-file")));
        std::fs::write(&file.0, text).unwrap();
        file
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn an_unknown_key_is_bad_configuration() {
    let (topic, database) = (Topic::new(1), Database::new());
    Gapless::daemon(&topic, &database)
        .env("GAPLESS__BATCH__MAX_MESAGES", "10")
        .run()
        .expect_code(2)
        .expect_says(&["mesages"]);
    let file = File::with("[server]\nbnid = \"127.0.0.1:0\"\n");
    Gapless::daemon(&topic, &database).args(["--config", file.path()]).run().expect_code(2).expect_says(&["bnid"]);
    let file = File::with("[servers]\nbind = \"127.0.0.1:0\"\n");
    Gapless::daemon(&topic, &database).args(["--config", file.path()]).run().expect_code(2).expect_says(&["servers"]);
    Gapless::daemon(&topic, &database).args(["--no-such-flag"]).run().expect_code(2);
    assert!(!database.has_ledger(), "no schema is created");
}

#[test]
fn an_invalid_value_or_file_of_a_setting_is_named_in_a_message_of_our_own() {
    let (topic, database) = (Topic::new(1), Database::new());
    let refused = |settings: [(&str, &str); 2]| {
        let gapless = settings.iter().fold(Gapless::daemon(&topic, &database), |g, (name, value)| g.env(name, value));
        gapless.run().expect_code(2)
    };
    let (protocol, ssl) = ("GAPLESS__KAFKA__SECURITY_PROTOCOL", "ssl");
    refused([(protocol, ssl), ("GAPLESS__KAFKA__SSL_CA_LOCATION", "/no/such.pem")])
        .expect_says(&["kafka.ssl_ca_location: cannot read /no/such.pem", "No such file"]);
    let preset = refused([(protocol, "plaintext"), ("GAPLESS__FORMAT__PRESET", "web4")]);
    assert!(!preset.says("variant"), "{preset}");
    preset.expect_says(&["\"web4\" is no preset; write one of web3", "GAPLESS__FORMAT__PRESET"]);
}

#[test]
fn a_setting_from_the_environment_is_named_by_its_variable_and_none_is_ignored() {
    let run = |settings: &[(&str, &str)]| {
        settings
            .iter()
            .fold(Gapless::bare_without_flags(), |gapless, (name, value)| gapless.env(name, value))
            .run()
            .expect_code(2)
    };
    let missing = run(&[]);
    missing.expect_says(&["GAPLESS__KAFKA__BROKERS", "GAPLESS__KAFKA__TOPIC", "GAPLESS__DATABASE__URL"]);
    run(&[("GAPLESS_KAFKA__TOPIC", "t")]).expect_says(&["GAPLESS_KAFKA__TOPIC", "write GAPLESS__KAFKA__TOPIC"]);
    run(&[("GAPLESS__KAFKA__TOPICS", "t")]).expect_says(&["GAPLESS__KAFKA__TOPICS", "kafka.topics", "topic"]);
    let all = [
        ("GAPLESS__KAFKA__BROKERS", "b"),
        ("GAPLESS__KAFKA__TOPIC", "t"),
        ("GAPLESS__DATABASE__URL", "postgres://h/d"),
    ];
    let with = |name, value| run(&[all.as_slice(), &[(name, value)]].concat());
    for (name, value) in [
        ("GAPLESS__BATCH__MAX_MESSAGES", "many"),
        ("GAPLESS__BATCH__MAX_BYTES", "0"),
        ("GAPLESS__IDENTITY__FIELDS", "[txn]"),
        ("GAPLESS__LOG__FORMAT", "xml"),
    ] {
        let ended = with(name, value).expect_says(&[name]);
        assert_eq!(ended.count_of("gapless: "), 1, "one line: {ended}");
    }
}

#[test]
fn the_list_of_identity_fields_may_be_json_in_the_environment() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = |fields: &str| Gapless::daemon(&topic, &database).env("GAPLESS__IDENTITY__FIELDS", fields).until_end();
    daemon(r#"["txn", "event_type", "log_index"]"#).run().expect_code(0);
    daemon("txn,event_type,log_index").run().expect_code(0);
    daemon("txn,event_type").run().expect_code(3);
}

#[test]
fn the_unit_and_the_verbs_read_the_same_configuration_file() {
    let (topic, database) = (Topic::new(1), Database::new());
    let unit = include_str!("../../deploy/systemd/gapless.service");
    let begin = "ExecStart=/usr/local/bin/gapless --config /etc/gapless/gapless.toml ";
    assert!(unit.lines().any(|line| line.starts_with(begin)) && unit.contains("GAPLESS__DATABASE__URL_FILE=%d/"));
    let url = File::with(&database.url);
    let sample = include_str!("../../deploy/systemd/gapless.toml")
        .replace("kafka-1:9092,kafka-2:9092", &topic.brokers)
        .replace("contract-events", &topic.name)
        .replace("/etc/gapless/database-url", url.path());
    let file = File::with(&sample);
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    Gapless::bare().args(["--config", file.path(), "--from-db", "--until-end"]).run().expect_code(0);
    ledger.assert_complete(&database);
    for verb in ["status", "check", "verify"] {
        Gapless::bare().args(["--config", file.path(), verb]).run().expect_code(0);
    }
}

#[test]
fn bad_values_are_bad_configuration() {
    let (topic, database) = (Topic::new(1), Database::new());
    let bad = [
        ("GAPLESS__BATCH__MAX_MESSAGES", "0"),
        ("GAPLESS__BATCH__MAX_MESSAGES", "many"),
        ("GAPLESS__SERVER__BIND", "nowhere"),
        ("GAPLESS__FORMAT__PRESET", "web9"),
        ("GAPLESS__LOG__FORMAT", "xml"),
    ];
    for (name, value) in bad {
        let gapless = match name {
            // The flag would override the variable.
            "GAPLESS__LOG__FORMAT" => Gapless::bare_without_flags()
                .args(["--brokers", &topic.brokers, "--topic", &topic.name])
                .database_url(&database.url),
            _ => Gapless::daemon(&topic, &database),
        };
        let ended = gapless.env(name, value).run();
        let ended = ended.expect_code(2);
        assert!(ended.says(value) || ended.says(&name.to_lowercase()), "{name}={value}: {ended}");
    }
    Gapless::daemon(&topic, &database).database_url("not a url").run().expect_code(2);
    Gapless::bare().run().expect_code(2);
    let file = std::env::temp_dir().join(unique("absent"));
    Gapless::daemon(&topic, &database).args(["--config", file.to_str().unwrap()]).run().expect_code(2);
}

#[test]
fn librdkafka_settings_that_the_guarantee_depends_on_cannot_be_set() {
    let (topic, database) = (Topic::new(1), Database::new());
    for option in ["isolation.level", "auto.offset.reset", "check.crcs", "enable.auto.commit"] {
        let file = File::with(&format!("[kafka.options]\n\"{option}\" = \"x\"\n"));
        Gapless::daemon(&topic, &database).args(["--config", file.path()]).run().expect_code(2).expect_says(&[option]);
    }
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    let file = File::with(&format!(
        "[kafka]\nbrokers = \"{}\"\ntopic = \"of_the_file\"\ngroup = \"of_the_file\"\n[database]\nurl = \"postgres://nobody@127.0.0.1:1/nowhere\"\n",
        topic.brokers
    ));
    Gapless::bare()
        .args(["--config", file.path(), "--topic", &topic.name, "--until-end"])
        .env("GAPLESS__KAFKA__TOPIC", "of_the_environment")
        .env("GAPLESS__DATABASE__URL", &database.url)
        .run()
        .expect_code(0);
    ledger.assert_complete(&database);
    assert_eq!(database.value::<String>("select consumer_group from gapless.consumer_positions"), "of_the_file");
}

#[test]
fn the_default_file_is_complete_and_valid() {
    let (topic, database) = (Topic::new(1), Database::new());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/default.toml");
    Gapless::daemon(&topic, &database).args(["--config", file]).until_end().run().expect_code(0);
}

#[test]
fn a_daemon_with_a_wrong_password_waits_and_is_alive_but_not_ready() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).database_url(&database.url_with_password("wrong-secret")).start();
    let reasons = daemon.wait_until_ready_is(503);
    crate::support::wait::until("the reason to be reported", || {
        let body = daemon.get("/readyz").body;
        if body.contains("password") || body.contains("authentication") { Ok(()) } else { Err(body) }
    });
    assert_eq!(daemon.get("/livez").status, 200, "{reasons}");
    daemon.wait_for_metric("gapless_database_up", &[], 0.0);
    let ended = daemon.terminate().expect_code(0);
    assert!(!ended.says("wrong-secret"), "a secret was printed: {ended}");
    // A verb does not wait but exits after its limit.
    let ended = Gapless::verb("status", &topic, &database)
        .database_url(&database.url_with_password("wrong-secret"))
        .run()
        .expect_code(1);
    assert!(!ended.says("wrong-secret"), "a secret was printed: {ended}");
}

#[test]
fn secrets_can_come_from_files_and_are_never_printed() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    let url = File::with(&format!("{}\n", database.url));
    let ended = Gapless::bare()
        .args(["--brokers", &topic.brokers, "--topic", &topic.name, "--until-end"])
        .env("GAPLESS__DATABASE__URL_FILE", url.path())
        .env("GAPLESS__LOG__LEVEL", "trace")
        .run()
        .expect_code(0);
    let password = database.url.split(['@', ':']).nth(2).unwrap().to_owned();
    if password.len() > 7 {
        assert!(!ended.says(&password), "a secret was printed");
    }
    assert!(!ended.says(&database.url), "a secret was printed");
    ledger.assert_complete(&database);
}

#[test]
fn a_password_that_is_in_no_url_is_never_printed_at_any_level() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut ledger = Ledger::of(&topic);
    database.execute("do $$ begin execute format('create role %I login superuser password %L', current_database(), 'canary-4711'); end $$");
    ledger.send_events(0, 3);
    let name = database.value::<String>("select current_database()::text");
    let address = database.address();
    let password = File::with("canary-4711\n");
    let ended = Gapless::daemon(&topic, &database)
        .database_url(&format!("postgres://{name}@{address}/{name}"))
        .env("GAPLESS__DATABASE__PASSWORD_FILE", password.path())
        .env("GAPLESS__LOG__LEVEL", "trace")
        .until_end()
        .run()
        .expect_code(0);
    assert!(!ended.says("canary-4711"), "a secret was printed");
    ledger.assert_complete(&database);
    database.drop_role(&name);
}

#[test]
fn payloads_are_not_logged_at_any_level() {
    let (topic, database) = (Topic::new(1), Database::new());
    let mut event = crate::support::Event::numbered(1, 1);
    event.memo = "\"payload-canary\"".to_owned();
    topic.send([event.json(), "payload-canary broken".to_owned(), event.conflicting().json()]);
    let ended = Gapless::daemon(&topic, &database).env("GAPLESS__LOG__LEVEL", "debug").until_end().run().expect_code(0);
    assert!(!ended.says("payload-canary"), "{ended}");
}

#[test]
fn a_start_without_the_right_to_migrate_names_the_migrate_verb() {
    let (topic, database) = (Topic::new(1), Database::new());
    let name = database.value::<String>("select current_database()::text");
    database.execute(&format!("create role {name} login password 'limited'"));
    let limited = format!("postgres://{name}:limited@{}/{name}", database.address());
    let run = || Gapless::daemon(&topic, &database).database_url(&limited).until_end().run();
    run().expect_code(3).expect_says(&["gapless migrate"]);
    // After a migration by a privileged role, the documented rights are enough.
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    database.grant_rights(&name);
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 3);
    run().expect_code(0);
    ledger.assert_complete(&database);
    database.drop_role(&name);
}

#[test]
fn migrate_can_run_repeatedly_and_concurrently() {
    let (topic, database) = (Topic::new(1), Database::new());
    let running: Vec<_> = (0..4).map(|_| Gapless::verb("migrate", &topic, &database).start()).collect();
    for migrate in running {
        migrate.wait().expect_code(0);
    }
    // One of them did the migration and recorded it.
    let decided = "select concat_ws(' ', verb, subject, arguments->>'from_version', rows_changed = jsonb_array_length(arguments->'applied'),
                       rows_changed > 0, db_role = session_user::text, os_user <> '', program_version) from gapless.decisions";
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(database.value::<String>(decided), format!("migrate schema gapless 0 t t t t {version}"));
    Gapless::verb("migrate", &topic, &database).run().expect_code(0);
    assert_eq!(database.count("decisions"), 1, "a migration without work records no decision");
    assert_eq!(database.value::<i64>("select count(*) from pg_class where relnamespace = 'public'::regnamespace"), 0);
}

#[test]
fn check_reports_each_finding_with_its_remedy() {
    let (topic, database) = (Topic::new(1), Database::new());
    let check = || Gapless::verb("check", &topic, &database).args(["--format", "json"]);
    let findings = |output: &str| serde_json::from_str::<serde_json::Value>(output).expect("one document of JSON");
    let good = check().run().expect_code(0);
    assert!(findings(&good.output).is_array() || findings(&good.output).is_object());
    assert!(!database.has_ledger(), "check changes nothing");
    check().database_url("postgres://nobody@127.0.0.1:1/nowhere").run().expect_code(1);
    let absent = Gapless::bare()
        .args(["check", "--brokers", &topic.brokers, "--topic", "no_such_topic_anywhere"])
        .database_url(&database.url)
        .run()
        .expect_code(1);
    assert!(absent.says("no_such_topic_anywhere"), "{absent}");
}

#[test]
fn status_prints_the_accounting_as_a_table_and_as_json() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 7);
    ledger.send("poison", "rejected");
    Gapless::daemon(&topic, &database).until_end().run().expect_code(0);
    ledger.send_events(1, 3);
    let table = Gapless::verb("status", &topic, &database).run().expect_code(0);
    assert!(table.output.contains(&topic.name), "{table}");
    let json = Gapless::verb("status", &topic, &database).args(["--format", "json"]).run().expect_code(0);
    let status: serde_json::Value = serde_json::from_str(&json.output).expect("standard output is for data only");
    let partitions = status["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), 2, "{status}");
    assert_eq!(partitions[0]["next_offset"], 8, "{status}");
    assert_eq!(partitions[0]["lag"], 0, "{status}");
    assert_eq!(partitions[1]["lag"], 3, "{status}");
}

/// Makes a private PostgreSQL offer TLS with a certificate of this authority.
fn serve_tls(sandbox: &Sandbox, authority: &Authority, name: &str) {
    let server = Database::on(&sandbox.database_url);
    let certificate = authority.certify(name);
    for (file, text) in [("server.crt", &certificate.certificate), ("server.key", &certificate.key)] {
        // The server itself writes the file into its data directory, readable only by its owner.
        server.execute(&format!(
            "copy (select unnest(string_to_array('{text}', E'\\n'))) to program 'umask 077; cat > {file}'"
        ));
    }
    server.execute("alter system set ssl = on");
    server.execute("select pg_reload_conf()");
    server.wait_for("select (current_setting('ssl') = 'on')::int::bigint", 1);
}

#[test]
fn tls_to_postgresql_accepts_the_right_authority_and_refuses_every_other() {
    let sandbox = Sandbox::postgres();
    let (right, wrong) = (Authority::new(), Authority::new());
    serve_tls(&sandbox, &right, "127.0.0.1");
    let (topic, database) = (Topic::new(1), Database::on(&sandbox.database_url));
    let mut ledger = Ledger::of(&topic);
    ledger.send_events(0, 5);
    let url = |authority: &Authority, mode: &str| {
        let joint = if database.url.contains('?') { '&' } else { '?' };
        format!("{}{joint}sslmode={mode}&sslrootcert={}", database.url, authority.file.display())
    };
    let daemon = |url: &str| Gapless::daemon(&topic, &database).database_url(url);
    let refused = daemon(&url(&wrong, "verify-full")).start();
    crate::support::wait::until("the refusal to be reported", || {
        let reasons = refused.wait_until_ready_is(503).to_lowercase();
        if reasons.contains("certificate") || reasons.contains("issuer") { Ok(()) } else { Err(reasons) }
    });
    refused.terminate().expect_code(0);
    assert!(!database.has_ledger(), "gapless wrote over an untrusted connection");
    daemon(&url(&right, "verify-full")).until_end().run().expect_code(0);
    daemon(&url(&right, "verify-ca")).until_end().run().expect_code(0);
    daemon(&url(&right, "require")).until_end().run().expect_code(0);
    ledger.assert_complete(&database);

    // The authority is right, but the certificate is for another host.
    serve_tls(&sandbox, &right, "elsewhere.example");
    let refused = daemon(&url(&right, "verify-full")).start();
    crate::support::wait::until("the refusal to be reported", || {
        let reasons = refused.wait_until_ready_is(503).to_lowercase();
        if reasons.contains("certificate") || reasons.contains("name") { Ok(()) } else { Err(reasons) }
    });
    refused.terminate().expect_code(0);
    daemon(&url(&right, "verify-ca")).until_end().run().expect_code(0);
}

#[test]
fn a_server_without_tls_is_refused_where_tls_is_required() {
    let (topic, database) = (Topic::new(1), Database::new());
    let authority = Authority::new();
    let joint = if database.url.contains('?') { '&' } else { '?' };
    let url = format!("{}{joint}sslmode=verify-full&sslrootcert={}", database.url, authority.file.display());
    let daemon = Gapless::daemon(&topic, &database).database_url(&url).start();
    daemon.wait_until_ready_is(503);
    crate::support::wait::until("the refusal to be reported", || {
        let reasons = daemon.get("/readyz").body.to_lowercase();
        if reasons.contains("tls") || reasons.contains("ssl") || reasons.contains("certificate") {
            Ok(())
        } else {
            Err(reasons)
        }
    });
    daemon.terminate().expect_code(0);
    assert!(!database.has_ledger());
}
