//! Before and after an attack.

use super::daemon::{Daemon, Scene};
use ring_test_support::front_end::{FrontEnd, HEADER, RINGS, STATUS};
use ring_test_support::process::eventually;
use ring_test_support::split_ring::{linked, readable, writable};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_OUT;

/// What is said of a queue that is stopped.
pub const BROKEN: &str = "is broken";

/// A daemon, and a guest that it has served.
pub type Served = (Scene, Daemon, FrontEnd);

/// A daemon, and a guest that it has served, by its first queue.
pub fn start() -> Served {
    start_on(0)
}

fn start_on(queue: usize) -> Served {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let mut guest = FrontEnd::on_queue(&scene, queue);
    guest.honest(&scene);
    (scene, daemon, guest)
}

/// Runs a test with a guest that uses its only queue, and with one that uses the last of four.
pub fn on_each_queue(test: impl Fn(Served)) {
    for queue in [0, 3] {
        test(start_on(queue));
    }
}

/// The queue is stopped and reported; a kick changes nothing; after a reset it works.
pub fn broken(scene: &Scene, daemon: &Daemon, guest: &mut FrontEnd) {
    eventually("the queue is stopped", || scene.counter("broken") == 1);
    let used = guest.used_index();
    daemon.kicked_by(guest);
    eventually("it is logged", || scene.logged(BROKEN) > 0);
    assert_eq!((scene.counter("broken"), scene.logged(BROKEN)), (1, 1));
    assert_eq!(guest.used_index(), used);
    guest.reset();
    guest.honest(scene);
}

/// One write after the other to the first sector of the free part, from `data`: those in the queue
/// now.
pub fn writes(guest: &mut FrontEnd, count: u16, data: u64) {
    guest.header(VIRTIO_BLK_T_OUT, 20);
    for request in 0..count {
        let head = request * 3;
        let chain = [readable(HEADER, 16), readable(data, 512), writable(STATUS, 1)];
        guest.describe(RINGS.descriptors, head, &linked(head, &chain));
        guest.offer(head);
    }
    guest.kick();
}
