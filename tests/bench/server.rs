//! The PostgreSQL server of the benchmark.

use std::process::{Command, Stdio};

use anyhow::ensure;
use tokio_postgres::{Client, NoTls};

/// A connection with a blocking interface.
pub(crate) struct Server {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Server {
    pub(crate) fn connect(url: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            anyhow::Ok(client)
        })?;
        Ok(Self { runtime, client })
    }

    pub(crate) fn execute(&self, sql: &str) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(self.client.batch_execute(sql))?)
    }

    pub(crate) fn number(&self, sql: &str) -> anyhow::Result<i64> {
        Ok(self.runtime.block_on(self.client.query_one(sql, &[]))?.get(0))
    }

    /// Prepares a query that returns one number, for frequent use at little cost to the server.
    pub(crate) fn prepare(&self, sql: &str) -> anyhow::Result<impl Fn() -> anyhow::Result<i64>> {
        let statement = self.runtime.block_on(self.client.prepare(sql))?;
        Ok(move || Ok(self.runtime.block_on(self.client.query_one(&statement, &[]))?.get(0)))
    }

    /// Prepares a statement that takes an array of numbers and one of texts.
    pub(crate) fn prepare_insert(&self, sql: &str) -> anyhow::Result<impl Fn(&[i64], &[String]) -> anyhow::Result<()>> {
        let statement = self.runtime.block_on(self.client.prepare(sql))?;
        Ok(move |numbers: &[i64], texts: &[String]| {
            self.runtime.block_on(self.client.execute(&statement, &[&numbers, &texts]))?;
            Ok(())
        })
    }

    /// Bytes of WAL written since the cluster was created.
    pub(crate) fn wal_bytes(&self) -> anyhow::Result<i64> {
        self.number("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8")
    }
}

/// Restarts the sandbox's server with these settings.
pub(crate) fn restart_with(url: &str, settings: &[(&str, &str)]) -> anyhow::Result<()> {
    ensure_server_is_of_sandbox(url)?;
    let server = Server::connect(url)?;
    for (name, value) in settings {
        server.execute(&format!("alter system set {name} = '{value}'"))?;
    }
    drop(server);
    for verb in ["stop", "start"] {
        let status = Command::new("deploy/sandbox/postgres").arg(verb).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "deploy/sandbox/postgres {verb} ended with {status}");
    }
    Ok(())
}

/// Fails if the server that a restart affects is not the one that is measured: without the SANDBOX_DIR of the running
/// servers it would be another server, and the measured one would keep its settings.
fn ensure_server_is_of_sandbox(url: &str) -> anyhow::Result<()> {
    let output = Command::new("deploy/sandbox/postgres").arg("address").output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let (sandbox, given) = (host(printed.trim()), host(url));
    ensure!(
        sandbox == given,
        "the bench restarts the sandbox's PostgreSQL ({}), which is not the one it was given ({}): export SANDBOX_DIR as \
         deploy/sandbox/up had it, or use `make bench`",
        sandbox.unwrap_or_default(),
        given.unwrap_or_default()
    );
    Ok(())
}

/// Host and port of a URL with a user.
fn host(url: &str) -> Option<&str> {
    url.rsplit('@').next()?.split('/').next()
}

/// Creates a new, empty database with this name on the same server and returns its URL.
pub(crate) fn new_database(url: &str, name: &str) -> anyhow::Result<String> {
    let server = Server::connect(url)?;
    server.execute(&format!("drop database if exists {name} with (force)"))?;
    server.execute(&format!("create database {name}"))?;
    // Each run begins at the same distance to the next checkpoint.
    server.execute("checkpoint")?;
    let (before, _) = url.rsplit_once('/').unwrap_or((url, ""));
    Ok(format!("{before}/{name}"))
}
