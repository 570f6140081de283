//! Output without a reader, and memory limits: a documented exit code, and no panic.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use ring_test_support::assert_fails;
use ring_test_support::process::ended;
use std::fs::File;
use std::io::pipe;
use std::process::Stdio;

/// Every command that prints, with its exit code where there is a reader.
const PRINTING: [(&[&str], i32); 19] = [
    (&["--help"], 0),
    (&["--version"], 0),
    (&["consume", "--help"], 0),
    (&["help", "journal"], 0),
    (&["diagnostics", "ring"], 0),
    (&["diagnostics", "--json", "ring"], 0),
    (&["inspect", "ring"], 0),
    (&["inspect", "--items", "--json", "ring"], 0),
    (&["inspect", "--svg", "-", "ring"], 0),
    (&["export", "ring"], 0),
    (&["health", "ring"], 0),
    (&["health", "--json", "ring"], 0),
    (&["top", "--once", "--interval", "0.01", "ring"], 0),
    (&["check", "ring"], 0),
    (&["check", "--json", "ring"], 0),
    (&["repair", "ring"], 0),
    (&["bench", "--seconds", "0.1", "spare"], 0),
    (&["bench", "--seconds", "0.1", "--json", "spare"], 0),
    (&["consume", "ring"], 0),
];

/// Makes a new ring for a bench, which fills it.
fn spare(scene: &Scene) {
    scene.succeed("rm -f spare; $RING create --size 4M spare");
}

#[test]
fn report_without_a_reader_is_an_error() {
    let scene = Scene::with_lines(3);
    for (arguments, _) in PRINTING {
        spare(&scene);
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let child = scene.without_input(arguments).stdout(writer).spawn().unwrap();
        assert_fails(&ended(child, "it"), 1, "Broken pipe");
        spare(&scene);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let child = scene.without_input(arguments).stdout(full).spawn().unwrap();
        assert_fails(&ended(child, "it"), 1, "No space left");
    }
    assert!(scene.rest().starts_with("1\n2\n3\n"));
}

#[test]
fn exit_code_of_check_is_its_verdict_though_nobody_reads_it() {
    let scene = Scene::with_lines(3);
    scene.write("ring", vec![0; 1 << 16]);
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let child = scene.without_input(&["check", "--json", "ring"]).stdout(writer).spawn().unwrap();
    assert_fails(&ended(child, "check"), 5, "not a ring");
}

#[test]
fn messages_without_a_reader_change_no_exit_code() {
    let scene = Scene::with_lines(3);
    let more: [(&[&str], i32); 6] = [
        (&["consume", "--nothing"], 2),
        (&["consume", "missing"], 1),
        (&["consume", "--timeout", "0.01", "--json", "--progress", "ring"], 3),
        (&["produce", "--json", "ring"], 0),
        (&["journal", "--json", "--exec", "true", "--size", "64K", "journal"], 0),
        (&["consume", "--count", "0", "--progress", "ring"], 0),
    ];
    for (arguments, code) in PRINTING.into_iter().chain(more) {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        for stderr in [Stdio::from(writer), full.into()] {
            spare(&scene);
            let mut command = scene.without_input(arguments);
            let child = command.env("RUST_LOG", "trace").stdout(Stdio::null()).stderr(stderr);
            let status = ended(child.spawn().unwrap(), "it").status;
            assert_eq!(status.code(), Some(code), "{arguments:?}: {status}");
        }
    }
}

#[test]
fn memory_limit_ends_in_a_documented_exit_code() {
    let scene = Scene::with_lines(100);
    for command in [
        "produce ring",
        "consume --follow --timeout 0.01 ring",
        "check ring",
        "inspect --svg - ring",
        "top --once --interval 0.01 ring",
        "journal --size 64K --exec true journal",
    ] {
        for kilobytes in (3000..30_000).step_by(900) {
            let script = format!("ulimit -v {kilobytes}; seq 9 | exec $RING {command} 2>&1");
            let output = scene.shell(&script);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            // Before the program starts, the loader ends with 127, the kernel with a signal and no
            // message, and the C library and Rust's by an abort.
            let documented = matches!(output.status.code(), Some(0..=6 | 126 | 127));
            let not_started = said.is_empty() && output.status.code() == Some(128 + libc::SIGSEGV)
                || said.starts_with("Fatal glibc error")
                || said.starts_with("\nthread 'main'")
                    && said.contains("failed to allocate an alternative stack");
            assert!(documented || not_started, "{command}, {kilobytes}: {}: {said}", output.status);
            assert!(not_started || !said.contains("panicked"), "{said}");
        }
    }
}
