//! Memory and dirty logs of a front end that lie on FUSE, whose server has stopped: the daemon
//! refuses the memory, and ends where a thread of its own waits without end.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use crate::common::fuse::FuseFile;
use crate::common::service::Service;
use nix::sys::signal::Signal;
use ring_test_support::front_end::{FrontEnd, MEMORY, described, region};
use ring_test_support::process::eventually;
use ring_test_support::service::Manager;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

/// More than the daemon's own bounds of 30 seconds each, on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn ended(daemon: &mut Daemon, scene: &Scene) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = daemon.0.try_wait().unwrap() {
            return status;
        }
        assert!(start.elapsed() < LONG, "the daemon does not end: {}", scene.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts a front end whose log of dirty pages is on FUSE: the queue's thread waits for the log's
/// first page.
fn with_its_log_on(fuse: &mut FuseFile, scene: &Scene, daemon: &Daemon) -> FrontEnd {
    let mut guest = FrontEnd::new(scene);
    let region = VhostUserDirtyLogRegion {
        mmap_size: MEMORY / 4096 / 8,
        mmap_offset: 0,
        mmap_handle: fuse.open(),
    };
    guest.wire.set_log_base(0, Some(region)).unwrap();
    fuse.stall();
    guest.offer(0);
    guest.kick();
    // A stop that came before would find nothing to wait for.
    daemon.queue_waits_for_a_page();
    guest
}

#[test]
fn memory_on_fuse_is_refused_and_the_next_front_end_is_served() {
    let scene = Scene::new();
    let mut daemon = scene.start(&[]);
    for answers in [true, false] {
        let mut fuse = FuseFile::mount(&scene.path(if answers { "asked" } else { "silent" }));
        let file = fuse.open();
        if !answers {
            fuse.stall();
        }
        let mut guest = FrontEnd::new(&scene);
        let more = region(1 << 30, 1 << 20);
        let mut info = described(&more);
        info.mmap_handle = file;
        assert!(guest.wire.add_mem_region(&info).is_err());
        drop(guest);
        FrontEnd::new(&scene).honest(&scene);
    }
    eventually("it is logged", || {
        scene.logged("lies in a file whose file system does not answer") > 0
    });
    assert_eq!(scene.logged("lies in a file that another process or machine serves"), 1);
    assert_eq!(scene.logged("lies in a file whose file system does not answer"), 1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(ended(&mut daemon, &scene).code(), Some(0));
}

#[test]
fn stop_ends_a_daemon_whose_queue_thread_waits_for_a_page() {
    let scene = Scene::new();
    let mut fuse = FuseFile::mount(&scene.path("log-on-fuse"));
    let mut daemon = scene.start(&["--migratable"]);
    let _guest = with_its_log_on(&mut fuse, &scene, &daemon);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(ended(&mut daemon, &scene).code(), Some(1));
    assert_eq!(scene.logged("the process ends; start it again"), 1);
}

#[test]
fn queue_thread_that_waits_for_a_page_is_given_up_when_it_is_needed() {
    let scene = Scene::new();
    let mut fuse = FuseFile::mount(&scene.path("log-on-fuse"));
    let mut daemon = scene.start(&["--migratable"]);
    let guest = with_its_log_on(&mut fuse, &scene, &daemon);
    // The end of this connection, and so the next front end, wait for the queue's thread.
    drop(guest);
    assert_eq!(ended(&mut daemon, &scene).code(), Some(1));
    assert_eq!(scene.logged("the queue's thread does not move"), 1);
    let _next = scene.start(&[]);
    FrontEnd::new(&scene).honest(&scene);
}

#[test]
fn queue_thread_that_waits_for_a_page_ends_the_signs_of_life() {
    let scene = Scene::new();
    let mut fuse = FuseFile::mount(&scene.path("log-on-fuse"));
    let manager = Manager::at(&scene.path("notify"));
    let options = ["--socket-path", "s", "--blk-file", "ring", "--size", "64K", "--migratable"];
    let service = Service::new(&scene, &options).env("WATCHDOG_USEC", "200000");
    let daemon = service.env("NOTIFY_SOCKET", &manager.name).start();
    manager.until("READY=1");
    let _guest = with_its_log_on(&mut fuse, &scene, &daemon);
    // The answer to the last call may have come before the wait.
    eventually("the signs end", || manager.is_silent(Duration::from_secs(2)));
}
