//! A journal with failures around it: of its device, by other processes, of the machine.
#![allow(clippy::unwrap_used)]

use ring_simulation::{Access, Disk, DiskDevice, Fault, Operation, hooked};
use ring_test_support::RingFile;
use ring_test_support::journal::{
    Done, disk, entry, held, in_time, keeping, large, options, start,
};
use ring_test_support::process::{PATIENCE, eventually};
use shared_block_ring::{
    Control, Error, Journal, JournalError, SyncError, Synced, WhenAbsent, WhenFull,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

#[test]
fn push_that_waits_misses_no_wake_up() {
    let done = Done::default();
    // Room for one entry, so that nearly every push has to wait.
    let journal = Arc::new(start(&disk(4), options(), keeping(&done)));
    in_time(move || {
        let pushers: Vec<_> = (0..4)
            .map(|_| {
                let journal = Arc::clone(&journal);
                thread::spawn(move || (0..500).for_each(|_| drop(journal.push(&large()).unwrap())))
            })
            .collect();
        for pusher in pushers {
            pusher.join().unwrap();
        }
        journal.ticket_for_all().sync(Some(PATIENCE)).unwrap();
    });
    assert_eq!(done.lock().unwrap().len(), 2000);
}

#[test]
fn failed_flush_ends_the_journal_and_the_next_start_performs_its_entries() {
    let disk = disk(64);
    let (held, perform) = held();
    let journal = start(&disk, options(), perform);
    let accepted = journal.push(&entry(0)).unwrap();
    disk.inject(Fault { operation: Operation::Flush, after: 0, errno: 5, for_ever: false });
    for _ in 0..2 {
        match journal.push(&entry(1)).err() {
            Some(JournalError::Failed(why)) => assert!(why.to_string().contains("flush"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(accepted.sync(None), Err(SyncError::Failed(_))));
    drop(held);
    journal.shutdown();
    disk.crash(|_, _| 0);
    let done = Done::default();
    start(&disk, options(), keeping(&done)).ticket_for_all().sync(Some(PATIENCE)).unwrap();
    assert_eq!(*done.lock().unwrap(), [entry(0)]);
}

#[test]
fn device_failure_in_the_worker_ends_every_wait() {
    let disk = disk(4);
    let ((begun, answer), perform) = held();
    let journal = Arc::new(start(&disk, options(), perform));
    let ticket = journal.push(&large()).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    disk.inject(Fault { operation: Operation::Write, after: 0, errno: 5, for_ever: true });
    let waiting = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || journal.push(&large()).err())
    };
    answer.send(Ok(())).unwrap();
    in_time(move || {
        assert!(matches!(ticket.sync(None), Err(SyncError::Failed(_))));
        assert!(matches!(waiting.join().unwrap(), Some(JournalError::Failed(_))));
        assert!(matches!(journal.push(&entry(0)).err(), Some(JournalError::Failed(_))));
    });
}

fn suspended(disk: &Disk, suspend: bool) {
    let mut control = Control::open(DiskDevice::new(disk)).unwrap();
    if suspend { control.suspend().unwrap() } else { control.resume().unwrap() }
}

#[test]
fn entry_that_a_suspended_journal_refused_is_not_performed_later() {
    let (disk, done, armed) = (disk(64), Done::default(), Arc::new(AtomicBool::new(false)));
    let device = {
        let (disk, armed) = (disk.clone(), Arc::clone(&armed));
        // Suspends the ring right after its producer has looked at both pointers at once.
        hooked(DiskDevice::new(&disk), move |device, access| {
            let look = matches!(access, Access::Read { first: 1, .. }) && access.bytes() == 1024;
            access.carry_out(device)?;
            if look && armed.swap(false, Ordering::Relaxed) {
                suspended(&disk, true);
            }
            Ok(())
        })
    };
    let mut options = options();
    options.when_full = WhenFull::Fail;
    let journal = Journal::start(device, options, keeping(&done)).unwrap();
    journal.push(&entry(0)).unwrap();
    armed.store(true, Ordering::Relaxed);
    // The first is pushed before the journal is suspended, the second is not.
    for number in [1, 2] {
        let refused = journal.push(&entry(number)).err();
        assert!(matches!(refused, Some(JournalError::Ring(Error::Suspended))), "{refused:?}");
    }
    suspended(&disk, false);
    journal.push(&entry(3)).unwrap().sync(Some(PATIENCE)).unwrap();
    assert_eq!(*done.lock().unwrap(), [entry(0), entry(3)]);
}

#[test]
fn push_waits_while_the_journal_is_suspended() {
    let (disk, done) = (disk(64), Done::default());
    let journal = Arc::new(start(&disk, options(), keeping(&done)));
    suspended(&disk, true);
    let pushing = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || journal.push(&entry(0)).map(|ticket| ticket.sync(Some(PATIENCE))))
    };
    let control = Control::open(DiskDevice::new(&disk)).unwrap();
    eventually("the producer acknowledges", || control.debug_info().unwrap().suspend_ack);
    suspended(&disk, false);
    assert_eq!(in_time(move || pushing.join().unwrap()).unwrap().unwrap(), Synced::Performed);
    suspended(&disk, true);
    let pushing = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || journal.push(&entry(1)).err())
    };
    journal.shutdown();
    assert!(matches!(in_time(move || pushing.join().unwrap()), Some(JournalError::ShutDown)));
}

