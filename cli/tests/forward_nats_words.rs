//! What `blockring forward` says where a stream of a NATS server cannot be used, and what it does
//! in the end; its memory while the server stands still.
#![allow(clippy::unwrap_used)]

use crate::common::scene::{Scene, counts};
use crate::common::stream::{context, read, talk};
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use nix::sys::signal::Signal;
use ring_test_support::nats::NatsServer;
use ring_test_support::process::{Guarded, ended, eventually, finish, signal, words};
use ring_test_support::{assert_fails, assert_ok};
use std::process::Output;

/// Returns the number of messages of the stream; 0 while there is none.
fn messages(server: &NatsServer) -> u64 {
    talk(async {
        let stream = context(&server.address()).await.get_stream("VMS").await;
        stream.map_or(0, |stream| stream.cached_info().state.messages)
    })
}

/// Makes a folder with a ring of five lines.
fn scene() -> Scene {
    Scene::with_lines(5)
}

/// Runs `forward --drain` with these words.
fn drain(scene: &Scene, more: &str) -> Output {
    let words = format!("forward --drain ring {more}");
    scene.run(&words.split_whitespace().collect::<Vec<_>>(), b"")
}

const STREAM: &str = "--stream VMS --subject vm.{ring}.log";

#[test]
fn forward_makes_the_stream_delivers_and_frees() {
    let (server, scene) = (NatsServer::start(""), scene());
    let to = format!("--to {} {STREAM} --create-stream", server.address());
    assert_ok(&drain(&scene, &to));
    let mut found = Vec::new();
    read(&server.address(), "VMS", |message| {
        assert_eq!(message.subject, "vm.ring.log");
        found.push(String::from_utf8(message.payload.to_vec()).unwrap());
    });
    assert_eq!(found, ["1", "2", "3", "4", "5"]);
    assert_eq!(scene.rest(), "");
}

#[test]
fn restored_ring_whose_guest_has_gone_on_is_refused_by_its_items() {
    let (server, scene) = (NatsServer::start(""), Scene::with_ring("64K"));
    let to = format!("--to {} {STREAM} --create-stream", server.address());
    scene.succeed("cp ring older; seq 10 99 | sed s/^/a/ | $RING produce ring");
    assert_ok(&drain(&scene, &to));
    scene.succeed("cp older ring; seq 10 150 | sed s/^/b/ | $RING produce ring");
    assert_fails(&drain(&scene, &to), 1, "the ring has another item there");
    assert_eq!((messages(&server), scene.rest().lines().count()), (90, 141));
}

#[test]
fn forward_takes_the_options_from_a_file() {
    let (server, scene) = (NatsServer::start(""), scene());
    scene.write(
        "forward.toml",
        format!(
            "to = \"{}\"\nrings = [\"ring\"]\n[nats]\nstream = \"VMS\"\nsubject = \"vm.{{ring}}.log\"\n\
             create-stream = true\n",
            server.address()
        ),
    );
    assert_ok(&scene.run(&["forward", "--drain", "--config", "forward.toml"], b""));
    assert_eq!(messages(&server), 5);
}

#[test]
fn forward_refuses_options_before_it_connects() {
    let scene = scene();
    for (more, wanted) in [
        ("--to nats://localhost --subject vm.{ring}", "--stream"),
        ("--to nats://localhost --stream VMS", "--subject"),
        ("--to nats://localhost --stream VMS --subject vm", "{ring}"),
        ("--to nats://localhost/VMS --stream VMS --subject vm.{ring}", "--stream"),
        ("--to nats://me:pw@localhost --stream VMS --subject vm.{ring}", "--password-file"),
        ("--to nats://localhost --stream VMS --subject vm.{ring} --nkey none", "none"),
        ("--to tls://localhost --stream VMS --subject vm.{ring} --tls-cert ring", "--tls-key"),
    ] {
        let output = drain(&scene, more);
        // A file that cannot be read is no wrong use.
        let code = if wanted == "none" { 1 } else { 2 };
        assert_fails(&output, code, wanted);
    }
}

#[test]
fn forward_ends_with_the_remedy_and_leaves_the_items() {
    let scene = scene();
    let server = NatsServer::start("");
    let old = NatsServer::start_old();
    for (address, wanted) in [(server.address(), "--create-stream"), (old.address(), "2.12")] {
        assert_fails(&drain(&scene, &format!("--to {address} {STREAM}")), 1, wanted);
    }
    assert_eq!(scene.rest(), "1\n2\n3\n4\n5\n");
}

#[test]
fn forward_to_an_old_server_says_that_items_may_repeat() {
    let (server, scene) = (NatsServer::start_old(), scene());
    let to = format!("--to {} {STREAM} --create-stream --at-least-once", server.address());
    let output = drain(&scene, &to);
    assert_ok(&output);
    assert!(words(&output).contains("at least once"), "{}", words(&output));
    assert_eq!(messages(&server), 5);
}

#[test]
fn forward_waits_for_a_server_that_is_away_and_ends_when_told() {
    let mut server = NatsServer::start("");
    let scene = scene();
    let to = server.address();
    let mut words = vec!["forward", "ring", "--to", &to, "--create-stream"];
    words.extend(STREAM.split_whitespace());
    server.kill();
    let child = Guarded::start(&mut scene.without_input(&words));
    scene.wait_for_role("ring", "consumer", &child);
    server.restart();
    eventually("the items arrive", || messages(&server) == 5);
    signal(&child, Signal::SIGTERM);
    assert_ok(&ended(child, "the forwarder"));
    assert_eq!(scene.rest(), "");
}

