//! The servers of the tests: a shared pair named by the environment, and private servers for tests that stop them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Runtime;

use super::wait::unique;

/// Drives every PostgreSQL connection of the tests, so that the tests themselves need no `async`.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime for the tests")
});

/// Broker addresses of the shared Kafka.
pub(crate) fn brokers() -> String {
    from_environment("GAPLESS_TEST_KAFKA")
}

/// URL of a superuser of the shared PostgreSQL.
pub(crate) fn database_url() -> String {
    from_environment("GAPLESS_TEST_DATABASE_URL")
}

fn from_environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run the integration tests with `make test`, which starts both servers and sets it")
    })
}

/// Private servers of one test, which it may stop, kill and start. Dropping this removes them.
pub(crate) struct Sandbox {
    directory: PathBuf,
    pub(crate) brokers: String,
    pub(crate) database_url: String,
    environment: Vec<(&'static str, String)>,
    /// One private sandbox exists at a time: a starting broker takes half a gigabyte and a core.
    _permit: Option<MutexGuard<'static, ()>>,
}

fn permit() -> MutexGuard<'static, ()> {
    static PERMIT: Mutex<()> = Mutex::new(());
    PERMIT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    pub(crate) fn kafka() -> Self {
        Self::up(&["--kafka"], Vec::new(), Some(permit()))
    }

    pub(crate) fn postgres() -> Self {
        Self::up(&["--postgres"], Vec::new(), Some(permit()))
    }

    /// A broker with access rules; everything is allowed on a resource without a rule.
    pub(crate) fn kafka_with_rules() -> Self {
        let properties = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
                          allow.everyone.if.no.acl.found=true";
        Self::up(&["--kafka"], vec![("SANDBOX_KAFKA_PROPERTIES", properties.to_owned())], Some(permit()))
    }

    /// A broker with further listeners, `NAME=PROTOCOL` or `NAME=PROTOCOL@ADVERTISED_ADDRESS`, and their settings.
    pub(crate) fn kafka_listening(listeners: &str, properties: &str) -> Self {
        let environment = vec![
            ("SANDBOX_KAFKA_LISTENERS", listeners.to_owned()),
            ("SANDBOX_KAFKA_PROPERTIES", properties.to_owned()),
        ];
        Self::up(&["--kafka"], environment, Some(permit()))
    }

    /// The address of the listener with this name.
    pub(crate) fn listener(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.file(&format!("kafka/{name}.port")).trim())
    }

    /// Runs one of Kafka's own tools.
    pub(crate) fn kafka_tool(&self, arguments: &[&str]) {
        self.script("kafka", &[&["tool"], arguments].concat());
    }

    /// A broker alone, with a second listener as in [`Self::behind`].
    pub(crate) fn kafka_behind(proxy: u16) -> Self {
        Self::up(&["--kafka"], vec![("SANDBOX_KAFKA_PROXY", proxy.to_string())], Some(permit()))
    }

    /// Both servers. The broker has a second listener, `proxied_brokers`, that advertises the proxy's port.
    pub(crate) fn behind(proxy: u16) -> Self {
        Self::up(&[], vec![("SANDBOX_KAFKA_PROXY", proxy.to_string())], Some(permit()))
    }

    /// PostgreSQL alone, for a test that has another sandbox. With the URL of a primary, it is its streaming replica.
    pub(crate) fn second_postgres(primary: Option<&str>) -> Self {
        let environment = primary.map(|url| ("SANDBOX_POSTGRES_PRIMARY", url.to_owned()));
        Self::up(&["--postgres"], environment.into_iter().collect(), None)
    }

    /// The address at which the broker accepts clients that come through the proxy.
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

    fn up(which: &[&str], environment: Vec<(&'static str, String)>, permit: Option<MutexGuard<'static, ()>>) -> Self {
        let directory = std::env::temp_dir().join(unique("gapless"));
        let (brokers, database_url) = (String::new(), String::new());
        let mut sandbox = Self { directory, brokers, database_url, environment, _permit: permit };
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

    /// Runs `start`, `stop` or `kill`.
    pub(crate) fn control_kafka(&self, action: &str) {
        self.script("kafka", &[action]);
    }

    /// Allows an operation on a topic that was denied.
    pub(crate) fn allow_again(&self, topic: &str, operation: &str) {
        let remove = ["tool", "org.apache.kafka.tools.AclCommand", "--remove", "--force", "--topic", topic];
        self.script("kafka", &[&remove[..], &["--deny-principal", "User:*", "--operation", operation]].concat());
    }

    /// Allows all users every operation on a topic except this one.
    pub(crate) fn deny(&self, topic: &str, operation: &str) {
        for rule in [
            ["--allow-principal", "User:*", "--operation", "All"],
            ["--deny-principal", "User:*", "--operation", operation],
        ] {
            let arguments = ["tool", "org.apache.kafka.tools.AclCommand", "--add", "--topic", topic];
            self.script("kafka", &[&arguments[..], &rule[..]].concat());
        }
    }

    /// Allows all users every operation on a consumer group except this one.
    pub(crate) fn deny_group(&self, group: &str, operation: &str) {
        for rule in [
            ["--allow-principal", "User:*", "--operation", "All"],
            ["--deny-principal", "User:*", "--operation", operation],
        ] {
            let arguments = ["tool", "org.apache.kafka.tools.AclCommand", "--add", "--group", group];
            self.script("kafka", &[&arguments[..], &rule[..]].concat());
        }
    }

    /// Runs `start`, `stop`, `immediate`, `kill` or `promote`.
    pub(crate) fn control_postgres(&self, action: &str) {
        self.script("postgres", &[action]);
    }

    fn script(&self, name: &str, arguments: &[&str]) -> String {
        let (ok, printed) = self.try_script(name, arguments);
        assert!(ok, "deploy/sandbox/{name} {arguments:?} failed:\n{printed}");
        printed
    }

    fn try_script(&self, name: &str, arguments: &[&str]) -> (bool, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/sandbox").join(name);
        // The servers that the script starts inherit standard output. A pipe would stay open as long as they run.
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
