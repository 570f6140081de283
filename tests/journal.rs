//! A journal performs every entry at least once, in order, whatever fails.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use ring_test_support::journal::{Done, NEVER, entry, keeping, options};
use ring_test_support::process::PATIENCE;
use shared_block_ring::{
    Decode, Encode, Journal, JournalError, JournalOptions, SyncError, Synced, WhenAbsent, WhenFull,
};
use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

fn start(
    ring: &RingFile,
    options: JournalOptions,
    perform: impl FnMut(&[String]) -> Result<(), String> + Send + 'static,
) -> Journal<String> {
    Journal::start(ring.open(), options, perform).unwrap()
}

#[test]
fn journal_performs_entries_in_order() {
    let (ring, done) = (RingFile::new(65536, 512), Done::default());
    let journal = start(&ring, options(), keeping(&done));
    let tickets: Vec<_> = (0..500).map(|n| journal.push(&entry(n)).unwrap()).collect();
    assert_eq!(tickets[499].sync(Some(PATIENCE)).unwrap(), Synced::Performed);
    assert_eq!(tickets[0].sync(Some(Duration::ZERO)).unwrap(), Synced::Performed);
    assert_eq!(*done.lock().unwrap(), (0..500).map(entry).collect::<Vec<_>>());
}

#[test]
fn journal_performs_at_its_start_what_a_shutdown_has_left() {
    let (ring, done) = (RingFile::new(65536, 512), Done::default());
    let journal = start(&ring, options(), |_| Err("not today".to_owned()));
    for number in 0..10 {
        journal.push(&entry(number)).unwrap();
    }
    journal.shutdown();
    assert!(matches!(journal.push(&entry(10)), Err(JournalError::ShutDown)));
    drop(journal);
    let mut unhurried = options();
    unhurried.flush_interval = NEVER;
    let journal = start(&ring, unhurried, keeping(&done));
    let ticket = journal.push(&entry(10)).unwrap();
    ticket.flush();
    ticket.sync(Some(PATIENCE)).unwrap();
    assert_eq!(*done.lock().unwrap(), (0..=10).map(entry).collect::<Vec<_>>());
}

#[test]
fn journal_retries_after_an_error_or_a_panic_without_another_push() {
    let (ring, done) = (RingFile::new(65536, 512), Done::default());
    let mut keep = keeping(&done);
    let mut attempts = 0;
    let journal = start(&ring, options(), move |entries| {
        attempts += 1;
        match attempts {
            1 => Err("an error".to_owned()),
            2 => panic!("a panic"),
            _ => keep(entries),
        }
    });
    let ticket = journal.push(&entry(0)).unwrap();
    assert_eq!(ticket.sync(Some(PATIENCE)).unwrap(), Synced::Performed);
    assert_eq!(*done.lock().unwrap(), [entry(0)]);
}

#[test]
fn entry_that_always_fails_is_set_aside_alone() {
    let (ring, done) = (RingFile::new(65536, 512), Done::default());
    let (aside, set_aside) = channel();
    let mut refused_once = false;
    let mut options = JournalOptions::new(move |entry| {
        if !std::mem::replace(&mut refused_once, true) {
            return Err(std::io::Error::other("the place for those is full"));
        }
        aside.send(entry.clone()).unwrap();
        Ok(())
    });
    options.retry_interval = Duration::from_millis(1);
    options.max_failures = NonZeroU32::new(3);
    let mut keep = keeping(&done);
    let journal = start(&ring, options, move |entries| {
        if entries.contains(&entry(2)) { Err("poison".to_owned()) } else { keep(entries) }
    });
    let tickets: Vec<_> = (0..5).map(|n| journal.push(&entry(n)).unwrap()).collect();
    tickets[4].flush();
    assert_eq!(tickets[4].sync(Some(PATIENCE)).unwrap(), Synced::Performed);
    assert_eq!(tickets[2].sync(None).unwrap(), Synced::Aside);
    let aside = set_aside.recv().unwrap();
    assert_eq!((aside.bytes, aside.reason), (entry(2).into_bytes(), "poison".to_owned()));
    assert!(set_aside.try_recv().is_err(), "once");
    assert_eq!(*done.lock().unwrap(), [0, 1, 3, 4].map(entry));
}

/// Decodes only even numbers.
#[derive(Debug, Clone, PartialEq)]
struct Even(u8);

impl Encode for Even {
    fn encode(&self) -> Cow<'_, [u8]> {
        Cow::Owned(vec![self.0])
    }
}

impl Decode<'_> for Even {
    type Error = String;

    fn decode(payload: &[u8]) -> Result<Self, String> {
        match payload {
            [even] if even % 2 == 0 => Ok(Self(*even)),
            other => Err(format!("odd: {other:?}")),
        }
    }
}

