//! `blockring forward`: its configuration, and rings that appear and go.
#![allow(clippy::unwrap_used)]

use crate::common::machine;
use crate::common::scene::{Scene, counts};
use nix::sys::signal::Signal;
use ring_test_support::backend::{Backend, Word};
use ring_test_support::metrics::scrape;
use ring_test_support::process::{Guarded, ended, eventually, signal, words};
use ring_test_support::{RingFile, assert_fails, assert_ok};
use std::process::Stdio;

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
    assert_fails(&scene.shell("$RING forward a.img"), 2, "not provided:\n  --to <SINK>");
    assert_fails(&scene.shell("$RING forward --to file:x"), 2, "not provided:\n  <RING>");
}

#[test]
fn option_of_another_sink_is_refused_by_name() {
    let scene = with_rings(&["a.img"]);
    let output = scene.shell("$RING forward --drain a.img --to file:x --ack lines");
    assert_fails(&output, 2, "--ack is an option of exec:");
    scene.write("f", "to = \"exec:cat\"\nrings = [\"a.img\"]\n[file]\nkeep = 3\n");
    assert_fails(&scene.shell("$RING forward --drain --config f"), 1, "f: key `file.keep`");
    assert_eq!(scene.succeed("$RING consume a.img"), "a.img\n");
}

#[test]
fn check_of_the_configuration_looks_at_folders_and_names() {
    let scene = with_rings(&["a.b.img", "c.img"]);
    scene.succeed("mkdir folder; echo > file");
    let nats = "--to nats://h --stream S --subject 'vm.{ring}'";
    for (words, wanted) in [
        ("'*.img' --to file:none/x", "none/x: cannot write the file"),
        ("'*.img' --to file:none/x", "is there such a folder?"),
        ("'n*.img' --to 'file:none/{ring}'", "none/ring"),
        ("'*.img' --to 'file:c.img'", "it holds a ring"),
        ("'*.img' --to 'file:file/{ring}'", "file/c: cannot write the file"),
        (&format!("'*.img' {nats}"), "'a.b' cannot be a part of a subject"),
    ] {
        let check = format!("$RING forward --check-config {words}");
        assert_fails(&scene.shell(&check), 1, wanted);
    }
    for words in [nats, "--to 'file:folder/{ring}'", "--to journald:folder", "--to file:file"] {
        scene.succeed(&format!("$RING forward --check-config c.img {words}"));
    }
    assert!(scene.path("folder").read_dir().unwrap().next().is_none());
    assert!(scene.read("file") == b"\n" && !scene.path("file.positions").exists());
    // The superuser may write anywhere but where nobody may.
    machine::succeed(
        r#"
        mkdir ro && mount -t tmpfs none ro && touch ro/x ro/x.positions && mount -o remount,ro ro
        $RING create --size 64K ring
        must 1 'ro/x: cannot write the file' "$RING" forward --check-config ring --to file:ro/x
        must 1 'may this user' "$RING" forward --check-config ring --to file:ro/y
        must 1 'may this user' "$RING" forward --check-config ring --to journald:ro
        "#,
    );
}

#[test]
fn ring_in_the_making_is_no_alert_and_one_that_stays_none_is() {
    let scene = Scene::new();
    let arguments = ["forward", "*.img", "--to", "file:{ring}.log"];
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let forwarder =
        Guarded::start(scene.without_input(&arguments).env("RUST_LOG", "info").stderr(errors));
    scene.succeed("$RING create --size 64K first.img; echo x | $RING produce first.img");
    scene.wait_for_lines("first.log", 1);
    scene.succeed("$RING create --size 64K made; truncate -s 64K ring.img never.img");
    let said = |words: &str| String::from_utf8_lossy(&scene.read("errors")).contains(words);
    eventually("the forwarder has looked", || said("ring: ring.img: not a ring"));
    std::fs::rename(scene.path("made"), scene.path("ring.img")).unwrap();
    scene.succeed("echo x | $RING produce ring.img");
    scene.wait_for_lines("ring.log", 1);
    eventually("the other one is said", || said("makes a ring); it is tried again"));
    let text = String::from_utf8(scene.read("errors")).unwrap();
    let warned: Vec<_> = text.lines().filter(|line| line.contains(" WARN ")).collect();
    assert!(warned.len() == 1 && warned[0].contains("never"), "{text}");
    end(forwarder);
}

