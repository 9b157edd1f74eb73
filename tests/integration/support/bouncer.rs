//! A PgBouncer in transaction mode between a test and a PostgreSQL server.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::database::address;
use super::wait::{unique, until};

/// A running PgBouncer; dropping it ends the process.
pub(crate) struct Bouncer {
    child: Child,
    directory: PathBuf,
    port: u16,
}

impl Bouncer {
    /// Starts a PgBouncer for the server of this URL, with `pool_size` server connections for each database.
    pub(crate) fn before(database_url: &str, pool_size: usize) -> Self {
        let directory = std::env::temp_dir().join(unique("gapless-bouncer"));
        std::fs::create_dir_all(&directory).expect("a directory for pgbouncer");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("its number").port();
        drop(free);
        let server = address(database_url);
        let settings = format!(
            "[databases]\n* = host={} port={} user=gapless password=gapless\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\nmax_client_conn = 50\n\
             default_pool_size = {pool_size}\nlogfile = {}\n",
            server.ip(),
            server.port(),
            directory.join("log").display()
        );
        let file = directory.join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("writing its settings");
        let opened = Command::new("chmod").args(["-R", "a+rwX"]).arg(&directory).status().expect("running chmod");
        assert!(opened.success(), "chmod {}", directory.display());
        // PgBouncer refuses to run as root.
        let mut command = match std::fs::metadata(Path::new("/proc/self")).is_ok_and(|process| process.uid() == 0) {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "pgbouncer"]);
                command
            }
            false => Command::new("pgbouncer"),
        };
        let child = command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("pgbouncer (Debian package pgbouncer)");
        let bouncer = Self { child, directory, port };
        until("pgbouncer to listen", || {
            std::net::TcpStream::connect(bouncer.address()).map(drop).map_err(|error| error.to_string())
        });
        bouncer
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
