//! `--json`: one JSON object, however a command ends, with its exit code and its error.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;
use ring_test_support::assert_fails;
use ring_test_support::process::{ended, signal, until_asleep};
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

/// Every command that has `--json`, what else it needs before its address, and a count that it
/// always reports.
const ON_STANDARD_ERROR: [(&[&str], &str); 3] = [
    (&["produce"], "in_doubt"),
    (&["consume"], "empty_waits"),
    (&["journal", "--exec", "true"], "performed"),
];
const ON_STANDARD_OUTPUT: [&[&str]; 6] = [
    &["health"],
    &["diagnostics"],
    &["check"],
    &["repair"],
    &["repair", "--write"],
    &["bench", "--seconds", "0.01"],
];

/// How a command ends.
struct Ending {
    /// A line of shell that prepares it.
    prepare: &'static str,
    /// More arguments, the address among them.
    arguments: &'static [&'static str],
    /// The exit codes of `produce`, `consume`, `journal`, and of `health`, `diagnostics`, `check`,
    /// `repair`, `repair --write`, `bench`; 2 where the command has no such option.
    codes: [i32; 9],
}

const ENDINGS: [Ending; 11] = [
    Ending { prepare: "", arguments: &["ring"], codes: [0; 9] },
    Ending { prepare: "", arguments: &["missing"], codes: [1; 9] },
    Ending { prepare: "mkdir scene", arguments: &["scene"], codes: [1; 9] },
    Ending { prepare: "", arguments: &["/dev/null"], codes: [1; 9] },
    Ending { prepare: "printf x > small", arguments: &["small"], codes: [5; 9] },
    Ending {
        prepare: "yes | head -c 65536 > text",
        arguments: &["text"],
        // A journal is made where nothing is; this is something.
        codes: [5, 5, 1, 5, 5, 5, 5, 5, 5],
    },
    Ending {
        prepare: "printf '\\377' | dd of=ring bs=1 seek=520 conv=notrunc status=none",
        arguments: &["ring"],
        codes: [5, 5, 5, 5, 5, 5, 5, 0, 5],
    },
    Ending { prepare: "", arguments: &["--sector-size", "4096", "ring"], codes: [5; 9] },
    Ending { prepare: "", arguments: &["unix:missing"], codes: [1; 9] },
    Ending { prepare: "", arguments: &["serial:missing"], codes: [1; 9] },
    Ending {
        prepare: "",
        // Long enough for the ends of those that have nothing to wait for.
        arguments: &["--timeout", "2", "ring"],
        codes: [0, 3, 0, 0, 2, 2, 2, 2, 2],
    },
];

/// Returns the object that a command has written: the only one, at the end of the stream.
fn object(stream: &[u8], what: &str) -> Value {
    let text = std::str::from_utf8(stream).unwrap();
    let objects: Vec<_> = text.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(objects.len(), 1, "{what}: {text}");
    assert_eq!(text.lines().last(), Some(objects[0]), "{what}: {text}");
    assert!(text.ends_with('\n'), "{what}: {text}");
    serde_json::from_str(objects[0]).unwrap()
}

/// Asserts that the object says how the command has ended, and that standard error says the same.
fn assert_true(object: &Value, output: &Output, code: i32, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {said}");
    assert_eq!(object["exit_code"], code, "{what}: {object}");
    match object["error"].as_str() {
        None => assert!(code == 0 && object["error"].is_null(), "{what}: {object}"),
        Some(error) => {
            assert!(code != 0, "{what}: {object}");
            assert!(said.contains(&format!("blockring: {error}\n")), "{what}: {error:?}: {said}");
        }
    }
}

#[test]
fn every_command_reports_one_object_at_every_ending() {
    for Ending { prepare, arguments, codes } in &ENDINGS {
        let commands = ON_STANDARD_ERROR.map(|(command, key)| (command, Some(key)));
        let others = ON_STANDARD_OUTPUT.map(|command| (command, None));
        for ((command, key), code) in commands.into_iter().chain(others).zip(codes) {
            let scene = Scene::with_ring("64K");
            scene.succeed(prepare);
            let arguments = [command, &["--json"], arguments].concat();
            let what = format!("{prepare}; {arguments:?}");
            let output = scene.without_input(&arguments).output().unwrap();
            if *code == 2 {
                assert_eq!(output.status.code(), Some(2), "{what}");
                continue;
            }
            let object = object(key.map_or(&output.stdout, |_| &output.stderr), &what);
            assert_true(&object, &output, *code, &what);
            if let Some(key) = key {
                assert!(object[key].is_u64(), "{what}: {object}");
                assert!(output.stdout.is_empty(), "{what}");
            }
        }
    }
}

