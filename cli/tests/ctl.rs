//! `ctl`: the calls that a backend gets, and what becomes of its answers. The backend is a thread
//! of the test that does as it is told.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;
use ring_test_support::process::{ended, signal, until_asleep, words};
use ring_test_support::{assert_fails, assert_ok};
use serde_json::{Value, json};
use shared_block_ring::handover::receive_part;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::thread;

/// Reads a call.
fn received(connection: &UnixStream) -> Value {
    let mut message = Vec::new();
    BufReader::new(connection).read_until(0, &mut message).unwrap();
    assert_eq!(message.pop(), Some(0));
    serde_json::from_slice(&message).unwrap()
}

/// Runs `ctl` with the arguments against a backend that reads one call and sends these pieces.
/// Returns the call and the output.
fn talk_in_pieces(scene: &Scene, arguments: &[&str], pieces: &[&[u8]]) -> (Value, Output) {
    let _ = std::fs::remove_file(scene.path("control"));
    let listener = UnixListener::bind(scene.path("control")).unwrap();
    let arguments = [&["ctl", "--socket", "unix:control"], arguments].concat();
    thread::scope(|scope| {
        let backend = scope.spawn(move || {
            let mut connection = listener.accept().unwrap().0;
            let call = received(&connection);
            for piece in pieces {
                // The program may have ended by then.
                let _ = connection.write_all(piece);
            }
            call
        });
        let output = scene.run(&arguments, b"");
        (backend.join().unwrap(), output)
    })
}

