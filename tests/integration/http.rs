//! The HTTP endpoints of the daemon; no client can block it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::wait::until;
use crate::support::{Database, Event, Gapless, Ledger, Record, Topic};

#[test]
fn metrics_are_published_as_zero_before_anything_happens() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    for outcome in ["stored", "processed", "rejected", "ignored", "removed"] {
        assert_eq!(daemon.metric("gapless_messages_total", &[&format!("outcome=\"{outcome}\"")]), 0.0);
    }
    for name in [
        "gapless_events_stored_total",
        "gapless_event_conflicts_total",
        "gapless_dead_letters_total",
        "gapless_batches_total",
        "gapless_batch_messages_count",
        "gapless_batch_commit_seconds_count",
        "gapless_end_to_end_seconds_count",
        "gapless_commit_unknown_total",
        "gapless_retries_total",
    ] {
        assert_eq!(daemon.metric(name, &[]), 0.0, "{name}");
    }
    let partition = [format!("topic=\"{}\"", topic.name), "partition=\"0\"".to_owned()];
    let partition = partition.each_ref().map(String::as_str);
    for name in [
        "gapless_position",
        "gapless_log_start_offset",
        "gapless_last_stable_offset",
        "gapless_log_end_offset",
        "gapless_lag",
        "gapless_open_transaction_offsets",
        "gapless_unaccounted_offsets",
    ] {
        daemon.wait_for_metric(name, &partition, 0.0);
    }
    daemon.wait_for_metric("gapless_partition_state", &partition, 1.0); // A partition has exactly one state.
    daemon.wait_for_metric("gapless_database_up", &[], 1.0);
    daemon.wait_for_metric("gapless_kafka_up", &[], 1.0);
    assert_eq!(daemon.metric("gapless_build_info", &[]), 1.0);
    daemon.terminate().expect_code(0);
}

#[test]
fn metrics_agree_with_the_ledger() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(0, 20);
    ledger.send_events(1, 10);
    let event = ledger.event();
    let offsets = topic.send([&event]);
    ledger.expect_stored(0, &offsets, std::slice::from_ref(&event));
    ledger.send(&event, "processed");
    ledger.send(event.conflicting(), "processed");
    ledger.send(Event { removed: true, ..event }, "removed");
    ledger.send("poison", "rejected");
    ledger.send(Record::tombstone(), "ignored");
    database.wait_for_outcomes(ledger.len());
    for (outcome, count) in
        [("stored", 31.0), ("processed", 2.0), ("removed", 1.0), ("rejected", 1.0), ("ignored", 1.0)]
    {
        daemon.wait_for_metric("gapless_messages_total", &[&format!("outcome=\"{outcome}\"")], count);
    }
    daemon.wait_for_metric("gapless_events_stored_total", &[], 31.0);
    daemon.wait_for_metric("gapless_event_conflicts_total", &[], 1.0);
    daemon.wait_for_metric("gapless_dead_letters_total", &[], 1.0);
    daemon.wait_for_metric("gapless_batch_messages_sum", &[], 36.0);
    daemon.wait_for_metric("gapless_end_to_end_seconds_count", &[], 36.0);
    daemon.wait_for_metric("gapless_position", &["partition=\"0\""], 26.0);
    daemon.wait_for_metric("gapless_position", &["partition=\"1\""], 10.0);
    daemon.wait_for_metric("gapless_log_end_offset", &["partition=\"0\""], 26.0);
    daemon.wait_for_metric("gapless_last_stable_offset", &["partition=\"0\""], 26.0);
    daemon.wait_for_metric("gapless_lag", &[], 0.0);
    daemon.wait_for_metric("gapless_unaccounted_offsets", &[], 0.0);
    daemon.terminate().expect_code(0);
    ledger.assert_complete(&database);
}

#[test]
fn every_metric_has_help_and_a_type() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    let text = daemon.get("/metrics").body;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(name.starts_with("gapless_"), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        for comment in ["HELP", "TYPE"] {
            let known = [name, family].iter().any(|name| text.contains(&format!("# {comment} {name} ")));
            assert!(known, "no {comment} for {name}");
        }
    }
    daemon.terminate().expect_code(0);
}

