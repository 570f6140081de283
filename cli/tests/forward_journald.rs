//! `blockring forward --to journald:`: systemd's own programs write and show the records.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use ring_test_support::process::Guarded;
use ring_test_support::{assert_fails, assert_ok};
use serde_json::Value;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Times that the forwarder is killed.
const KILLS: u64 = 40;

/// Returns the records of a folder, as journalctl shows them in the order of a ring.
fn records(scene: &Scene, ring: &str) -> Vec<Value> {
    let shown = Command::new("journalctl")
        .args(["--directory", "journal", "--output=json", "--all", "--no-pager", "--quiet"])
        .current_dir(scene.path("."))
        .output()
        .unwrap();
    assert_ok(&shown);
    let text = String::from_utf8(shown.stdout).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|record| record["_HOSTNAME"] == ring).collect()
}

fn messages(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["MESSAGE"].as_str().unwrap()).collect()
}

/// Makes rings of those names, and a folder for their journals.
fn with_rings(names: &[&str]) -> Scene {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("journal")).unwrap();
    for name in names {
        assert_ok(&scene.run(&["create", "--size", "256K", name], b""));
    }
    scene
}

#[test]
fn killed_forwarders_leave_each_item_once_and_in_order_in_the_journal() {
    let scene = with_rings(&["web", "db"]);
    let count = 20_000;
    let producers: Vec<_> = ["web", "db"]
        .iter()
        .map(|ring| {
            let script =
                format!("seq {count} | {} produce {ring}", env!("CARGO_BIN_EXE_blockring"));
            let mut command = Command::new("sh");
            command.args(["-c", &script]).current_dir(scene.path(".")).stdout(Stdio::null());
            Guarded::start(&mut command)
        })
        .collect();
    let words = ["forward", "web", "db", "--to", "journald:journal", "--gather", "0"];
    for kill in 0..KILLS {
        let mut command = scene.without_input(&words);
        let mut forwarder = Guarded::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
        // Any moment is as good as another.
        std::thread::sleep(Duration::from_millis(10 + kill * 37 % 250));
        forwarder.kill().unwrap();
        forwarder.wait().unwrap();
    }
    let mut forwarder = Guarded::start(scene.without_input(&words).stderr(Stdio::null()));
    for mut producer in producers {
        assert!(producer.wait().unwrap().success());
    }
    forwarder.kill().unwrap();
    forwarder.wait().unwrap();
    scene.succeed("$RING forward --drain web db --to journald:journal");
    for ring in ["web", "db"] {
        let records = records(&scene, ring);
        let expected = (1..=count).map(|number| number.to_string());
        let odd = messages(&records).into_iter().zip(expected).find(|(there, line)| there != line);
        assert_eq!((odd, records.len()), (None, count), "{ring}");
    }
}

#[test]
fn journal_entries_keep_their_fields_under_the_ring_s_name() {
    let scene = with_rings(&["web"]);
    scene.succeed(
        "printf 'MESSAGE=hello\\nPRIORITY=4\\n_COMM=sshd\\n_HOSTNAME=db\\n\\n' |
             $RING produce --framing whole web && $RING forward --drain web --to journald:journal",
    );
    let records = records(&scene, "web");
    for (name, value) in [
        ("MESSAGE", "hello"),
        ("PRIORITY", "4"),
        ("_COMM", "sshd"),
        ("GUEST_HOSTNAME", "db"),
        ("SYSLOG_IDENTIFIER", "web"),
    ] {
        assert_eq!(records[0][name], value, "{name}");
    }
}

#[test]
fn socket_of_the_journal_takes_each_item() {
    let scene = with_rings(&["web"]);
    let journal = UnixDatagram::bind(scene.path("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let count = 2000;
    scene.succeed(&format!("seq {count} | $RING produce web"));
    let words = ["forward", "--drain", "web", "--to", "journald:", "--journal-socket", "socket"];
    let mut forwarder = Guarded::start(&mut scene.without_input(&words));
    let mut bytes = vec![0; 64 << 10];
    for number in 1..=count {
        let length = journal.recv(&mut bytes).unwrap();
        let record = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(record.ends_with(&format!("\nMESSAGE={number}\n")), "{record}");
        assert!(record.contains("SYSLOG_IDENTIFIER=web\n"), "{record}");
    }
    assert!(forwarder.wait().unwrap().success());
}

#[test]
fn what_a_journal_needs_is_named() {
    let scene = with_rings(&["web"]);
    for (arguments, words) in [
        (&["--to", "journald:none"][..], "make it first"),
        (&["--to", "journald:", "--drain", "--journal-socket", "none"], "systemd-journald"),
    ] {
        let mut all = vec!["forward", "web"];
        all.extend_from_slice(arguments);
        assert_fails(&scene.run(&all, b""), 1, words);
    }
}
