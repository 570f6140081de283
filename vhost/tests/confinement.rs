//! The privileges of a running daemon, as the kernel shows them, and access to its sockets.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use crate::common::user::{GROUP, USER, as_user};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::geteuid;
use ring_test_support::assert_fails;
use ring_test_support::beside::beside;
use ring_test_support::front_end::{DATA, FrontEnd};
use ring_test_support::split_ring::writable;
use shared_block_ring::format::FLAG_AT;
use shared_block_ring::handover::{Answer, Hello, Request, Role, VERSION, receive, send};
use shared_block_ring::{BlockDevice, Control, Error};
use std::fs::File;
use std::io::{ErrorKind, IoSlice};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_GET_ID;

fn status(daemon: &Daemon, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn reason(result: Result<shared_block_ring::UnixDevice, Error>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn daemon_keeps_no_privilege_that_it_does_not_need() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    assert_eq!(status(&daemon, "NoNewPrivs"), "1");
    assert_eq!(status(&daemon, "Seccomp"), "2");
    // CAP_DAC_OVERRIDE and CAP_FOWNER, to reopen and remove other users' files, if the daemon had
    // them.
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
fn daemon_without_a_sandbox_logs_that() {
    let scene = Scene::new();
    let daemon = scene.start(&["--sandbox", "off"]);
    assert_eq!(status(&daemon, "Seccomp"), "0");
    let output = scene.run(&["--socket-path", "x", "--blk-file", "ring", "--sandbox", "perhaps"]);
    assert_fails(&output, 2, "perhaps");
}

#[test]
fn daemon_serves_as_another_user_what_root_has_opened() {
    if !geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    let (user, group) = (USER.to_string(), GROUP.to_string());
    let daemon = scene.start(&["--user", &user, "--group", &group, "--metrics", "unix:m"]);
    assert_eq!(status(&daemon, "Uid"), format!("{user} {user} {user} {user}"));
    assert_eq!(status(&daemon, "Gid"), format!("{group} {group} {group} {group}"));
    assert_eq!(status(&daemon, "Groups"), group);
    assert_eq!(status(&daemon, "CapEff"), "0000000000000000");
    for name in ["ring", "s", "c", "m"] {
        let about = std::fs::metadata(scene.path(name)).unwrap();
        assert_eq!(
            (about.uid(), about.gid(), about.mode() & 0o777),
            (USER, GROUP, 0o600),
            "{name}"
        );
    }
    scene.connect(Role::Consumer).unwrap();
    drop(daemon);
    // A ring that only root can open cannot be handed over: the start fails, not the first client.
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
        assert_fails(&output, 1, words);
    }
}

#[test]
fn sockets_have_the_given_mode_and_group() {
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
    assert_fails(&output, 2, "octal");
    let output =
        scene.run(&["--socket-path", "x", "--blk-file", "ring", "--socket-group", "nobody's"]);
    assert_fails(&output, 2, "no such group");
}

#[test]
fn socket_in_a_world_writable_folder_is_safe_and_warned_of() {
    if !geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    std::fs::create_dir(scene.path("tmp")).unwrap();
    std::fs::set_permissions(scene.path("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(scene.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    drop(scene.start(&[]));
    let start = || scene.run(&["--socket-path", "tmp/s", "--blk-file", "ring"]);
    // What an attacker may have put there: a socket of another user, a link to a file of root's.
    as_user(USER, GROUP, || {
        drop(std::os::unix::net::UnixListener::bind(scene.path("tmp/s")).unwrap());
    });
    assert_fails(&start(), 1, &format!("user {USER}"));
    std::fs::remove_file(scene.path("tmp/s")).unwrap();
    as_user(USER, GROUP, || std::os::unix::fs::symlink("../ring", scene.path("tmp/s")).unwrap());
    assert_fails(&start(), 1, "not a socket");
    assert!(scene.path("ring").exists());
}

#[test]
fn region_is_handed_to_admitted_users_and_groups_alone() {
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
    // Users that are not admitted cannot crowd out one that is.
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
fn front_end_of_another_group_connects_by_the_sockets_mode() {
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

/// Connects to the consumer socket.
fn dial(folder: &impl AsRef<Path>) -> OwnedFd {
    let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    let client = socket(AddressFamily::Unix, kind.0, kind.1, None).unwrap();
    connect(client.as_raw_fd(), &UnixAddr::new(&folder.as_ref().join("c")).unwrap()).unwrap();
    client
}

/// Returns the descriptors that a client gets for that role, and its connection.
fn given(folder: &impl AsRef<Path>, role: Role) -> (OwnedFd, Vec<OwnedFd>) {
    let client = dial(folder);
    send(client.as_fd(), &Hello { version: VERSION, role }, &[]).unwrap();
    let (_, descriptors) = receive::<Answer>(client.as_fd()).unwrap();
    (client, descriptors)
}

#[test]
fn client_without_a_role_cannot_change_the_region() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let (_client, descriptors) = given(&scene, Role::Control);
    // No event and no page, by which it could disturb other clients.
    let [region] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
    let before = std::fs::read(scene.path("ring")).unwrap();
    assert_eq!(nix::unistd::write(&region, b"x"), Err(Errno::EBADF));
    for mode in [
        FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
        FallocateFlags::FALLOC_FL_INSERT_RANGE,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
    ] {
        assert_eq!(fallocate(&region, mode, 0, 4096), Err(Errno::EBADF), "{mode:?}");
    }
    let length = NonZeroUsize::new(4096).unwrap();
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows
    // of.
    let mapped = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &region, 0) };
    assert_eq!(mapped.err(), Some(Errno::EACCES));
    assert!(std::fs::read(scene.path("ring")).unwrap() == before);
}

#[test]
fn client_without_a_role_suspends_and_resumes_by_the_backend() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let flag = || std::fs::read(scene.path("ring")).unwrap()[2 * 512 + FLAG_AT];
    let mut guest = FrontEnd::new(&scene);
    let mut control = Control::open(scene.connect(Role::Control).unwrap()).unwrap();
    assert_ne!(flag(), 1);
    control.suspend().unwrap();
    assert_eq!(flag(), 1);
    // The guest's producer has not acknowledged it yet.
    assert!(matches!(control.resume(), Err(Error::Retry)));
    let refused = control.device().write(2, &[IoSlice::new(&[0; 512])]).unwrap_err();
    assert_eq!(refused.source.kind(), ErrorKind::PermissionDenied);
    assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, writable(DATA, 20)), 0);
}