#[test]
fn health_reports_position_lag_and_state_of_every_partition() {
    let (topic, database) = (Topic::new(2), Database::new());
    let mut ledger = Ledger::of(&topic);
    let daemon = Gapless::daemon(&topic, &database).start();
    ledger.send_events(1, 12);
    database.wait_for_outcomes(12);
    let health = until("health to show the stored messages", || {
        let health = daemon.get("/health").json();
        let partition = &health["partitions"][1];
        if partition["position"] == 12 && partition["lag"] == 0 { Ok(health) } else { Err(health.to_string()) }
    });
    assert_eq!(health["partitions"].as_array().unwrap().len(), 2, "{health}");
    assert_eq!(health["partitions"][0]["position"], 0, "{health}");
    assert!(health["partitions"][0]["state"].is_string(), "{health}");
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(daemon.get("/nothing").status, 404);
    daemon.terminate().expect_code(0);
}

#[test]
fn a_client_that_sends_its_request_too_slowly_is_disconnected() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).env("GAPLESS__SERVER__HEADER_READ_TIMEOUT_MS", "700").start();
    let mut slow = TcpStream::connect(daemon.address()).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nHost: slow\r\n").unwrap();
    let begun = Instant::now();
    until("the slow client to be disconnected", || {
        // The client sends one header after the other and never the end; each single header is within the limit.
        let sent = slow.write_all(b"X-Slow: 1\r\n");
        let mut answer = [0; 512];
        match (sent, slow.read(&mut answer)) {
            (Err(_), _) | (_, Ok(0)) => Ok(()),
            // The server may answer with 408 first.
            (_, Ok(_)) => Err("an answer".to_owned()),
            (_, Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            (_, Err(_)) => Err("still connected".to_owned()),
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(daemon.get("/livez").status, 200);
    daemon.terminate().expect_code(0);
}

#[test]
fn connections_beyond_the_limit_wait_and_are_served_when_slow_ones_are_gone() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database)
        .env("GAPLESS__SERVER__MAX_CONNECTIONS", "3")
        .env("GAPLESS__SERVER__HEADER_READ_TIMEOUT_MS", "1500")
        .start();
    let address = daemon.address();
    let idle: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_eq!(daemon.get("/livez").status, 200, "idle clients time out one after the other");
    drop(idle);
    daemon.terminate().expect_code(0);
}

#[test]
fn nothing_but_probes_and_metrics_is_served() {
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).start();
    daemon.wait_until_ready();
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        assert_eq!(daemon.get(path).status, 200, "{path}");
    }
    for path in ["/debug", "/config", "/admin", "/metrics/..", "/stop", "/health/0", "/.env", "/../etc/passwd"] {
        assert_eq!(daemon.get(path).status, 404, "{path}");
    }
    daemon.terminate().expect_code(0);
}

#[test]
fn a_port_in_use_exits_with_1_so_that_a_service_manager_tries_again() {
    let (topic, database) = (Topic::new(1), Database::new());
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = holder.local_addr().unwrap().to_string();
    let ended = Gapless::daemon(&topic, &database).env("GAPLESS__SERVER__BIND", &bind).run().expect_code(1);
    ended.expect_says(&["server.bind", &bind, "in use"]);
    let unit = include_str!("../../deploy/systemd/gapless.service");
    assert!(
        unit.contains("Restart=on-failure") && unit.contains("RestartPreventExitStatus=2 3\n"),
        "exit code 1 is restarted"
    );
    // An address that the machine does not have yet.
    let ended = Gapless::daemon(&topic, &database).env("GAPLESS__SERVER__BIND", "192.0.2.1:9464").run().expect_code(1);
    ended.expect_says(&["server.bind 192.0.2.1:9464"]);
}

#[test]
fn the_image_listens_on_an_address_that_a_probe_can_reach() {
    let image = include_str!("../../Dockerfile");
    assert!(image.contains("\nENV GAPLESS__SERVER__BIND=0.0.0.0:9464\n") && image.contains("\nEXPOSE 9464\n"));
    let (topic, database) = (Topic::new(1), Database::new());
    let daemon = Gapless::daemon(&topic, &database).env("GAPLESS__SERVER__BIND", "0.0.0.0:0").start();
    let port = daemon.address().port();
    // The daemon is reachable at each address of the machine, here loopback.
    assert_eq!(crate::support::http::get(([127, 0, 0, 1], port).into(), "/livez").status, 200);
    daemon.terminate().expect_code(0);
}
