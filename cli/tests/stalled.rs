//! Waits for a stalled peer: each ends at its bound and at the first signal.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::SockType;
use ring_test_support::assert_fails;
use ring_test_support::process::{
    drain, ended, full_pipe, signal, small_pipe, status_of, until_asleep,
};
use shared_block_ring::OpenOptions;
use shared_block_ring::device::{LockRange, RangeLock};
use shared_block_ring::format::Side;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Stdio};
use std::time::Duration;

const SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

#[test]
fn consume_ends_by_a_signal_while_its_reader_stalls() {
    for by in SIGNALS {
        let scene = Scene::with_lines(20_000);
        let (reader, writer) = small_pipe();
        let child =
            scene.without_input(&["consume", "--follow", "ring"]).stdout(writer).spawn().unwrap();
        until_asleep(&child);
        signal(&child, by);
        let output = ended(child, "consume");
        assert!(output.status.success(), "{:?}", String::from_utf8_lossy(&output.stderr));
        let all = (1..=20_000).fold(String::new(), |text, line| text + &line.to_string() + "\n");
        assert!(drain(reader) + &scene.rest() == all, "an item is lost, doubled or torn");
    }
}

#[test]
fn consume_ended_by_a_signal_says_how_much_of_an_item_went_out() {
    let scene = Scene::with_ring("1M");
    scene.succeed("head -c 100000 /dev/zero | tr '\\0' x | $RING produce ring");
    let (reader, writer) = small_pipe();
    let child =
        scene.without_input(&["consume", "--follow", "ring"]).stdout(writer).spawn().unwrap();
    until_asleep(&child);
    signal(&child, Signal::SIGTERM);
    assert_fails(&ended(child, "consume"), 1, "the first 4096 bytes of the next item went out");
    drop(reader);
    assert_eq!(scene.rest().len(), 100_001);
}

/// Returns whether the process is in the system call `write`.
fn is_writing(child: &Child) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap();
    call.starts_with(&format!("{} ", libc::SYS_write))
}

#[test]
fn blocked_write_ends_by_a_signal() {
    let scene = Scene::with_lines(20_000);
    let (mut reader, writer) = small_pipe();
    let children = ["a", "b", "c", "d"].map(|ring| {
        scene.succeed(&format!("cp ring {ring}"));
        let stdout = writer.try_clone().unwrap();
        scene.without_input(&["consume", "--follow", ring]).stdout(stdout).spawn().unwrap()
    });
    drop(writer);
    // All learn that there is room, one fills it, and the write of another blocks, sooner or later.
    // Where none does, their waits for room end by the signal, as they must.
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(20));
        if children.iter().any(is_writing) {
            break;
        }
        assert!(reader.read(&mut [0; 4096]).unwrap() > 0);
    }
    for child in &children {
        signal(child, Signal::SIGTERM);
    }
    for child in children {
        assert_eq!(ended(child, "consume").status.code(), Some(0));
    }
}

#[test]
fn consume_gives_up_a_stalled_reader_after_its_timeout() {
    let scene = Scene::with_lines(3);
    let (_reader, writer) = full_pipe();
    let child =
        scene.without_input(&["consume", "--timeout", "0.2", "ring"]).stdout(writer).spawn();
    assert_fails(&ended(child.unwrap(), "consume"), 3, "standard output accepted nothing");
    assert_eq!(scene.rest(), "1\n2\n3\n");
}

#[test]
fn unread_report_ends_by_a_signal() {
    let scene = Scene::with_ring("1M");
    for arguments in [
        &["diagnostics", "ring"][..],
        &["inspect", "ring"],
        &["health", "ring"],
        &["top", "--once", "--interval", "0.01", "ring"],
        &["bench", "--seconds", "0.01", "ring"],
    ] {
        let (_reader, writer) = full_pipe();
        let child = scene.without_input(arguments).stdout(writer).spawn().unwrap();
        until_asleep(&child);
        signal(&child, Signal::SIGTERM);
        let status = ended(child, "the report").status;
        assert!(status.code() == Some(1) || status.code().is_none(), "{status}");
    }
}

