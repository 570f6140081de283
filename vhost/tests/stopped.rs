//! A backend that is stopped (SIGSTOP) or answers nothing: a wait for it ends at its own limit, or
//! when it is asked to stop.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use shared_block_ring::device::DeviceError;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Limits, Wait, Woken};
use shared_block_ring::{BlockDevice, Consumer, Error, UnixDevice};
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use virtio_blk_driver::VirtioDevice;

/// A time that only a failing test takes.
const LONG: Duration = Duration::from_secs(60);

/// A limit that is reached during a test.
const SHORT: Duration = Duration::from_millis(50);

/// Starts a daemon and stops it (SIGSTOP).
fn stopped() -> (Scene, Daemon) {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    daemon.halt();
    (scene, daemon)
}

fn source<T>(outcome: Result<T, Error>) -> io::Error {
    match outcome {
        Err(Error::Device(DeviceError { source, .. })) => source,
        Err(e) => panic!("another error: {e}"),
        Ok(_) => panic!("connected"),
    }
}

/// Runs `wait` with a descriptor that becomes readable meanwhile. Returns the result.
fn interrupted<T: Send>(wait: impl FnOnce(&UnixStream) -> T + Send) -> T {
    let (stop, asked) = UnixStream::pair().unwrap();
    let (ended, end) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || ended.send(wait(&stop)).unwrap());
        drop(asked);
        end.recv_timeout(LONG).unwrap()
    })
}

#[test]
fn connect_to_stopped_backend_ends_at_its_deadline() {
    let (scene, _daemon) = stopped();
    let limits = Limits::within(SHORT);
    for role in [Role::Consumer, Role::Control] {
        let unix = UnixDevice::connect_within(scene.path("c"), role, &limits);
        assert_eq!(source(unix).kind(), ErrorKind::TimedOut);
    }
    let virtio = VirtioDevice::connect_within(scene.path("s"), None, &limits);
    assert_eq!(source(virtio).kind(), ErrorKind::TimedOut);
}

#[test]
fn connect_to_stopped_backend_without_limits_gives_up_by_itself() {
    let (scene, _daemon) = stopped();
    assert_eq!(source(scene.connect(Role::Control)).kind(), ErrorKind::TimedOut);
    let error = source(VirtioDevice::connect(scene.path("s"), None));
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("no answer within 5 s"), "{error}");
}

#[test]
fn connect_to_stopped_backend_ends_when_asked_to_stop() {
    let (scene, _daemon) = stopped();
    let unix = interrupted(|stop| {
        let stop = [stop.as_fd()];
        let limits = Limits::default().or_on(&stop);
        source(UnixDevice::connect_within(scene.path("c"), Role::Consumer, &limits))
    });
    assert_eq!(unix.kind(), ErrorKind::Interrupted);
    let virtio = interrupted(|stop| {
        let stop = [stop.as_fd()];
        let limits = Limits::default().or_on(&stop);
        source(VirtioDevice::connect_within(scene.path("s"), None, &limits))
    });
    assert_eq!(virtio.kind(), ErrorKind::Interrupted);
}

/// Replaces the daemon by one that does not answer, then pauses with `wait`.
fn search(wait: &mut Wait, interrupts: &[&UnixStream]) -> Woken {
    let scene = Scene::new();
    let first = scene.start(&[]);
    let consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    drop(first);
    let second = scene.start(&[]);
    second.halt();
    let interrupts: Vec<_> = interrupts.iter().map(|fd| fd.as_fd()).collect();
    loop {
        match wait.pause(consumer.device(), &interrupts).unwrap() {
            Woken::Elapsed => {}
            woken => return woken,
        }
    }
}

#[test]
fn search_for_backend_that_comes_back_stopped_ends_at_its_deadline() {
    let mut wait = Wait::new(shared_block_ring::format::Side::Producer, Some(SHORT));
    assert_eq!(search(&mut wait, &[]), Woken::TimedOut);
}

#[test]
fn search_for_backend_that_comes_back_stopped_ends_when_asked_to_stop() {
    let woken = interrupted(|stop| {
        let mut wait = Wait::new(shared_block_ring::format::Side::Producer, None);
        search(&mut wait, &[stop])
    });
    assert_eq!(woken, Woken::Readable(0));
}

#[test]
fn request_to_stopped_backend_ends_soon_after_stop() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let device = VirtioDevice::connect(scene.path("s"), None).unwrap();
    daemon.halt();
    let (asked, error) = interrupted(|stop| {
        let device = device.stop_on(stop.as_fd().try_clone_to_owned().unwrap());
        let asked = Instant::now();
        let mut sector = [0; 512];
        (asked, device.read(0, &mut [IoSliceMut::new(&mut sector)]).unwrap_err())
    });
    assert_eq!(error.source.kind(), ErrorKind::TimedOut, "{error}");
    assert!(asked.elapsed() >= Duration::from_secs(5), "an answer was not waited for");
}
