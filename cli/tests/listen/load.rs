//! Many senders at once, and a producer that is killed among them.

use super::senders::{Listening, connect, send, wait_for_acknowledgement, while_moving};
use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::process::{Guarded, eventually, signal, state};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Senders, and the records of each: 100,032 in all.
const SENDERS: u64 = 64;
const RECORDS: u64 = 1563;

/// Records that a sender sends before it looks for acknowledgements.
const WINDOW: u64 = 32;

/// Returns a record, which tells its sender, its number, and whether it is whole.
fn record(sender: u64, number: u64) -> Vec<u8> {
    let mut bytes = format!("{sender} {number} ").into_bytes();
    let filling = (sender * 7 + number) % 150;
    bytes.extend((0..filling).map(|at| b'a' + ((number + at) % 26) as u8));
    bytes
}

/// Sends the records from number `from` on over one connection, until it ends. `acknowledged` has
/// the number of the first record that is not acknowledged.
fn send_from(stream: &UnixStream, sender: u64, from: u64, acknowledged: &AtomicU64) {
    let (mut next, mut text) = (from, Vec::new());
    stream.set_nonblocking(true).unwrap();
    while acknowledged.load(Ordering::Relaxed) < RECORDS {
        let mut bytes = Vec::new();
        let window = next..RECORDS.min(next + WINDOW);
        next = window.end;
        for number in window {
            let record = record(sender, number);
            bytes.extend(u32::try_from(record.len()).unwrap().to_le_bytes());
            bytes.extend(record);
        }
        let mut rest = &bytes[..];
        let mut is_open = true;
        while is_open && (!rest.is_empty() || acknowledged.load(Ordering::Relaxed) < next) {
            match (&*stream).write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Acknowledgements from before the end can still be read.
                Err(_) => is_open = false,
            }
            loop {
                let mut some = [0; 512];
                match (&*stream).read(&mut some) {
                    Ok(0) => is_open = false,
                    Ok(count) => {
                        text.extend(&some[..count]);
                        continue;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_micros(200));
                    }
                    Err(_) => is_open = false,
                }
                break;
            }
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let lines: Vec<u8> = text.drain(..whole).collect();
            if let Some(line) = String::from_utf8(lines).unwrap().lines().last() {
                let count: u64 = line.parse().unwrap();
                assert!(from + count <= next, "acknowledged before it was sent");
                acknowledged.fetch_max(from + count, Ordering::Relaxed);
            }
        }
        if !is_open {
            return;
        }
    }
}

/// Sends all records of a sender: over a new connection whenever one ends, from the first record on
/// that was not acknowledged.
fn send_all(path: &Path, sender: u64, acknowledged: &AtomicU64) {
    while acknowledged.load(Ordering::Relaxed) < RECORDS {
        match UnixStream::connect(path) {
            Ok(stream) => {
                send_from(&stream, sender, acknowledged.load(Ordering::Relaxed), acknowledged);
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn acknowledged_records_of_64_senders_survive_kills_of_the_producer() {
    const KILLS: [u64; 3] = [10_000, 40_000, 75_000];
    let scene = Scene::with_ring("64M");
    let acknowledged: Vec<AtomicU64> = (0..SENDERS).map(|_| AtomicU64::new(0)).collect();
    let all = || acknowledged.iter().map(|one| one.load(Ordering::Relaxed)).sum();
    let path = scene.path("in");
    let arguments = ["--framing", "length", "--json", "--listen", "unix:in"];
    let mut report = serde_json::Value::Null;
    thread::scope(|scope| {
        for (sender, acknowledged) in acknowledged.iter().enumerate() {
            let path = &path;
            scope.spawn(move || send_all(path, sender as u64, acknowledged));
        }
        for goal in KILLS {
            let mut listening = Listening::start(&scene, &arguments);
            while_moving(all, |now| now >= goal);
            signal(&listening.child, Signal::SIGKILL);
            listening.child.wait().unwrap();
        }
        let listening = Listening::start(&scene, &arguments);
        while_moving(all, |now| now == SENDERS * RECORDS);
        report = listening.report();
    });
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    let items = scene.items();
    for item in &items {
        let text = String::from_utf8(item.clone()).unwrap();
        let mut words = text.split(' ');
        let sender: u64 = words.next().unwrap().parse().unwrap();
        let number: u64 = words.next().unwrap().parse().unwrap();
        assert_eq!(*item, record(sender, number), "a record is torn");
        // A record that was not acknowledged before a kill can come again, with those behind it.
        let next = next.entry(sender).or_default();
        assert!(number <= *next, "records {next} to {number} of sender {sender} are lost");
        *next = (*next).max(number + 1);
    }
    assert_eq!(next.len() as u64, SENDERS);
    assert!(next.values().all(|next| *next == RECORDS));
    // Many records share the advance, and its flushes.
    let (count, groups) = (report["items"].as_u64().unwrap(), report["groups"].as_u64().unwrap());
    assert!(groups < count, "{groups} groups of {count} items");
}

#[test]
fn records_that_come_together_are_published_together_and_one_alone_at_once() {
    const COUNT: u64 = 50;
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--json", "--listen", "unix:in"]);
    let senders: Vec<_> = (0..COUNT).map(|_| connect(&scene, "in")).collect();
    for sender in &senders {
        // Nothing else arrives that could bring the acknowledgement.
        send(sender, b"alone\n", 1);
    }
    signal(&listening.child, Signal::SIGSTOP);
    eventually("the producer is stopped", || state(listening.child.id()) == 'T');
    for mut sender in &senders {
        sender.write_all(b"together\n").unwrap();
    }
    signal(&listening.child, Signal::SIGCONT);
    for sender in &senders {
        wait_for_acknowledgement(sender, 2);
    }
    let report = listening.report();
    assert_eq!(report["items"], 2 * COUNT);
    // It may have been stopped between a wait for senders and the reads.
    let groups = report["groups"].as_u64().unwrap();
    assert!((COUNT + 1..=COUNT + 2).contains(&groups), "{groups} groups");
}

/// Sets the flag when it is dropped, also by a test that fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn sender_of_single_records_is_served_beside_senders_that_never_pause() {
    const FLOODS: usize = 8;
    let scene = Scene::with_ring("1M");
    let listening = Listening::start(&scene, &["--listen", "unix:in"]);
    // Together they have more to read in each turn than a group takes.
    let floods: Vec<_> = (0..FLOODS).map(|_| connect(&scene, "in")).collect();
    let single = connect(&scene, "in");
    let consume = ["consume", "--follow", "--no-flush", "ring"];
    let mut consume = scene.without_input(&consume);
    let _consumer = Guarded::start(consume.stdout(Stdio::null()));
    let is_over = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        for mut flood in &floods {
            let (is_over, sent) = (&is_over, &sent);
            scope.spawn(move || {
                let lines = [&[b'x'; 1023][..], b"\n"].concat().repeat(256);
                while !is_over.load(Ordering::Relaxed) && flood.write_all(&lines).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = Ends(&is_over);
        while_moving(|| sent.load(Ordering::Relaxed), |count| count > FLOODS as u64);
        for count in 1..=50 {
            send(&single, b"alone\n", count);
        }
        drop(end);
    });
    // How it would end depends on whether the ring is full just then.
    drop(listening);
}
