//! Each vhost-user message that concerns a queue, sent while the queue is busy: it is answered, and
//! no request of the guest's is lost, answered twice, or answered without its interrupt.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ring_test_support::beside::beside;
use ring_test_support::front_end::{FrontEnd, MEMORY, described, region};
use ring_test_support::process::PATIENCE;
use ring_test_support::traffic::Traffic;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserVirtioFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemoryBackend;

/// Messages of each type, with and without event indices.
const MESSAGES: u32 = 3000;

/// The least number of requests that are answered meanwhile.
const REQUESTS: u64 = 3000;

/// Sends `message` again and again, with its number, while the guest is busy. The queue must never
/// be broken.
fn race(message: impl FnMut(&mut FrontEnd, u32)) {
    assert_eq!(send(message), 0);
}

/// Sends `message` like [`race`]. Returns how often the queue was broken.
fn send(mut message: impl FnMut(&mut FrontEnd, u32)) -> u64 {
    let mut broken = 0;
    for unwanted in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let scene = Scene::new();
        let _daemon = scene.start(&["--migratable"]);
        let mut front_end = FrontEnd::without(&scene, unwanted | LOG_ALL);
        front_end.start(front_end.rings);
        let answered = AtomicU64::new(0);
        let mut traffic = Traffic::of(&front_end, 20_261_128, &answered);
        beside(
            || traffic.round(),
            || {
                let start = Instant::now();
                for number in 0.. {
                    let enough = answered.load(Ordering::Relaxed) >= REQUESTS;
                    if number >= MESSAGES && enough {
                        break;
                    }
                    // The driver, which waits as long, reports what is wrong.
                    if start.elapsed() > 3 * PATIENCE {
                        break;
                    }
                    message(&mut front_end, number);
                }
            },
        );
        traffic.drain();
        let answered = answered.load(Ordering::Relaxed);
        assert!(answered >= REQUESTS, "{answered} requests in all that time");
        broken += scene.counter("broken");
    }
    broken
}

const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// Returns a memory region that no request uses.
fn spare() -> vm_memory::GuestRegionMmap {
    region(1 << 30, 1 << 20)
}

fn set_features(front_end: &FrontEnd, logging: bool) {
    let log = if logging { LOG_ALL } else { 0 };
    front_end.wire.set_features(front_end.features | log).unwrap();
}

fn log_file() -> File {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let file = File::from(nix::sys::memfd::memfd_create(c"log", flags).unwrap());
    file.set_len(MEMORY / 4096 / 8).unwrap();
    file
}