#[test]
fn drain_says_what_it_waits_for_and_ends_after_its_limit() {
    let mut server = NatsServer::start("");
    let scene = scene();
    server.kill();
    let more = "--drain-timeout 3 --warn-after 0.2 --json";
    let output = drain(&scene, &format!("--to {} {STREAM} {more}", server.address()));
    for wanted in
        ["--drain waits for 1 ring: ring: cannot connect to nats://", "timed out after 3 s"]
    {
        assert_fails(&output, 3, wanted);
    }
    let report = counts(&output);
    let error = report["rings"]["ring"]["error"].as_str().unwrap();
    assert!(error.contains("cannot connect to nats://"), "{report}");
    assert_eq!(scene.rest(), "1\n2\n3\n4\n5\n");
}

/// Runs a forwarder until its log has these words, and returns what it has said.
fn said_until(scene: &Scene, server: &NatsServer, more: &str, wanted: &'static str) -> Output {
    let words = format!("forward --json ring --to {} {STREAM} {more}", server.address());
    let words: Vec<_> = words.split_whitespace().collect();
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let forwarder = Guarded::start(scene.without_input(&words).stderr(errors));
    scene.wait_for("errors", |bytes| String::from_utf8_lossy(bytes).contains(wanted));
    signal(&forwarder, Signal::SIGTERM);
    let output = ended(forwarder, "the forwarder");
    assert_ok(&output);
    Output { stderr: scene.read("errors"), ..output }
}

#[test]
fn full_stream_is_said_once_and_named_in_the_report() {
    let (server, scene) = (NatsServer::start(""), scene());
    talk(async {
        let config = Config {
            name: "VMS".to_owned(),
            subjects: vec!["vm.>".to_owned()],
            max_bytes: 100,
            discard: DiscardPolicy::New,
            allow_atomic_publish: true,
            ..Config::default()
        };
        context(&server.address()).await.create_stream(config).await.unwrap();
    });
    let output = said_until(&scene, &server, "--grace 0", "it is tried again");
    let report = counts(&output);
    let error = report["rings"]["ring"]["error"].as_str().unwrap();
    assert!(error.contains("vm.ring.log: maximum bytes exceeded"), "{report}");
    assert_eq!(words(&output).matches("it is tried again").count(), 1, "{}", words(&output));
    assert_eq!(scene.rest().lines().count(), 5);
}

#[test]
fn missing_permission_is_said_once_and_named_in_the_report() {
    let server = NatsServer::start(
        "authorization { users: [{ user: u, password: p, permissions: { publish: [\"$JS.API.>\"] } }] }",
    );
    let scene = scene();
    scene.write("password", "p");
    let more = "--grace 0 --create-stream --user u --password-file password";
    let output = said_until(&scene, &server, more, "it is tried again");
    let report = counts(&output);
    let error = report["rings"]["ring"]["error"].as_str().unwrap();
    assert!(error.contains("Permissions Violation"), "{report}");
    let text = words(&output);
    assert_eq!(text.matches("] the server says").count(), 1, "{text}");
    assert_eq!(scene.rest().lines().count(), 5);
}

/// Returns the most memory that a process has had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn forward_names_a_stream_that_was_deleted_and_the_way_to_make_it() {
    let server = NatsServer::start("");
    let scene = scene();
    let to = server.address();
    let mut words = vec!["forward", "ring", "--to", &to, "--create-stream"];
    words.extend(STREAM.split_whitespace());
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let forwarder = Guarded::start(scene.without_input(&words).stderr(errors));
    scene.wait_for_facts("ring", |facts| facts["used"] == 0);
    talk(async { context(&to).await.delete_stream("VMS").await }).unwrap();
    scene.succeed("echo 6 | $RING produce ring");
    let has = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("was VMS deleted?");
    scene.wait_for("errors", has);
    signal(&forwarder, Signal::SIGTERM);
    ended(forwarder, "SIGTERM");
    assert_eq!(scene.rest(), "6\n");
}

#[test]
fn forward_keeps_its_memory_and_the_producer_waits_while_the_server_stands_still() {
    const LIMIT: u64 = 8 << 20;
    // What the client and its buffers take beside the items.
    const SLACK: u64 = 8 << 20;
    let server = NatsServer::start("");
    let scene = Scene::with_ring("4M");
    scene.succeed("echo first | $RING produce ring");
    let to = server.address();
    let mut words = vec!["forward", "ring", "--to", &to, "--create-stream", "--max-memory", "8M"];
    words.extend(STREAM.split_whitespace());
    let forwarder = Guarded::start(&mut scene.without_input(&words));
    eventually("the first item arrives", || messages(&server) == 1);
    let before = peak(forwarder.id());

    server.set_stopped(true);
    let mut producer = scene.command(&["produce", "--no-flush", "ring"]);
    let producer = producer.spawn().unwrap();
    let line = [vec![b'.'; 60_000], vec![b'\n']].concat();
    let fed = std::thread::scope(|scope| {
        // 30 MB, of which ring, forwarder and pipes have room for less than half.
        let output = scope.spawn(|| {
            let input = line.repeat(500);
            finish(producer, &input)
        });
        let number = |facts: &serde_json::Value, name: &str| facts[name].as_u64().unwrap_or(0);
        scene.wait_for_facts("ring", |facts| {
            number(facts, "capacity").saturating_sub(number(facts, "used")) < 61_000
        });
        let while_stopped = peak(forwarder.id());
        assert!(while_stopped < before + LIMIT + SLACK, "{before}, then {while_stopped} bytes");
        assert!(!output.is_finished());
        server.set_stopped(false);
        output.join().unwrap()
    });
    assert_ok(&fed);
    eventually("all items arrive", || messages(&server) == 501);
    let after = peak(forwarder.id());
    assert!(after < before + LIMIT + SLACK, "{before}, then {after} bytes");
    signal(&forwarder, Signal::SIGTERM);
    assert_ok(&ended(forwarder, "the forwarder"));
}
