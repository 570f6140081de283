//! The journal where something goes wrong around it: its device, its neighbours, the machine.
#![allow(clippy::unwrap_used)]

mod common;

use common::RingFile;
use common::journal::{
    Done, SOON, disk, entry, held, in_time, keeping, large, options, start, until,
};
use ring_simulation::{Disk, DiskDevice, Fault, Operation};
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::Geometry;
use shared_block_ring::{
    BlockDevice, Control, Error, Format, Journal, JournalError, SyncError, Synced, WhenFull,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

#[test]
fn no_wake_up_of_a_push_is_lost() {
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
        journal.everything().sync(Some(SOON)).unwrap();
    });
    assert_eq!(done.lock().unwrap().len(), 2000);
}

#[test]
fn a_failed_flush_ends_the_journal_and_the_next_start_performs() {
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
    start(&disk, options(), keeping(&done)).everything().sync(Some(SOON)).unwrap();
    assert_eq!(*done.lock().unwrap(), [entry(0)]);
}

#[test]
fn a_device_that_fails_the_worker_is_told_to_whoever_waits() {
    let disk = disk(4);
    let ((begun, answer), perform) = held();
    let journal = Arc::new(start(&disk, options(), perform));
    let ticket = journal.push(&large()).unwrap();
    begun.recv_timeout(SOON).unwrap();
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

/// Suspends the ring right after its producer has looked.
struct Suspends {
    inner: DiskDevice,
    disk: Disk,
    armed: Arc<AtomicBool>,
}

impl BlockDevice for Suspends {
    fn name(&self) -> &'static str {
        "suspends"
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        // As its producer looks: at both pointers at once.
        let look = first == 1 && bufs.iter().map(|buf| buf.len()).sum::<usize>() == 1024;
        self.inner.read(first, bufs)?;
        if look && self.armed.swap(false, Ordering::Relaxed) {
            suspended(&self.disk, true);
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        self.inner.write(first, bufs)
    }

    fn reads_are_free(&self) -> bool {
        self.inner.reads_are_free()
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn suspended(disk: &Disk, suspend: bool) {
    let mut control = Control::open(DiskDevice::new(disk)).unwrap();
    if suspend { control.suspend().unwrap() } else { control.resume().unwrap() }
}

#[test]
fn what_a_suspended_journal_did_not_take_is_not_performed_later() {
    let (disk, done, armed) = (disk(64), Done::default(), Arc::new(AtomicBool::new(false)));
    let device =
        Suspends { inner: DiskDevice::new(&disk), disk: disk.clone(), armed: Arc::clone(&armed) };
    let mut options = options();
    options.when_full = WhenFull::Answer;
    let journal = Journal::start(device, options, keeping(&done)).unwrap();
    journal.push(&entry(0)).unwrap();
    armed.store(true, Ordering::Relaxed);
    // The first is pushed before the journal is suspended, the second is not.
    for number in [1, 2] {
        let refused = journal.push(&entry(number)).err();
        assert!(matches!(refused, Some(JournalError::Ring(Error::Suspended))), "{refused:?}");
    }
    suspended(&disk, false);
    journal.push(&entry(3)).unwrap().sync(Some(SOON)).unwrap();
    assert_eq!(*done.lock().unwrap(), [entry(0), entry(3)]);
}

#[test]
fn a_push_waits_while_the_journal_is_suspended() {
    let (disk, done) = (disk(64), Done::default());
    let journal = Arc::new(start(&disk, options(), keeping(&done)));
    suspended(&disk, true);
    let pushing = {
        let journal = Arc::clone(&journal);
        thread::spawn(move || journal.push(&entry(0)).map(|ticket| ticket.sync(Some(SOON))))
    };
    let control = Control::open(DiskDevice::new(&disk)).unwrap();
    until(|| control.debug_info().unwrap().suspend_ack);
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
fn of_two_journals_on_one_device_the_second_is_refused() {
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
        let held = |e: &JournalError| matches!(e, JournalError::Ring(Error::Held { holder, .. }) if *holder == me);
        assert!(refused.clone().all(held), "{:?}", refused.collect::<Vec<_>>());
        let winner = started.into_iter().find_map(Result::ok).unwrap();
        winner.push(&entry(0)).unwrap();
        winner.shutdown();
        // Now the device is free, though the journal is still there.
        let next = Journal::start(ring.open(), options(), |_: &[String]| Ok::<_, String>(()));
        next.unwrap().everything().sync(Some(SOON)).unwrap();
    }
}

#[test]
fn a_start_that_was_cut_off_can_be_made_again() {
    let disk = disk(64);
    // The pointers are written, the signature is not.
    disk.inject(Fault { operation: Operation::Write, after: 2, errno: 5, for_ever: false });
    let attempt = || {
        let mut options = options();
        options.format = Format::IfEmpty;
        Journal::start(DiskDevice::new(&disk), options, |_: &[String]| Ok::<_, String>(()))
    };
    assert!(attempt().is_err());
    assert!(disk.image()[512..1536].iter().any(|&byte| byte != 0));
    attempt().unwrap();
}

#[test]
fn a_crash_repeats_the_batch_that_was_under_way_and_no_other() {
    let disk = disk(64);
    let ((begun, answer), perform) = held();
    let mut options = options();
    options.batch = 3;
    let journal = start(&disk, options, perform);
    let tickets: Vec<_> = (0..8).map(|n| journal.push(&entry(n)).unwrap()).collect();
    let mut before = Vec::new();
    while before.len() < 4 {
        let batch = begun.recv_timeout(SOON).unwrap();
        // The machine dies before the batch is marked as performed, and of what is in its caches nothing is left.
        let copy = disk.fork();
        copy.crash(|_, _| 0);
        let done = Done::default();
        let next = start(&copy, common::journal::options(), keeping(&done));
        next.everything().sync(Some(SOON)).unwrap();
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
