//! A database of one test and queries on it. Only relations and columns of the contract are named here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_postgres::{Client, NoTls, Row};

use super::servers::{self, RUNTIME};
use super::wait::{unique, until};

pub(crate) struct Database {
    pub(crate) url: String,
    name: String,
    server: String,
}

/// Partition and offset of a message.
pub(crate) type SourcePosition = (i32, i64);

impl Database {
    pub(crate) fn new() -> Self {
        Self::on(&servers::database_url())
    }

    /// A new database on the server of this URL, whose user must have the right to create it.
    pub(crate) fn on(server: &str) -> Self {
        let name = unique("gapless");
        run(server, &format!("create database {name}"));
        Self { url: with_database(server, &name), name, server: server.to_owned() }
    }

    /// An existing database on this server: the copy on a replica.
    pub(crate) fn known(server: &str, name: &str) -> Self {
        Self { url: with_database(server, name), name: name.to_owned(), server: server.to_owned() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Moves the whole database to another tablespace.
    pub(crate) fn move_to(&self, tablespace: &str) {
        run(&self.server, &format!("alter database {} set tablespace {tablespace}", self.name));
    }

    /// The same database through another address, such as that of a proxy.
    pub(crate) fn url_through(&self, address: SocketAddr) -> String {
        through(&self.url, address)
    }

    /// The same database with another password.
    pub(crate) fn url_with_password(&self, password: &str) -> String {
        let at = self.url.find('@').expect("a URL with a user");
        let user = self.url.find("://").expect("a URL") + 3;
        let colon = self.url[user..at].find(':').map_or(at, |colon| user + colon);
        self.url_as(&self.url[user..colon], password)
    }

    /// The same database for another role.
    pub(crate) fn url_as(&self, role: &str, password: &str) -> String {
        let user = self.url.find("://").expect("a URL") + 3;
        let at = self.url.find('@').expect("a URL with a user");
        format!("{}{role}:{password}{}", &self.url[..user], &self.url[at..])
    }

    /// The same database, accessed with the role of this URL.
    pub(crate) fn signed_in_as(&self, url: &str) -> SignedIn {
        SignedIn { url: url.to_owned() }
    }

    /// The address of the server.
    pub(crate) fn address(&self) -> SocketAddr {
        address(&self.url)
    }

    pub(crate) fn client(&self) -> Client {
        connect(&self.url).expect("a connection to the database of this test")
    }

    #[track_caller]
    pub(crate) fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.try_rows(sql, parameters).unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    pub(crate) fn try_rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, String> {
        let client = connect(&self.url)?;
        RUNTIME.block_on(client.query(sql, parameters)).map_err(|error| describe(&error))
    }

    /// The first column of the only row.
    #[track_caller]
    pub(crate) fn value<T: FromSqlOwned>(&self, sql: &str) -> T {
        let rows = self.rows(sql, &[]);
        assert_eq!(rows.len(), 1, "rows of {sql}");
        rows[0].try_get(0).unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    #[track_caller]
    pub(crate) fn count(&self, relation: &str) -> i64 {
        self.value(&format!("select count(*) from gapless.{relation}"))
    }

    #[track_caller]
    pub(crate) fn execute(&self, sql: &str) {
        run(&self.url, sql);
    }

    pub(crate) fn try_execute(&self, sql: &str) -> Result<(), String> {
        try_run(&self.url, sql)
    }

    /// Runs a script that only psql understands, such as a dump.
    #[track_caller]
    pub(crate) fn psql(&self, script: &str) {
        let mut psql = Command::new("psql")
            .args(["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", &self.url])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("psql");
        psql.stdin.take().expect("standard input was piped").write_all(script.as_bytes()).expect("psql reads");
        assert!(psql.wait().expect("psql ends").success(), "psql failed");
    }

    /// Waits until a query that returns one number returns `wanted`.
    #[track_caller]
    pub(crate) fn wait_for(&self, sql: &str, wanted: i64) {
        until(&format!("{wanted} from {sql}"), || {
            let rows = self.try_rows(sql, &[])?;
            match rows.first().map(|row| row.get::<_, Option<i64>>(0)) {
                Some(Some(found)) if found == wanted => Ok(()),
                found => Err(format!("{found:?}")),
            }
        });
    }

    /// Waits until a message has an outcome; the schema may not exist yet.
    #[track_caller]
    pub(crate) fn wait_until_something_is_stored(&self) {
        until("something to be stored", || match self.has_ledger() && self.count("kafka_events_received") > 0 {
            true => Ok(()),
            false => Err("nothing yet".to_owned()),
        });
    }

    /// Waits until exactly `wanted` messages have an outcome.
    #[track_caller]
    pub(crate) fn wait_for_outcomes(&self, wanted: i64) {
        self.wait_for("select count(*) from gapless.kafka_events_received", wanted);
    }

    /// Waits until a partition of the only topic has this position.
    #[track_caller]
    pub(crate) fn wait_for_position(&self, partition: i32, wanted: i64) {
        let sql = format!("select max(next_offset) from gapless.consumer_positions where partition_id = {partition}");
        self.wait_for(&sql, wanted);
    }

    /// The outcome of each message.
    #[track_caller]
    pub(crate) fn outcomes(&self) -> BTreeMap<SourcePosition, String> {
        let sql =
            r#"select partition_id::int, "offset"::bigint, handling_state::text from gapless.kafka_events_received"#;
        self.rows(sql, &[]).iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
    }

    /// Transaction hash and event name of all events.
    #[track_caller]
    pub(crate) fn identities(&self) -> BTreeSet<(String, String)> {
        let rows = self.rows("select txn, event_type from gapless.events", &[]);
        let identities: BTreeSet<_> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(identities.len(), rows.len(), "an identity is in events twice");
        identities
    }

    /// Start and next offset of each partition.
    #[track_caller]
    pub(crate) fn positions(&self) -> BTreeMap<i32, (i64, i64)> {
        let sql = "select partition_id::int, start_offset::bigint, next_offset::bigint from gapless.consumer_positions";
        self.rows(sql, &[]).iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
    }

    /// Gaps of a partition as (from, to, kind), in order.
    #[track_caller]
    pub(crate) fn gaps(&self, partition: i32) -> Vec<(i64, i64, String)> {
        let sql = "select from_offset::bigint, to_offset::bigint, kind::text from gapless.offset_gaps
                   where partition_id = $1::int order by 1";
        self.rows(sql, &[&partition]).iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }

    /// Runs PL/pgSQL before every insert of an event, in each table that has events: a test uses it to refuse, delay or
    /// record them. The ledger must exist.
    #[track_caller]
    pub(crate) fn before_each_event(&self, body: &str) {
        self.execute(&format!(
            "create function public.before_each_event() returns trigger language plpgsql as
             $trigger$ begin {body} return new; end $trigger$;
             do $$
             declare relation regclass;
             begin
                 for relation in select c.oid from pg_class c join pg_attribute a on a.attrelid = c.oid
                     where c.relnamespace = 'gapless'::regnamespace and c.relkind in ('r', 'p') and a.attname = 'event_info'
                 loop
                     execute format('create trigger before_each_event before insert on %s for each row
                                     execute function public.before_each_event()', relation);
                 end loop;
             end $$"
        ));
    }

    /// Makes PostgreSQL refuse the events that satisfy this SQL condition on their columns, as it refuses data that it
    /// cannot store. A check constraint does it: gapless attributes an error of a trigger to the trigger, not to the
    /// row.
    #[track_caller]
    pub(crate) fn refuse_events(&self, condition: &str) {
        for table in ["stored_events", "conflicting_events"] {
            self.execute(&format!(
                "alter table gapless.{table} add constraint refused_by_a_test check (
                     case when {condition} then ('refused by a test: ' || txn)::integer is not null else true end)"
            ));
        }
    }

    /// Grants the documented rights on an existing ledger.
    #[track_caller]
    pub(crate) fn grant_rights(&self, role: &str) {
        self.execute(&format!(
            "grant usage on schema gapless to {role};
             grant select, insert, update, delete on all tables in schema gapless to {role};
             grant usage on all sequences in schema gapless to {role}"
        ));
    }

    #[track_caller]
    pub(crate) fn drop_role(&self, role: &str) {
        self.execute(&format!("drop owned by {role}; drop role {role}"));
    }

    /// Whether the schema exists, in any version.
    #[track_caller]
    pub(crate) fn has_ledger(&self) -> bool {
        self.value("select to_regclass('gapless.consumer_positions') is not null")
    }

    /// Asserts the whole accounting of the contract in one snapshot: each check is a query that must return no row.
    #[track_caller]
    pub(crate) fn assert_accounting(&self) {
        let faults =
            self.accounting_faults().unwrap_or_else(|error| panic!("the accounting cannot be queried: {error}"));
        assert!(faults.is_empty(), "the accounting of {} is wrong:\n{}", self.name, faults.join("\n"));
    }

    /// The violated claims of the accounting, each with up to five rows as evidence.
    pub(crate) fn accounting_faults(&self) -> Result<Vec<String>, String> {
        let mut client = connect(&self.url)?;
        RUNTIME.block_on(async {
            let mut faults = Vec::new();
            let snapshot = client
                .build_transaction()
                .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()
                .await
                .map_err(|error| describe(&error))?;
            for (claim, sql) in ACCOUNTING {
                let sql = format!("select to_jsonb(broken)::text from ({sql}) broken limit 5");
                let rows = snapshot.query(&sql, &[]).await.map_err(|error| format!("{}\n{sql}", describe(&error)))?;
                let evidence: Vec<String> = rows.iter().map(|row| row.get::<_, String>(0)).collect();
                if !evidence.is_empty() {
                    faults.push(format!("{claim}:\n  {}", evidence.join("\n  ")));
                }
            }
            Ok(faults)
        })
    }
}

/// A database, accessed with another role.
pub(crate) struct SignedIn {
    url: String,
}

impl SignedIn {
    #[track_caller]
    pub(crate) fn count(&self, relation: &str) -> i64 {
        let client = connect(&self.url).unwrap_or_else(|error| panic!("{relation}: {error}"));
        let sql = format!("select count(*) from gapless.{relation}");
        let row =
            RUNTIME.block_on(client.query_one(&sql, &[])).unwrap_or_else(|error| panic!("{sql}: {}", describe(&error)));
        row.get(0)
    }

    pub(crate) fn try_execute(&self, sql: &str) -> Result<(), String> {
        try_run(&self.url, sql)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the database of the failed test is kept: {}", self.name);
        } else {
            // A server that the test has stopped does not answer.
            let _ = try_run(&self.server, &format!("drop database {} with (force)", self.name));
        }
    }
}

/// Claims of the contract, each with the query that returns the rows that violate it.
const ACCOUNTING: &[(&str, &str)] = &[
    (
        "next_offset - start_offset = outcomes + offsets of gaps",
        r#"select p.*, outcomes, gaps
           from gapless.consumer_positions p
           cross join lateral (
               select count(*) as outcomes from gapless.kafka_events_received r
               where (r.consumer_group, r.topic, r.generation, r.partition_id)
                   = (p.consumer_group, p.topic, p.generation, p.partition_id)
                 and r."offset" >= p.start_offset and r."offset" < p.next_offset) r
           cross join lateral (
               select coalesce(sum(least(g.to_offset, p.next_offset) - greatest(g.from_offset, p.start_offset)), 0) as gaps
               from gapless.offset_gaps g
               where (g.topic, g.generation, g.partition_id) = (p.topic, p.generation, p.partition_id)
                 and g.from_offset < p.next_offset and g.to_offset > p.start_offset) g
           where p.next_offset - p.start_offset <> outcomes + gaps or p.next_offset < p.start_offset"#,
    ),
    (
        "no two gaps overlap, none is empty",
        r#"select * from (
               select g.*, lead(from_offset) over (partition by topic, generation, partition_id order by from_offset) as next_gap
               from gapless.offset_gaps g) g
           where from_offset >= to_offset or next_gap < to_offset"#,
    ),
    (
        "every gap has a kind of the contract and a proof",
        "select * from gapless.offset_gaps
         where kind::text not in ('transaction', 'compacted', 'skipped', 'lost', 'archived') or proof is null",
    ),
    (
        "no gap covers an offset that has an outcome",
        r#"select r.*, g.from_offset, g.to_offset from gapless.kafka_events_received r
           join gapless.offset_gaps g using (topic, generation, partition_id)
           where r."offset" >= g.from_offset and r."offset" < g.to_offset"#,
    ),
    (
        "unhandled_offsets has rejected messages only",
        r#"select * from gapless.unhandled_offsets u where not exists (
               select from gapless.kafka_events_received r
               where (r.topic, r.generation, r.partition_id, r."offset") = (u.topic, u.generation, u.partition_id, u."offset")
                 and r.handling_state::text = 'rejected')"#,
    ),
    (
        "unhandled_offsets has every rejected message",
        r#"select * from gapless.kafka_events_received r where handling_state::text = 'rejected' and not exists (
               select from gapless.unhandled_offsets u
               where (r.topic, r.generation, r.partition_id, r."offset") = (u.topic, u.generation, u.partition_id, u."offset"))"#,
    ),
    (
        "a message has one outcome, of the five there are",
        r#"select consumer_group, topic, generation, partition_id, "offset", count(*), min(handling_state::text)
           from gapless.kafka_events_received group by 1, 2, 3, 4, 5
           having count(*) > 1
               or min(handling_state::text) not in ('stored', 'processed', 'rejected', 'ignored', 'removed')"#,
    ),
    (
        "a stored message has an event, and event_id says which",
        r#"select * from gapless.kafka_events_received r where handling_state::text = 'stored' and not exists (
               select from gapless.events e
               where (r.topic, r.generation, r.partition_id, r."offset") = (e.topic, e.generation, e.partition_id, e."offset")
                 and e.id = r.event_id)"#,
    ),
    (
        "an event was inserted by a stored message, or by a removal that came before it",
        r#"select id, topic, generation, partition_id, "offset" from gapless.events e where not exists (
               select from gapless.kafka_events_received r
               where (r.topic, r.generation, r.partition_id, r."offset") = (e.topic, e.generation, e.partition_id, e."offset")
                 and r.handling_state::text in ('stored', 'removed'))"#,
    ),
    (
        "a processed message names the event that existed before it",
        "select * from gapless.kafka_events_received r where handling_state::text = 'processed'
         and not exists (select from gapless.events e where e.id = r.event_id)",
    ),
    (
        "an identity is in events once",
        "select lower(txn) as txn, event_type, count(*) from gapless.events group by 1, 2 having count(*) > 1",
    ),
    (
        "the text of an event is kept, in event_info or in event_raw",
        "select id from gapless.events where (event_info is null) = (event_raw is null)",
    ),
    (
        "a rejected message has its dead letter",
        r#"select * from gapless.kafka_events_received r where handling_state::text = 'rejected' and not exists (
               select from gapless.dead_letters d
               where (r.topic, r.generation, r.partition_id, r."offset") = (d.topic, d.generation, d.partition_id, d."offset"))"#,
    ),
    (
        "a dead letter belongs to a rejected message and has a reason",
        r#"select topic, generation, partition_id, "offset", reason from gapless.dead_letters d
           where coalesce(d.reason::text, '') = '' or not exists (
               select from gapless.kafka_events_received r
               where (r.topic, r.generation, r.partition_id, r."offset") = (d.topic, d.generation, d.partition_id, d."offset")
                 and r.handling_state::text = 'rejected')"#,
    ),
    (
        "a conflict has a winner and was inserted by a message",
        r#"select txn, event_type, c.event_id, c.topic, c.partition_id, c."offset" from gapless.event_conflicts c
           where not exists (select from gapless.events e where e.id = c.event_id)
              or not exists (
               select from gapless.kafka_events_received r
               where (r.topic, r.generation, r.partition_id, r."offset") = (c.topic, c.generation, c.partition_id, c."offset"))"#,
    ),
];

