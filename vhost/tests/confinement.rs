//! A real daemon as the kernel shows it, and who gets to its sockets.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{Daemon, Scene, fails};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::geteuid;
use shared_block_ring::Error;
use shared_block_ring::handover::{Answer, Hello, Role, VERSION, receive, send};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Nobody's on this machine.
const USER: u32 = 65_533;
const GROUP: u32 = 65_532;

fn status(daemon: &Daemon, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Runs `run` as another user with that supplementary group.
fn as_user<T: Send>(uid: u32, group: u32, run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // The system calls themselves: the C library would change all threads.
            // SAFETY: one number is read through a pointer to a local.
            let groups = unsafe { libc::syscall(libc::SYS_setgroups, 1, &raw const group) };
            // SAFETY: no memory is passed.
            let user = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
            assert_eq!((groups, user), (0, 0));
            run()
        });
        thread.join().unwrap()
    })
}

fn reason(result: Result<shared_block_ring::UnixDevice, Error>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn the_daemon_keeps_nothing_that_it_does_not_need() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    assert_eq!(status(&daemon, "NoNewPrivs"), "1");
    assert_eq!(status(&daemon, "Seccomp"), "2");
    // Reopening and removing files of others (CAP_DAC_OVERRIDE, CAP_FOWNER), where it had that.
    let kept = u64::from_str_radix(&status(&daemon, "CapEff"), 16).unwrap();
    assert_eq!(kept & !(1 << 1 | 1 << 3), 0, "{kept:x}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.0.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.0.id())).unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(text.contains("Seccomp:\t2"), "{text}");
    }
}

#[test]
fn without_a_sandbox_it_says_so() {
    let scene = Scene::new();
    let daemon = scene.start(&["--sandbox", "off"]);
    assert_eq!(status(&daemon, "Seccomp"), "0");
    let output = scene.run(&["--socket-path", "x", "--blk-file", "ring", "--sandbox", "perhaps"]);
    fails(&output, 2, "perhaps");
}

#[test]
fn another_user_serves_what_root_has_opened() {
    if !geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    let (user, group) = (USER.to_string(), GROUP.to_string());
    let daemon = scene.start(&["--user", &user, "--group", &group]);
    assert_eq!(status(&daemon, "Uid"), format!("{user} {user} {user} {user}"));
    assert_eq!(status(&daemon, "Gid"), format!("{group} {group} {group} {group}"));
    assert_eq!(status(&daemon, "Groups"), group);
    assert_eq!(status(&daemon, "CapEff"), "0000000000000000");
    for name in ["ring", "s", "c"] {
        let about = std::fs::metadata(scene.path(name)).unwrap();
        assert_eq!(
            (about.uid(), about.gid(), about.mode() & 0o777),
            (USER, GROUP, 0o600),
            "{name}"
        );
    }
    scene.connect(Role::Consumer).unwrap();
    drop(daemon);
    // A ring that is root's own cannot be handed on: better known at the start.
    std::os::unix::fs::chown(scene.path("ring"), Some(0), Some(0)).unwrap();
    let output = scene.run(&[
        "--socket-path",
        "s",
        "--blk-file",
        "ring",
        "--consumer-socket",
        "c",
        "--user",
        &user,
        "--group",
        &group,
    ]);
    for words in ["must be readable and writable", &user] {
        fails(&output, 1, words);
    }
}

#[test]
fn sockets_have_the_mode_and_group_that_was_asked_for() {
    let scene = Scene::new();
    let group = nix::unistd::getegid().to_string();
    let _daemon = scene.start(&[
        "--socket-group",
        &group,
        "--consumer-socket-mode",
        "0640",
        "--consumer-socket-group",
        &group,
    ]);
    assert_eq!((mode(&scene.path("s")), mode(&scene.path("c"))), (0o660, 0o640));
    let output = scene.run(&["--socket-path", "x", "--blk-file", "ring", "--socket-mode", "999"]);
    fails(&output, 2, "octal");
    let output =
        scene.run(&["--socket-path", "x", "--blk-file", "ring", "--socket-group", "nobody's"]);
    fails(&output, 2, "no such group");
}

