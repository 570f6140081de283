//! Several queues of one worker: each keeps its order, and every request is judged by what all of
//! them have done before.
#![allow(clippy::unwrap_used)]

use ring_test_support::executor_disk::{Disk, IDLE, open};
use ring_test_support::process::PATIENCE;
use ring_test_support::worker_disk::{Direct, Payload, Place};
use shared_block_ring::format::{FLAG_AT, PointerSector, Side};
use shared_block_ring::{Control, MappedDevice, Position, Producer};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::queue_set::{MAX_QUEUES, QueueSet};
use vhost_device_blockring::data_path::worker::TurnEnd;

const OK: Option<u8> = Some(0);
const REFUSED: Option<u8> = Some(1);

/// The first sector of the data.
const DATA: u64 = 3;

fn with_queues(disk: Disk, queues: usize) -> Direct {
    let flusher =
        Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters)).unwrap();
    Direct::with_queues(disk, queues, flusher)
}

/// A producer's pointer sector without identity slots.
fn pointer(position: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let position = Position::new(position).unwrap();
    PointerSector { position, flag: false }.encode(Side::Producer, None, &mut sector);
    sector
}

/// A ring for a batch of 300,000 empty items, whose walk takes five steps.
fn for_a_long_walk() -> (Disk, Vec<u8>) {
    let sectors = 3 + 300_000 * 4 / 512 + 1;
    (Disk::with(Side::Producer, false, sectors, |_| ()), pointer(1_200_000))
}

#[test]
fn every_queue_is_served_and_keeps_its_order() {
    let direct = with_queues(Disk::new(Side::Producer), MAX_QUEUES);
    let mut reads = Vec::new();
    for round in 0..8u8 {
        for queue in 0..MAX_QUEUES {
            // What a read finds was written in front of it, by its own queue or another.
            let byte = u8::try_from(queue).unwrap() | round << 6;
            direct.put(queue, 0, DATA, Payload::Write(&[byte; 512]));
            reads.push(direct.put(queue, 0, DATA, Payload::Read(512)));
        }
    }
    assert_eq!(direct.turn(), TurnEnd::Sleep(None));
    for queue in 0..MAX_QUEUES {
        assert_eq!(direct.used(queue), 16, "queue {queue}");
    }
    // The worker goes from queue to queue, sixteen requests at a time.
    for (number, place) in reads.iter().enumerate() {
        let byte = u8::try_from(place.queue).unwrap() | u8::try_from(number / 64).unwrap() << 6;
        assert_eq!(direct.status(*place), OK);
        assert!(direct.data(*place, 512) == [byte; 512], "read {number}");
    }
}

/// What a guest costs that has its requests refused, or long ones, is bounded for the others of its
/// thread.
#[test]
fn refused_and_long_requests_shorten_a_turn_beside_others() {
    let direct = with_queues(Disk::with(Side::Producer, false, 200, |_| ()), 2);
    let refused = Payload::Write(&[7; 512]);
    let long = Payload::Read(64 * 512);
    for (payload, first, status, most) in [(refused, 0, REFUSED, 4), (long, DATA, OK, 10)] {
        let before = direct.used(0);
        let places: Vec<_> = (0..16).map(|_| direct.put(0, 0, first, payload)).collect();
        let other = direct.put(1, 0, DATA, Payload::Write(&[8; 512]));
        assert_eq!(direct.fair_turn(), TurnEnd::More);
        assert_eq!((direct.used(0) - before, direct.status(other)), (most, OK));
        while direct.used(0) - before < 16 {
            assert!(matches!(direct.fair_turn(), TurnEnd::More | TurnEnd::Sleep(None)));
        }
        assert!(places.iter().all(|place| direct.status(*place) == status));
        // Without others it has all of them at once.
        let before = direct.used(0);
        let places: Vec<_> = (0..16).map(|_| direct.put(0, 0, first, payload)).collect();
        assert_eq!((direct.turn(), direct.used(0) - before), (TurnEnd::Sleep(None), 16));
        assert!(places.iter().all(|place| direct.status(*place) == status));
    }
}

