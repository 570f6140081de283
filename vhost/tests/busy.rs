//! While both sides are busy nobody makes a system call for an item.
#![allow(clippy::unwrap_used)]

mod common;

use common::daemon::{PATIENCE, Scene};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Durability, Error, Producer, UnixDevice, VirtioDevice};
use std::sync::atomic::{AtomicU64, Ordering};

const ITEMS: u64 = 20_000;
const BATCH: u64 = 16;

/// Of the thread that is forbidden them.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Keeps this thread from making system calls, and counts those that it tries; but for those that it needs to come to its own end.
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

/// An item is 64 bytes that begin with its number.
fn item(number: u64) -> [u8; 64] {
    let mut item = [7; 64];
    item[..8].copy_from_slice(&number.to_le_bytes());
    item
}

/// Pops and frees everything, by turns an item and as many as there are.
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
fn nobody_makes_a_system_call_for_an_item_while_both_sides_are_busy() {
    let scene = Scene::new();
    let _daemon = scene.start(&["--poll", "always"]);
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    consumer.set_durability(Durability::PageCache);
    std::thread::scope(|scope| {
        let consuming = scope.spawn(|| {
            forbid_system_calls();
            consume(&mut consumer);
        });
        let device = VirtioDevice::connect(&scene.path("s"), None).unwrap();
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
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    assert_eq!(scene.counter("published"), ITEMS / BATCH);
    assert_eq!(scene.counter("wakeups"), 0, "and the backend made none to wake it");
}
