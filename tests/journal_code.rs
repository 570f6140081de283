//! A journal with code of its caller that pushes, ends the journal, fails or panics.
#![allow(clippy::unwrap_used)]

use ring_simulation::DiskDevice;
use ring_test_support::journal::{
    Done, NEVER, disk, entry, held, in_time, keeping, large, options, start,
};
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::{
    Decode, Encode, Error, Journal, JournalError, JournalOptions, SyncError, Synced, Ticket,
};
use std::borrow::Cow;
use std::io;
use std::num::NonZeroU32;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

#[test]
fn entry_larger_than_the_journal_is_refused_alone() {
    let done = Done::default();
    let journal = start(&disk(7), options(), keeping(&done));
    match journal.push(&"x".repeat(2045)).err() {
        Some(JournalError::Ring(Error::TooLarge { needed: 2049, capacity: 2048 })) => {}
        other => panic!("{other:?}"),
    }
    journal.push(&"x".repeat(2044)).unwrap().sync(Some(PATIENCE)).unwrap();
}

/// What `perform` can reach of its own journal.
type Own = Arc<OnceLock<Arc<Journal<String>>>>;

#[test]
fn perform_may_push_and_never_waits_for_itself() {
    let own = Own::default();
    let (said, heard) = channel();
    let reach = Arc::clone(&own);
    let journal = start(&disk(7), options(), move |entries| {
        let journal = reach.wait();
        if entries[0] == entry(0) {
            let ticket = journal.push(&entry(1)).unwrap();
            assert!(matches!(ticket.sync(None), Err(SyncError::WithinPerform)));
            while journal.push(&large()).is_ok() {}
            said.send(journal.push(&large()).is_err_and(|e| matches!(e, JournalError::Full)))
                .unwrap();
        }
        Ok(())
    });
    let journal = Arc::new(journal);
    own.set(Arc::clone(&journal)).unwrap_or_else(|_| panic!("once"));
    journal.push(&entry(0)).unwrap();
    assert!(heard.recv_timeout(PATIENCE).unwrap());
    in_time(move || journal.ticket_for_all().sync(None)).unwrap();
}

#[test]
fn perform_may_shut_the_journal_down_and_drop_it() {
    let own = Own::default();
    let reach = Arc::clone(&own);
    let (said, heard) = channel();
    let perform = move |_: &[String]| {
        reach.wait().shutdown();
        said.send(()).map_err(|e| e.to_string())
    };
    let journal = Arc::new(start(&disk(16), options(), perform));
    let ticket = journal.push(&entry(0)).unwrap();
    // Now the last to have it is its own `perform`.
    own.set(journal).unwrap_or_else(|_| panic!("once"));
    drop(own);
    heard.recv_timeout(PATIENCE).unwrap();
    // It returned `Ok`: that counts, though the journal was shut down meanwhile.
    eventually("the entry is performed", || {
        ticket.sync(Some(NEVER)).is_ok_and(|how| how == Synced::Performed)
    });
}

#[test]
fn shutdown_does_not_wait_for_an_entry_that_cannot_be_set_aside() {
    let (refuse, refused) = channel();
    let mut options = JournalOptions::new(move |_| {
        refuse.send(()).unwrap();
        Err(io::Error::other("no place"))
    });
    (options.flush_interval, options.retry_interval) = (Duration::ZERO, NEVER);
    (options.max_retry_interval, options.max_failures) = (NEVER, NonZeroU32::new(1));
    let disk = disk(64);
    let journal = start(&disk, options, |_| Err("never".to_owned()));
    let ticket = journal.push(&entry(0)).unwrap();
    refused.recv_timeout(PATIENCE).unwrap();
    in_time(move || journal.shutdown());
    assert!(matches!(ticket.sync(None), Err(SyncError::ShutDown)));
    let done = Done::default();
    start(&disk, ring_test_support::journal::options(), keeping(&done))
        .ticket_for_all()
        .sync(Some(PATIENCE))
        .unwrap();
    assert_eq!(*done.lock().unwrap(), [entry(0)], "it was kept");
}