#[test]
fn second_journal_on_a_device_is_refused() {
    for _ in 0..20 {
        let ring = RingFile::blank(65536, 512);
        let both = Barrier::new(2);
        let attempt = || {
            both.wait();
            Journal::start(ring.open(), options(), |_: &[String]| Err("not today".to_owned()))
        };
        let started = thread::scope(|scope| {
            [scope.spawn(attempt), scope.spawn(attempt)].map(|thread| thread.join().unwrap())
        });
        let me = Some(std::process::id().cast_signed());
        let refused = started.iter().filter_map(|journal| journal.as_ref().err());
        let held = |e: &JournalError| matches!(e, JournalError::Ring(Error::RoleTaken { holder, .. }) if *holder == me);
        assert!(refused.clone().all(held), "{:?}", refused.collect::<Vec<_>>());
        let winner = started.into_iter().find_map(Result::ok).unwrap();
        winner.push(&entry(0)).unwrap();
        winner.shutdown();
        // Now the device is free, though the journal is still there.
        let next = Journal::start(ring.open(), options(), |_: &[String]| Ok::<_, String>(()));
        next.unwrap().ticket_for_all().sync(Some(PATIENCE)).unwrap();
    }
}

#[test]
fn journal_start_that_was_cut_off_can_be_repeated() {
    let disk = disk(64);
    // The pointers are written, the signature is not.
    disk.inject(Fault { operation: Operation::Write, after: 2, errno: 5, for_ever: false });
    let attempt = || {
        let mut options = options();
        options.when_absent = WhenAbsent::CreateIfEmpty;
        Journal::start(DiskDevice::new(&disk), options, |_: &[String]| Ok::<_, String>(()))
    };
    assert!(attempt().is_err());
    assert!(disk.image()[512..1536].iter().any(|&byte| byte != 0));
    attempt().unwrap();
}

#[test]
fn crash_repeats_only_the_batch_under_way() {
    let disk = disk(64);
    let ((begun, answer), perform) = held();
    let mut options = options();
    options.max_batch = 3;
    let journal = start(&disk, options, perform);
    let tickets: Vec<_> = (0..8).map(|n| journal.push(&entry(n)).unwrap()).collect();
    let mut before = Vec::new();
    while before.len() < 4 {
        let batch = begun.recv_timeout(PATIENCE).unwrap();
        // The machine dies before the batch is marked as performed, and of what is in its caches
        // nothing is left.
        let copy = disk.fork();
        copy.crash(|_, _| 0);
        let done = Done::default();
        let next = start(&copy, ring_test_support::journal::options(), keeping(&done));
        next.ticket_for_all().sync(Some(PATIENCE)).unwrap();
        let after = done.lock().unwrap();
        assert!(after.starts_with(&batch), "{after:?} after {before:?}, {batch:?} under way");
        before.extend(batch);
        answer.send(Ok(())).unwrap();
    }
    assert_eq!(before, (0..before.len()).map(entry).collect::<Vec<_>>());
    drop((answer, begun));
    journal.shutdown();
    assert_eq!(tickets[0].sync(None).unwrap(), Synced::Performed);
}
