//! The space that a start allocates and gives back, and names that lead to other files while a ring
//! is served.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use ring_test_support::assert_fails;
use ring_test_support::process::eventually;
use shared_block_ring::handover::Role;
use shared_block_ring::{BlockDevice, CreateOptions, OpenOptions, create};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;

/// Mounts a file system on `at`, for this thread and the processes that it starts.
fn mount(kind: &str, options: &str, at: &Path) {
    // No other process sees the mount, and it goes with the thread.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let mount = |arguments: &[&str], at: &Path| {
        assert!(Command::new("mount").args(arguments).arg(at).status().unwrap().success());
    };
    mount(&["--make-rprivate"], Path::new("/"));
    mount(&["-t", kind, "-o", options, "none"], at);
}

fn used(folder: &Path) -> u64 {
    let about = statvfs(folder).unwrap();
    (about.blocks() - about.blocks_free()) * about.fragment_size()
}

#[test]
fn start_without_free_space_allocates_nothing() {
    if !geteuid().is_root() {
        // Only root can mount.
        return;
    }
    let scene = Scene::new();
    let small = scene.path("small");
    std::fs::create_dir(&small).unwrap();
    mount("tmpfs", "size=32M", &small);
    let ring = small.join("ring");
    let file = File::options().read(true).write(true).create_new(true).open(&ring).unwrap();
    file.set_len(64 * MIB).unwrap();
    let device = OpenOptions::default().open(&ring).unwrap();
    create(&device, CreateOptions::default()).unwrap();
    let before = used(&small);
    let start = |ring: &str, more: &[&str]| {
        let usual = ["--socket-path", "s", "--blk-file", ring];
        scene.run(&usual.iter().chain(more).copied().collect::<Vec<_>>())
    };
    assert_fails(&start("small/ring", &[]), 1, "bytes more are needed");
    assert_fails(&start("small/new", &["--size", "64M"]), 1, "bytes more are needed");
    assert_eq!(used(&small), before);
    assert!(!small.join("new").exists() && device.geometry().total_bytes() == 64 * MIB);
}

#[test]
fn failed_start_gives_back_its_space_and_removes_its_file() {
    let scene = Scene::new();
    let file = File::create(scene.path("ring")).unwrap();
    file.set_len(16 * MIB).unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    // A file system in memory takes a page for what is read, too: here it is there before.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 0).unwrap();
    let before = blocks();
    assert_fails(&scene.run(&["--socket-path", "s", "--blk-file", "ring"]), 1, "not a ring");
    assert_eq!(blocks(), before);
    let cpu = ["--socket-path", "s", "--blk-file", "new", "--size", "1M", "--cpu", "1000"];
    assert_fails(&scene.run(&cpu), 1, "--cpu");
    assert!(!scene.path("new").exists());
}

#[test]
fn backend_starts_on_a_file_system_that_cannot_allocate() {
    if !geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    std::fs::create_dir(scene.path("plain")).unwrap();
    mount("ramfs", "mode=700", &scene.path("plain"));
    let arguments = ["--socket-path", "s", "--consumer-socket", "c", "--size", "64K", "--blk-file"];
    let mut daemon = Daemon(scene.command(&arguments).arg("plain/ring").spawn().unwrap());
    eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn replaced_ring_file_is_logged_and_an_error_at_the_end() {
    for (change, words) in [("remove", "was moved or removed"), ("replace", "was replaced")] {
        let scene = Scene::new();
        let mut daemon = scene.start(&[]);
        std::fs::rename(scene.path("ring"), scene.path("old")).unwrap();
        if change == "replace" {
            std::fs::copy(scene.path("old"), scene.path("ring")).unwrap();
        }
        eventually("the log says it", || scene.logged(words) > 0);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.0.wait().unwrap().code(), Some(1));
        assert_eq!(scene.logged("what was answered since is in the old one alone"), 1);
    }
}

#[test]
fn ring_file_that_is_put_back_is_no_error() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    std::fs::rename(scene.path("ring"), scene.path("old")).unwrap();
    eventually("the log says it", || scene.logged("was moved or removed") > 0);
    std::fs::rename(scene.path("old"), scene.path("ring")).unwrap();
    eventually("the log says it", || scene.logged("is there again") > 0);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn removed_socket_is_logged() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    std::fs::remove_file(scene.path("s")).unwrap();
    std::fs::rename(scene.path("c"), scene.path("other")).unwrap();
    eventually("the log says it", || scene.logged("nobody can connect there any more") == 2);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn serial_numbers_differ_by_default_and_stay() {
    let serial = |scene: &Scene, more: &[&str]| {
        let daemon = scene.start(more);
        let words = "the disk's serial number is ";
        eventually("the daemon serves", || scene.logged(words) > 0);
        drop(daemon);
        let log = scene.log();
        std::fs::remove_file(scene.path("log")).unwrap();
        log.split(words).nth(1).unwrap().split([';', '\n']).next().unwrap().to_owned()
    };
    let (one, other) = (Scene::new(), Scene::new());
    let first = serial(&one, &[]);
    assert!(first.starts_with("ring-") && first.len() == 20, "{first}");
    assert_eq!(serial(&one, &[]), first);
    assert_ne!(serial(&other, &[]), first);
    let unguarded = serial(&one, &["--guard", "off"]);
    assert!(unguarded.starts_with("file-") && unguarded.len() == 20, "{unguarded}");
    assert_ne!(serial(&other, &["--guard", "off"]), unguarded);
    assert_eq!(serial(&one, &["--serial", "logs"]), "logs");
}

#[test]
fn names_need_not_be_utf_8() {
    let scene = Scene::new();
    let name = |byte: u8| OsStr::from_bytes(&[b'n', byte]).to_owned();
    let mut command = scene.command(&["--size", "64K", "--blk-file"]);
    command.arg(name(0xff)).arg("--socket-path").arg(name(0xfe)).arg("--consumer-socket");
    let mut daemon = Daemon(command.arg("c").spawn().unwrap());
    eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.0.wait().unwrap().success());
    assert!(scene.path(".").join(name(0xff)).exists());
}
