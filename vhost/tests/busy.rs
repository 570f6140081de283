//! System calls per item while both sides are busy: none.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::Scene;
use ring_test_support::process::PATIENCE;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Durability, Error, Producer, UnixDevice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use virtio_blk_driver::VirtioDevice;

const ITEMS: u64 = 20_000;
const BATCH: u64 = 16;

/// System calls that the thread without system calls has tried.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Forbids this thread system calls, except those that end a thread, and counts those that it
/// tries.
fn forbid_system_calls() {
    let count = || {
        CALLS.fetch_add(1, Ordering::Relaxed);
    };
    // SAFETY: the handler touches nothing but an atomic.
    unsafe { signal_hook::low_level::register(libc::SIGSYS, count) }.unwrap();
    let needed = [
        libc::SYS_exit,
        libc::SYS_futex,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
    ];
    let filter: BpfProgram = SeccompFilter::new(
        needed.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::Trap,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .and_then(TryInto::try_into)
    .unwrap();
    seccompiler::apply_filter(&filter).unwrap();
}

/// Returns item `number`: 64 bytes that begin with its number.
fn item(number: u64) -> [u8; 64] {
    let mut item = [7; 64];
    item[..8].copy_from_slice(&number.to_le_bytes());
    item
}

/// Pops and frees all items, alternately one and as many as there are.
fn consume(consumer: &mut Consumer<UnixDevice>) {
    let (mut number, mut rounds) = (0, 0);
    let mut wait = None;
    while number < ITEMS {
        let before = number;
        let position = consumer.position();
        let check = |number, bytes: &[u8]| {
            assert_eq!(bytes, item(number));
            number + 1
        };
        let end = if rounds % 2 == 0 {
            let folded = consumer.fold(position, number, |number, item| check(number, item.bytes));
            let (end, next) = folded.unwrap();
            number = next;
            end
        } else {
            match consumer.pop(position) {
                Ok(item) => {
                    number = check(number, item.bytes);
                    item.next
                }
                Err(Error::Retry) => position,
                Err(e) => panic!("{e}"),
            }
        };
        consumer.advance(end).unwrap();
        if number > before {
            rounds += 1;
            wait = None;
        } else {
            let wait = wait.get_or_insert_with(|| {
                Wait::new(Side::Producer, Some(PATIENCE)).spin(PATIENCE * 2)
            });
            assert_eq!(wait.pause(consumer.device(), &[]).unwrap(), Woken::Elapsed);
        }
    }
}

#[test]
fn consumer_and_worker_make_no_system_call_per_item_while_both_are_busy() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--poll", "always"]);
    let device = scene.connect_in_place(Role::Consumer).unwrap();
    let mut consumer = Consumer::attach(device, "q", "c").unwrap();
    consumer.set_durability(Durability::PageCache);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let consuming = scope.spawn(|| {
            forbid_system_calls();
            consume(&mut consumer);
        });
        let device = VirtioDevice::connect(scene.path("s"), None).unwrap();
        let mut producer = Producer::attach(device, "q", "p").unwrap();
        producer.set_durability(Durability::PageCache);
        let mut number = 0;
        while number < ITEMS {
            let items: Vec<_> = (number..ITEMS.min(number + BATCH)).map(item).collect();
            match producer.push_batch(&items) {
                Ok(position) => {
                    producer.advance(position).unwrap();
                    number += items.len() as u64;
                }
                Err(Error::Retry) if !consuming.is_finished() => std::thread::yield_now(),
                Err(e) => panic!("{e}, and the consumer is there: {}", !consuming.is_finished()),
            }
        }
    });
    // A consumer that spins checks once a second that its ring is still there: one call, however
    // many items come.
    let looks = begun.elapsed().as_secs();
    assert!(CALLS.load(Ordering::Relaxed) <= looks, "{} calls", CALLS.load(Ordering::Relaxed));
    assert_eq!(scene.counter("published"), ITEMS / BATCH);
    assert_eq!(scene.counter("wakeups"), 0, "and the backend made none to wake it");
}
