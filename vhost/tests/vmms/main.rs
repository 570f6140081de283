//! The virtual machine monitors that a user may have, each by a script of the messages that its
//! front end sends, taken from its source; `docs/front-ends.md` names files and versions.
//!
//! Each script is played against the daemon: start, reset, pause, a backend that is replaced, and
//! one that is killed between any two instructions of a request and between any two messages.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod cloud_hypervisor;
mod crosvm;
mod documented;
mod firecracker;
mod guest;
mod inflight;
mod kills;
mod qemu;
mod script;
mod stepper;

use common::daemon::{Daemon, Scene};
use guest::Guest;
use script::{Connection, Vmm};

/// A plain disk: what is tested here is which requests are carried out, and how often.
const PLAIN: [&str; 4] = ["--guard", "off", "--poll-us", "0"];

fn daemon(scene: &Scene) -> Daemon {
    scene.start(&PLAIN)
}

/// Plays the start of `vmm` and its guest's driver. Returns a connection whose queues run.
fn boot<'a>(scene: &Scene, vmm: &'a Vmm, guest: &mut Guest) -> Connection<'a> {
    let mut connection = Connection::open(scene, vmm);
    connection.play(vmm.connect, guest).unwrap();
    connection.play(vmm.start, guest).unwrap();
    connection
}

/// Plays what `vmm` does when the backend has come back.
fn reconnect<'a>(scene: &Scene, vmm: &'a Vmm, guest: &mut Guest) -> Connection<'a> {
    let mut connection = Connection::open(scene, vmm);
    guest.set_bases(vmm.base);
    connection.play(vmm.reconnect.unwrap(), guest).unwrap();
    connection.play(vmm.start, guest).unwrap();
    connection
}

/// What every front end does in its life, as far as it does it: start, requests, reset, pause, a
/// backend that is replaced while requests wait.
fn lives(vmm: &Vmm) {
    let scene = Scene::new();
    let mut backend = daemon(&scene);
    let mut guest = Guest::new(vmm.queues, vmm.queue_size);
    let mut connection = boot(&scene, vmm, &mut guest);
    guest.write_and_check(&scene);
    if let Some(stop) = vmm.stop {
        connection.play(stop, &mut guest).unwrap();
        guest.reset();
        connection.play(vmm.start, &mut guest).unwrap();
        guest.write_and_check(&scene);
    }
    if let Some((pause, resume)) = vmm.pause {
        connection.play(pause, &mut guest).unwrap();
        let before = guest.used_indices();
        guest.submit_batch();
        backend.queue_sleeps();
        assert_eq!(guest.used_indices(), before, "answered while disabled");
        connection.play(resume, &mut guest).unwrap();
        guest.finish_batch(&scene);
    }
    if vmm.reconnect.is_some() {
        drop(connection);
        drop(backend);
        guest.submit_batch();
        backend = daemon(&scene);
        connection = reconnect(&scene, vmm, &mut guest);
        guest.finish_batch(&scene);
        guest.write_and_check(&scene);
    }
    drop((connection, backend));
    assert_eq!(scene.logged("broken"), 0);
}
