//! `blockring forward`: its configuration, and rings that appear and go.
#![allow(clippy::unwrap_used)]

mod common;

use common::scene::{Scene, counts};
use nix::sys::signal::Signal;
use ring_test_support::backend::{Backend, Word};
use ring_test_support::process::{Guarded, ended, eventually, signal, words};
use ring_test_support::{RingFile, assert_fails, assert_ok};

/// Makes rings of those names, each with its name as an item.
fn with_rings(names: &[&str]) -> Scene {
    let scene = Scene::new();
    for name in names {
        scene.succeed(&format!(
            "$RING create --size 64K {name}; echo {name} | $RING produce {name}"
        ));
    }
    scene
}

fn end(forwarder: Guarded) -> std::process::Output {
    signal(&forwarder, Signal::SIGTERM);
    let output = ended(forwarder, "forward");
    assert_ok(&output);
    output
}

#[test]
fn bad_configuration_is_refused_by_line_and_key() {
    let scene = with_rings(&["a.img", "b.img"]);
    scene.succeed("mkdir other; cp a.img other");
    for (text, wanted) in [
        ("rings = [\"a.img\"]\n", &["`to`"][..]),
        ("to = \"file:x\"\nrings = [\"a.img\", 3]\n", &["line 2", "rings"]),
        ("to = \"file:x\"\nrings = [\"a.img\"]\n\nkepe = 3\n", &["line 4", "kepe"]),
        ("to = \"file:x\"\nrings = [\"a.img\"]\n[file]\nkepe = 3\n", &["line 4", "kepe", "keep"]),
        ("to = \"file:x\"\nrings = [\"a.img\"]\n[file]\nrotate-size = \"3X\"\n", &["line 4", "3X"]),
        (
            "to = \"file:x\"\nrings = [\"a.img\"]\n[exec]\nack = \"no\"\n",
            &["line 4", "ack", "exit"],
        ),
        ("to = \"file:\"\nrings = [\"a.img\"]\n", &["line 1", "file:PATH"]),
        ("to = \"file:x\"\nrings = [\"a.img\", \"other/a.img\"]\n", &["name a", "other/a.img"]),
        ("to = \"exec:if\"\nrings = [\"a.img\"]\n", &["sh does not understand"]),
        ("to = \"file:other\"\nrings = [\"a.img\"]\n", &["is a folder"]),
        ("to = \"file:x\"\nrings = [\"a.img\"\n", &["line 2"]),
    ] {
        scene.write("forward.toml", text);
        let output = scene.shell("$RING forward --check-config --config forward.toml");
        for word in wanted {
            assert_fails(&output, 1, word);
        }
        let output = scene.shell("$RING forward --drain --config forward.toml");
        assert_fails(&output, 1, wanted[0]);
    }
    let output = scene.shell("$RING forward --config none.toml");
    assert_fails(&output, 1, "none.toml: cannot read the configuration");
    scene.write("forward.toml", "to = \"file:x\"\nrings = [\"*.img\"]\n");
    let sound = scene.succeed("$RING forward --check-config --config forward.toml");
    assert!(sound.contains("a: a.img\nb: b.img") && sound.contains("rings now: 2"), "{sound}");
    assert!(!scene.path("x").exists());
    for usage in ["", "a.img", "--to file:x", "--config f --to file:x", "--config f --keep 3"] {
        assert_fails(&scene.shell(&format!("$RING forward {usage}")), 2, "Usage");
    }
}

#[test]
fn drain_of_a_pattern_without_rings_fails_at_once() {
    let scene = Scene::new();
    let output = scene.shell("timeout 20 $RING forward --drain 'no*.img' --to file:x");
    assert_fails(&output, 1, "there is no ring to drain");
}

#[test]
fn rings_of_the_configuration_have_their_names() {
    let scene = with_rings(&["a.img", "b.img"]);
    scene.write(
        "forward.toml",
        "to = \"file:{ring}.log\"\nrings = [\"*.img\"]\n[[ring]]\naddress = \"b.img\"\nname = \"web\"\n",
    );
    scene.succeed("$RING forward --drain --config forward.toml");
    assert_eq!(
        (scene.lines("a.log"), scene.lines("web.log")),
        (vec!["a.img".into()], vec!["b.img".into()])
    );
    assert!(!scene.path("b.log").exists());
}

