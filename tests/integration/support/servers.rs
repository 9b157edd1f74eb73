//! The servers tests run on: the shared pair named by the environment, and private ones for tests that stop them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Runtime;

use super::wait::unique;

/// Drives every PostgreSQL connection of the tests, so that the tests themselves read from top to bottom.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime for the tests")
});

/// Brokers of the Kafka that all tests share.
pub(crate) fn brokers() -> String {
    from_environment("GAPLESS_TEST_KAFKA")
}

/// URL of a superuser of the PostgreSQL that all tests share.
pub(crate) fn database_url() -> String {
    from_environment("GAPLESS_TEST_DATABASE_URL")
}

fn from_environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run the integration tests with `make test`, which starts both servers and sets it")
    })
}

/// Servers of one test alone, which it may stop, kill and start; gone when dropped.
pub(crate) struct Sandbox {
    directory: PathBuf,
    pub(crate) brokers: String,
    pub(crate) database_url: String,
    environment: Vec<(&'static str, String)>,
    /// A broker takes half a gigabyte and a core while it starts: one private sandbox at a time.
    _turn: Option<MutexGuard<'static, ()>>,
}

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    pub(crate) fn kafka() -> Self {
        Self::up(&["--kafka"], Vec::new(), Some(turn()))
    }

    pub(crate) fn postgres() -> Self {
        Self::up(&["--postgres"], Vec::new(), Some(turn()))
    }

    /// A broker on which everybody may do everything to what no rule speaks of.
    pub(crate) fn kafka_with_rules() -> Self {
        let properties = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
                          allow.everyone.if.no.acl.found=true";
        Self::up(&["--kafka"], vec![("SANDBOX_KAFKA_PROPERTIES", properties.to_owned())], Some(turn()))
    }

    /// A broker with further listeners, `NAME=PROTOCOL` or `NAME=PROTOCOL@ADVERTISED_ADDRESS`, and settings of theirs.
    pub(crate) fn kafka_listening(listeners: &str, properties: &str) -> Self {
        let environment = vec![
            ("SANDBOX_KAFKA_LISTENERS", listeners.to_owned()),
            ("SANDBOX_KAFKA_PROPERTIES", properties.to_owned()),
        ];
        Self::up(&["--kafka"], environment, Some(turn()))
    }

    /// Where a listener of that name is.
    pub(crate) fn listener(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.file(&format!("kafka/{name}.port")).trim())
    }

    /// Runs one of Kafka's own tools.
    pub(crate) fn kafka_tool(&self, arguments: &[&str]) {
        self.script("kafka", &[&["tool"], arguments].concat());
    }

    /// A broker with a second listener, as in `behind`.
    pub(crate) fn kafka_behind(proxy: u16) -> Self {
        Self::up(&["--kafka"], vec![("SANDBOX_KAFKA_PROXY", proxy.to_string())], Some(turn()))
    }

    /// Both servers; brokers have a second listener, `proxied_brokers`, that sends its clients to the proxy's port.
    pub(crate) fn behind(proxy: u16) -> Self {
        Self::up(&[], vec![("SANDBOX_KAFKA_PROXY", proxy.to_string())], Some(turn()))
    }

    /// PostgreSQL alone, for the holder of another sandbox: with the URL of a primary, its streaming replica.
    pub(crate) fn second_postgres(primary: Option<&str>) -> Self {
        let environment = primary.map(|url| ("SANDBOX_POSTGRES_PRIMARY", url.to_owned()));
        Self::up(&["--postgres"], environment.into_iter().collect(), None)
    }

    /// Where the broker listens for clients that come through the proxy.
    pub(crate) fn proxied_brokers(&self) -> std::net::SocketAddr {
        let port = self.file("kafka/proxied.port").trim().parse().expect("a port");
        std::net::SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// The directory of the servers' files.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.data().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn up(which: &[&str], environment: Vec<(&'static str, String)>, turn: Option<MutexGuard<'static, ()>>) -> Self {
        let directory = std::env::temp_dir().join(unique("gapless"));
        let (brokers, database_url) = (String::new(), String::new());
        let mut sandbox = Self { directory, brokers, database_url, environment, _turn: turn };
        let printed = sandbox.script("up", which);
        for line in printed.lines() {
            if let Some(brokers) = line.strip_prefix("KAFKA_BROKERS=") {
                sandbox.brokers = brokers.to_owned();
            }
            if let Some(url) = line.strip_prefix("DATABASE_URL=") {
                sandbox.database_url = url.to_owned();
            }
        }
        sandbox
    }

    /// `start`, `stop` or `kill`.
    pub(crate) fn tell_kafka(&self, what: &str) {
        self.script("kafka", &[what]);
    }

    /// An operation on a topic that was denied is allowed again.
    pub(crate) fn allow_again(&self, topic: &str, operation: &str) {
        let remove = ["tool", "org.apache.kafka.tools.AclCommand", "--remove", "--force", "--topic", topic];
        self.script("kafka", &[&remove[..], &["--deny-principal", "User:*", "--operation", operation]].concat());
    }

    /// Everything is allowed to everybody on a topic, except this operation.
    pub(crate) fn deny(&self, topic: &str, operation: &str) {
        for rule in [
            ["--allow-principal", "User:*", "--operation", "All"],
            ["--deny-principal", "User:*", "--operation", operation],
        ] {
            let arguments = ["tool", "org.apache.kafka.tools.AclCommand", "--add", "--topic", topic];
            self.script("kafka", &[&arguments[..], &rule[..]].concat());
        }
    }

    /// The same for a consumer group.
    pub(crate) fn deny_group(&self, group: &str, operation: &str) {
        for rule in [
            ["--allow-principal", "User:*", "--operation", "All"],
            ["--deny-principal", "User:*", "--operation", operation],
        ] {
            let arguments = ["tool", "org.apache.kafka.tools.AclCommand", "--add", "--group", group];
            self.script("kafka", &[&arguments[..], &rule[..]].concat());
        }
    }

    /// `start`, `stop`, `immediate`, `kill` or `promote`.
    pub(crate) fn tell_postgres(&self, what: &str) {
        self.script("postgres", &[what]);
    }

    fn script(&self, name: &str, arguments: &[&str]) -> String {
        let (ok, printed) = self.try_script(name, arguments);
        assert!(ok, "deploy/sandbox/{name} {arguments:?} failed:\n{printed}");
        printed
    }

    fn try_script(&self, name: &str, arguments: &[&str]) -> (bool, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/sandbox").join(name);
        // The servers it starts inherit standard output: a file, since a pipe would stay open as long as they live.
        let path = std::env::temp_dir().join(unique("gapless-sandbox-output"));
        let file = std::fs::File::create(&path).expect("a file for the script's output");
        let status = Command::new(&script)
            .args(arguments)
            .env("SANDBOX_DIR", &self.directory)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone().expect("a second handle of a file"))
            .stderr(file)
            .status()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", script.display()));
        let printed = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(&path);
        (status.success(), printed)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let (ok, printed) = self.try_script("down", &[]);
        if !ok {
            eprintln!("a private sandbox could not be taken down:\n{printed}");
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