#[test]
fn a_socket_in_a_folder_for_everybody() {
    if !geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    std::fs::create_dir(scene.path("tmp")).unwrap();
    std::fs::set_permissions(scene.path("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(scene.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    drop(scene.start(&[]));
    let start = || scene.run(&["--socket-path", "tmp/s", "--blk-file", "ring"]);
    // What another user has put there, to catch us: a socket of his own, a link to a file of ours.
    as_user(USER, GROUP, || {
        drop(std::os::unix::net::UnixListener::bind(scene.path("tmp/s")).unwrap());
    });
    fails(&start(), 1, &format!("user {USER}"));
    std::fs::remove_file(scene.path("tmp/s")).unwrap();
    as_user(USER, GROUP, || std::os::unix::fs::symlink("../ring", scene.path("tmp/s")).unwrap());
    fails(&start(), 1, "not a socket");
    assert!(scene.path("ring").exists());
}

#[test]
fn the_region_is_for_those_who_are_named() {
    if !geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    std::fs::set_permissions(scene.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    let user = USER.to_string();
    let daemon = scene.start(&["--consumer-user", &user]);
    assert_eq!(mode(&scene.path("c")), 0o666);
    let attach = |uid, group| as_user(uid, group, || scene.connect(Role::Consumer));
    drop(attach(USER, 1).unwrap());
    let text = reason(attach(USER - 1, 1));
    assert!(text.contains("user 65532 may not attach, only root, user 65533"), "{text}");
    assert_eq!(scene.connect(Role::Control).unwrap().counters()["turned_away"], 1);
    // Those who may not cannot crowd out those who may.
    let crowd: Vec<_> = as_user(USER - 1, 1, || {
        let address = UnixAddr::new(&scene.path("c")).unwrap();
        let silent = || {
            let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
            let socket = socket(AddressFamily::Unix, kind.0, kind.1, None).unwrap();
            connect(socket.as_raw_fd(), &address).unwrap();
            socket
        };
        (0..64).map(|_| silent()).collect()
    });
    drop(attach(USER, 1).unwrap());
    drop(crowd);
    drop(daemon);
    let group = GROUP.to_string();
    let _daemon = scene.start(&["--consumer-group", &group]);
    assert_eq!(mode(&scene.path("c")), 0o660);
    assert_eq!(std::fs::metadata(scene.path("c")).unwrap().gid(), GROUP);
    drop(attach(USER, GROUP).unwrap());
    let text = reason(attach(USER, 1));
    assert!(text.contains("Permission denied"), "{text}");
}

#[test]
fn a_front_end_of_another_group_gets_in_by_mode() {
    if !geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    std::fs::set_permissions(scene.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    let group = GROUP.to_string();
    let _daemon = scene.start(&["--socket-group", &group]);
    let connect = || UnixStream::connect(scene.path("s"));
    assert!(as_user(USER, 1, connect).is_err());
    as_user(USER, GROUP, connect).unwrap();
}

#[test]
fn who_has_the_region_cannot_cut_it_short() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let address = UnixAddr::new(&scene.path("c")).unwrap();
    let client =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(client.as_raw_fd(), &address).unwrap();
    send(client.as_fd(), &Hello { version: VERSION, role: Role::Consumer }, &[]).unwrap();
    let (_, mut descriptors) = receive::<Answer>(client.as_fd()).unwrap();
    let region = File::from(descriptors.remove(0));
    let size = region.metadata().unwrap().len();
    // A kernel without Landlock cannot keep it from that.
    if region.set_len(0).is_ok() {
        region.set_len(size).unwrap();
        return;
    }
    assert_eq!(region.set_len(0).unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert_eq!(region.metadata().unwrap().len(), size);
}
