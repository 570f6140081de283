//! Sockets that a service manager passes, and keeps.

use super::senders::{Listening, connect, send, wait_for_acknowledgement};
use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket, sockopt,
};
use ring_test_support::process::{
    Guarded, PATIENCE, assert_fails, ended, eventually, signal, state,
};
use ring_test_support::service::{Manager, as_service, pass};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

type Sockets = Vec<(&'static str, OwnedFd)>;

/// Makes a socket as a service manager does: it blocks, and has a path of the scene.
fn socket_at(scene: &Scene, name: &str, kind: SockType) -> OwnedFd {
    let made = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(made.as_raw_fd(), &UnixAddr::new(&scene.path(name)).unwrap()).unwrap();
    if kind != SockType::Datagram {
        listen(&made, Backlog::new(16).unwrap()).unwrap();
    }
    made
}

fn both(scene: &Scene) -> Sockets {
    let datagrams = socket_at(scene, "log", SockType::Datagram);
    setsockopt(&datagrams, sockopt::PassCred, &true).unwrap();
    vec![("lines", socket_at(scene, "in", SockType::Stream)), ("logs", datagrams)]
}

fn command(scene: &Scene, arguments: &[&str], sockets: &Sockets) -> Command {
    let mut command = as_service(&scene.command(arguments));
    command.process_group(0).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    pass(&mut command, sockets);
    command
}

const PRODUCE: [&str; 4] = ["produce", "ring", "--listen", "passed"];

/// Starts a producer with the sockets, and waits until it takes items at the last of them.
fn start(scene: &Scene, arguments: &[&str], sockets: &Sockets) -> Listening {
    let mut command = command(scene, &[&PRODUCE, arguments].concat(), sockets);
    let name = sockets.last().unwrap().0;
    let last = if name == "logs" { "unixgram:" } else { "unix:" };
    let path = scene.path(if name == "logs" { "log" } else { "in" });
    Listening::start_command(&mut command, &format!("{last}{}, socket `{name}`", path.display()))
}

fn datagrams(scene: &Scene) -> UnixDatagram {
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(scene.path("log")).unwrap();
    sender.set_write_timeout(Some(PATIENCE)).unwrap();
    sender
}

#[test]
fn passed_sockets_outlive_the_process_with_what_was_sent_meanwhile() {
    let scene = Scene::with_ring("1M");
    let sockets = both(&scene);
    let log = datagrams(&scene);
    // Before the first start, between two, and while one runs: with the same senders.
    for start_of in ["first", "second"] {
        log.send(format!("{start_of}: early").as_bytes()).unwrap();
        let mut early = connect(&scene, "in");
        early.write_all(format!("{start_of}: line\n").as_bytes()).unwrap();
        let listening = start(&scene, &[], &sockets);
        wait_for_acknowledgement(&early, 1);
        log.send(format!("{start_of}: late").as_bytes()).unwrap();
        let (status, words) = listening.stop();
        assert!(status.success(), "{words}");
        let mut items: Vec<_> = scene.rest().lines().map(str::to_owned).collect();
        items.sort();
        assert_eq!(items, ["early", "late", "line"].map(|what| format!("{start_of}: {what}")));
    }
    assert!(scene.path("in").exists() && scene.path("log").exists());
}

#[test]
fn end_leaves_connections_that_wait_at_a_passed_socket_to_the_next_process() {
    let scene = Scene::with_ring("1M");
    let sockets = vec![("lines", socket_at(&scene, "in", SockType::Stream))];
    let listening = start(&scene, &["--max-connections", "1"], &sockets);
    let open = connect(&scene, "in");
    send(&open, b"one\n", 1);
    signal(&listening.child, Signal::SIGSTOP);
    eventually("the producer is stopped", || state(listening.child.id()) == 'T');
    let mut waiting = connect(&scene, "in");
    waiting.write_all(b"three\n").unwrap();
    (&open).write_all(b"two\n").unwrap();
    signal(&listening.child, Signal::SIGTERM);
    signal(&listening.child, Signal::SIGCONT);
    wait_for_acknowledgement(&open, 2);
    assert!(listening.ended().0.success());
    assert_eq!(scene.rest(), "one\ntwo\n");
    let listening = start(&scene, &[], &sockets);
    wait_for_acknowledgement(&waiting, 1);
    assert!(listening.stop().0.success());
    assert_eq!(scene.rest(), "three\n");
}

#[test]
fn senders_that_go_on_do_not_hold_up_the_end() {
    let scene = Scene::with_ring("8M");
    let sockets = vec![("logs", socket_at(&scene, "log", SockType::Datagram))];
    let listening = start(&scene, &["--no-flush"], &sockets);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let log = datagrams(&scene);
            log.set_nonblocking(true).unwrap();
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                // It fails while the kernel holds as many as it can.
                let _ = log.send(b"x");
            }
        });
        let (status, words) = listening.stop();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(status.success(), "{words}");
    });
}

