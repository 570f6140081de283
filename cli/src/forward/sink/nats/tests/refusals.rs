//! What is wrong with the server, the stream or the login, in words that name the remedy.

use super::super::options::NatsOptions;
use super::driver::{Ring, STREAM, context, failure, options, talk};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use ring_test_support::nats::NatsServer;
use std::process::Command;

fn assert_words(words: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(words.contains(wanted), "{words:?} lacks {wanted:?}");
    }
}

fn ring() -> Ring {
    Ring::new("a", 1, [10])
}

fn without_creation() -> NatsOptions {
    NatsOptions { create_stream: false, ..options() }
}

#[test]
fn missing_stream_is_named_with_the_way_to_make_it() {
    let server = NatsServer::start("");
    let words = failure(&server.address(), without_creation(), ring());
    assert_words(&words, &["no stream VMS", "--create-stream", "--subjects 'vm.*.log'"]);
}

#[test]
fn unsuitable_stream_is_refused_with_each_fault() {
    let server = NatsServer::start("");
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec!["vm.>".to_owned()],
        retention: RetentionPolicy::WorkQueue,
        max_age: std::time::Duration::from_secs(3600),
        ..Config::default()
    };
    talk(async { context(&server.address()).await.create_stream(config).await.unwrap() });
    let words = failure(&server.address(), options(), ring());
    assert_words(
        &words,
        &["allow_atomic", "retention", "max_age", "--accept-expiry", "--at-least-once"],
    );
}

#[test]
fn subject_that_the_stream_does_not_take_is_refused() {
    let server = NatsServer::start("");
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec!["logs.>".to_owned()],
        allow_atomic_publish: true,
        ..Config::default()
    };
    talk(async { context(&server.address()).await.create_stream(config).await.unwrap() });
    let words = failure(&server.address(), options(), ring());
    assert_words(&words, &["vm.a.log", "--subjects 'logs.>,vm.*.log'"]);
}

#[test]
fn stream_that_another_one_overlaps_is_not_made() {
    let server = NatsServer::start("");
    let config =
        Config { name: "OTHER".to_owned(), subjects: vec!["vm.>".to_owned()], ..Config::default() };
    talk(async { context(&server.address()).await.create_stream(config).await.unwrap() });
    let words = failure(&server.address(), options(), ring());
    assert_words(&words, &["another stream takes vm.*.log", "--stream"]);
}

#[test]
fn server_that_is_too_old_is_refused_with_its_version() {
    let server = NatsServer::start_old();
    let words = failure(&server.address(), options(), ring());
    assert_words(&words, &["2.9.10", "2.12", "--at-least-once"]);
}

#[test]
fn server_without_jetstream_is_refused() {
    let server = NatsServer::start_without_jetstream();
    let words = failure(&server.address(), options(), ring());
    assert_words(&words, &["no JetStream", "jetstream {}"]);
}

#[test]
fn ring_whose_name_is_no_part_of_a_subject_is_refused() {
    let server = NatsServer::start("");
    let words = failure(&server.address(), options(), Ring::new("vm1.out", 1, [10]));
    assert_words(&words, &["'vm1.out'", "without dots"]);
}

#[test]
fn login_is_refused_or_taken() {
    let server = NatsServer::start("authorization { user: me, password: right }");
    let dir = tempfile::tempdir().unwrap();
    let login = |password: &str| {
        let file = dir.path().join(password);
        std::fs::write(&file, format!("{password}\n")).unwrap();
        NatsOptions { user: Some("me".into()), password_file: Some(file), ..options() }
    };
    for options in [options(), login("wrong")] {
        let words = failure(&server.address(), options, ring());
        assert_words(&words, &["refuses the login", "--user", "--credentials"]);
    }
    assert_eq!(failure(&server.address(), login("right"), ring()), "");
}

/// A user's public nkey and seed, made for this test.
const NKEY: (&str, &str) = (
    "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
);

#[test]
fn nkey_is_refused_or_taken() {
    let server = NatsServer::start(&format!("authorization {{ users: [{{ nkey: {} }}] }}", NKEY.0));
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = || NatsOptions { nkey: Some(file.path().to_owned()), ..options() };
    std::fs::write(&file, "no seed\n").unwrap();
    let words = failure(&server.address(), options(), ring());
    assert_words(&words, &["--nkey"]);
    std::fs::write(&file, format!("{}\n", NKEY.1)).unwrap();
    assert_eq!(failure(&server.address(), options(), ring()), "");
}

#[test]
fn credentials_that_are_no_credentials_are_refused() {
    let server = NatsServer::start("");
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = NatsOptions { credentials: Some(file.path().to_owned()), ..options() };
    let words = failure(&server.address(), options, ring());
    assert_words(&words, &["--credentials"]);
}

/// Makes an authority, and a certificate for 127.0.0.1 that it has signed.
fn certificates(dir: &std::path::Path) {
    let script = "
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout key.pem -out request.pem
        echo 'subjectAltName = IP:127.0.0.1' > names
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \\
            -extfile names -out cert.pem";
    let made = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn tls_is_refused_without_its_authority_and_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name);
    let server = NatsServer::start(&format!(
        "tls {{ cert_file: '{}', key_file: '{}', ca_file: '{}', verify: true }}",
        file("cert.pem").display(),
        file("key.pem").display(),
        file("ca.pem").display()
    ));
    let address = format!("tls://127.0.0.1:{}", server.port);
    let words = failure(&address, options(), ring());
    assert_words(&words, &["TLS", "--tls-ca"]);
    let with_ca = || NatsOptions { tls_ca: Some(file("ca.pem")), ..options() };
    let words = failure(&address, with_ca(), ring());
    assert_words(&words, &["TLS", "--tls-cert"]);
    let complete = NatsOptions {
        tls_cert: Some(file("cert.pem")),
        tls_key: Some(file("key.pem")),
        ..with_ca()
    };
    assert_eq!(failure(&address, complete, ring()), "");
}
