//! Each value of a connection string has libpq's meaning, or is refused with the list of supported values.

use super::*;

fn target(text: &str) -> Result<Target, String> {
    let found = Parameters::parse(text).map_err(|error| error.to_string())?;
    Target::of(&found, Duration::from_secs(30)).map_err(|error| error.to_string())
}

fn places(text: &str) -> Vec<String> {
    target(text).unwrap_or_else(|error| panic!("{text}: {error}")).endpoints.iter().map(ToString::to_string).collect()
}

fn refused(text: &str) -> String {
    target(text).err().unwrap_or_else(|| panic!("{text} is accepted"))
}

#[test]
fn several_hosts_have_their_own_ports_or_share_one() {
    assert_eq!(places("postgres://a:1,b,[::1]:3/db"), ["a:1", "b:5432", "[::1]:3"]);
    assert_eq!(places("host=a,b port=5433"), ["a:5433", "b:5433"]);
    assert_eq!(places("host=a,b port=5433,"), ["a:5433", "b:5432"]);
    assert_eq!(places("hostaddr=127.0.0.1,::1 host=a,b"), ["a:5432", "b:5432"]);
    assert!(refused("host=a,b port=1,2,3").contains("port has 3 entries"));
    assert!(refused("host=a hostaddr=127.0.0.1,127.0.0.2").contains("host has 1 entries"));
    assert!(refused("hostaddr=localhost").contains("is no IP address"));
    for port in ["0", "65536", "x", "-1"] {
        assert!(refused(&format!("host=a port={port}")).contains("1 to 65535"), "{port}");
    }
}

#[test]
fn a_host_that_is_a_directory_is_a_socket_and_an_empty_host_is_the_default_socket() {
    let socket = |text: &str| target(text).expect("a socket").endpoints[0].place.clone();
    for text in [
        "postgres:///db?host=/dir",
        "postgres://%2Fdir/db",
        "postgres://user@%2Fdir:5433/db",
        "host=/dir dbname=db",
        "host=/dir dbname=db sslmode=verify-full",
    ] {
        assert_eq!(socket(text), Place::Socket("/dir".into()), "{text}");
    }
    for text in ["postgres:///db", "dbname=db", "host='' dbname=db", ""] {
        assert_eq!(socket(text), Place::DefaultSocket, "{text}");
    }
    assert!(refused("host=@abstract").contains("abstract"));
}

#[test]
fn sslmode_has_the_meaning_of_libpq() {
    let asked = |text: &str| target(text).map(|t| (t.encryption, t.tls.check));
    assert_eq!(asked("host=h"), Ok((Encryption::Preferred, Check::Nothing)));
    assert_eq!(asked("host=h sslmode=disable"), Ok((Encryption::Never, Check::Nothing)));
    assert_eq!(asked("host=h sslmode=require"), Ok((Encryption::Required, Check::Nothing)));
    assert_eq!(asked("host=h sslmode=require sslrootcert=/r"), Ok((Encryption::Required, Check::Authority)));
    assert_eq!(asked("host=h sslmode=verify-full"), Ok((Encryption::Required, Check::Full)));
    assert!(refused("host=h sslmode=full").contains("verify-full"));
    assert!(refused("host=h sslcert=/c").contains("together"));
    assert!(refused("host=h sslnegotiation=direct").contains("sslmode=require"));
    assert!(refused("hostaddr=127.0.0.1 sslmode=verify-full").contains("give host"));
}

#[test]
fn unsupported_values_are_refused_by_name() {
    for text in [
        "client_encoding=LATIN1",
        "gssencmode=require",
        "replication=database",
        "sslcompression=1",
        "min_protocol_version=3.2",
        "ssl_max_protocol_version=TLSv1.1",
        "channel_binding=require",
        "sslcertmode=require",
        "target_session_attrs=master",
        "load_balance_hosts=yes",
        "connect_timeout=0",
        "keepalives_idle=soon",
        "keepalives=yes",
    ] {
        let name = text.split('=').next().unwrap_or_default();
        assert!(refused(text).contains(name), "{text}: {}", refused(text));
    }
}

#[test]
fn the_session_has_the_parameters_of_the_connection_string() {
    let config = |text: &str| target(text).expect("a target").config;
    assert_eq!(config("host=h").get_application_name(), Some("gapless"));
    assert_eq!(config("host=h fallback_application_name=f").get_application_name(), Some("f"));
    assert_eq!(config("host=h fallback_application_name=f application_name=n").get_application_name(), Some("n"));
    assert_eq!(config("host=h options='-c work_mem=8MB'").get_options(), Some("-c work_mem=8MB"));
    assert_eq!(config("host=h").get_tcp_user_timeout(), Some(&Duration::from_secs(30)));
    assert_eq!(config("host=h tcp_user_timeout=1500").get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
    assert_eq!(config("host=h keepalives_count=7").get_keepalives_retries(), Some(7));
    let target = target("host=a,b target_session_attrs=prefer-standby load_balance_hosts=random connect_timeout=3");
    let target = target.expect("a target");
    assert_eq!(target.session, Some(SessionAttrs::PreferStandby));
    assert_eq!((target.balanced, target.connect_timeout), (true, Some(Duration::from_secs(3))));
}