#[test]
fn hangup_reads_a_good_configuration_and_keeps_to_the_old_one_for_a_bad_one() {
    let scene = with_rings(&["a.img", "b.img"]);
    scene.write("forward.toml", "to = \"file:{ring}.log\"\nrings = [\"a.img\"]\n");
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let mut forwarder = scene.without_input(&["forward", "--config", "forward.toml"]);
    let forwarder = Guarded::start(forwarder.stderr(errors));
    scene.wait_for_lines("a.log", 1);
    scene.write("forward.toml", "to = \"file:{ring}.log\"\nrigns = [\"b.img\"]\n");
    signal(&forwarder, Signal::SIGHUP);
    let has =
        |words: &'static str| move |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(words);
    scene.wait_for("errors", has("stays as it was"));
    scene.wait_for("errors", has("rigns"));
    scene.succeed("echo more | $RING produce a.img");
    scene.wait_for_lines("a.log", 2);
    assert!(!scene.path("b.log").exists());
    // Items that are not acknowledged yet would be written to the other file, too.
    scene.wait_for_facts("a.img", |facts| facts["used"] == 0);
    // Another ring, and another place.
    scene.write("forward.toml", "to = \"file:new-{ring}\"\nrings = [\"a.img\", \"b.img\"]\n");
    signal(&forwarder, Signal::SIGHUP);
    scene.wait_for("errors", has("2 rings"));
    scene.succeed("echo last | $RING produce a.img");
    scene.wait_for_lines("new-a", 1);
    scene.wait_for_lines("new-b", 1);
    end(forwarder);
    assert_eq!(
        (scene.lines("a.log"), scene.lines("new-a")),
        (vec!["a.img".into(), "more".into()], vec!["last".into()])
    );
}

#[test]
fn ring_that_appears_is_taken_up_and_one_that_goes_is_forwarded_to_its_end() {
    let scene = Scene::new();
    let file = RingFile::new(64 << 10, 512);
    let mut producer = file.producer().unwrap();
    let pattern = format!("unix:{}/run/*.out", scene.path(".").display());
    let arguments = ["forward", "--json", &pattern, "--to", "file:{ring}.log"];
    let forwarder = Guarded::start(&mut scene.without_input(&arguments));
    // The folder is not there at first, either.
    scene.succeed("mkdir run");
    let backend = Backend::new(&file, Word::Guarded);
    let socket = scene.path("run/web.out");
    std::fs::rename(file.path.with_extension("socket"), &socket).unwrap();
    let client = backend.accept();
    let mut publish = |item: &str| {
        let end = producer.push(item).unwrap();
        producer.advance(end).unwrap();
    };
    publish("one");
    client.ring();
    scene.wait_for_lines("web.log", 1);
    // The socket goes, and the backend with the last item unsaid.
    std::fs::remove_file(&socket).unwrap();
    publish("two");
    drop(client);
    scene.wait_for_lines("web.log", 2);
    eventually("the role is given back", || file.consumer().is_ok());
    let report = counts(&end(forwarder));
    assert_eq!((&report["items"], &report["rings"]["web"]["items"]), (&2.into(), &2.into()));
    assert_eq!(scene.lines("web.log"), ["one", "two"]);
}

#[test]
fn backend_that_is_silent_or_gone_delays_no_other_ring() {
    let scene = with_rings(&["ring"]);
    let _silent = scene.silent_socket(nix::sys::socket::SockType::SeqPacket);
    let arguments = ["forward", "unix:socket", "unix:none", "ring", "--to", "file:{ring}.log"];
    let forwarder = Guarded::start(&mut scene.without_input(&arguments));
    scene.wait_for_lines("ring.log", 1);
    // It is said, and tried again.
    eventually("a second attempt", || {
        scene.succeed("echo more | $RING produce ring");
        scene.lines("ring.log").len() > 20
    });
    let output = end(forwarder);
    let said = words(&output);
    assert_eq!(said.matches("none: unix:none").count(), 1, "{said}");
}

#[test]
fn ring_without_uuid_and_name_that_is_used_twice_are_refused() {
    let scene = with_rings(&["a.img", "a.out"]);
    let output = scene.shell("$RING forward a.img a.out --to file:x");
    assert_fails(&output, 1, "both have the name a");
    scene.succeed("$RING create --plain --size 64K plain");
    assert_fails(&scene.shell("$RING forward --drain plain --to file:x"), 1, "no UUID");
}

#[test]
fn ring_that_is_named_no_more_is_given_back_while_its_backend_is_there() {
    let scene = with_rings(&["ring"]);
    let file = RingFile::new(64 << 10, 512);
    let backend = Backend::new(&file, Word::Guarded);
    let socket = file.path.with_extension("socket");
    let text = format!("to = \"file:out\"\nrings = [\"unix:{}\"]\n", socket.display());
    scene.write("forward.toml", text);
    let forwarder =
        Guarded::start(&mut scene.without_input(&["forward", "--config", "forward.toml"]));
    let client = backend.accept();
    let mut producer = file.producer().unwrap();
    let end_of_item = producer.push("item").unwrap();
    producer.advance(end_of_item).unwrap();
    client.ring();
    scene.wait_for_lines("out", 1);
    scene.write("forward.toml", "to = \"file:out\"\nrings = [\"ring\"]\n");
    signal(&forwarder, Signal::SIGHUP);
    scene.wait_for_lines("out", 2);
    eventually("the connection ends", || client.is_gone());
    end(forwarder);
}