#[test]
fn failure_during_a_shutdown_does_not_count() {
    let disk = disk(64);
    let ((begun, answer), perform) = held();
    // Setting aside would panic, and be tried again for ever.
    let mut options = options();
    options.max_failures = NonZeroU32::new(1);
    let journal = Arc::new(start(&disk, options, perform));
    let ticket = journal.push(&entry(0)).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    let ending = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || journal.shutdown())
    };
    eventually("the wait ends", || {
        matches!(ticket.sync(Some(Duration::ZERO)), Err(SyncError::ShutDown))
    });
    answer.send(Err("interrupted".to_owned())).unwrap();
    in_time(move || ending.join()).unwrap();
    let done = Done::default();
    start(&disk, ring_test_support::journal::options(), keeping(&done))
        .ticket_for_all()
        .sync(Some(PATIENCE))
        .unwrap();
    assert_eq!(*done.lock().unwrap(), [entry(0)]);
}

#[test]
fn options_with_the_longest_durations_do_not_panic() {
    let mut options = options();
    options.flush_interval = Duration::MAX;
    (options.retry_interval, options.max_retry_interval) = (Duration::MAX, Duration::MAX);
    let (said, heard) = channel();
    let journal = start(&disk(64), options, move |_| {
        said.send(()).unwrap();
        Err("not today".to_owned())
    });
    let ticket = journal.push(&entry(0)).unwrap();
    ticket.flush();
    heard.recv_timeout(PATIENCE).unwrap();
    let waiting = thread::spawn(move || ticket.sync(Some(Duration::MAX)));
    in_time(move || journal.shutdown());
    assert!(matches!(in_time(move || waiting.join().unwrap()), Err(SyncError::ShutDown)));
}

#[test]
fn tickets_report_how_their_entries_left_however_many_there_are() {
    let mut options = JournalOptions::new(|_| Ok(()));
    options.retry_interval = Duration::from_millis(1);
    options.max_failures = NonZeroU32::new(1);
    let journal = start(&disk(256), options, |entries| {
        let odd = |entry: &String| entry.ends_with(['1', '3', '5', '7', '9']);
        if entries.iter().any(odd) { Err("odd".to_owned()) } else { Ok(()) }
    });
    let tickets: Vec<Ticket> = (0..2500).map(|n| journal.push(&entry(n)).unwrap()).collect();
    tickets[2499].flush();
    assert_eq!(tickets[2499].sync(Some(PATIENCE)).unwrap(), Synced::Aside);
    for (number, ticket) in tickets.iter().enumerate() {
        let how = if number % 2 == 1 { Synced::Aside } else { Synced::Performed };
        assert_eq!(ticket.sync(Some(Duration::ZERO)).unwrap(), how);
    }
}

/// Its decoder and its destructor are as bad as can be.
struct Brittle(u8);

impl Encode for Brittle {
    fn encode(&self) -> Cow<'_, [u8]> {
        Cow::Owned(vec![self.0])
    }
}

impl Decode<'_> for Brittle {
    type Error = String;

    fn decode(payload: &[u8]) -> Result<Self, String> {
        assert!(payload != [1], "a decoder that panics");
        Ok(Self(payload[0]))
    }
}

impl Drop for Brittle {
    fn drop(&mut self) {
        let performing = thread::current().name() == Some("journal");
        assert!(self.0 != 2 || !performing || thread::panicking(), "a destructor that panics");
    }
}

#[test]
fn entry_whose_own_code_panics_is_set_aside() {
    let (aside, set_aside) = channel();
    let mut options = JournalOptions::new(move |entry| {
        aside.send(entry.clone()).unwrap();
        Ok(())
    });
    options.retry_interval = Duration::from_millis(1);
    options.max_failures = NonZeroU32::new(2);
    let perform = |_: &[Brittle]| Ok::<_, String>(());
    let journal = Journal::start(DiskDevice::new(&disk(64)), options, perform).unwrap();
    let tickets = [0, 1, 2, 3].map(|number| journal.push(&Brittle(number)).unwrap());
    tickets[3].flush();
    let how = tickets.each_ref().map(|ticket| ticket.sync(Some(PATIENCE)).unwrap());
    assert_eq!(how, [Synced::Performed, Synced::Aside, Synced::Aside, Synced::Performed]);
    let reasons: Vec<_> = set_aside.try_iter().map(|aside| aside.reason).collect();
    assert_eq!(reasons, ["panicked: a decoder that panics", "panicked: a destructor that panics"]);
}
