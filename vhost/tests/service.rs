//! The daemon as a service: sockets that a service manager passes, and what it is told.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use crate::common::service::Service;
use crate::common::user::{GROUP, USER};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::unistd::geteuid;
use ring_test_support::assert_fails;
use ring_test_support::front_end::FrontEnd;
use ring_test_support::process::eventually;
use ring_test_support::service::Manager;
use shared_block_ring::handover::Role;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A listening socket at a name of the scene.
fn listening(scene: &Scene, name: &str, kind: SockType) -> OwnedFd {
    let listening = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listening.as_raw_fd(), &UnixAddr::new(&scene.path(name)).unwrap()).unwrap();
    listen(&listening, Backlog::new(16).unwrap()).unwrap();
    listening
}

/// The sockets of a whole service.
fn sockets(scene: &Scene) -> Vec<(&'static str, OwnedFd)> {
    vec![
        ("metrics", listening(scene, "m", SockType::Stream)),
        ("consumer", listening(scene, "c", SockType::SeqPacket)),
        ("guest", listening(scene, "s", SockType::Stream)),
    ]
}

const RING: [&str; 4] = ["--blk-file", "ring", "--size", "64K"];

fn scrape(mut client: impl Read + Write) -> String {
    client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// Serves a front end, a consumer and a scrape by the daemon on the sockets.
fn is_served(scene: &Scene) {
    FrontEnd::new(scene).honest(scene);
    drop(scene.connect(Role::Consumer).unwrap());
    let answer = scrape(UnixStream::connect(scene.path("m")).unwrap());
    assert!(answer.contains("blockring_"), "{answer}");
}

fn ends_well(mut daemon: Daemon) {
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
}

#[test]
fn daemon_serves_the_sockets_that_were_passed_and_leaves_them_in_place() {
    let scene = Scene::new();
    let sockets = sockets(&scene);
    // A client that comes before the daemon waits for it.
    let early = UnixStream::connect(scene.path("s")).unwrap();
    for _ in 0..2 {
        let daemon = Service::new(&scene, &RING).pass(&sockets).start();
        eventually("the daemon comes up", || scene.logged("serving ring") > 0);
        is_served(&scene);
        ends_well(daemon);
        std::fs::remove_file(scene.path("log")).unwrap();
    }
    drop(early);
    assert!(["s", "c", "m"].iter().all(|name| scene.path(name).exists()));
}

#[test]
fn passed_sockets_are_served_as_another_user_and_closed_in_started_programs() {
    let scene = Scene::new();
    let (user, group) = (USER.to_string(), GROUP.to_string());
    let mut options = RING.to_vec();
    if geteuid().is_root() {
        options.extend(["--user", &user, "--group", &group]);
    }
    let daemon = Service::new(&scene, &options).pass(&sockets(&scene)).start();
    eventually("the daemon comes up", || scene.logged("serving ring") > 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    for number in 3..6 {
        let about = format!("/proc/{}/fdinfo/{number}", daemon.0.id());
        let about = std::fs::read_to_string(about).unwrap();
        let flags = about.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = OFlag::from_bits_retain(i32::from_str_radix(flags, 8).unwrap());
        assert!(flags.contains(OFlag::O_CLOEXEC), "{number}: {about}");
    }
    is_served(&scene);
    ends_well(daemon);
}

#[test]
fn metrics_are_offered_on_a_passed_port_of_this_machine_alone() {
    let scene = Scene::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    let options = [&RING[..], &["--socket-path", "s", "--metrics", "unix:own"]].concat();
    let daemon = Service::new(&scene, &options).pass(&[("metrics", port.into())]).start();
    eventually("the daemon comes up", || scene.logged("serving ring") > 0);
    assert!(scrape(TcpStream::connect(address).unwrap()).contains("blockring_"));
    assert!(scrape(UnixStream::connect(scene.path("own")).unwrap()).contains("blockring_"));
    ends_well(daemon);
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let output = Service::new(&scene, &options).pass(&[("metrics", everywhere.into())]).run();
    assert_fails(&output, 1, "socket `metrics` (descriptor 3): 0.0.0.0:");
}

#[test]
fn passed_sockets_that_make_no_sense_are_refused_in_words() {
    let scene = Scene::new();
    let refused = |options: &[&str], passed: &[(&str, OwnedFd)], code, words: &[&str]| {
        let output = Service::new(&scene, options).pass(passed).run();
        for words in words {
            assert_fails(&output, code, words);
        }
    };
    let stream = || listening_anew(&scene);
    let packets = || listening(&scene, &uuid::Uuid::new_v4().to_string(), SockType::SeqPacket);
    let remedy = "FileDescriptorName=";
    refused(&RING, &[("vm1.socket", stream())], 2, &["`vm1.socket`", remedy]);
    refused(&RING, &[("consumer", packets())], 2, &["has only consumer", remedy, "--socket-path"]);
    let both = [&RING[..], &["--socket-path", "own"]].concat();
    refused(&both, &[("guest", stream())], 2, &["socket `guest` (descriptor 3)", "--socket-path"]);
    let both = [&RING[..], &["--consumer-socket", "own"]].concat();
    refused(&both, &[("guest", stream()), ("consumer", packets())], 2, &["--consumer-socket"]);
    refused(&RING, &[("guest", packets())], 1, &["`guest`", "not a UNIX stream", "ListenStream="]);
    refused(
        &RING,
        &[("guest", stream()), ("consumer", stream())],
        1,
        &["socket `consumer` (descriptor 4)", "ListenSequentialPacket="],
    );
    let (connected, _peer) = UnixStream::pair().unwrap();
    refused(&RING, &[("guest", connected.into())], 1, &["not a listening socket", "Accept=no"]);
    let datagrams = std::os::unix::net::UnixDatagram::bind(scene.path("d")).unwrap();
    refused(
        &RING,
        &[("guest", stream()), ("metrics", datagrams.into())],
        1,
        &["socket `metrics` (descriptor 4)"],
    );
    let who = [&RING[..], &["--socket-path", "own", "--consumer-user", "0"]].concat();
    refused(&who, &[], 2, &["--consumer-user", "`consumer`"]);
    assert!(!scene.path("ring").exists());
}

#[test]
fn sockets_of_another_process_are_named_in_the_error() {
    let scene = Scene::new();
    let passed = [("guest", listening(&scene, "s", SockType::Stream))];
    let output = Service::new(&scene, &RING).pass(&passed).for_another_process().run();
    for words in ["for process 1,", "by exec", "--socket-path"] {
        assert_fails(&output, 2, words);
    }
    let options = [&RING[..], &["--socket-path", "own"]].concat();
    let service = Service::new(&scene, &options).pass(&passed).for_another_process();
    let daemon = service.start();
    eventually("the daemon comes up", || scene.logged("serving ring") > 0);
    assert_eq!(scene.logged("LISTEN_FDS is for process 1: those descriptors are not used"), 1);
    ends_well(daemon);
}

#[test]
fn number_of_fd_says_what_a_passed_socket_is_for_whatever_its_name() {
    let scene = Scene::new();
    let passed = [
        ("vm1.socket", listening(&scene, "s", SockType::Stream)),
        ("consumer", listening(&scene, "c", SockType::SeqPacket)),
    ];
    let options = [&RING[..], &["--fd", "3"]].concat();
    let daemon = Service::new(&scene, &options).pass(&passed).start();
    eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
    FrontEnd::new(&scene).honest(&scene);
    ends_well(daemon);
}

/// Half a second between two signs of life, at most.
const SIGNS: (&str, &str) = ("WATCHDOG_USEC", "1000000");

#[test]
fn manager_is_told_when_clients_can_connect_and_that_the_queue_is_alive_and_the_end() {
    let scene = Scene::new();
    for manager in [Manager::at(&scene.path("notify")), Manager::abstract_name("served")] {
        for more in [&[][..], &["--poll", "always"]] {
            let options = [&RING[..], &["--socket-path", "s", "--consumer-socket", "c"], more];
            let service = Service::new(&scene, &options.concat()).env(SIGNS.0, SIGNS.1);
            let mut daemon = service.env("NOTIFY_SOCKET", &manager.name).start();
            assert_eq!(
                manager.next(),
                ["READY=1", "STATUS=serving ring, 65536 bytes, to a guest that is the producer"]
            );
            let mut guest = FrontEnd::new(&scene);
            scene.connect(Role::Control).unwrap();
            guest.honest(&scene);
            // While the queue sleeps, too.
            for _ in 0..2 {
                assert_eq!(manager.next(), ["WATCHDOG=1"]);
            }
            daemon.signal(Signal::SIGTERM);
            let last = manager.until("STOPPING=1");
            assert_eq!(last[1], "STATUS=making everything durable");
            assert_eq!(daemon.code(), Some(0));
        }
    }
}

#[test]
fn manager_that_watches_another_process_gets_no_signs_of_life() {
    let scene = Scene::new();
    let manager = Manager::at(&scene.path("notify"));
    let options = [&RING[..], &["--socket-path", "s"]].concat();
    let service = Service::new(&scene, &options).env("WATCHDOG_USEC", "20000");
    let service = service.env("WATCHDOG_PID", "1").env("NOTIFY_SOCKET", &manager.name);
    let daemon = service.start();
    manager.until("READY=1");
    assert!(manager.is_silent(Duration::from_millis(200)));
    ends_well(daemon);
}

#[test]
fn manager_is_told_why_the_daemon_could_not_start() {
    let scene = Scene::new();
    let manager = Manager::at(&scene.path("notify"));
    let options = ["--socket-path", "s", "--blk-file", "missing"];
    let service = Service::new(&scene, &options).env("NOTIFY_SOCKET", &manager.name);
    assert_fails(&service.run(), 1, "missing: cannot open");
    assert!(manager.status("missing: cannot open").contains("--size 8M makes it"));
}

#[test]
fn manager_is_told_what_is_wrong_with_the_configuration() {
    let scene = Scene::new();
    let manager = Manager::at(&scene.path("notify"));
    std::fs::write(scene.path("vm1.toml"), "blk-file = \"ring\"\nseize = 3\n").unwrap();
    let service = Service::new(&scene, &["--config", "vm1.toml"]);
    let words = "vm1.toml: line 2, `seize = 3`: there is no option";
    assert_fails(&service.env("NOTIFY_SOCKET", &manager.name).run(), 1, words);
    manager.status(words);
}

#[test]
fn manager_is_told_while_the_rings_file_is_not_under_its_name() {
    let scene = Scene::new();
    let manager = Manager::at(&scene.path("notify"));
    let options = [&RING[..], &["--socket-path", "s"]].concat();
    let service = Service::new(&scene, &options).env("NOTIFY_SOCKET", &manager.name);
    let daemon = service.start();
    manager.until("READY=1");
    std::fs::rename(scene.path("ring"), scene.path("away")).unwrap();
    manager.status("ring: the ring's file was moved, removed or replaced");
    std::fs::rename(scene.path("away"), scene.path("ring")).unwrap();
    manager.status("serving ring, 65536 bytes");
    ends_well(daemon);
}

#[test]
fn daemon_serves_without_a_manager_that_cannot_be_reached() {
    let scene = Scene::new();
    let options = [&RING[..], &["--socket-path", "s", "--consumer-socket", "c"]].concat();
    let gone = scene.path("gone");
    let service = Service::new(&scene, &options).env("NOTIFY_SOCKET", gone.to_str().unwrap());
    let daemon = service.start();
    eventually("the daemon comes up", || scene.connect(Role::Control).is_ok());
    eventually("it is logged", || {
        scene.logged("the service manager is told nothing: cannot connect") == 1
    });
    FrontEnd::new(&scene).honest(&scene);
    ends_well(daemon);
}

#[test]
fn manager_that_goes_away_ends_nothing() {
    let scene = Scene::new();
    let manager = Manager::at(&scene.path("notify"));
    let options = [&RING[..], &["--socket-path", "s", "--consumer-socket", "c"]].concat();
    let service = Service::new(&scene, &options).env("WATCHDOG_USEC", "20000");
    let daemon = service.env("NOTIFY_SOCKET", &manager.name).start();
    manager.until("WATCHDOG=1");
    drop(manager);
    eventually("it is logged", || scene.logged("the service manager was not told") > 0);
    FrontEnd::new(&scene).honest(&scene);
    ends_well(daemon);
}

#[test]
fn daemon_takes_options_from_a_file_and_the_command_line_wins() {
    let scene = Scene::new();
    let file =
        "blk-file = \"ring\"\nsize = \"64K\"\nmetrics = [\"unix:m\"]\nguest = \"consumer\"\n";
    std::fs::write(scene.path("vm1.toml"), file).unwrap();
    let passed = sockets(&scene);
    std::fs::remove_file(scene.path("m")).unwrap();
    let options = ["--config", "vm1.toml", "--guest", "producer"];
    let daemon = Service::new(&scene, &options).pass(&passed[1..]).start();
    eventually("the daemon comes up", || scene.logged("guest is the producer") > 0);
    is_served(&scene);
    ends_well(daemon);
}

#[test]
fn wrong_file_is_refused_by_name_line_and_key_and_a_sound_one_is_said_to_be_so() {
    let scene = Scene::new();
    let write = |text: &str| std::fs::write(scene.path("vm1.toml"), text).unwrap();
    let check = ["--config", "vm1.toml", "--check-config"];
    assert_fails(&scene.run(&check), 1, "vm1.toml: cannot read the configuration: No such file");
    for (text, words) in [
        ("blk-file = \"ring\"\nseize = 3\n", "vm1.toml: line 2, `seize = 3`: there is no option"),
        ("blk-file = \"ring\"\nuser = \"no such user\"\n", "vm1.toml: --user no such user: there"),
        ("size = 65536\n", "vm1.toml: --blk-file is missing"),
    ] {
        write(text);
        assert_fails(&scene.run(&check), 1, words);
        let served = Service::new(&scene, &check[..2]).pass(&[("guest", listening_anew(&scene))]);
        assert_fails(&served.run(), 1, words);
    }
    let sound = |more: &[&str]| {
        let output = scene.run(&[&check[..], more].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    write("blk-file = \"ring\"\nconsumer-user = \"0\"\n");
    assert_eq!(
        sound(&[]),
        "the configuration is sound; ring: ring; a service manager has to pass the socket `guest`; \
         a service manager has to pass the socket `consumer`\n"
    );
    let own = ["--fd", "3", "--consumer-socket", "c"];
    assert_eq!(sound(&own), "the configuration is sound; ring: ring\n");
    assert!(!scene.path("ring").exists());
}

fn listening_anew(scene: &Scene) -> OwnedFd {
    listening(scene, &uuid::Uuid::new_v4().to_string(), SockType::Stream)
}
