//! The whole daemon is replaced by another program while it serves rings.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Daemon;
use crate::common::rings::{Rings, answer, data_process, ends_well, leaves_nothing, send};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use ring_test_support::process::{PATIENCE, is_alive};
use ring_test_support::service;
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Rings whose daemon runs a program that can be replaced.
struct Upgraded {
    rings: Rings,
    program: PathBuf,
}

impl Upgraded {
    fn new(names: &[&str]) -> Self {
        let rings = Rings::new(names);
        let program = rings.scene.path("program");
        fs::copy(env!("CARGO_BIN_EXE_vhost-device-blockring"), &program).unwrap();
        Self { rings, program }
    }

    fn start(&self, more: &[&str]) -> Daemon {
        self.rings.served_by(|| {
            let usual = self.rings.command(more);
            let log = fs::File::options().append(true).open(self.rings.scene.path("log")).unwrap();
            let mut command = Command::new(&self.program);
            command.args(usual.get_args()).current_dir(usual.get_current_dir().unwrap());
            Daemon(command.stderr(log).spawn().unwrap())
        })
    }

    /// Puts another file in the program's place, as package managers do.
    fn install(&self) {
        let new = self.program.with_extension("new");
        fs::copy(&self.program, &new).unwrap();
        fs::rename(new, &self.program).unwrap();
    }

    fn upgrade(&self) {
        self.rings.done("Upgrade", &json!({ "whole": true }));
    }
}

/// Whether a process runs the file that is at this path now.
fn runs(daemon: &Daemon, program: &Path) -> bool {
    fs::read_link(format!("/proc/{}/exe", daemon.0.id())).unwrap() == program
}

/// Connects, and waits as long as there is no room among those that wait.
fn connect_to(path: &Path, kind: SockType) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, kind, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

#[test]
fn other_program_goes_on_with_every_ring_and_nobody_is_refused() {
    let upgraded = Upgraded::new(&["one", "two"]);
    let Upgraded { rings, program } = &upgraded;
    let daemon = upgraded.start(&[]);
    let text = rings.text("added", "");
    rings.done("Add", &json!({ "name": "added", "configuration": text }));
    let over = AtomicBool::new(false);
    let sockets = [
        (rings.folder("one").join("c"), SockType::SeqPacket),
        (rings.scene.path("control"), SockType::Stream),
    ];
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for (path, kind) in &sockets {
                    connect_to(path, *kind).unwrap_or_else(|e| {
                        over.store(true, Ordering::Relaxed);
                        panic!("{}: {e}", path.display());
                    });
                }
            }
        });
        rings.carry_over(&["one", "two", "added"], || {
            let before = data_process(&daemon);
            upgraded.install();
            assert!(!runs(&daemon, program), "its file is gone");
            upgraded.upgrade();
            assert!(runs(&daemon, program));
            assert_ne!(data_process(&daemon), before);
        });
        assert!(!over.swap(true, Ordering::Relaxed), "a connection was refused");
    });
    // What has no name any more is left to no program.
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.0.id())).unwrap().count();
    upgraded.upgrade();
    let later = fs::read_dir(format!("/proc/{}/fd", daemon.0.id())).unwrap().count();
    assert!(later <= open + 1, "{open} descriptors, then {later}");
    ends_well(daemon);
    for name in ["one", "two", "added"] {
        leaves_nothing(rings, name);
    }
    assert!(!rings.scene.path("control").exists());
}

#[test]
fn folder_is_read_again_and_no_socket_is_left_behind() {
    let upgraded = Upgraded::new(&["same", "moved", "gone"]);
    let rings = &upgraded.rings;
    let daemon = upgraded.start(&[]);
    let text = fs::read_to_string(rings.file("moved")).unwrap();
    fs::write(rings.file("moved"), text.replace("moved/s\"", "moved/other\"")).unwrap();
    fs::remove_file(rings.file("gone")).unwrap();
    rings.configure("new", "");
    // Each is warned of, in front of what the next program says of itself.
    for number in 0..20 {
        fs::write(rings.file(&format!("-{number}")), "").unwrap();
    }
    upgraded.upgrade();
    let serving = |name: &str| (name.to_owned(), "serving".to_owned());
    assert_eq!(rings.states(), ["moved", "new", "same"].map(serving));
    leaves_nothing(rings, "gone");
    assert!(!rings.folder("moved").join("s").exists());
    assert!(rings.folder("moved").join("other").exists());
    rings.carries("same", &mut rings.guest("same"), "an item");
    rings.carries("new", &mut rings.guest("new"), "another item");
    ends_well(daemon);
    for name in ["same", "moved", "new"] {
        leaves_nothing(rings, name);
    }
}

