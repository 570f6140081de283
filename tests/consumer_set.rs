//! Many consumers in one wait: nothing is missed, nobody waits for another, and rest is rest.
#![allow(clippy::unwrap_used)]

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Served, Word};
use shared_block_ring::device::{Displaced, Mapping};
use shared_block_ring::{
    Consumer, ConsumerSet, CreateOptions, Error, Key, MappedDevice, Occurrence, Producer,
    RingDevice, create,
};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

type Device = Box<dyn RingDevice>;

/// Longest wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a small ring.
const BYTES: usize = 64 << 10;

fn attach(device: Device) -> Consumer<Device> {
    Consumer::attach(device, "queue", "consumer").unwrap()
}

fn publish<D: RingDevice>(producer: &mut Producer<D>, item: &str) {
    let end = producer.push(item).unwrap();
    producer.advance(end).unwrap();
}

/// Waits for the next reports.
fn next(set: &mut ConsumerSet<Device>) -> Vec<Occurrence> {
    let mut occurrences = Vec::new();
    let end = Instant::now() + PATIENCE;
    while occurrences.is_empty() {
        assert!(Instant::now() < end, "nothing was reported");
        set.wait(Some(PATIENCE), &mut occurrences).unwrap();
    }
    occurrences
}

/// Waits for the next report, which is the only one.
fn only(set: &mut ConsumerSet<Device>) -> Occurrence {
    let mut occurrences = next(set);
    assert_eq!(occurrences.len(), 1, "{occurrences:?}");
    occurrences.remove(0)
}

fn items_of(occurrences: &[Occurrence]) -> Vec<Key> {
    let items = |occurrence: &Occurrence| match occurrence {
        Occurrence::Items(key) => *key,
        other => panic!("{other:?}"),
    };
    occurrences.iter().map(items).collect()
}

fn is_items(occurrence: &Occurrence, key: Key) -> bool {
    matches!(occurrence, Occurrence::Items(of) if *of == key)
}

/// Takes one item, and lets the consumer rest again.
fn take(set: &mut ConsumerSet<Device>, key: Key) -> String {
    let consumer = set.get_mut(key).unwrap();
    let (next, item) = consumer.pop_as::<String>(consumer.position()).unwrap();
    consumer.advance(next).unwrap();
    set.rest(key, next);
    item
}

/// Asserts that nothing is reported for a moment.
fn assert_quiet(set: &mut ConsumerSet<Device>) {
    let mut occurrences = Vec::new();
    set.wait(Some(Duration::from_millis(20)), &mut occurrences).unwrap();
    assert!(occurrences.is_empty(), "{occurrences:?}");
}

#[test]
fn set_reports_rings_of_all_kinds_once_for_each_rest() {
    let file = RingFile::new(BYTES, 512);
    let memory = Arc::new(Mapping::anonymous(BYTES as u64).unwrap());
    let mapped = || {
        let geometry = shared_block_ring::BlockDevice::geometry(&file.open());
        MappedDevice::over(Arc::clone(&memory), "memory", geometry)
    };
    create(&mapped(), CreateOptions::default()).unwrap();
    let (mut served, device) = Served::new();
    let mut set = ConsumerSet::new().unwrap();
    let keys = [device, Box::new(file.open()), Box::new(mapped())]
        .map(|device: Device| set.add(attach(device)).unwrap());
    assert_quiet(&mut set);
    let mut producers = (file.producer().unwrap(), Producer::attach(mapped(), "q", "p").unwrap());
    for round in 0..3 {
        let item = format!("item {round}");
        assert!(served.publish(&item), "the set did not sleep");
        publish(&mut producers.0, &item);
        publish(&mut producers.1, &item);
        let mut reported = Vec::new();
        while reported.len() < keys.len() {
            reported.extend(items_of(&next(&mut set)));
        }
        reported.sort();
        assert_eq!(reported, keys);
        // They are the caller's now.
        assert_quiet(&mut set);
        for key in keys {
            assert_eq!(take(&mut set, key), item);
        }
        assert_quiet(&mut set);
    }
}

#[test]
fn busy_ring_comes_behind_others() {
    let (mut busy, device) = Served::new();
    let (mut other, other_device) = Served::new();
    let mut set = ConsumerSet::new().unwrap();
    let busy_key = set.add(attach(device)).unwrap();
    let other_key = set.add(attach(other_device)).unwrap();
    for round in 0..20 {
        busy.publish("busy");
        busy.publish("busy");
        assert_eq!(items_of(&next(&mut set)), [busy_key]);
        other.publish(&round.to_string());
        take(&mut set, busy_key);
        // The busy ring has more, and the other one's bell was rung.
        let mut reported = items_of(&next(&mut set));
        if !reported.contains(&other_key) {
            take(&mut set, busy_key);
            reported = items_of(&next(&mut set));
        }
        assert!(reported.contains(&other_key), "round {round}: {reported:?}");
        assert_eq!(take(&mut set, other_key), round.to_string());
        let consumer = set.get_mut(busy_key).unwrap();
        while let Ok((next, _)) = consumer.pop_as::<String>(consumer.position()) {
            consumer.advance(next).unwrap();
        }
        let position = consumer.position();
        set.rest(busy_key, position);
    }
}

