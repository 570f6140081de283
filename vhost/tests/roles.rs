//! A handle that has given its role back while it searched for a backend writes nothing any more,
//! unless no other process has the role.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use nix::sys::signal::Signal;
use shared_block_ring::device::Sleep;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::survey::{Checksum, PREVIEW_BYTES, Step, Survey};
use shared_block_ring::wait::Woken;
use shared_block_ring::{
    BlockDevice, Consumer, Control, Error, MappedDevice, Position, Producer, RingDevice, UnixDevice,
};
use std::io::IoSlice;
use std::time::{Duration, Instant};

/// How long a search for a backend lasts here.
const AWAY: Duration = Duration::from_millis(100);

fn killed(mut daemon: Daemon) {
    daemon.signal(Signal::SIGKILL);
    daemon.0.wait().unwrap();
}

/// Searches for a backend that does not come.
fn looks_in_vain(device: &UnixDevice) {
    let deadline = Instant::now() + AWAY;
    device.announce();
    assert_eq!(device.sleep(&[], Some(deadline)).unwrap(), Woken::TimedOut);
}

/// Maps the ring's file, to play the guest's side while no backend has it.
fn mapped(scene: &Scene, geometry: shared_block_ring::format::Geometry) -> MappedDevice {
    let file = std::fs::File::options().read(true).write(true).open(scene.path("ring")).unwrap();
    MappedDevice::new(file, "ring", geometry).unwrap()
}

fn publish(scene: &Scene, device: &UnixDevice, items: &[&[u8]]) -> Position {
    let mut producer =
        Producer::attach(mapped(scene, device.geometry()), "queue", "guest").unwrap();
    let end = producer.push_batch(items).unwrap();
    producer.advance(end).unwrap();
    end
}

fn is_held(outcome: &Result<(), Error>, side: Side) -> bool {
    matches!(outcome, Err(Error::RoleTaken { role, .. }) if *role == side)
}

/// A consumer whose backend was killed, and which has given its role back: it has popped the first
/// of these items. Returns also the position behind that, and the end of all.
fn consumer_without_backend(items: &[&[u8]]) -> (Scene, Consumer<UnixDevice>, Position, Position) {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut consumer = attach(&scene, "first");
    killed(daemon);
    let end = publish(&scene, consumer.device(), items);
    let next = consumer.pop(consumer.position()).unwrap().next;
    looks_in_vain(consumer.device());
    (scene, consumer, next, end)
}

fn attach(scene: &Scene, name: &str) -> Consumer<UnixDevice> {
    Consumer::attach(scene.connect(Role::Consumer).unwrap(), "queue", name).unwrap()
}

#[test]
fn survey_takes_no_role_and_follows_the_consumer() {
    let scene = Scene::new();
    let daemon = scene.start(&["--size", "1M"]);
    let device = scene.connect(Role::Control).unwrap();
    killed(daemon);
    // Longer than what a survey reads at once: it meets the consumer while it reads the second.
    let end = publish(&scene, &device, &[&[1; 3000], &vec![2; 300_000], &vec![3; 300_000]]);
    let _daemon = scene.start(&["--size", "1M"]);
    let mut survey = Survey::open(scene.connect(Role::Control).unwrap()).unwrap();
    assert_eq!(survey.to(), end);
    let first = match survey.step().unwrap() {
        Step::Item(header, preview) => {
            assert_eq!((header.length, preview), (3000, &[1; PREVIEW_BYTES][..]));
            header.next
        }
        other => panic!("{other:?}"),
    };
    // The roles are free beside it, and the consumer frees what it has not read yet.
    let mut consumer = attach(&scene, "consumer");
    let second = consumer.pop(first).unwrap().next;
    consumer.advance(second).unwrap();
    let (mut found, mut freed) = (Vec::new(), Vec::new());
    loop {
        match survey.step().unwrap() {
            Step::Item(header, _) => found.push((header.at, header.length)),
            Step::Freed(position) => freed.push(position),
            Step::Damaged(..) => panic!("damaged"),
            Step::End => break,
        }
    }
    assert_eq!((found, freed), (vec![(second, 300_000)], vec![second]));
    assert!(matches!(survey.checksum(), Checksum::Good(_)));
}