#[test]
fn credentials_of_datagrams_are_those_that_the_kernel_has_noted() {
    let scene = Scene::with_ring("1M");
    let noting = both(&scene);
    let log = datagrams(&scene);
    log.send(b"early").unwrap();
    let listening = start(&scene, &["--credentials"], &noting);
    log.send(b"late").unwrap();
    let (status, words) = listening.stop();
    assert!(status.success() && !words.contains("PassCredentials="), "{words}");
    let own = format!("pid={} ", std::process::id());
    let items = scene.rest();
    assert_eq!(items.lines().filter(|line| line.starts_with(&own)).count(), 2, "{items}");
    // From a socket that does not note senders, only those that were sent meanwhile have a name.
    drop(noting);
    let scene = Scene::with_ring("1M");
    let sockets = vec![("logs", socket_at(&scene, "log", SockType::Datagram))];
    let mut command = command(&scene, &[&PRODUCE[..], &["--credentials"]].concat(), &sockets);
    let listening = Listening::start_command(&mut command, "unixgram:");
    datagrams(&scene).send(b"named").unwrap();
    assert!(listening.stop().0.success());
    assert!(scene.rest().starts_with(&own));
}

#[test]
fn passed_sockets_that_cannot_be_used_are_refused_in_words() {
    let scene = Scene::with_ring("1M");
    let run = |arguments: &[&str], sockets: &Sockets| -> Output {
        let child = Guarded::start(&mut command(&scene, arguments, sockets));
        ended(child, "produce")
    };
    let refused = |name, socket: OwnedFd, words: &str| {
        let output = run(&PRODUCE, &vec![(name, socket)]);
        assert_fails(&output, 1, &format!("socket `{name}` (descriptor 3)"));
        assert_fails(&output, 1, words);
    };
    refused("p", socket_at(&scene, "p", SockType::SeqPacket), "ListenDatagram= with a path");
    refused("tcp", TcpListener::bind("127.0.0.1:0").unwrap().into(), "not a UNIX socket");
    refused("accepted", UnixStream::pair().unwrap().0.into(), "Accept=no");
    refused("file", std::fs::File::open("/dev/null").unwrap().into(), "Socket operation");
    assert_fails(&run(&PRODUCE, &Vec::new()), 2, "no socket was passed");
    let datagrams = socket_at(&scene, "d", SockType::Datagram);
    let datagrams = || vec![("log", datagrams.try_clone().unwrap())];
    let streams = socket_at(&scene, "s", SockType::Stream);
    let streams = || vec![("in", streams.try_clone().unwrap())];
    for (more, sockets, words) in [
        (["--framing", "nul"], datagrams(), "--framing is for connections"),
        (["--on-full", "drop"], streams(), "--on-full drop does not go with --listen unix:"),
        (["--listen", "passed"], streams(), "--listen passed is given twice"),
        (["--socket-mode", "666"], streams(), "SocketMode="),
    ] {
        assert_fails(&run(&[&PRODUCE[..], &more].concat(), &sockets), 2, words);
    }
    // The environment of another process.
    let mut other = command(&scene, &PRODUCE, &datagrams());
    let output = ended(Guarded::start(other.env("PID", "1")), "produce");
    assert_fails(&output, 2, "LISTEN_FDS is for process 1");
    assert_fails(&output, 2, "no socket was passed");
}

#[test]
fn manager_gets_signs_of_life_while_senders_rest_and_while_the_ring_is_full() {
    let scene = Scene::with_ring("64K");
    let manager = Manager::at(&scene.path("notify"));
    let sockets = both(&scene);
    let mut command = command(&scene, &PRODUCE, &sockets);
    command.env("NOTIFY_SOCKET", &manager.name).env("WATCHDOG_USEC", "200000");
    let listening = Listening::start_command(&mut command, "unixgram:");
    let ready = manager.until("READY=1");
    assert!(ready[1].contains("log, socket `logs` (descriptor 4)"), "{ready:?}");
    (0..3).for_each(|_| drop(manager.until("WATCHDOG=1")));
    let mut sender = connect(&scene, "in");
    sender.write_all(&b"x\n".repeat(40_000)).unwrap();
    let full = |facts: &serde_json::Value| facts["used"].as_u64() > Some(40_000);
    scene.wait_for_facts("ring", full);
    (0..10).for_each(|_| drop(manager.until("WATCHDOG=1")));
    signal(&listening.child, Signal::SIGSTOP);
    eventually("the producer is stopped", || state(listening.child.id()) == 'T');
    // Whatever was given before.
    while !manager.is_silent(std::time::Duration::from_millis(500)) {}
    signal(&listening.child, Signal::SIGCONT);
    manager.until("WATCHDOG=1");
    listening.stop();
    manager.until("STOPPING=1");
}