#[test]
fn no_wake_up_is_lost_between_two_threads() {
    const ITEMS: u32 = 3000;
    let (mut served, device) = Served::new();
    let mut set = ConsumerSet::new().unwrap();
    let key = set.add(attach(device)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..ITEMS {
                let end = loop {
                    match served.producer.push(&number.to_string()) {
                        Err(Error::Retry) => std::thread::yield_now(),
                        pushed => break pushed.unwrap(),
                    }
                };
                served.producer.advance(end).unwrap();
                served.client.ring();
            }
        });
        for number in 0..ITEMS {
            assert!(is_items(&only(&mut set), key));
            assert_eq!(take(&mut set, key), number.to_string());
        }
    });
}

#[test]
fn thousand_idle_rings_wake_the_set_once_a_second() {
    // Each has eight descriptors at most, and three of the backend's.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let count = usize::try_from(hard / 16).unwrap().min(1000);
    let mut set = ConsumerSet::new().unwrap();
    let mut served = Vec::new();
    for _ in 0..count {
        let (ring, device) = Served::new();
        set.add(attach(device)).unwrap();
        served.push(ring);
    }
    let mut occurrences = Vec::new();
    set.wait(Some(Duration::ZERO), &mut occurrences).unwrap();
    let (begin, before) = (Instant::now(), set.counters());
    while begin.elapsed() < Duration::from_secs(2) {
        set.wait(Some(Duration::from_secs(2)), &mut occurrences).unwrap();
    }
    assert!(occurrences.is_empty(), "{occurrences:?}");
    let after = set.counters();
    let seconds = begin.elapsed().as_secs() + 2;
    let wakeups = after.wakeups - before.wakeups;
    // The rounds of checks, and the ends of the two waits.
    assert!(wakeups <= 2 * seconds, "{wakeups} wake-ups in {seconds} s");
    assert_eq!(after.looks, before.looks);
    let checks = after.checks - before.checks;
    assert!(checks <= seconds * count.div_ceil(10).max(16) as u64, "{checks} checks");
    // And it still hears each of them.
    for ring in &mut served {
        assert!(ring.publish("item"));
    }
    let mut reported = 0;
    while reported < count {
        reported += next(&mut set).len();
    }
}

#[test]
fn backend_that_is_gone_or_silent_delays_no_other_ring() {
    let (mut gone, device) = Served::new();
    let (mut other, other_device) = Served::new();
    let mut set = ConsumerSet::new().unwrap();
    let key = set.add(attach(device)).unwrap();
    let other_key = set.add(attach(other_device)).unwrap();
    let Served { client, .. } = gone;
    drop(client);
    assert!(matches!(only(&mut set), Occurrence::Away(of) if of == key));
    other.publish("one");
    assert!(is_items(&only(&mut set), other_key));
    assert_eq!(take(&mut set, other_key), "one");

    // A backend that takes the connection and says nothing.
    let socket = gone.file.path.with_extension("socket");
    std::fs::remove_file(&socket).unwrap();
    let backend = Backend::new(&gone.file, Word::Guarded);
    let silent = std::thread::scope(|scope| {
        let silent = scope.spawn(|| backend.next());
        while !silent.is_finished() {
            assert_quiet(&mut set);
        }
        silent.join().unwrap()
    });
    other.publish("two");
    assert!(is_items(&only(&mut set), other_key));
    assert_eq!(take(&mut set, other_key), "two");
    // It goes away without an answer, and the next one answers.
    drop(silent);
    let client = std::thread::scope(|scope| {
        let serving = scope.spawn(|| backend.accept());
        assert!(matches!(only(&mut set), Occurrence::Back(of) if of == key));
        serving.join().unwrap()
    });
    publish(&mut gone.producer, "after");
    assert!(client.ring(), "the set does not sleep on the new backend");
    assert!(is_items(&only(&mut set), key));
    assert_eq!(take(&mut set, key), "after");
}

#[test]
fn items_are_read_while_the_backend_is_gone() {
    let (mut served, device) = Served::new();
    let mut set = ConsumerSet::new().unwrap();
    let key = set.add(attach(device)).unwrap();
    publish(&mut served.producer, "one");
    publish(&mut served.producer, "two");
    drop(served.client);
    let mut reported = next(&mut set);
    while reported.len() < 2 {
        reported.extend(next(&mut set));
    }
    assert!(reported.iter().any(|o| matches!(o, Occurrence::Away(of) if *of == key)));
    assert!(reported.iter().any(|o| is_items(o, key)));
    assert_eq!(take(&mut set, key), "one");
    assert!(is_items(&only(&mut set), key));
    assert_eq!(take(&mut set, key), "two");
}