#[test]
fn entry_that_does_not_decode_is_set_aside() {
    let ring = RingFile::new(65536, 512);
    let (aside, set_aside) = channel();
    let options = JournalOptions::new(move |entry| {
        aside.send(entry.bytes.clone()).unwrap();
        Ok(())
    });
    let (performed, done) = channel();
    let journal = Journal::start(ring.open(), options, move |entries: &[Even]| {
        performed.send(entries.to_vec()).map_err(|e| e.to_string())
    })
    .unwrap();
    for number in [2, 3, 4] {
        journal.push(&Even(number)).unwrap();
    }
    let ticket = journal.push(&Even(5)).unwrap();
    ticket.flush();
    assert_eq!(ticket.sync(Some(PATIENCE)).unwrap(), Synced::Aside);
    assert_eq!(set_aside.try_iter().collect::<Vec<_>>(), [[3], [5]]);
    assert_eq!(done.try_iter().flatten().collect::<Vec<_>>(), [Even(2), Even(4)]);
}

#[test]
fn entry_waits_for_others_no_longer_than_the_flush_interval() {
    let ring = RingFile::new(1 << 20, 512);
    let mut options = options();
    options.flush_interval = Duration::from_millis(200);
    let (performed, done) = channel();
    let journal = start(&ring, options, move |entries| {
        performed.send(entries.len()).map_err(|e| e.to_string())
    });
    // An interval that every push began anew would never be over.
    let start = Instant::now();
    let mut pushed = 0;
    while done.try_recv().is_err() {
        journal.push(&entry(pushed)).unwrap();
        pushed += 1;
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(start.elapsed() >= Duration::from_millis(200), "they did wait for company");
    assert!(pushed > 1);
}

/// A `perform` that waits for leave, entry by entry.
fn held() -> (Sender<()>, impl FnMut(&[String]) -> Result<(), String> + Send + 'static) {
    let (leave, wait): (_, Receiver<()>) = channel();
    (leave, move |_: &[String]| wait.recv().map_err(|e| e.to_string()))
}

#[test]
fn full_journal_performs_at_once_and_push_waits_or_fails() {
    for when_full in [WhenFull::Wait, WhenFull::Fail] {
        let ring = RingFile::new(2048, 512);
        let (leave, perform) = held();
        let mut options = options();
        options.flush_interval = NEVER;
        options.max_batch = 1;
        options.when_full = when_full;
        let journal = Arc::new(start(&ring, options, perform));
        let large = "x".repeat(300);
        journal.push(&large).unwrap();
        if when_full == WhenFull::Fail {
            assert!(matches!(journal.push(&large), Err(JournalError::Full)));
            // What made it full is being performed, though its flush interval is not over.
            leave.send(()).unwrap();
            let room = || journal.push(&large).is_ok();
            let start = Instant::now();
            while !room() {
                assert!(start.elapsed() < PATIENCE);
                std::thread::yield_now();
            }
        } else {
            leave.send(()).unwrap();
            journal.push(&large).unwrap();
        }
        drop(leave);
        journal.shutdown();
    }
}

#[test]
fn shutdown_is_prompt_and_ends_every_wait() {
    for failing in [true, false] {
        let ring = RingFile::new(65536, 512);
        let mut options = options();
        // It is in a long pause when the end comes, after a failure or for company.
        (options.retry_interval, options.max_retry_interval, options.flush_interval) =
            (NEVER, NEVER, if failing { Duration::ZERO } else { NEVER });
        let (failed, failure) = channel();
        let journal = start(&ring, options, move |_| {
            failed.send(()).unwrap();
            Err("not today".to_owned())
        });
        let ticket = journal.push(&entry(0)).unwrap();
        if failing {
            failure.recv().unwrap();
        }
        let waiting = {
            let ticket = ticket.clone();
            std::thread::spawn(move || ticket.sync(None))
        };
        let start = Instant::now();
        journal.shutdown();
        assert!(start.elapsed() < PATIENCE);
        assert!(matches!(waiting.join().unwrap(), Err(SyncError::ShutDown)));
        assert!(matches!(ticket.sync(None), Err(SyncError::ShutDown)));
    }
}

#[test]
fn push_that_waits_for_room_ends_with_the_journal() {
    let ring = RingFile::new(2048, 512);
    let journal = Arc::new(start(&ring, options(), |_| Err("never".to_owned())));
    let large = "x".repeat(300);
    journal.push(&large).unwrap();
    let pushing = {
        let journal = Arc::clone(&journal);
        std::thread::spawn(move || journal.push(&large).map(|_| ()))
    };
    journal.shutdown();
    assert!(matches!(pushing.join().unwrap(), Err(JournalError::ShutDown)));
}

#[test]
fn journal_overwrites_other_data_only_if_asked_to() {
    let foreign = RingFile::blank(65536, 512);
    let mut bytes = foreign.bytes();
    bytes[40_000] = 1;
    std::fs::write(&foreign.path, &bytes).unwrap();
    let attempt = |format| {
        let mut options = options();
        options.when_absent = format;
        Journal::start(foreign.open(), options, |_: &[String]| Ok::<_, String>(()))
    };
    assert!(matches!(attempt(WhenAbsent::Refuse), Err(JournalError::Ring(_))));
    assert!(matches!(attempt(WhenAbsent::CreateIfEmpty), Err(JournalError::NotEmpty(40_000))));
    assert!(foreign.bytes() == bytes, "untouched");
    attempt(WhenAbsent::Overwrite).unwrap().push(&entry(0)).unwrap();
    let blank = RingFile::blank(65536, 512);
    start(&blank, options(), |_| Ok(())).push(&entry(0)).unwrap();
}