#[test]
fn client_that_sends_descriptors_is_given_nothing_and_holds_up_nobody() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let hello = Hello { version: VERSION, role: Role::Control };
    for _ in 0..64 {
        let client = dial(&scene);
        match send(client.as_fd(), &hello, &[writer.as_fd()]) {
            // The kernel refuses so many descriptors.
            Err(e) => assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}"),
            Ok(()) => assert!(receive::<Answer>(client.as_fd()).is_err()),
        }
    }
    drop(writer);
    // The daemon has closed its copies: the pipe is at its end.
    assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
    scene.connect(Role::Control).unwrap();
}

#[test]
fn client_without_a_role_that_asks_all_the_time_holds_up_nobody() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let (client, _) = given(&scene, Role::Control);
    fcntl(&client, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    beside(
        || {
            // The answers are not read, whatever they are.
            let _ = send(client.as_fd(), &Request::Suspend(false), &[]);
        },
        || {
            for _ in 0..20 {
                scene.connect(Role::Control).unwrap();
            }
            FrontEnd::new(&scene).honest(&scene);
        },
    );
}

#[test]
fn client_with_the_region_cannot_truncate_it() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    cannot_truncate(&scene);
}

/// Checks that a consumer of the ring in that folder cannot truncate its file.
pub fn cannot_truncate(folder: &impl AsRef<Path>) {
    let (_client, mut descriptors) = given(folder, Role::Consumer);
    let region = File::from(descriptors.remove(0));
    let size = region.metadata().unwrap().len();
    // A kernel without Landlock cannot prevent that.
    if region.set_len(0).is_ok() {
        region.set_len(size).unwrap();
        return;
    }
    assert_eq!(region.set_len(0).unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert_eq!(region.metadata().unwrap().len(), size);
}

/// A client can read the region's file, and the kernel grants a process that can read a file a lock
/// that excludes writers' locks.
#[test]
fn client_that_keeps_a_lock_on_the_ring_does_not_keep_the_guest_waiting() {
    let scene = Scene::new();
    let _daemon = scene.start(&[]);
    let mut guest = FrontEnd::new(&scene);
    let file = File::open(scene.path("ring")).unwrap();
    let lock = libc::flock {
        l_type: i16::try_from(libc::F_RDLCK).unwrap(),
        l_whence: 0,
        // The lock for changes of sector 2: the second byte of that sector.
        l_start: 2 * 512 + 1,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let suspending = std::thread::spawn({
        let device = scene.connect(Role::Control).unwrap();
        move || Control::open(device).unwrap().suspend()
    });
    let (begun, mut requests) = (Instant::now(), 0);
    while !suspending.is_finished() {
        guest.read(3, &mut [0; 512]);
        requests += 1;
    }
    let refused = suspending.join().unwrap().unwrap_err().to_string();
    assert!(refused.contains("keeps the lock"), "{refused}");
    // If the queue's thread waited for the lock, each write would take about 5 seconds.
    let each = begun.elapsed() / requests;
    assert!(each < Duration::from_millis(500), "{requests} requests in {:?}", begun.elapsed());
    drop(file);
    let mut control = Control::open(scene.connect(Role::Control).unwrap()).unwrap();
    let suspended = control.suspend();
    // The backend may have carried out the first request when its sender had given up: then the
    // ring is being suspended.
    assert!(matches!(suspended, Ok(()) | Err(Error::Retry)), "{suspended:?}");
    assert!(control.debug_info().unwrap().suspend);
}