#[test]
fn program_that_cannot_follow_does_not_and_leaves_no_process() {
    let upgraded = Upgraded::new(&["vm"]);
    let rings = &upgraded.rings;
    let daemon = upgraded.start(&[]);
    let before = data_process(&daemon);
    let mut guest = rings.guest("vm");
    let refused = |words: &str| {
        let refused = rings.refused("Upgrade", &json!({ "whole": true }));
        assert!(refused.contains(words), "{refused}");
        assert_eq!(data_process(&daemon), before);
    };
    rings.configure("wrong", "poll-us = \"often\"\n");
    refused("wrong.toml: line ");
    fs::remove_file(rings.file("wrong")).unwrap();
    fs::rename(rings.folder("vm").join("ring"), rings.folder("vm").join("away")).unwrap();
    refused("put it back");
    fs::rename(rings.folder("vm").join("away"), rings.folder("vm").join("ring")).unwrap();
    // A program that knows nothing of this, one that fails, and none.
    fs::rename(&upgraded.program, rings.scene.path("elsewhere")).unwrap();
    for (script, words) in [
        ("#!/bin/sh\necho the configuration is sound\n", "does not say that it can follow"),
        ("#!/bin/sh\necho what is this >&2; exit 3\n", "what is this"),
        ("no program", "program: "),
    ] {
        fs::write(&upgraded.program, script).unwrap();
        fs::set_permissions(&upgraded.program, Permissions::from_mode(0o755)).unwrap();
        refused(words);
        // A data process of it is none either.
        rings.refused("Upgrade", &json!({}));
    }
    fs::remove_file(&upgraded.program).unwrap();
    refused("program: ");
    let children = format!("/proc/{0}/task/{0}/children", daemon.0.id());
    let children = fs::read_to_string(children).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "{children}");
    rings.carries("vm", &mut guest, "goes on");
    ends_well(daemon);
}

#[test]
fn ring_whose_socket_has_lost_its_name_gets_another_one() {
    let upgraded = Upgraded::new(&["vm"]);
    let rings = &upgraded.rings;
    let daemon = upgraded.start(&[]);
    fs::remove_file(rings.folder("vm").join("s")).unwrap();
    upgraded.upgrade();
    rings.carries("vm", &mut rings.guest("vm"), "an item");
    ends_well(daemon);
    leaves_nothing(rings, "vm");
}

#[test]
fn daemon_with_sockets_of_a_service_manager_is_not_followed() {
    let rings = Rings::new(&["vm"]);
    let mut command = service::as_service(&rings.command(&[]));
    let socket = UnixListener::bind(rings.scene.path("metrics")).unwrap();
    service::pass(&mut command, &[("metrics", socket.into())]);
    let daemon = rings.served_by(|| {
        let log = fs::File::options().append(true).open(rings.scene.path("log")).unwrap();
        Daemon(command.stderr(log).spawn().unwrap())
    });
    let refused = rings.refused("Upgrade", &json!({ "whole": true }));
    assert!(refused.contains("restart the service"), "{refused}");
    rings.carries("vm", &mut rings.guest("vm"), "goes on");
    ends_well(daemon);
}

/// Each signal interrupts what the control process waits for.
#[test]
fn repeated_stop_does_not_kill_what_is_being_ended() {
    for _ in 0..5 {
        let upgraded = Upgraded::new(&["one", "two"]);
        let mut daemon = upgraded.start(&[]);
        let start = Instant::now();
        while is_alive(daemon.0.id()) {
            assert!(start.elapsed() < PATIENCE, "it does not end");
            daemon.signal(Signal::SIGTERM);
        }
        assert_eq!(daemon.code(), Some(0), "{}", upgraded.rings.scene.log());
        leaves_nothing(&upgraded.rings, "one");
    }
}

/// Signals at any time of an upgrade.
#[test]
fn stop_during_an_upgrade_ends_the_daemon_and_a_reload_does_not() {
    for delay in (0..12).map(|step| Duration::from_millis(5 * step)) {
        let upgraded = Upgraded::new(&["one", "two"]);
        let mut daemon = upgraded.start(&[]);
        let control = upgraded.rings.scene.path("control");
        let mut waits = Vec::new();
        for signal in [Signal::SIGHUP, Signal::SIGTERM] {
            waits.push(send(&control, "Upgrade", &json!({ "whole": true })));
            thread::sleep(delay);
            daemon.signal(signal);
            if signal == Signal::SIGHUP {
                // Whatever that upgrade has come to.
                drop(waits.pop().map(answer));
                let states = upgraded.rings.states();
                assert!(states.iter().all(|(_, state)| state != "failed"), "{states:?}");
            }
        }
        assert_eq!(daemon.code(), Some(0), "{delay:?}: {}", upgraded.rings.scene.log());
        leaves_nothing(&upgraded.rings, "one");
    }
}
