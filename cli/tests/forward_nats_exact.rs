//! `blockring forward` into JetStream while the forwarder, the server and the network fail, and a
//! second forwarder runs beside the first: each item is in the stream once, and in order.
//!
//! With `BLOCKRING_LONG` set, 400,000 items instead of 20,000, and a second run with a stream that
//! the forwarder makes.
#![allow(clippy::unwrap_used)]

use crate::common::load::{RINGS, is_long, item, items, produce, rings, wait_for};
use crate::common::scene::Scene;
use crate::common::stream::{context, read, talk};
use async_nats::jetstream::stream::Config;
use nix::sys::signal::Signal;
use ring_test_support::assert_ok;
use ring_test_support::nats::{Fault, NatsServer, Proxy};
use ring_test_support::process::{Guarded, ended, signal, status_of};
use std::process::{Child, Stdio};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

/// Numbers of failures of each kind.
const FORWARDER_KILLS: usize = 50;
const SERVER_KILLS: usize = 20;
const NETWORK_CUTS: usize = 20;
const SECOND_FORWARDERS: usize = 10;

/// What fails next.
#[derive(Debug, Clone, Copy)]
enum Failure {
    Forwarder,
    Server,
    Network(usize),
    SecondForwarder,
}

/// Returns the failures, mixed: the rarer ones at equal distances among the others.
fn failures() -> Vec<Failure> {
    let kinds = [
        (FORWARDER_KILLS, Failure::Forwarder),
        (SERVER_KILLS, Failure::Server),
        (NETWORK_CUTS, Failure::Network(0)),
        (SECOND_FORWARDERS, Failure::SecondForwarder),
    ];
    let mut placed: Vec<(usize, Failure)> = Vec::new();
    for (kind, (count, failure)) in kinds.into_iter().enumerate() {
        placed.extend((0..count).map(|number| {
            let failure = match failure {
                Failure::Network(_) => Failure::Network(number),
                other => other,
            };
            ((number * 1000 + 137 * kind) / count, failure)
        }));
    }
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, failure)| failure).collect()
}

/// The forwarders of a scene.
struct Forwarders<'a> {
    scene: &'a Scene,
    address: String,
}

impl Forwarders<'_> {
    /// Returns the arguments for the rings in a folder.
    fn arguments(&self, folder: &str, more: &[&str]) -> Vec<String> {
        let rings = RINGS.map(|ring| format!("{folder}/{ring}.img"));
        let options = ["--to", &self.address, "--stream", "VMS", "--subject", "vm.{ring}.log"];
        let words = [&["forward", "--create-stream"], &options[..], more].concat();
        words.into_iter().map(str::to_owned).chain(rings).collect()
    }

    fn start(&self, folder: &str) -> Guarded {
        let arguments = self.arguments(folder, &[]);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut command = self.scene.without_input(&arguments);
        // What it says of failures is not looked at, and must not fill a pipe.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Guarded::start(&mut command)
    }

    /// Forwards the rest of the rings, and ends.
    fn drain(&self) {
        let arguments = self.arguments(".", &["--drain"]);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        assert_ok(&self.scene.run(&arguments, b""));
    }

    /// Starts a forwarder of copies of the rings, as a restored snapshot of this host would: no
    /// lock keeps it away.
    fn start_beside(&self, first: &Child) -> Guarded {
        signal(first, Signal::SIGSTOP);
        self.scene.succeed("rm -rf copies; mkdir copies; cp --sparse=always *.img copies/");
        signal(first, Signal::SIGCONT);
        self.start("copies")
    }
}

fn kill(mut child: Guarded) {
    child.kill().unwrap();
    status_of(&mut child, "the forwarder");
}

/// Forwards that many items while everything fails, and verifies what is in the stream.
fn forward_through_failures(items: usize, server: &mut NatsServer) {
    let scene = rings();
    let proxy = Proxy::start(server.port);
    let forwarders = Forwarders { scene: &scene, address: proxy.address() };
    let (each, fed) = (items / RINGS.len(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let producers = RINGS.map(|ring| {
            let (scene, fed) = (&scene, &fed);
            scope.spawn(move || produce(scene, ring, each, fed, item))
        });
        let failures = failures();
        let mut forwarder = forwarders.start(".");
        let mut second: Option<Guarded> = None;
        for (number, failure) in failures.iter().enumerate() {
            wait_for(&fed, items * (number + 1) / (failures.len() + 1));
            second.take().into_iter().for_each(kill);
            match failure {
                Failure::Forwarder => {
                    kill(forwarder);
                    forwarder = forwarders.start(".");
                }
                Failure::Server => server.restart(),
                Failure::Network(number) => proxy.strike(match number % 4 {
                    0 => Fault::Close,
                    1 => Fault::HalfClose,
                    2 => Fault::LoseAnswers,
                    _ => Fault::Delay(Duration::from_millis(5)),
                }),
                Failure::SecondForwarder => second = Some(forwarders.start_beside(&forwarder)),
            }
        }
        for producer in producers {
            producer.join().unwrap();
        }
        second.take().into_iter().for_each(kill);
        scene.wait_for_role("a.img", "consumer", &forwarder);
        signal(&forwarder, Signal::SIGTERM);
        let output = ended(forwarder, "the forwarder");
        assert_ok(&output);
    });
    forwarders.drain();
    verify(server, each);
}

/// Verifies that the stream has the items of each ring once, in order.
fn verify(server: &NatsServer, each: usize) {
    let mut found = RINGS.map(|_| 0);
    read(&server.address(), "VMS", |message| {
        let at = RINGS.iter().position(|ring| message.subject == format!("vm.{ring}.log")).unwrap();
        let (ring, number) = (RINGS[at], found[at]);
        let start = String::from_utf8_lossy(&message.payload[..message.payload.len().min(20)]);
        assert!(
            message.payload == item(ring, number),
            "item {number} of {ring} is not the next one, but {start:?}"
        );
        found[at] += 1;
    });
    assert_eq!(found, RINGS.map(|_| each));
}

/// Numbers of messages that the server remembers for hardly any time cannot help.
#[test]
fn forwarder_delivers_once_through_all_failures_without_a_window() {
    let mut server = NatsServer::start("");
    talk(async {
        let config = Config {
            name: "VMS".to_owned(),
            subjects: vec!["vm.>".to_owned()],
            duplicate_window: Duration::from_millis(100),
            allow_atomic_publish: true,
            ..Config::default()
        };
        context(&server.address()).await.create_stream(config).await.unwrap();
    });
    forward_through_failures(items(), &mut server);
    if is_long() {
        forward_through_failures(items(), &mut NatsServer::start(""));
    }
}