/// Reads and writes of one buffer are taken all the way at once, several of them are looked at
/// ahead, and every other request goes the long way.
#[test]
fn requests_of_every_shape_keep_their_order() {
    let disk = Disk::new(Side::Producer);
    let counters = Arc::clone(&disk.counters);
    let direct = with_queues(disk, 1);
    for round in 0..9u8 {
        let start = direct.used(0);
        let write = |byte: u8| direct.put(0, 0, DATA, Payload::Write(&[byte; 1024]));
        let read = |first| direct.put(0, 0, first, Payload::Read(512));
        let split = [[round + 100; 512], [round + 200; 512]];
        let mut expected = Vec::new();
        // So many requests in front of them that each is met in every place.
        for _ in 0..round {
            expected.push((write(round), OK, None));
        }
        expected.push((read(DATA + 1), OK, (round > 0).then_some(round)));
        expected.push((
            direct.put(0, 0, DATA, Payload::WriteSplit(&split[0], &split[1])),
            OK,
            None,
        ));
        expected.push((read(DATA), OK, Some(round + 100)));
        expected.push((direct.put(0, 0, 0, Payload::Write(&[1; 512])), REFUSED, None));
        expected.push((direct.put(0, 0, 0, Payload::Flush), OK, None));
        expected.push((read(DATA + 1), OK, Some(round + 200)));
        expected.push((write(round + 50), OK, None));
        let count = u16::try_from(expected.len()).unwrap();
        while direct.used(0) != start.wrapping_add(count) {
            direct.turn();
        }
        for (number, (place, status, byte)) in expected.into_iter().enumerate() {
            assert_eq!(direct.status(place), status, "request {number} of round {round}");
            if let Some(byte) = byte {
                assert!(direct.data(place, 512) == [byte; 512], "read {number} of round {round}");
            }
        }
    }
    assert_eq!((counters.reads.get(), counters.read_bytes.get()), (27, 27 * 512));
    assert_eq!((counters.writes.get(), counters.written_bytes.get()), (54, 54 * 1024));
}

/// What a later write will store to is prefetched before it is judged.
#[test]
fn write_outside_the_disk_behind_others_is_refused_alone() {
    let direct = with_queues(Disk::new(Side::Producer), 1);
    let write = |sector| direct.put(0, 0, sector, Payload::Write(&[7; 512]));
    let places = [DATA, DATA + 1, u64::MAX, DATA + 2, u64::MAX / 512, DATA + 3].map(write);
    direct.turn();
    let refused = places.map(|place| direct.status(place) == REFUSED);
    assert_eq!(refused, [false, false, true, false, true, false]);
    assert_eq!(places.map(|place| direct.status(place) == OK), refused.map(|refused| !refused));
}

#[test]
fn queue_that_was_not_kicked_is_served_when_the_turn_goes_on() {
    let direct = with_queues(Disk::new(Side::Producer), 8);
    direct.turn();
    let others = (1..8).map(|queue| direct.put(queue, 0, DATA, Payload::Read(512)));
    let others: Vec<_> = others.collect();
    let kicked = direct.put(0, 0, DATA, Payload::Read(512));
    direct.turn_after(QueueSet::one(0));
    assert_eq!(direct.status(kicked), OK);
    assert!(others.iter().all(|place| direct.status(*place).is_none()), "no kick has told of them");
    // Sixteen requests are a visit: the others are looked at behind it, kick or not.
    let many: Vec<_> = (0..16).map(|_| direct.put(0, 0, DATA, Payload::Read(512))).collect();
    direct.turn_after(QueueSet::one(0));
    assert!(many.iter().chain(&others).all(|place| direct.status(*place) == OK));
}