fn set_log_base(front_end: &FrontEnd, log: &File) {
    let region = VhostUserDirtyLogRegion {
        mmap_size: MEMORY / 4096 / 8,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    front_end.wire.set_log_base(0, Some(region)).unwrap();
}

/// Stops and starts the queue as QEMU does for a guest that is paused.
fn stop_and_go(front_end: &mut FrontEnd) {
    let base = front_end.stop();
    assert_eq!(base, u32::from(front_end.used_index()), "all that is unanswered is offered again");
    front_end.place(front_end.rings).unwrap();
    front_end.run_from(u16::try_from(base).unwrap());
}

#[test]
fn set_vring_addr_loses_nothing() {
    race(|front_end, _| front_end.address().unwrap());
}

#[test]
fn set_vring_base_loses_nothing() {
    let mut random = SmallRng::seed_from_u64(1);
    race(|front_end, _| front_end.wire.set_vring_base(0, random.random()).unwrap());
}

#[test]
fn set_vring_num_loses_nothing() {
    let sizes = [256, 128, 100, 64];
    race(|front_end, number| {
        front_end.wire.set_vring_num(0, sizes[number as usize % sizes.len()]).unwrap();
    });
}

#[test]
fn set_vring_kick_loses_nothing() {
    race(|front_end, _| front_end.wire.set_vring_kick(0, &front_end.kick_event).unwrap());
}

#[test]
fn set_vring_call_loses_nothing() {
    race(|front_end, _| front_end.change_call());
}

#[test]
fn set_vring_err_loses_nothing() {
    race(|front_end, _| front_end.wire.set_vring_err(0, &front_end.call).unwrap());
}

#[test]
fn set_vring_enable_loses_nothing() {
    // Not left disabled at the end: the guest waits for its requests.
    race(|front_end, _| {
        front_end.wire.set_vring_enable(0, false).unwrap();
        front_end.wire.set_vring_enable(0, true).unwrap();
    });
}

#[test]
fn get_vring_base_loses_nothing() {
    race(|front_end, _| stop_and_go(front_end));
}

/// The way Cloud Hypervisor pauses: the queue is disabled and set up again at the old index,
/// without `GET_VRING_BASE`.
#[test]
fn queue_disabled_and_set_up_again_loses_nothing() {
    race(|front_end, _| {
        front_end.wire.set_vring_enable(0, false).unwrap();
        let used = front_end.used_index();
        front_end.place(front_end.rings).unwrap();
        front_end.run_from(used);
    });
}

#[test]
fn set_features_loses_nothing() {
    race(|front_end, number| set_features(front_end, number % 2 == 0));
}

#[test]
fn set_config_loses_nothing() {
    race(|front_end, number| {
        let write_back = [u8::from(number % 2 == 0)];
        front_end.wire.set_config(32, VhostUserConfigFlags::WRITABLE, &write_back).unwrap();
    });
}

#[test]
fn set_log_base_loses_nothing() {
    let logs = [log_file(), log_file()];
    race(|front_end, number| set_log_base(front_end, &logs[number as usize % 2]));
}

#[test]
fn set_mem_table_loses_nothing() {
    race(|front_end, _| front_end.set_memory());
}

#[test]
fn memory_added_and_removed_loses_nothing() {
    let spare = spare();
    let spare = described(&spare);
    race(|front_end, number| {
        if number % 2 == 0 {
            front_end.wire.add_mem_region(&spare).unwrap();
        } else {
            front_end.wire.remove_mem_region(&spare).unwrap();
        }
    });
}

/// The way QEMU shares memory in other pieces than before. The worker may look in between, when the
/// rings are not in memory.
#[test]
fn memory_with_the_rings_removed_and_added_loses_nothing() {
    let broken = send(|front_end, _| {
        let all = described(front_end.memory.iter().next().unwrap());
        front_end.wire.remove_mem_region(&all).unwrap();
        front_end.wire.add_mem_region(&all).unwrap();
    });
    println!("found so {broken} times");
}

/// The messages by which QEMU begins a migration and cancels it.
#[test]
fn migration_cancelled_again_and_again_loses_nothing() {
    let log = log_file();
    race(|front_end, number| {
        set_log_base(front_end, &log);
        set_features(front_end, true);
        front_end.address().unwrap();
        if number % 8 == 0 {
            stop_and_go(front_end);
        }
        set_features(front_end, false);
        front_end.address().unwrap();
    });
}

/// Messages of every type, in random order.
#[test]
fn messages_in_any_order_lose_nothing() {
    let mut random = SmallRng::seed_from_u64(2);
    let log = log_file();
    race(|front_end, _| match random.random_range(0..9) {
        0 => front_end.address().unwrap(),
        1 => front_end.wire.set_vring_base(0, random.random()).unwrap(),
        2 => front_end.change_call(),
        3 => front_end.set_memory(),
        4 => set_log_base(front_end, &log),
        5 => set_features(front_end, random.random()),
        6 => stop_and_go(front_end),
        7 => {
            front_end.wire.set_vring_enable(0, false).unwrap();
            front_end.wire.set_vring_enable(0, true).unwrap();
        }
        _ => front_end.wire.set_vring_kick(0, &front_end.kick_event).unwrap(),
    });
}
