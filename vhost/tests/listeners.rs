//! Listening sockets that other processes have, too: they accept on them, and shut them down.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, SockType, getsockopt, shutdown, sockopt};
use ring_test_support::front_end::FrontEnd;
use ring_test_support::process::eventually;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use vhost_device_blockring::front_end::arrival::{Arrival, look};

/// Connections that others take, at least.
const TAKEN: u32 = 500;

fn listener(nonblocking: bool) -> (tempfile::TempDir, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    listener.set_nonblocking(nonblocking).unwrap();
    (dir, listener)
}

#[test]
fn look_tells_a_connection_from_a_shutdown() {
    for how in [Shutdown::Read, Shutdown::Both] {
        let (dir, listener) = listener(true);
        assert_eq!(look(listener.as_fd()).unwrap(), Arrival::None);
        let _client = UnixStream::connect(dir.path().join("s")).unwrap();
        assert_eq!(look(listener.as_fd()).unwrap(), Arrival::Waiting);
        shutdown(listener.as_raw_fd(), how).unwrap();
        assert_eq!(look(listener.as_fd()).unwrap(), Arrival::ShutDown);
    }
}

/// Connects all the time, and accepts on `listener` until so many connections have been taken from
/// the daemon.
fn take_away(scene: &Scene, listener: &UnixListener) {
    std::thread::scope(|threads| {
        let thief = threads.spawn(|| {
            let mut taken = 0;
            while taken < TAKEN {
                match listener.accept() {
                    Ok(_) => taken += 1,
                    Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
                }
            }
        });
        while !thief.is_finished() {
            drop(UnixStream::connect(scene.path("s")).unwrap());
        }
    });
}

#[test]
fn daemon_whose_connections_others_take_serves_what_is_left_and_ends_at_a_stop() {
    for nonblocking in [false, true] {
        let scene = Scene::new();
        let listener = UnixListener::bind(scene.path("s")).unwrap();
        listener.set_nonblocking(nonblocking).unwrap();
        let mut daemon = scene.start_inherited(listener.try_clone().unwrap().into());
        take_away(&scene, &listener);
        FrontEnd::new(&scene).honest(&scene);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.code(), Some(0));
        assert!(!scene.path("c").exists());
    }
}

#[test]
fn daemon_that_waits_for_what_others_took_ends_at_a_stop() {
    let scene = Scene::new();
    let listener = UnixListener::bind(scene.path("s")).unwrap();
    let mut daemon = scene.start_inherited(listener.try_clone().unwrap().into());
    // The call that accepts waits, since the socket does: mostly for a connection that was taken.
    take_away(&scene, &listener);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
}

#[test]
fn inherited_socket_that_is_shut_down_ends_the_daemon_in_words() {
    for (nonblocking, how) in [(false, Shutdown::Both), (true, Shutdown::Read)] {
        let scene = Scene::new();
        let listener = UnixListener::bind(scene.path("s")).unwrap();
        listener.set_nonblocking(nonblocking).unwrap();
        let mut daemon = scene.start_inherited(listener.try_clone().unwrap().into());
        shutdown(listener.as_raw_fd(), how).unwrap();
        assert_eq!(daemon.code(), Some(1));
        assert_eq!(scene.logged("--fd 3: another process has shut this listening socket down"), 1);
        assert!(!scene.path("c").exists() && scene.path("s").exists());
    }
}

#[test]
fn front_end_is_served_to_its_end_after_its_socket_was_shut_down() {
    const WORDS: &str = "the backend ends when this front end leaves";
    let scene = Scene::new();
    let listener = UnixListener::bind(scene.path("s")).unwrap();
    let mut daemon = scene.start_inherited(listener.try_clone().unwrap().into());
    let mut guest = FrontEnd::new(&scene);
    shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
    eventually("the log says so", || scene.logged(WORDS) > 0);
    guest.honest(&scene);
    assert!(daemon.0.try_wait().unwrap().is_none());
    drop(guest);
    assert_eq!(daemon.code(), Some(1));
    assert_eq!(scene.logged(WORDS), 1);
}

/// The listening socket of this kind that `daemon` has; `None` where this process may not take it.
fn listening(daemon: &Daemon, kind: SockType) -> Option<OwnedFd> {
    let process = |call, first: i32, second: i32| {
        // SAFETY: numbers are passed, and no memory.
        let answer = unsafe { libc::syscall(call, first, second, 0) };
        let number = i32::try_from(Errno::result(answer)?).unwrap();
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok::<_, Errno>(unsafe { OwnedFd::from_raw_fd(number) })
    };
    let of = process(libc::SYS_pidfd_open, daemon.0.id().cast_signed(), 0).unwrap();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", daemon.0.id())).unwrap() {
        let number = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        let found = match process(libc::SYS_pidfd_getfd, of.as_raw_fd(), number) {
            Ok(found) => found,
            Err(Errno::EPERM) => return None,
            Err(_) => continue,
        };
        let is = |fd: BorrowedFd<'_>| {
            getsockopt(&fd, sockopt::AcceptConn) == Ok(true)
                && getsockopt(&fd, sockopt::SockType) == Ok(kind)
        };
        if is(found.as_fd()) {
            return Some(found);
        }
    }
    panic!("no such socket");
}

#[test]
fn own_socket_that_is_shut_down_ends_the_daemon_in_words() {
    for (kind, name) in [(SockType::Stream, "s"), (SockType::SeqPacket, "c")] {
        let scene = Scene::new();
        let mut daemon = scene.start(&[]);
        let Some(socket) = listening(&daemon, kind) else { return };
        let guest = FrontEnd::new(&scene);
        shutdown(socket.as_raw_fd(), Shutdown::Both).unwrap();
        if kind == SockType::Stream {
            drop(guest);
        }
        assert_eq!(daemon.code(), Some(1));
        let words = format!("{name}: another process has shut this listening socket down");
        assert_eq!(scene.logged(&words), 1);
        assert!(!scene.path("s").exists() && !scene.path("c").exists());
    }
}

#[test]
fn inherited_socket_of_another_kind_is_refused() {
    let scene = Scene::new();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut daemon = scene.spawn_inherited(other.into());
    assert_eq!(daemon.code(), Some(1));
    assert_eq!(scene.logged("--fd 3: not a UNIX stream socket"), 1);
    assert!(!scene.path("ring").exists());
}