#[test]
fn check_says_sound_only_of_a_ring_that_it_has_verified() {
    let scene = Scene::with_ring("64K");
    scene.succeed("printf x > small");
    for (address, is_sound, has_problem) in
        [("ring", true, false), ("small", false, true), ("missing", false, false)]
    {
        let output = scene.shell(&format!("$RING check --json {address}"));
        let verdict = object(&output.stdout, address);
        assert_eq!(verdict["sound"], is_sound, "{verdict}");
        assert_eq!(verdict["problem"].is_string(), has_problem, "{verdict}");
    }
}

#[test]
fn waits_for_a_backend_that_a_signal_ends_are_reported() {
    for (kind, address) in
        [(SockType::SeqPacket, "unix:socket"), (SockType::Stream, "vhost-user:socket")]
    {
        let scene = Scene::with_ring("64K");
        let _listening = scene.silent_socket(kind);
        for (command, code) in [
            (&["produce", "--timeout", "3600"][..], 0),
            (&["consume", "--timeout", "3600"], 0),
            (&["bench"], 1),
            (&["diagnostics"], 143),
            (&["check"], 143),
        ] {
            if kind == SockType::Stream && command == ["diagnostics"] {
                // Its backend has another socket for that.
                continue;
            }
            let child = scene.without_input(command).args(["--json", address]).spawn().unwrap();
            until_asleep(&child);
            signal(&child, Signal::SIGTERM);
            let output = ended(child, "the command");
            let what = format!("{command:?} {address}");
            if code < 128 {
                let stream = if code == 0 { &output.stderr } else { &output.stdout };
                assert_true(&object(stream, &what), &output, code, &what);
                continue;
            }
            assert_eq!(output.status.signal(), Some(libc::SIGTERM), "{what}");
            let object = object(&output.stdout, &what);
            assert_eq!(object["exit_code"], code, "{object}");
            assert_eq!(object["error"], "ended by signal 15", "{object}");
        }
    }
}

#[test]
fn waits_for_a_backend_that_does_not_answer_are_reported() {
    let scene = Scene::with_ring("64K");
    let _listening = scene.silent_socket(SockType::SeqPacket);
    let commands: [&[&str]; 5] = [
        &["produce", "--timeout", "0.1"],
        &["consume", "--timeout", "0.1"],
        &["diagnostics"],
        &["check"],
        &["bench"],
    ];
    let children = commands.map(|command| {
        scene.without_input(command).args(["--json", "unix:socket"]).spawn().unwrap()
    });
    for (index, child) in children.into_iter().enumerate() {
        let output = ended(child, "the command");
        let stream = if index < 2 { &output.stderr } else { &output.stdout };
        let what = format!("{:?}", commands[index]);
        assert_true(&object(stream, &what), &output, 3, &what);
    }
}

#[test]
fn refusals_behind_the_arguments_are_reported() {
    let scene = Scene::with_ring("64K");
    for command in [
        "produce --json ring <&-",
        "journal --json --exec true ring <&-",
        "journal --json --exec 'if' ring < /dev/null",
        "journal --json --exec true --limit 1 --aside missing/aside ring < /dev/null",
        "produce --json ring < ring",
    ] {
        let output = scene.shell(&format!("$RING {command}"));
        assert_true(&object(&output.stderr, command), &output, 1, command);
    }
    for command in ["repair --json unix:ring", "repair --write --keep ring --json broken"] {
        scene.succeed(
            "cp ring broken; printf x | dd of=broken bs=1 seek=40 conv=notrunc status=none",
        );
        let output = scene.shell(&format!("$RING {command}"));
        assert_true(&object(&output.stdout, command), &output, 1, command);
    }
}

#[test]
fn no_report_is_written_into_the_ring_that_is_standard_output() {
    let scene = Scene::with_lines(3);
    let before = scene.read("ring");
    for command in
        ["health", "inspect", "diagnostics", "check", "repair", "repair --write", "bench"]
    {
        for more in ["", "--sector-size 4096"] {
            let output = scene.shell(&format!("$RING {command} --json {more} ring 1<> ring"));
            assert_fails(&output, 1, "standard output is the ring itself");
        }
    }
    assert!(scene.read("ring") == before, "the ring was changed");
}

#[test]
fn suspended_ring_and_full_ring_are_reported_with_the_counts() {
    let scene = Scene::with_ring("4K");
    scene.succeed("$RING suspend ring");
    let output = scene.shell("echo one | $RING produce --json --timeout 0.01 ring");
    let object_of = |output: &Output| object(&output.stderr, "produce");
    assert_true(&object_of(&output), &output, 4, "suspended");
    assert_eq!(object_of(&output)["suspend_waits"], 1);
    let scene = Scene::with_ring("4K");
    let output = scene.shell("seq 1000 | $RING produce --json --timeout 0.01 ring");
    assert_true(&object_of(&output), &output, 3, "full");
    assert!(object_of(&output)["items"].as_u64().unwrap() > 0);
}