#[test]
fn consumer_that_lost_its_role_frees_nothing_of_its_successors() {
    let (scene, mut first, next, end) = consumer_without_backend(&[&[1; 3000], &[2; 3000]]);
    let _daemon = scene.start(&[]);
    let mut second = attach(&scene, "second");
    let start = second.position();
    let lent = second.pop(start).unwrap();
    assert!(is_held(&first.advance(next), Side::Consumer));
    assert!(is_held(&first.suspend(), Side::Consumer));
    assert!(is_held(&first.resume(), Side::Consumer));
    assert_eq!(lent.bytes, [1; 3000]);
    let facts = second.debug_info().unwrap();
    assert_eq!((facts.consumer, facts.suspend), (start, false));
    // Also when the pointer is written lazily, and when the consumer is dropped.
    first.advance_every(1 << 20);
    first.advance(next).unwrap();
    assert!(is_held(&first.flush(), Side::Consumer));
    drop(first);
    assert_eq!(second.debug_info().unwrap().consumer, start);
    second.advance(end).unwrap();
}

#[test]
fn device_whose_role_is_not_held_writes_nothing() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let device = scene.connect(Role::Consumer).unwrap();
    killed(daemon);
    looks_in_vain(&device);
    let before = std::fs::read(scene.path("ring")).unwrap();
    let sector = [7; 512];
    let denied = |written: Result<(), shared_block_ring::device::DeviceError>| {
        let text = written.unwrap_err().to_string();
        assert!(text.contains("cannot write") && text.contains("given back"), "{text}");
    };
    denied(device.write(2, &[IoSlice::new(&sector)]));
    denied(device.edit_pointer(Side::Consumer, &mut |sector| sector[0] = 4));
    assert!(std::fs::read(scene.path("ring")).unwrap() == before);
    // A handle without a role has none to lose.
    let _daemon = scene.start(&[]);
    let control = scene.connect(Role::Control).unwrap();
    control.ensure_role().unwrap();
    Control::open(control).unwrap().suspend().unwrap();
}

#[test]
fn consumer_goes_on_with_its_role_if_nobody_else_has_it() {
    let (scene, mut first, next, end) = consumer_without_backend(&[b"one", b"two"]);
    first.advance(next).unwrap();
    assert_eq!(first.debug_info().unwrap().consumer, next);
    // Then the first consumer has its role again.
    let _daemon = scene.start(&[]);
    let refused = scene.connect(Role::Consumer).map(|_| ());
    assert!(is_held(&refused, Side::Consumer));
    first.advance(end).unwrap();
}

#[test]
fn consumer_whose_role_was_taken_meanwhile_is_superseded() {
    let (scene, mut first, next, end) = consumer_without_backend(&[b"one", b"two"]);
    let daemon = scene.start(&[]);
    let mut second = attach(&scene, "second");
    second.fold(second.position(), (), |(), _| ()).unwrap();
    second.advance(end).unwrap();
    drop(second);
    let outcome = first.advance(next);
    assert!(matches!(outcome, Err(Error::Superseded { .. })), "{outcome:?}");
    assert_eq!(first.position(), end);
    drop(daemon);
}

#[test]
fn producer_that_lost_its_role_writes_nothing() {
    let scene = Scene::new();
    let options = ["--guest", "consumer"];
    let daemon = scene.start(&options);
    let mut first =
        Producer::attach(scene.connect(Role::Producer).unwrap(), "queue", "first").unwrap();
    let end = first.push("of the first").unwrap();
    killed(daemon);
    looks_in_vain(first.device());
    let _daemon = scene.start(&options);
    let mut second =
        Producer::attach(scene.connect(Role::Producer).unwrap(), "queue", "second").unwrap();
    let published = second.push("of the second").unwrap();
    second.advance(published).unwrap();
    let before = std::fs::read(scene.path("ring")).unwrap();
    assert!(is_held(&first.advance(end), Side::Producer));
    assert!(is_held(&first.flush(), Side::Producer));
    assert!(is_held(&first.state().map(|_| ()), Side::Producer));
    assert!(std::fs::read(scene.path("ring")).unwrap() == before);
    // Once the second producer is gone the first may write, and learns that it was superseded.
    drop(second);
    let outcome = first.advance(end);
    assert!(matches!(outcome, Err(Error::Superseded { .. })), "{outcome:?}");
    let end = first.push("of the first").unwrap();
    first.advance(end).unwrap();
}
