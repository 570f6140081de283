//! Backends that are killed: between two instructions of a request, and between two messages.

use super::common::daemon::Scene;
use super::guest::Guest;
use super::script::{Connection, Vmm};
use super::stepper::Stepper;
use super::{boot, daemon, reconnect};

/// Points of a batch of requests at which the backend is killed; with `BLOCKRING_LONG` set many
/// more.
const POINTS: usize = 8;
const MANY_POINTS: usize = 1000;

/// Returns the number of instructions in which the backend serves a batch.
fn instructions(scene: &Scene, vmm: &Vmm, guest: &mut Guest) -> usize {
    let backend = daemon(scene);
    let _connection = boot(scene, vmm, guest);
    backend.queue_sleeps();
    let stepper = Stepper::of(&backend);
    guest.submit_batch();
    let mut steps = 0;
    while !guest.is_answered() {
        stepper.step();
        steps += 1;
    }
    stepper.kill(backend);
    guest.reap();
    steps
}

/// Kills one backend after the other within a batch. The next backend and the front end's script
/// must bring the rest of the batch, and nothing twice.
pub fn within_requests(vmm: &Vmm) {
    let scene = Scene::new();
    let mut guest = Guest::new(vmm.queues, vmm.queue_size);
    let steps = instructions(&scene, vmm, &mut guest);
    let points = if std::env::var_os("BLOCKRING_LONG").is_some() { MANY_POINTS } else { POINTS };
    let mut unfinished = 0;
    guest.reset();
    let mut backend = daemon(&scene);
    let mut connection = boot(&scene, vmm, &mut guest);
    for point in 0..points {
        backend.queue_sleeps();
        let stepper = Stepper::of(&backend);
        guest.submit_batch();
        // Behind the last answer lie the interrupt and the way to sleep.
        for _ in 0..steps * point / points {
            if guest.is_answered() {
                break;
            }
            stepper.step();
        }
        stepper.kill(backend);
        drop(connection);
        unfinished += u64::from(guest.unanswered());
        guest.reap();
        guest.check(&scene);
        backend = daemon(&scene);
        if vmm.reconnect.is_some() {
            connection = reconnect(&scene, vmm, &mut guest);
            guest.finish_batch(&scene);
        } else {
            // The guest is lost, too; the next one finds a disk that works.
            guest.reset();
            connection = boot(&scene, vmm, &mut guest);
            guest.write_and_check(&scene);
        }
    }
    assert!(unfinished > 0);
    println!(
        "{}: {points} backends killed within {steps} instructions of a batch, {unfinished} requests unfinished: none lost, none \
         answered twice",
        vmm.name
    );
}

/// Kills a backend behind each message of the handshake while requests wait.
pub fn within_handshake(vmm: &Vmm) {
    let scene = Scene::new();
    let mut guest = Guest::new(vmm.queues, vmm.queue_size);
    let mut backend = daemon(&scene);
    let mut connection = boot(&scene, vmm, &mut guest);
    guest.write_and_check(&scene);
    let messages = vmm.messages(guest.queues.len());
    for sent in 0..=messages {
        drop((connection, backend));
        guest.reap();
        if guest.unanswered() == 0 {
            guest.submit_batch();
        }
        backend = daemon(&scene);
        guest.set_bases(vmm.base);
        connection = Connection::open(&scene, vmm).limited(sent);
        connection.play(vmm.reconnect.unwrap(), &mut guest).unwrap();
        connection.play(vmm.start, &mut guest).unwrap();
    }
    guest.finish_batch(&scene);
    println!("{}: {messages} backends killed within the handshake", vmm.name);
}
