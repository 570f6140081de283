//! The daemon's log: lines that strangers word or cause, and a log without a reader.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use ring_test_support::front_end::FrontEnd;
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::handover::Role;
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Instant;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

/// A text by which a stranger would forge lines of the log.
const FORGED: &str = "x\n[2026-01-01T00:00:00Z ERROR backend] forged\r\x1b[2J";

fn stranger(scene: &Scene, words: &[u8]) {
    let stranger =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
    connect(stranger.as_raw_fd(), &UnixAddr::new(&scene.path("c")).unwrap()).unwrap();
    send(stranger.as_raw_fd(), words, MsgFlags::empty()).unwrap();
    // After the answer, or the end of the connection, the line is logged.
    let _ = File::from(stranger).read(&mut [0; 4096]);
}

/// Sends a file of that name for the guest's kicks, which causes a line of the log.
fn kick_by_no_event(guest: &FrontEnd, name: &CStr) {
    let file = memfd_create(name, MFdFlags::empty()).unwrap();
    // SAFETY: the descriptor is ours, and not used otherwise.
    let event = unsafe { EventFd::from_raw_fd(file.into_raw_fd()) };
    let _ = guest.wire.set_vring_kick(0, &event);
}

fn lines_are_ours(log: &str) {
    for line in log.lines() {
        assert!(line.starts_with("[20"), "{line:?}");
        assert!(line.len() < 1200, "{} bytes", line.len());
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

#[test]
fn log_quotes_and_cuts_strangers_words() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let words =
        serde_json::json!({ "version": 1, "role": format!("{FORGED}{}", "y".repeat(15_000)) });
    stranger(&scene, words.to_string().as_bytes());
    eventually("the stranger is logged", || scene.log().contains("turned away"));
    let guest = FrontEnd::new(&scene);
    kick_by_no_event(&guest, c"\n[2026] \x1b[2J");
    eventually("the front end is logged", || scene.log().contains("is no event"));
    lines_are_ours(&scene.log());
}

/// The lines here have no limit of their own: the log's limit holds them back.
#[test]
fn log_holds_back_and_counts_lines_that_come_too_fast() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let guest = FrontEnd::new(&scene);
    let start = Instant::now();
    for _ in 0..2000 {
        kick_by_no_event(&guest, c"flood");
    }
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
    let logged = scene.logged("is no event");
    assert!((1..=30 + seconds).contains(&logged), "{logged} lines in {seconds} s");
    eventually("one that comes later counts those before it", || {
        kick_by_no_event(&guest, c"flood");
        scene.logged("lines like this before it") > 0
    });
}

/// Returns a pipe that is full to the last byte.
fn full_pipe() -> (File, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let flags = |flags| fcntl(&writer, FcntlArg::F_SETFL(flags)).unwrap();
    flags(OFlag::O_NONBLOCK);
    let mut filler = File::from(writer.try_clone().unwrap());
    while filler.write(&[b'.'; 4096]).is_ok() {}
    while filler.write(b".").is_ok() {}
    flags(OFlag::empty());
    (File::from(reader), writer)
}

const USUAL: [&str; 8] =
    ["--socket-path", "s", "--blk-file", "ring", "--consumer-socket", "c", "--size", "64K"];

#[test]
fn log_without_a_reader_stops_neither_front_ends_nor_clients_nor_the_end() {
    for sandbox in ["on", "off"] {
        let scene = Scene::new();
        let (mut reader, writer) = full_pipe();
        let mut command = scene.command(&USUAL);
        let mut daemon =
            Daemon(command.args(["--sandbox", sandbox]).stderr(writer).spawn().unwrap());
        drop(command);
        eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
        let guest = FrontEnd::new(&scene);
        // More lines than the log's queue holds.
        for number in 0..300 {
            stranger(&scene, format!("{{\"role\":\"{number}{}\"}}", "y".repeat(2000)).as_bytes());
        }
        drop(guest);
        FrontEnd::new(&scene).honest(&scene);
        daemon.signal(Signal::SIGTERM);
        let start = Instant::now();
        while daemon.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "SIGTERM ends it");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(!text.contains("stopped"), "nobody has read it");
    }
}

#[test]
fn log_whose_reader_is_gone_changes_nothing() {
    let scene = Scene::new();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let mut daemon = Daemon(scene.command(&USUAL).stderr(writer).spawn().unwrap());
    eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
    FrontEnd::new(&scene).honest(&scene);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let misuse = scene.command(&["--no-such-option"]).stderr(writer).status().unwrap();
    assert_eq!(misuse.code(), Some(2));
}

#[test]
fn failed_start_ends_though_nobody_reads_its_message() {
    let scene = Scene::new();
    for (arguments, code) in
        [(&["--no-such-option"][..], 2), (&["--socket-path", "s", "--blk-file", "none"], 1)]
    {
        let (_reader, writer) = full_pipe();
        let status =
            scene.command(arguments).stderr(writer.as_fd().try_clone_to_owned().unwrap()).status();
        assert_eq!(status.unwrap().code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn capabilities_that_cannot_be_printed_are_an_error() {
    let program = env!("CARGO_BIN_EXE_vhost-device-blockring");
    for output in [">&-", "> /dev/full"] {
        let script = format!("exec {program} --print-capabilities {output}");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("cannot write to standard output"), "{text}");
    }
}