#[test]
fn walk_holds_the_writes_of_other_queues_and_nothing_else() {
    let (disk, sector) = for_a_long_walk();
    let direct = with_queues(disk, 4);
    let long = direct.put(0, 0, 1, Payload::Write(&sector));
    // Items under the new position, which would be framed otherwise then.
    let write = direct.put(1, 0, DATA + 2300, Payload::Write(&[0xff; 512]));
    let read = direct.put(2, 0, DATA, Payload::Read(512));
    let flush = direct.put(3, 0, 0, Payload::Flush);
    assert_eq!(direct.round(), TurnEnd::GiveWay);
    assert_eq!((direct.status(long), direct.status(write)), (None, None));
    assert_eq!(direct.status(read), OK, "a read changes nothing");
    let mut rounds = 1;
    while direct.status(long).is_none() {
        assert_eq!(direct.status(write), None);
        direct.round();
        rounds += 1;
    }
    assert!(rounds > 3, "{rounds}");
    while direct.status(write).is_none() || direct.status(flush).is_none() {
        direct.turn();
    }
    assert_eq!(direct.status(long), OK);
    assert_eq!(direct.status(write), REFUSED, "those bytes are published now");
    assert_eq!(direct.status(flush), OK);
}

#[test]
fn writes_go_on_when_the_queue_with_the_walk_is_stopped() {
    for by_disabling in [false, true] {
        let (disk, sector) = for_a_long_walk();
        let direct = with_queues(disk, 2);
        let long = direct.put(0, 0, 1, Payload::Write(&sector));
        let write = direct.put(1, 0, DATA + 2300, Payload::Write(&[0xff; 512]));
        direct.round();
        assert_eq!((direct.status(long), direct.status(write)), (None, None));
        if by_disabling {
            direct.enable(0, false);
        } else {
            assert_eq!(direct.stop(0), 0, "it was given back");
        }
        direct.turn();
        assert_eq!((direct.status(long), direct.status(write)), (None, OK));
        if by_disabling {
            direct.enable(0, true);
        } else {
            direct.start(0);
        }
        direct.turn();
        assert_eq!(direct.status(long), REFUSED, "its items are others by now");
    }
}

/// A flusher whose flushes end when they are told to, and the number of those that have begun.
fn told() -> (Flusher, Sender<()>, Arc<AtomicU64>) {
    let (go_on, goes_on) = channel();
    let begun = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&begun);
    let sync = move || {
        count.fetch_add(1, Ordering::SeqCst);
        goes_on.recv().unwrap();
        Ok(())
    };
    (Flusher::by(&FlushPool::new(), sync).unwrap(), go_on, begun)
}

#[test]
fn flush_answers_for_writes_of_all_queues_and_is_shared() {
    let (flusher, go_on, begun) = told();
    let direct = Direct::with_queues(Disk::new(Side::Producer), 6, flusher);
    let first = direct.put(0, 0, 0, Payload::Flush);
    direct.turn();
    // That flush may have begun: it answers for none of these.
    let write = direct.put(1, 0, DATA, Payload::Write(&[7; 512]));
    let waiting: Vec<Place> = (2..6).map(|queue| direct.put(queue, 0, 0, Payload::Flush)).collect();
    direct.turn();
    assert_eq!((direct.status(first), direct.status(write)), (None, OK));
    go_on.send(()).unwrap();
    while direct.status(first).is_none() {
        direct.turn();
    }
    assert!(waiting.iter().all(|flush| direct.status(*flush).is_none()));
    go_on.send(()).unwrap();
    while waiting.iter().any(|flush| direct.status(*flush).is_none()) {
        direct.turn();
    }
    assert_eq!(begun.load(Ordering::SeqCst), 2, "one for the four of them");
}

#[test]
fn write_through_costs_one_flush_for_the_writes_that_wait() {
    let (flusher, go_on, begun) = told();
    let direct = Direct::with_queues(Disk::new(Side::Producer), 16, flusher);
    direct.set_write_through(true);
    let writes: Vec<_> =
        (0..16).map(|queue| direct.put(queue, 0, DATA, Payload::Write(&[7; 512]))).collect();
    direct.turn();
    for _ in 0..2 {
        go_on.send(()).unwrap();
    }
    while writes.iter().any(|write| direct.status(*write).is_none()) {
        direct.turn();
    }
    assert_eq!(begun.load(Ordering::SeqCst), 2, "one for the first, one for all others");
}