#[test]
fn another_ring_in_the_place_of_one_is_reported_once_for_each_rest() {
    let (served, device) = Served::new();
    let mut set = ConsumerSet::new().unwrap();
    let key = set.add(attach(device)).unwrap();
    let other = RingFile::new(BYTES, 512);
    let socket = served.file.path.with_extension("socket");
    let backend = Backend::new(&other, Word::Guarded);
    std::fs::rename(other.path.with_extension("socket"), &socket).unwrap();
    drop(served.client);
    for _ in 0..2 {
        let error = std::thread::scope(|scope| {
            let serving = scope.spawn(|| backend.accept());
            assert!(matches!(only(&mut set), Occurrence::Away(of) if of == key));
            let failed = only(&mut set);
            drop(serving.join().unwrap());
            match failed {
                Occurrence::Failed(of, Error::Device(error)) if of == key => error,
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(Displaced::of(&error), Some(&Displaced::AnotherRing));
        assert_quiet(&mut set);
        let position = set.get_mut(key).unwrap().position();
        set.rest(key, position);
    }
}

#[test]
fn ring_that_fails_is_reported_by_itself() {
    let rings = [RingFile::new(BYTES, 512), RingFile::new(BYTES, 512), RingFile::new(BYTES, 512)];
    let mut set = ConsumerSet::new().unwrap();
    let keys = [0, 1, 2].map(|n: usize| set.add(attach(Box::new(rings[n].open()))).unwrap());
    let mut producers = [0, 1].map(|n: usize| rings[n].producer().unwrap());
    std::fs::remove_file(&rings[2].path).unwrap();
    assert!(matches!(only(&mut set), Occurrence::Failed(key, Error::Device(_)) if key == keys[2]));
    // The published bytes are not what the producer wrote.
    publish(&mut producers[0], "damaged");
    corrupt(&rings[0].path, b"damaged");
    publish(&mut producers[1], "sound");
    let mut reported = next(&mut set);
    while reported.len() < 2 {
        reported.extend(next(&mut set));
    }
    reported.retain(|occurrence| !is_items(occurrence, keys[1]));
    let failed =
        |o: &Occurrence| matches!(o, Occurrence::Failed(key, Error::Format(_)) if *key == keys[0]);
    assert!(reported.len() == 1 && failed(&reported[0]), "{reported:?}");
    assert_eq!(take(&mut set, keys[1]), "sound");
}

/// Changes a byte of the item in the file.
fn corrupt(path: &Path, item: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(item.len()).rposition(|window| window == item).unwrap();
    bytes[at] ^= 1;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..=at], at as u64).unwrap();
}

#[test]
fn removed_consumer_is_never_reported_and_its_key_names_no_other() {
    let (mut served, device) = Served::new();
    let file = RingFile::new(BYTES, 512);
    let mut set = ConsumerSet::new().unwrap();
    let key = set.add(attach(device)).unwrap();
    assert!(served.publish("item"));
    let mut consumer = set.remove(key).unwrap();
    let second = set.add(attach(Box::new(file.open()))).unwrap();
    assert_ne!(key, second);
    assert!(set.get_mut(key).is_none() && set.remove(key).is_none());
    assert_eq!((set.len(), set.keys().collect::<Vec<_>>()), (1, vec![second]));
    // The bell was rung, and the backend goes: of neither the set hears.
    let Served { client, .. } = served;
    drop(client);
    assert_quiet(&mut set);
    assert_eq!(consumer.pop_as::<String>(consumer.position()).unwrap().1, "item");
    set.remove(second).unwrap();
    assert!(set.is_empty());
}

#[test]
fn watched_descriptor_ends_the_wait_while_it_is_readable() {
    let mut set = ConsumerSet::<Device>::new().unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    set.watch(7, reader.as_fd()).unwrap();
    assert_quiet(&mut set);
    writer.write_all(b"x").unwrap();
    for _ in 0..2 {
        assert!(matches!(only(&mut set), Occurrence::Readable(7)));
    }
    set.unwatch(reader.as_fd()).unwrap();
    assert_quiet(&mut set);
}

#[test]
fn consumer_knows_when_its_items_were_published() {
    let file = RingFile::new(BYTES, 512);
    let (mut consumer, mut producer) = (file.consumer().unwrap(), file.producer().unwrap());
    assert_eq!(consumer.published_at(), None);
    let before = SystemTime::now();
    publish(&mut producer, "item");
    let after = SystemTime::now();
    consumer.pop(consumer.position()).unwrap();
    let at = consumer.published_at().unwrap();
    assert!(before <= at && at <= after);
}