/// Connects without a statement timeout: the timeout that a test sets for the daemon must not end its own queries.
fn connect(url: &str) -> Result<Client, String> {
    let mut config: tokio_postgres::Config = url.parse().map_err(|error| describe(&error))?;
    config.options("-c statement_timeout=0");
    let (client, connection) = RUNTIME.block_on(config.connect(NoTls)).map_err(|error| describe(&error))?;
    RUNTIME.spawn(connection);
    Ok(client)
}

#[track_caller]
fn run(url: &str, sql: &str) {
    try_run(url, sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
}

fn try_run(url: &str, sql: &str) -> Result<(), String> {
    let client = connect(url)?;
    RUNTIME.block_on(client.batch_execute(sql)).map_err(|error| describe(&error))
}

/// The `Display` of tokio-postgres is only "db error" for an error of the server.
fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| format!("{error:?}"), ToString::to_string)
}

/// Host and port of a URL on loopback.
pub(crate) fn address(url: &str) -> SocketAddr {
    let address = url[host(url)].replace("localhost", "127.0.0.1");
    address.parse().unwrap_or_else(|_| panic!("no loopback address with a port: {address}"))
}

/// The same URL with another host and port.
pub(crate) fn through(url: &str, address: SocketAddr) -> String {
    let host = host(url);
    format!("{}{address}{}", &url[..host.start], &url[host.end..])
}

/// The byte range of host and port in a URL.
fn host(url: &str) -> std::ops::Range<usize> {
    let at = url.find('@').expect("a URL with a user") + 1;
    at..url[at..].find('/').expect("a URL with a database") + at
}

fn with_database(url: &str, name: &str) -> String {
    let (address, parameters) = match url.split_once('?') {
        Some((address, parameters)) => (address, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let host = address.find("://").map_or(0, |at| at + 3);
    let end = address[host..].find('/').map_or(address.len(), |slash| host + slash);
    format!("{}/{name}{parameters}", &address[..end])
}