#[test]
fn every_command_ends_while_nobody_reads_its_messages() {
    let scene = Scene::with_lines(3);
    for (arguments, code) in [
        (&["consume", "--timeout", "0.01", "--json", "--progress", "ring"][..], 3),
        (&["produce", "--json", "ring"], 0),
        (&["consume", "missing"], 1),
        (&["consume", "--nothing"], 2),
        (&["journal", "--json", "--exec", "true", "journal", "--size", "64K"], 0),
    ] {
        let (_reader, writer) = full_pipe();
        let child = scene.without_input(arguments).stdout(Stdio::null()).stderr(writer).spawn();
        assert_eq!(ended(child.unwrap(), "it").status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn silent_backend_is_given_up() {
    let scene = Scene::with_ring("64K");
    let _listening = scene.silent_socket(SockType::SeqPacket);
    for arguments in [
        &["consume", "--timeout", "0.2", "unix:socket"][..],
        &["produce", "--timeout", "0.2", "unix:socket"],
        &["suspend", "--wait", "--timeout", "0.2", "unix:socket"],
        &["resume", "--timeout", "0.2", "unix:socket"],
        &["diagnostics", "unix:socket"],
        &["check", "unix:socket"],
    ] {
        let child = scene.without_input(arguments).spawn().unwrap();
        assert_fails(&ended(child, "it"), 3, "no answer within");
    }
}

#[test]
fn disk_of_a_silent_backend_is_given_up() {
    let scene = Scene::with_ring("64K");
    let _listening = scene.silent_socket(SockType::Stream);
    for arguments in [
        &["consume", "--timeout", "0.2", "vhost-user:socket"][..],
        &["produce", "--timeout", "0.2", "vhost-user:socket"],
        &["create", "vhost-user:socket"],
        &["bench", "vhost-user:socket"],
    ] {
        let child = scene.without_input(arguments).spawn().unwrap();
        assert_fails(&ended(child, "it"), 3, "no answer within");
    }
}

#[test]
fn wait_for_a_backend_ends_by_a_signal() {
    for (kind, address) in
        [(SockType::SeqPacket, "unix:socket"), (SockType::Stream, "vhost-user:socket")]
    {
        let scene = Scene::with_ring("64K");
        let _listening = scene.silent_socket(kind);
        for (arguments, code) in [
            (&["consume", "--timeout", "3600"][..], 0),
            (&["produce", "--timeout", "3600"], 0),
            (&["suspend", "--wait", "--timeout", "3600"], 1),
        ] {
            let mut command = scene.without_input(arguments);
            let child = command.arg(address).spawn().unwrap();
            until_asleep(&child);
            signal(&child, Signal::SIGTERM);
            let output = ended(child, "the wait");
            assert_eq!(output.status.code(), Some(code), "{arguments:?} {address}");
        }
    }
}

#[test]
fn idle_produce_and_journal_end_by_a_signal() {
    for by in SIGNALS {
        for arguments in
            [&["produce", "ring"][..], &["journal", "--exec", "true", "--timeout", "9", "ring"]]
        {
            let scene = Scene::with_ring("64K");
            let child = scene.without_input(arguments).stdin(Stdio::piped()).spawn().unwrap();
            until_asleep(&child);
            signal(&child, by);
            assert_eq!(ended(child, "it").status.code(), Some(0), "{arguments:?}");
        }
    }
}

#[test]
fn produce_into_a_full_ring_ends_by_a_signal_and_names_what_was_not_accepted() {
    let scene = Scene::with_ring("4K");
    scene.write("input", "a line\n".repeat(1000));
    let input = File::open(scene.path("input")).unwrap();
    let child = scene.without_input(&["produce", "ring"]).stdin(input).spawn().unwrap();
    until_asleep(&child);
    signal(&child, Signal::SIGINT);
    assert_fails(&ended(child, "produce"), 1, "not accepted: item ");
}

#[test]
fn suspend_wait_ends_by_a_signal_while_no_producer_answers() {
    let scene = Scene::with_ring("64K");
    scene.succeed("echo 1 | $RING produce ring");
    let child = scene.without_input(&["suspend", "--wait", "ring"]).spawn().unwrap();
    until_asleep(&child);
    signal(&child, Signal::SIGTERM);
    assert_fails(&ended(child, "suspend"), 1, "asked to stop before the producer acknowledged");
}

#[test]
fn lock_of_a_stopped_process_is_given_up_and_its_holder_named() {
    let scene = Scene::with_ring("64K");
    let device = OpenOptions::default().open(scene.path("ring")).unwrap();
    let _lock = RangeLock::acquire(&device, LockRange::Edit(Side::Consumer)).unwrap();
    let child = scene.without_input(&["suspend", "ring"]).spawn().unwrap();
    let words = format!("process {} has kept the lock", std::process::id());
    assert_fails(&ended(child, "suspend"), 3, &words);
}

#[test]
fn journal_leaves_a_running_command_behind_after_its_timeout() {
    for stop in [false, true] {
        let scene = Scene::with_ring("64K");
        scene.write("input", "1\n");
        let exec = "echo $$ > pid; exec sleep 3600";
        let arguments = ["journal", "--timeout", "0.3", "--exec", exec, "ring"];
        let input =
            if stop { Stdio::piped() } else { File::open(scene.path("input")).unwrap().into() };
        let mut command = scene.without_input(&arguments);
        // A process that outlives the program must not keep the test's pipes.
        let mut child = command.stdin(input).stdout(Stdio::null()).spawn().unwrap();
        if stop {
            child.stdin.as_mut().unwrap().write_all(b"1\n").unwrap();
            while std::fs::read_to_string(scene.path("pid")).unwrap_or_default().len() < 2 {
                std::thread::yield_now();
            }
            signal(&child, Signal::SIGTERM);
        }
        let mut said = child.stderr.take().unwrap();
        let status = status_of(&mut child, "journal");
        let pid = std::fs::read_to_string(scene.path("pid")).unwrap().trim().parse().unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        let mut text = String::new();
        said.read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), Some(3), "{text}");
        assert!(text.contains("the command that is running has not ended"), "{text}");
        // The item is still there.
        scene.succeed("$RING journal --exec 'cat > done' ring < /dev/null");
        assert_eq!(scene.read("done"), b"1");
    }
}

#[test]
fn produce_waits_for_a_non_blocking_input() {
    let scene = Scene::with_ring("64K");
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl(&reader, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    let child = scene.without_input(&["produce", "ring"]).stdin(reader).spawn().unwrap();
    until_asleep(&child);
    (&writer).write_all(b"1\n").unwrap();
    drop(writer);
    assert!(ended(child, "produce").status.success());
    assert_eq!(scene.rest(), "1\n");
}

#[test]
fn backend_that_breaks_off_each_handshake_is_given_up() {
    for (kind, address) in
        [(SockType::SeqPacket, "unix:socket"), (SockType::Stream, "vhost-user:socket")]
    {
        let scene = Scene::with_ring("64K");
        let listening = scene.silent_socket(kind);
        // The thread ends with the test program: it has nothing of its own.
        std::thread::spawn(move || {
            while let Ok(client) = nix::sys::socket::accept(listening.as_raw_fd()) {
                nix::unistd::close(client).unwrap();
            }
        });
        let start = |command, timeout| scene.spawn(&[command, "--timeout", timeout, address]);
        let output = ended(start("produce", "0.3"), "produce");
        assert_fails(&output, 3, "no answer within 0.3 s");
        assert_fails(&output, 3, "before that: ");
        for command in ["produce", "consume"] {
            let child = start(command, "3600");
            until_asleep(&child);
            signal(&child, Signal::SIGTERM);
            assert_eq!(ended(child, command).status.code(), Some(0), "{command} {address}");
        }
    }
}