/// Does the same with one answer.
fn talk(scene: &Scene, arguments: &[&str], answer: &Value) -> (Value, Output) {
    talk_in_pieces(scene, arguments, &[&[answer.to_string().as_bytes(), b"\0"].concat()])
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn ring(name: &str) -> Value {
    json!({
        "name": name, "state": "serving", "reason": null, "path": "/var/rings/web.ring",
        "socket": "/run/rings/web.sock", "consumer_socket": "/run/rings/web.out",
        "guest": "producer", "bytes": 65536, "used": 12345, "front_end": true, "suspended": false,
        "fault": null,
    })
}

fn failed_ring() -> Value {
    // A backend may leave out what it does not know.
    json!({
        "name": "old\n", "state": "failed", "reason": "no such file\u{1b}[2J", "path": "/var/rings/old.ring",
        "socket": "/run/rings/old.sock", "guest": "consumer",
    })
}

#[test]
fn each_action_is_one_call_with_its_parameters() {
    let scene = Scene::new();
    scene.write("web.toml", "path = \"ü\"\n");
    let name = json!({ "name": "web" });
    for (arguments, method, parameters) in [
        (&["add", "web"][..], "Add", name.clone()),
        (
            &["add", "--file", "web.toml", "web"],
            "Add",
            json!({ "name": "web", "configuration": "path = \"ü\"\n" }),
        ),
        (&["remove", "web"], "Remove", name.clone()),
        (&["drain", "web"], "Drain", name.clone()),
        (
            &["drain", "web", "--timeout", "1.5"],
            "Drain",
            json!({ "name": "web", "timeout_ms": 1500 }),
        ),
        (&["suspend", "web"], "Suspend", name.clone()),
        (&["resume", "web"], "Resume", name),
    ] {
        let (call, output) = talk(&scene, arguments, &json!({ "parameters": {} }));
        let method = format!("io.blockring.Rings.{method}");
        assert_eq!(call, json!({ "method": method, "parameters": parameters }));
        assert_ok(&output);
        assert_eq!((text(&output), &*words(&output)), ("", ""), "{arguments:?}");
        let (_, output) = talk(&scene, &[arguments, &["--json"]].concat(), &json!({}));
        assert_ok(&output);
        assert_eq!(text(&output), "{\"exit_code\":0,\"error\":null}\n", "{arguments:?}");
    }
}

#[test]
fn descriptors_go_with_the_call_that_says_what_they_are() {
    let scene = Scene::new();
    scene.write("web.toml", "guest = \"producer\"\n");
    scene.write("ring", "the ring");
    let listener = UnixListener::bind(scene.path("control")).unwrap();
    let add = |more: &str| {
        let program = env!("CARGO_BIN_EXE_blockring");
        let line = format!("exec {program} ctl --socket control add --file web.toml {more}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).current_dir(scene.path("."));
        shell.output().unwrap()
    };
    let (call, content) = thread::scope(|scope| {
        let backend = scope.spawn(|| {
            let mut connection = listener.accept().unwrap().0;
            let mut bytes = [0; 4096];
            let (len, descriptors) = receive_part(connection.as_fd(), &mut bytes).unwrap();
            connection.write_all(b"{}\0").unwrap();
            let content = descriptors.into_iter().map(|descriptor| {
                let mut text = String::new();
                File::from(descriptor).read_to_string(&mut text).unwrap();
                text
            });
            let call: Value = serde_json::from_slice(&bytes[..len - 1]).unwrap();
            (call, content.collect::<Vec<_>>())
        });
        assert_ok(&add("--pass consumer-socket=8 --pass ring=9 web 8</dev/null 9<ring"));
        backend.join().unwrap()
    });
    assert_eq!(call["parameters"]["descriptors"], json!({ "consumer_socket": 0, "ring": 1 }));
    assert_eq!(content, ["", "the ring"]);
    for (more, wanted) in [
        ("--pass ring=9 web", "descriptor 9"),
        ("--pass ring=0 web", "descriptor 0"),
        ("--pass ring=9 --pass socket=9 web 9<ring", "descriptor 9"),
        ("--pass ring=9 --pass ring=8 web 9<ring 8<ring", "twice"),
        ("--pass disk=9 web 9<ring", "ring, socket or consumer-socket"),
        ("--pass ring web 9<ring", "WHAT=FD"),
        ("--pass ring=x web", "FD is the number"),
    ] {
        let output = add(more);
        assert_eq!(output.status.code(), Some(2), "{more}");
        let said = words(&output);
        assert!(said.contains(wanted), "{more}: {said}");
    }
}

#[test]
fn list_is_a_table_of_printable_text() {
    let scene = Scene::new();
    let suspended = json!({ "name": "a b", "suspended": true, "fault": "the file was moved", "front_end": false });
    let mut third = ring("");
    third.as_object_mut().unwrap().extend(suspended.as_object().unwrap().clone());
    let rings = json!({ "parameters": { "rings": [ring("web"), failed_ring(), third] } });
    let (call, output) = talk(&scene, &["list"], &rings);
    assert_eq!(call, json!({ "method": "io.blockring.Rings.List", "parameters": {} }));
    assert_ok(&output);
    let expected = [
        "NAME     STATE    GUEST     USED         FRONT END  PATH                 REMARKS",
        "web      serving  producer  12.3k/65.5k  yes        /var/rings/web.ring",
        "\"old\\n\"  failed   consumer  -            -          /var/rings/old.ring  no such file\\u{1b}[2J",
        "a b      serving  producer  12.3k/65.5k  no         /var/rings/web.ring  the file was moved; asked to suspend",
    ];
    assert_eq!(text(&output), expected.join("\n") + "\n");
    let (_, output) = talk(&scene, &["list"], &json!({ "parameters": { "rings": [] } }));
    assert_ok(&output);
    assert!(text(&output).starts_with("no rings: "), "{}", text(&output));
}

#[test]
fn show_has_a_line_for_each_fact_and_counter() {
    let scene = Scene::new();
    let counters = json!({ "reads": 7, "refused": { "free_space": 2 } });
    let answer = json!({ "parameters": { "ring": ring("web"), "counters": counters } });
    let (call, output) = talk(&scene, &["show", "web"], &answer);
    let parameters = json!({ "name": "web" });
    assert_eq!(call, json!({ "method": "io.blockring.Rings.Show", "parameters": parameters }));
    assert_ok(&output);
    let expected = "\
name: web
state: serving
path: /var/rings/web.ring
socket: /run/rings/web.sock
consumer socket: /run/rings/web.out
guest: producer
size: 65536 bytes
used: 12345 bytes
limits: none
front end: connected
asked to suspend: no
counters:
  reads: 7
  refused.free_space: 2
";
    assert_eq!(text(&output), expected);
    let mut limited = ring("web");
    let limits = json!({ "max_bytes_per_second": 1024, "max_requests_per_second": 5 });
    limited.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
    let answer = json!({ "parameters": { "ring": limited, "counters": null } });
    let (_, output) = talk(&scene, &["show", "web"], &answer);
    let words = "\nlimits: 1024 bytes a second, 5 requests a second\n";
    assert!(text(&output).contains(words), "{}", text(&output));
    let answer = json!({ "parameters": { "ring": failed_ring(), "counters": null } });
    let (_, output) = talk(&scene, &["show", "old"], &answer);
    let expected = "\
name: \"old\\n\"
state: failed
reason: no such file\\u{1b}[2J
path: /var/rings/old.ring
socket: /run/rings/old.sock
consumer socket: none
guest: consumer
size: unknown
used: unknown
limits: none
front end: unknown
asked to suspend: unknown
counters: none (the ring is not served)
";
    assert_eq!(text(&output), expected);
}

#[test]
fn stats_have_the_counters_below_each_name() {
    let scene = Scene::new();
    let rings =
        json!([{ "name": "a", "counters": { "reads": 1 } }, { "name": "b", "counters": null }]);
    let answer = json!({ "parameters": { "rings": rings } });
    let (call, output) = talk(&scene, &["stats"], &answer);
    assert_eq!(call, json!({ "method": "io.blockring.Rings.Stats", "parameters": {} }));
    assert_ok(&output);
    assert_eq!(text(&output), "a:\n  reads: 1\nb: none (the ring is not served)\n");
    let (call, _) = talk(&scene, &["stats", "a"], &answer);
    assert_eq!(call["parameters"], json!({ "name": "a" }));
}

#[test]
fn reports_are_the_parameters_of_the_answer() {
    let scene = Scene::new();
    let all = [
        (&["list"][..], json!({ "rings": [ring("web")] })),
        (&["show", "web"], json!({ "counters": { "reads": 1.5 }, "ring": ring("web"), "new": [] })),
        (&["stats"], json!({ "rings": [{ "counters": null, "name": "b" }] })),
    ];
    for (arguments, parameters) in all {
        let answer = json!({ "parameters": parameters });
        let (_, output) = talk(&scene, &[arguments, &["--json"]].concat(), &answer);
        assert_ok(&output);
        let mut members = parameters.to_string();
        members.pop();
        assert_eq!(text(&output), format!("{members},\"exit_code\":0,\"error\":null}}\n"));
    }
    // The members that every report has are the program's own.
    let odd = json!({ "parameters": { "rings": [], "exit_code": 7, "error": "mine" } });
    let (_, output) = talk(&scene, &["list", "--json"], &odd);
    assert_eq!(text(&output), "{\"rings\":[],\"exit_code\":0,\"error\":null}\n");
}

#[test]
fn reload_tells_what_has_changed_and_fails_with_its_rings() {
    let scene = Scene::new();
    let mut parameters = json!({ "added": ["a"], "changed": [], "failed": [], "removed": ["b"] });
    let (call, output) = talk(&scene, &["reload"], &json!({ "parameters": parameters }));
    assert_eq!(call, json!({ "method": "io.blockring.Rings.Reload", "parameters": {} }));
    assert_ok(&output);
    assert_eq!(text(&output), "added: a\nremoved: b\n");
    parameters["failed"] = json!([{ "name": "c", "reason": "no such file" }]);
    let (_, output) = talk(&scene, &["reload"], &json!({ "parameters": parameters }));
    assert_fails(&output, 1, "a ring has failed; the answer says why");
    assert_eq!(text(&output), "added: a\nremoved: b\nfailed: c: no such file\n");
    let (_, output) = talk(&scene, &["--json", "reload"], &json!({ "parameters": parameters }));
    assert_eq!(output.status.code(), Some(1));
    let expected = "{\"added\":[\"a\"],\"changed\":[],\"failed\":[{\"name\":\"c\",\"reason\":\"no such file\"}],\"removed\":[\"b\"],\"exit_code\":1,\"error\":\"a ring has failed; the answer says why\"}\n";
    assert_eq!(text(&output), expected);
}

#[test]
fn error_of_the_backend_is_told_with_its_remedy_and_exit_code() {
    let scene = Scene::new();
    let reason = json!({ "reason": "why\n" });
    for (error, parameters, code, told) in [
        (
            "io.blockring.Rings.NoSuchRing",
            json!({ "name": "web" }),
            1,
            "cannot drain web: the backend has no such ring (blockring ctl list shows those it has)",
        ),
        ("io.blockring.Rings.Refused", reason.clone(), 1, "cannot drain web: why\\n"),
        (
            "io.blockring.Rings.NotPermitted",
            reason.clone(),
            1,
            "cannot drain web: why\\n (run it as root, or start the backend with --control-user or --control-group)",
        ),
        ("io.blockring.Rings.TimedOut", reason, 3, "cannot drain web: timed out: why\\n"),
        (
            "org.varlink.service.MethodNotFound",
            json!({ "method": "io.blockring.Rings.Drain" }),
            1,
            "cannot drain web: control: it does not know this request (is it the control socket of a backend of this version?)",
        ),
        (
            "org.varlink.service.InvalidParameter",
            json!({ "parameter": "timeout_ms" }),
            1,
            "cannot drain web: control: it does not accept the parameter timeout_ms (is it the control socket of a backend of this version?)",
        ),
        (
            "com.example.Odd",
            json!({ "a": 1 }),
            1,
            "cannot drain web: control: it answers with the error com.example.Odd {\"a\":1} (is it the control socket of a backend of this version?)",
        ),
    ] {
        let answer = json!({ "error": error, "parameters": parameters });
        let (_, output) = talk(&scene, &["drain", "web"], &answer);
        assert_fails(&output, code, &format!("blockring: {told}\n"));
        let (_, output) = talk(&scene, &["drain", "--json", "web"], &answer);
        let report: Value = serde_json::from_str(text(&output)).unwrap();
        assert_eq!(report, json!({ "exit_code": code, "error": told }));
    }
}

#[test]
fn answer_may_come_in_pieces_and_be_large() {
    let scene = Scene::new();
    let answer = json!({ "parameters": { "rings": vec![ring("web"); 20_000] } }).to_string();
    let (first, rest) = answer.as_bytes().split_at(10);
    let (_, output) =
        talk_in_pieces(&scene, &["list"], &[b" \n", first, rest, b"\0and what follows it"]);
    assert_ok(&output);
    assert_eq!(text(&output).lines().count(), 20_001);
}

#[test]
fn what_is_no_answer_is_told() {
    let scene = Scene::new();
    let long = vec![b' '; 17 << 20];
    let cases: [(&[&[u8]], &str); 7] = [
        (&[], "control has closed the connection without an answer (has the backend ended"),
        (&[b"{\"parameters\":"], "control has closed the connection within its answer"),
        (&[b"HTTP/1.1 400 Bad Request\r\n"], "control: what it sends is no JSON object (is it"),
        (&[b"{\"parameters\":\0"], "control: its answer is not one of Varlink: EOF"),
        (&[b"{\"parameters\": 7}\0"], "control: its answer is not one of Varlink: invalid type"),
        (&[b"{\"parameters\": {\"rings\": 7}}\0"], "control: invalid type: integer `7`"),
        (&[b"{", &long], "control: the answer is longer than 16 MiB"),
    ];
    for (pieces, told) in cases {
        let (_, output) = talk_in_pieces(&scene, &["list"], pieces);
        assert_fails(&output, 1, &format!("blockring: cannot list the rings: {told}"));
        assert_eq!(text(&output), "", "{told}");
    }
}

#[test]
fn socket_that_cannot_be_used_is_told_with_a_remedy() {
    let scene = Scene::new();
    let list = |socket: &str| scene.run(&["ctl", "list", "--socket", socket], b"");
    let told = "cannot connect to missing: No such file or directory (os error 2) (no backend listens there: vhost-device-blockring --config DIR --control unix:missing)";
    assert_fails(&list("unix:missing"), 1, told);
    drop(UnixListener::bind(scene.path("left")).unwrap());
    assert_fails(&list("left"), 1, "--control unix:left");
    let _messages = scene.silent_socket(SockType::SeqPacket);
    assert_fails(&list("socket"), 1, "another kind of socket, such as one for consumers");
    for socket in ["", "serial:web", "pci:0000:00:04.0"] {
        assert_fails(&list(socket), 2, "it takes PATH or unix:PATH");
    }
    let _listener = UnixListener::bind(scene.path("control")).unwrap();
    std::fs::set_permissions(scene.path("control"), PermissionsExt::from_mode(0o600)).unwrap();
    // Only another user is not permitted.
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(scene.path("."), PermissionsExt::from_mode(0o711)).unwrap();
        let script = "cp \"$RING\" ring && chmod 755 ring && setpriv --reuid 65534 --regid 65534 --clear-groups ./ring ctl --socket control list";
        let told = "cannot connect to control: Permission denied (os error 13) (run it as root, or start the backend with --control-user or --control-group)";
        assert_fails(&scene.shell(script), 1, told);
    }
}

#[test]
fn socket_of_the_environment_is_used_unless_an_option_names_one() {
    let scene = Scene::new();
    let run = |script: &str| scene.shell(script);
    assert_fails(
        &run("BLOCKRING_CONTROL=unix:other $RING ctl list"),
        1,
        "cannot connect to other: ",
    );
    let both = "BLOCKRING_CONTROL=other $RING ctl list --socket mine";
    assert_fails(&run(both), 1, "cannot connect to mine: ");
    let wrong = "BLOCKRING_CONTROL of the environment is 'pci:x': it takes PATH or unix:PATH";
    assert_fails(&run("BLOCKRING_CONTROL=pci:x $RING ctl list"), 2, wrong);
    // Nobody's test has a backend there.
    if !std::path::Path::new("/run/blockring/control").exists() {
        let told = "cannot connect to /run/blockring/control: ";
        assert_fails(&run("unset BLOCKRING_CONTROL; $RING ctl list"), 1, told);
        assert_fails(&run("BLOCKRING_CONTROL= $RING ctl list"), 1, told);
    }
}

#[test]
fn backend_that_does_not_answer_is_waited_for_within_a_bound() {
    // A socket's queue of connections is short.
    let scenes = [Scene::new(), Scene::new()];
    let _listening = scenes.each_ref().map(|scene| scene.silent_socket(SockType::Stream));
    let start = |scene: &Scene, arguments: &[&str]| {
        let all = [&["ctl", "--socket", "socket"], arguments].concat();
        scene.without_input(&all).spawn().unwrap()
    };
    let short = [&["list"][..], &["show", "a"], &["stats"], &["suspend", "a"], &["resume", "a"]];
    let short = short.map(|arguments| start(&scenes[0], arguments));
    let drain = start(&scenes[0], &["drain", "--timeout", "0.1", "web"]);
    let long = [&["add", "a"][..], &["remove", "a"], &["drain", "a"], &["reload"], &["upgrade"]];
    let long = long.map(|arguments| start(&scenes[1], arguments));
    for child in short {
        assert_fails(&ended(child, "the command"), 3, "no answer from socket within 5 s");
    }
    assert_fails(&ended(drain, "drain"), 3, "cannot drain web: no answer from socket within 5.1 s");
    // A signal ends them, and only a signal.
    for child in long {
        until_asleep(&child);
        signal(&child, Signal::SIGTERM);
        let told = "asked to stop before the backend has answered";
        assert_fails(&ended(child, "the command"), 1, told);
    }
}

#[test]
fn signal_ends_the_wait_and_is_reported() {
    let scene = Scene::new();
    let _listening = scene.silent_socket(SockType::Stream);
    let arguments = ["ctl", "--socket", "socket", "--json", "drain", "web"];
    let child = scene.without_input(&arguments).spawn().unwrap();
    until_asleep(&child);
    signal(&child, Signal::SIGINT);
    let output = ended(child, "drain");
    let told = "cannot drain web: asked to stop before the backend has answered";
    assert_fails(&output, 1, told);
    let report: Value = serde_json::from_str(text(&output)).unwrap();
    assert_eq!(report, json!({ "exit_code": 1, "error": told }));
}

#[test]
fn configuration_that_cannot_be_read_is_told_before_anything_is_asked() {
    let scene = Scene::new();
    scene.write("binary", b"\xff");
    scene.write("long", vec![b'#'; (1 << 20) + 1]);
    let add =
        |file: &str| scene.run(&["ctl", "--socket", "control", "add", "a", "--file", file], b"");
    assert_fails(&add("missing"), 1, "cannot read missing: No such file or directory");
    assert_fails(&add("."), 1, "cannot read .: Is a directory");
    assert_fails(&add("binary"), 1, "cannot read binary: invalid utf-8");
    assert_fails(&add("long"), 1, "long is longer than 1 MiB: it is no configuration of a ring");
    // A pipe without a writer is waited for until a signal.
    scene.succeed("mkfifo pipe");
    let arguments = ["ctl", "--socket", "control", "add", "a", "--file", "pipe"];
    let child = scene.without_input(&arguments).spawn().unwrap();
    until_asleep(&child);
    signal(&child, Signal::SIGTERM);
    assert_fails(&ended(child, "add"), 1, "asked to stop before pipe was read");
}

#[test]
fn action_and_name_are_needed() {
    let scene = Scene::new();
    assert_fails(&scene.run(&["ctl"], b""), 2, "Usage: blockring ctl");
    assert_fails(&scene.run(&["ctl", "show"], b""), 2, "<NAME>");
    assert_fails(&scene.run(&["ctl", "tidy"], b""), 2, "unrecognized subcommand 'tidy'");
    let help = scene.run(&["ctl", "--help"], b"");
    assert_ok(&help);
    assert!(text(&help).contains("BLOCKRING_CONTROL"), "{}", text(&help));
}
