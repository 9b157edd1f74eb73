//! The parser reads a connection string as libpq does, and any other text is an error.

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Vec<(&'static str, String)> {
    let Parameters(found) = Parameters::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    found.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

fn pairs_of(expected: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    expected.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
}

fn refused(text: &str) -> String {
    match Parameters::parse(text) {
        Ok(_) => panic!("{text} is accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_question_mark_in_a_password_drops_no_parameter() {
    let expected = [("dbname", "db"), ("host", "host"), ("password", "a?b"), ("sslmode", "require"), ("user", "u")];
    assert_eq!(parsed("postgres://u:a?b@host/db?sslmode=require"), pairs_of(&expected));
}

#[test]
fn each_form_of_a_uri_is_read_as_libpq_reads_it() {
    let cases: [(&str, &[(&str, &str)]); 12] = [
        ("postgresql://", &[]),
        ("postgres://localhost", &[("host", "localhost")]),
        ("postgres://localhost:5433", &[("host", "localhost"), ("port", "5433")]),
        ("postgres://u@h/db", &[("dbname", "db"), ("host", "h"), ("user", "u")]),
        ("postgres:///db", &[("dbname", "db")]),
        ("postgres:///db?host=/dir", &[("dbname", "db"), ("host", "/dir")]),
        ("postgres://%2Fdir%2Fsub/db", &[("dbname", "db"), ("host", "/dir/sub")]),
        ("postgres://user@%2Fdir:5433/db", &[("dbname", "db"), ("host", "/dir"), ("port", "5433"), ("user", "user")]),
        ("postgres://[::1]:5433/db", &[("dbname", "db"), ("host", "::1"), ("port", "5433")]),
        ("postgres://a:1,[2001:db8::1],c:3/db", &[("dbname", "db"), ("host", "a,2001:db8::1,c"), ("port", "1,,3")]),
        ("postgres://h?user=other&ssl=true", &[("host", "h"), ("sslmode", "require"), ("user", "other")]),
        ("postgres://u:p%40%2F%3F%25%20@h", &[("host", "h"), ("password", "p@/?% "), ("user", "u")]),
    ];
    for (text, expected) in cases {
        assert_eq!(parsed(text), pairs_of(expected), "{text}");
    }
}

#[test]
fn spaces_quotes_and_backslashes_in_values_of_pairs_are_kept() {
    let cases: [(&str, &str); 6] = [
        ("password='a b'", "a b"),
        ("password = 'a  b '", "a  b "),
        (r"password='it\'s'", "it's"),
        (r"password='a\\b'", r"a\b"),
        (r"password=a\ b", "a b"),
        ("password=a=b?&c", "a=b?&c"),
    ];
    for (text, password) in cases {
        for text in [text.to_owned(), format!("host=h {text}"), format!("{text}\n user=u")] {
            assert_eq!(Parameters::parse(&text).unwrap().get("password"), Some(password), "{text}");
        }
    }
    assert_eq!(parsed("host='' dbname=db"), pairs_of(&[("dbname", "db")]));
    assert_eq!(parsed(""), pairs_of(&[]));
}

#[test]
fn text_that_belongs_to_no_parameter_is_an_error_that_does_not_repeat_it() {
    for text in [
        "not a url",
        "postgres://u:se/cret@h/db",
        "postgres://u:se@cret@h/db",
        "postgres://u:12/secret@h/db",
        "postgres://u:se%cret@h/db",
        "postgres://u:%00secret@h/db",
        "postgres://u:%ffsecret@h/db",
        "postgres://u:secret:x/db",
        "postgres://[::1/db",
        "postgres://[]/db",
        "postgres://[::1]x/db",
        "postgres://h/db?secret",
        "postgres://h/db?a=b=c",
        "postgres://h/db?Secret-1=b",
        "postgres://h/db?sslmode=require&sslmode=disable",
        "postgres://h/db?sslmode=require&",
        "password='secret",
        "password='it''s' host=h",
        "password=secret word host=h",
        "password=secret\\",
        "host=a host=b",
        "password= sslmode=require",
    ] {
        let error = refused(text);
        assert!(!error.to_lowercase().contains("secret") && !error.contains("cret"), "{text}: {error}");
    }
    assert!(refused("postgres://u:se@cret@h/db").contains("%40"));
}

#[test]
fn each_parameter_of_libpq_is_honoured_or_refused_by_its_name() {
    // PostgreSQL 18's "Parameter Key Words", and the parameters of earlier versions.
    let all = "host hostaddr port dbname user password passfile require_auth channel_binding connect_timeout \
        client_encoding options application_name fallback_application_name keepalives keepalives_idle \
        keepalives_interval keepalives_count tcp_user_timeout replication gssencmode sslmode requiressl sslnegotiation \
        sslcompression sslcert sslkey sslkeylogfile sslpassword sslcertmode sslrootcert sslcrl sslcrldir sslsni \
        requirepeer ssl_min_protocol_version ssl_max_protocol_version min_protocol_version max_protocol_version \
        krbsrvname gsslib gssdelegation scram_client_key scram_server_key service servicefile target_session_attrs \
        load_balance_hosts oauth_issuer oauth_client_id oauth_client_secret oauth_scope authtype tty";
    for name in all.split_whitespace() {
        let honoured = HONOURED.contains(&name);
        for text in [format!("postgres://h/db?{name}=1"), format!("{name}=1")] {
            match Parameters::parse(&text) {
                Ok(found) => assert!(honoured && found.get(name) == Some("1"), "{name}"),
                Err(error) => assert!(!honoured && error.to_string().contains(name), "{name}: {error}"),
            }
        }
    }
    assert!(refused("postgres://h/db?sslmod=require").contains("sslmod is no parameter"));
}

proptest! {
    #[test]
    fn any_password_is_read_back_percent_encoded_or_quoted(password in "[^\0]{1,40}") {
        let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let uri = Parameters::parse(&format!("postgres://u:{encoded}@h:1/db?sslmode=verify-full")).unwrap();
        prop_assert_eq!(uri.get("password"), Some(password.as_str()));
        prop_assert_eq!(uri.get("sslmode"), Some("verify-full"));
        let quoted = password.replace('\\', r"\\").replace('\'', r"\'");
        let pairs = Parameters::parse(&format!("host=h password='{quoted}' sslmode=verify-full")).unwrap();
        prop_assert_eq!(pairs.get("password"), Some(password.as_str()));
        prop_assert_eq!(pairs.get("sslmode"), Some("verify-full"));
    }

    #[test]
    fn a_raw_password_never_loses_the_sslmode(password in "[^\0]{0,40}") {
        if let Ok(found) = Parameters::parse(&format!("postgres://u:{password}@h/db?sslmode=require")) {
            prop_assert_eq!(found.get("sslmode"), Some("require"));
            prop_assert_eq!(found.get("host"), Some("h"));
        }
        // A backslash would make the space a part of the password, in libpq too.
        if let Ok(found) = Parameters::parse(&format!("password={} sslmode=require", password.replace('\\', ""))) {
            prop_assert_eq!(found.get("sslmode"), Some("require"));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(postgres://)?.{0,60}") {
        let _ = Parameters::parse(&text);
    }
}