#[test]
fn write_through_costs_one_flush_for_the_writes_that_wait_in_a_queue() {
    let (flusher, go_on, begun) = told();
    let direct = Direct::with_queues(Disk::new(Side::Producer), 1, flusher);
    direct.set_write_through(true);
    let write = |byte| direct.put(0, 0, DATA, Payload::Write(&[byte; 512]));
    let writes: Vec<_> = (0..5).map(write).collect();
    // A read and a refused write are answered behind them, and end what shares the flush.
    let read = direct.put(0, 0, DATA, Payload::Read(512));
    let refused = direct.put(0, 0, 0, Payload::Write(&[1; 512]));
    let later = [write(8), write(9)];
    let flush = direct.put(0, 0, 0, Payload::Flush);
    direct.turn();
    let all = || writes.iter().chain([&read, &refused]).chain(&later).chain([&flush]);
    assert!(all().all(|place| direct.status(*place).is_none()), "nothing is durable yet");
    assert_eq!(direct.used(0), 0);
    go_on.send(()).unwrap();
    while direct.status(read).is_none() || direct.status(refused).is_none() {
        direct.turn();
    }
    assert!(writes.iter().all(|place| direct.status(*place) == OK));
    assert_eq!((direct.status(read), direct.status(refused)), (OK, REFUSED));
    assert!(direct.data(read, 512) == [4; 512]);
    assert_eq!(later.map(|place| direct.status(place)), [None, None]);
    go_on.send(()).unwrap();
    while direct.status(flush).is_none() {
        direct.turn();
    }
    assert_eq!(later.map(|place| direct.status(place)), [OK, OK]);
    assert_eq!((begun.load(Ordering::SeqCst), direct.used(0)), (2, 10));
}

#[test]
fn stop_gives_back_all_writes_that_wait_for_a_flush() {
    let (flusher, go_on, _) = told();
    let direct = Direct::with_queues(Disk::new(Side::Producer), 1, flusher);
    direct.set_write_through(true);
    let writes: Vec<_> =
        (0..5).map(|byte| direct.put(0, 0, DATA, Payload::Write(&[byte; 512]))).collect();
    direct.turn();
    assert_eq!(direct.stop(0), 0);
    go_on.send(()).unwrap();
    direct.turn();
    assert!(writes.iter().all(|place| direct.status(*place).is_none()));
    direct.start(0);
    go_on.send(()).unwrap();
    while direct.used(0) < 5 {
        direct.turn();
    }
    assert!(writes.iter().all(|place| direct.status(*place) == OK));
}

#[test]
fn writes_that_share_a_failed_flush_all_fail() {
    let flusher = Flusher::by(&FlushPool::new(), || Err(std::io::ErrorKind::Other.into())).unwrap();
    let direct = Direct::with_queues(Disk::new(Side::Producer), 1, flusher);
    direct.set_write_through(true);
    let writes: Vec<_> =
        (0..5).map(|byte| direct.put(0, 0, DATA, Payload::Write(&[byte; 512]))).collect();
    while direct.used(0) < 5 {
        direct.turn();
    }
    assert!(writes.iter().all(|place| direct.status(*place) == REFUSED));
}

/// An idle-class read of the host's pointer sector.
fn idle_read(direct: &Direct, queue: usize) -> Place {
    direct.put(queue, IDLE, 2, Payload::Read(512))
}

#[test]
fn read_is_held_until_the_host_moves_or_any_queue_has_a_request() {
    let disk = Disk::new(Side::Producer);
    let host = disk.outside()();
    let direct = with_queues(disk, 3);
    let told = idle_read(&direct, 0);
    direct.turn();
    assert_eq!(direct.status(told), OK);
    // The guest's process may run on another processor now.
    let held = idle_read(&direct, 1);
    assert!(matches!(direct.turn(), TurnEnd::Sleep(Some(_))));
    assert_eq!(direct.status(held), None);
    // Queues are visited in the order of their numbers, and this one is behind.
    let other = direct.put(2, 0, DATA, Payload::Read(512));
    direct.turn_after(QueueSet::one(2));
    assert_eq!((direct.status(other), direct.status(held)), (OK, OK));
    let again = idle_read(&direct, 0);
    direct.turn();
    assert_eq!(direct.status(again), None);
    suspend(host);
    direct.turn();
    assert_eq!(direct.status(again), OK, "the host has moved");
}

