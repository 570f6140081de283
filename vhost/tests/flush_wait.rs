//! A worker sleeps while a flush is under way, whatever is behind it in the queue, and the
//! backend's end waits for that flush.
#![allow(clippy::unwrap_used)]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring_test_support::executor_disk::Disk;
use ring_test_support::process::PATIENCE;
use ring_test_support::worker_disk::{Direct, Payload, Running};
use shared_block_ring::format::Side;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::polling::Polling;
use vhost_device_blockring::data_path::worker::TurnEnd;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

#[test]
fn worker_sleeps_while_a_flush_is_under_way() {
    for (kind, write_through) in [(VIRTIO_BLK_T_FLUSH, false), (VIRTIO_BLK_T_OUT, true)] {
        let (go_on, goes_on) = channel::<()>();
        let flusher = Flusher::by(&FlushPool::new(), move || {
            goes_on.recv().unwrap();
            Ok(())
        })
        .unwrap();
        let event = Arc::clone(flusher.event());
        let direct = Direct::flushing(Disk::new(Side::Producer), Box::new(|_, _, _| ()), flusher);
        direct.set_write_through(write_through);
        direct.offer(kind, 8, 512, 1);
        assert_eq!(direct.turn(), TurnEnd::Sleep(None));
        assert_eq!(direct.used(0), 0, "not before it is durable");
        direct.offer(VIRTIO_BLK_T_IN, 8, 512, 3);
        // A worker that polled would not end its turn before the flush ends.
        let (ended, ends) = channel();
        std::thread::scope(|scope| {
            let turns = scope.spawn(|| {
                for _ in 0..10 {
                    ended.send(direct.turn()).unwrap();
                }
            });
            let ends: Vec<_> = (0..10).map(|_| ends.recv_timeout(PATIENCE)).collect();
            go_on.send(()).unwrap();
            turns.join().unwrap();
            assert!(ends.iter().all(|end| *end == Ok(TurnEnd::Sleep(None))), "{ends:?}");
        });
        let time = PollTimeout::try_from(PATIENCE).unwrap();
        poll(&mut [PollFd::new(event.as_fd(), PollFlags::POLLIN)], time).unwrap();
        assert_eq!(direct.turn(), TurnEnd::Sleep(None));
        assert_eq!(direct.used(0), 4);
    }
}

/// The error that the kernel has reported to that flush, it reports to no later one.
#[test]
fn end_waits_for_the_flush_under_way_and_returns_its_error() {
    for error in [None, Some(libc::EIO)] {
        let (begins, begun) = channel();
        let (go_on, goes_on) = channel::<()>();
        let flusher = Flusher::by(&FlushPool::new(), move || {
            begins.send(()).unwrap();
            goes_on.recv().unwrap();
            error.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
        })
        .unwrap();
        let disk = Disk::new(Side::Producer);
        let running = Running::start(disk, 1, flusher, Polling::For(Duration::ZERO));
        running.put(0, 0, 0, Payload::Flush);
        nix::unistd::write(running.kick(0), &1u64.to_ne_bytes()).unwrap();
        begun.recv_timeout(PATIENCE).unwrap();
        let (ends, ended) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || ends.send(running.finish()).unwrap());
            let early = ended.recv_timeout(Duration::from_millis(50));
            go_on.send(()).unwrap();
            assert!(matches!(early, Err(RecvTimeoutError::Timeout)), "{early:?}");
            let outcome = ended.recv_timeout(PATIENCE).unwrap();
            assert_eq!(outcome.err().and_then(|e| e.raw_os_error()), error);
        });
    }
}