#[test]
fn rings_beyond_the_budget_of_open_files_wait_and_are_taken_up_when_others_go() {
    const RINGS: usize = 20;
    let scene = Scene::new();
    let script = format!(
        "for n in $(seq {RINGS}); do $RING create --size 64K $n.img; echo x | $RING produce $n.img; done"
    );
    scene.succeed(&script);
    let mut shell = std::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_blockring");
    let script = format!(
        "ulimit -n 100; exec {program} forward '*.img' --to 'file:{{ring}}.log' --metrics unix:m"
    );
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    shell.args(["-c", &script]).current_dir(scene.path(".")).stdin(Stdio::null()).stderr(errors);
    let forwarder = Guarded::start(&mut shell);
    let said = || String::from_utf8(scene.read("errors")).unwrap();
    eventually("rings wait", || said().contains("waits for open files: the limit is 100"));
    let arrived = || (1..=RINGS).filter(|n| !scene.lines(&format!("{n}.log")).is_empty());
    assert!(arrived().count() < RINGS);
    // The descriptors are for forwarding first.
    eventually("no ring is opened once more for its metrics", || {
        let samples = scrape(&scene.path("m"));
        let up = |n: usize| samples.get(&format!("blockring_ring_up{{ring=\"{n}\"}}"));
        (1..=RINGS).all(|n| up(n) == Some(0.0))
    });
    eventually("all rings are taken up, in turn", || {
        let done: Vec<_> = arrived().collect();
        for number in &done {
            let _ = std::fs::remove_file(scene.path(&format!("{number}.img")));
        }
        done.len() == RINGS
    });
    let said = said();
    assert_eq!(said.matches("waits for open files").count(), 1, "{said}");
    assert!(!said.contains("Too many"), "{said}");
    end(forwarder);
    // A drain, which closes no ring, fails for them.
    scene.succeed("for n in $(seq 20); do $RING create --size 64K $n.img; done");
    let output = scene.shell("ulimit -n 100; $RING forward --drain '*.img' --to 'file:{ring}.log'");
    assert_fails(&output, 1, "waits for open files");
}

#[test]
fn damaged_ring_is_named_with_the_remedy() {
    let scene = with_rings(&["a.img"]);
    // The first item's length.
    scene.succeed("printf '\\377' | dd of=a.img bs=1 seek=1538 conv=notrunc 2> dd");
    for (words, code) in [("forward --drain a.img --to file:x", 1), ("consume a.img", 5)] {
        assert_fails(&scene.shell(&format!("$RING {words}")), code, "consume --on-corrupt skip");
    }
    // The producer's position.
    scene.succeed(
        "head -c 8 /dev/zero | tr '\\0' '\\377' | dd of=a.img bs=1 seek=512 conv=notrunc 2> dd",
    );
    assert_fails(&scene.shell("$RING forward --drain a.img --to file:x"), 1, "blockring repair");
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
    // Another ring, and another place. Metrics are offered from the start, or not at all.
    let text = "to = \"file:new-{ring}\"\nrings = [\"a.img\", \"b.img\"]\nmetrics = [\"unix:m\"]\n";
    scene.write("forward.toml", text);
    signal(&forwarder, Signal::SIGHUP);
    scene.wait_for("errors", has("the addresses of metrics stay as they were"));
    scene.wait_for("errors", has("2 rings"));
    assert!(!scene.path("m").exists());
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
fn drain_ends_well_when_its_last_ring_has_gone_and_all_has_arrived() {
    let scene = Scene::new();
    let file = RingFile::new(64 << 10, 512);
    let mut producer = file.producer().unwrap();
    let end_of_item = producer.push("item").unwrap();
    producer.advance(end_of_item).unwrap();
    let backend = Backend::new(&file, Word::Guarded);
    let socket = scene.path("web.out");
    std::fs::rename(file.path.with_extension("socket"), &socket).unwrap();
    let to = r#"exec:read -r line; echo > read; until [ -e go ]; do sleep 0.05; done; echo "${line%%[!0-9]*}""#;
    let mut command = scene.without_input(&["forward", "--drain", "unix:*.out", "--to", to]);
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let forwarder = Guarded::start(command.env("RUST_LOG", "info").stderr(errors));
    let client = backend.accept();
    scene.wait_for("read", |bytes| !bytes.is_empty());
    std::fs::remove_file(&socket).unwrap();
    drop((client, backend));
    scene.wait_for("errors", |bytes| String::from_utf8_lossy(bytes).contains("backend is gone"));
    scene.write("go", "");
    let status = ended(forwarder, "forward").status;
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&scene.read("errors")));
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