/// Other queues' requests end a held read, but not before the writes in front of it are durable.
#[test]
fn worker_sleeps_while_a_held_read_waits_behind_a_flush() {
    let (flusher, go_on, _) = told();
    let direct = Direct::with_queues(Disk::new(Side::Producer), 2, flusher);
    direct.set_write_through(true);
    let first = idle_read(&direct, 0);
    direct.turn();
    assert_eq!(direct.status(first), OK);
    let write = direct.put(0, 0, DATA, Payload::Write(&[7; 512]));
    let second = direct.put(0, 0, DATA, Payload::Write(&[8; 512]));
    let held = idle_read(&direct, 0);
    let other = direct.put(1, 0, DATA, Payload::Read(512));
    let (ended, ends) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| ended.send(direct.turn()).unwrap());
        let end = ends.recv_timeout(PATIENCE);
        let answered = [write, second, held, other].map(|place| direct.status(place));
        go_on.send(()).unwrap();
        assert_eq!(end, Ok(TurnEnd::Sleep(None)));
        assert_eq!(answered, [None, None, None, OK]);
    });
    while direct.status(held).is_none() {
        direct.turn();
    }
    assert_eq!([write, second, held].map(|place| direct.status(place)), [OK; 3]);
}

/// Changes the host's pointer sector.
fn suspend(device: MappedDevice) {
    Control::open(device).unwrap().suspend().unwrap();
}

#[test]
fn stop_of_a_queue_gives_back_its_held_read() {
    let direct = with_queues(Disk::new(Side::Producer), 2);
    let told = idle_read(&direct, 0);
    direct.turn();
    assert_eq!(direct.status(told), OK);
    let held = idle_read(&direct, 0);
    direct.turn();
    assert_eq!(direct.stop(0), 1, "behind the one that was answered");
    direct.turn();
    assert_eq!(direct.status(held), None);
    direct.start(0);
    direct.turn();
    assert_eq!(direct.status(held), OK, "a guest that starts was told nothing");
}

#[test]
fn disabled_queue_answers_nothing_and_forgets_nothing() {
    let direct = with_queues(Disk::new(Side::Producer), 2);
    direct.turn();
    direct.enable(1, false);
    let parked = direct.put(1, 0, DATA, Payload::Write(&[9; 512]));
    let other = direct.put(0, 0, DATA, Payload::Read(512));
    direct.turn();
    assert_eq!((direct.status(parked), direct.status(other)), (None, OK));
    direct.enable(1, true);
    direct.turn();
    assert_eq!(direct.status(parked), OK);
}

/// A guest consumer's flag at an unchanged position is meant, unless the write was waiting when its
/// queue started: then it may repeat an `advance` that was carried out.
#[test]
fn only_a_queues_first_request_may_be_a_repeated_one() {
    let disk = Disk::new(Side::Consumer);
    let (outside, at) = (disk.outside(), 2 * 512 + FLAG_AT as u64);
    drop(Producer::attach(outside(), "queue", "host").unwrap());
    let start = disk.bytes()[2 * 512..3 * 512].to_vec();
    let suspended = {
        let mut sector = start.clone();
        sector[FLAG_AT] = 1;
        sector
    };
    let ring = open(&disk.path);
    let flag = || {
        let mut byte = [0];
        ring.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    };
    let direct = with_queues(disk, 2);
    let waiting = direct.put(0, 0, 2, Payload::Write(&suspended));
    direct.turn();
    assert_eq!((direct.status(waiting), flag()), (OK, 2), "not stored");
    let first = direct.put(1, 0, 2, Payload::Write(&suspended));
    direct.turn();
    assert_eq!((direct.status(first), flag()), (OK, 1), "nothing was waiting there");
    let meant = direct.put(0, 0, 2, Payload::Write(&start));
    direct.turn();
    assert_eq!((direct.status(meant), flag()), (OK, 2));
}
