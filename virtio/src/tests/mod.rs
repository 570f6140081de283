//! The driver's side against a small device.
//!
//! An interpreter that looks for undefined behaviour (Miri) runs what its time allows, with the
//! queue in memory of the process: `scripts/sanitize.sh miri`.
#![allow(clippy::unwrap_used)]

mod device;
mod lifetime;
mod memory;
#[cfg(not(miri))]
mod replay;
pub mod scripted;
mod successor;

use crate::block::BlockQueue;
use crate::memory::DmaMemory;
use crate::{Broken, Chains, IDLE, Request, RequestId, Shape};
use device::Device;
use std::time::Duration;

/// How often something is repeated: far less often by an interpreter.
const fn times(count: u64) -> u64 {
    if cfg!(miri) { count / 2000 } else { count }
}

/// Every way in which a queue can be set up.
const SETUPS: [(Chains, bool); 4] = [
    (Chains::Direct, true),
    (Chains::Direct, false),
    (Chains::Indirect, true),
    (Chains::Indirect, false),
];

fn pair(depth: u16, chains: Chains, event_idx: bool) -> (BlockQueue, Device) {
    let shape = match chains {
        Chains::Direct => Shape::new(depth, 4096),
        Chains::Indirect => Shape::new(depth, 4096).indirect(),
    };
    let queue = BlockQueue::new(DmaMemory::anonymous(shape.memory_bytes()), shape, event_idx);
    let device = Device::new(queue.memory(), queue.layout(), event_idx);
    (queue, device)
}

/// Submits without publishing.
fn submit(queue: &mut BlockQueue, request: Request) -> RequestId {
    queue.slot().unwrap().submit(request)
}

#[test]
fn request_reads_what_was_written_however_often_the_indices_wrap() {
    // An interpreter takes a third of a second for each, and sees only the rings wrap.
    const ROUNDS: u64 = if cfg!(miri) { 8 } else { 70_000 };
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(3, chains, event_idx);
        for number in 0..ROUNDS {
            let (sector, bytes) = (number % 100, if number % 3 == 0 { 1024 } else { 512 });
            let data = vec![u8::try_from(number % 251).unwrap(); bytes as usize];
            let mut slot = queue.slot().unwrap();
            slot.fill(&data);
            slot.submit(Request::write(sector, bytes));
            submit(&mut queue, Request::read(sector, bytes));
            let _ = queue.publish();
            for _ in 0..2 {
                let seen = device.next().unwrap();
                assert_eq!((seen.sector, seen.bytes), (sector, bytes));
                device.serve(&seen);
            }
            assert!(device.next().is_none());
            assert_eq!(queue.reap().unwrap().unwrap().status(), 0);
            let read = queue.reap().unwrap().unwrap();
            let mut found = vec![0; bytes as usize];
            read.read(&mut found);
            assert_eq!(found, data);
            assert!(queue.reap().unwrap().is_none() && queue.in_flight() == 0);
        }
    }
}

#[test]
fn request_arrives_at_the_device_as_it_was_submitted() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(4, chains, event_idx);
        let held = Request::read(2, 512).with_priority(IDLE);
        // The same slots again, so that each has to forget what it was before.
        for _ in 0..3 {
            submit(&mut queue, held);
            submit(&mut queue, Request::flush());
            submit(&mut queue, Request::serial_number());
            submit(&mut queue, Request::write(7, 4096));
            assert!(queue.slot().is_none() && device.next().is_none());
            let _ = queue.publish();
            let mut seen = Vec::new();
            while let Some(request) = device.next() {
                seen.push((request.kind, request.priority, request.sector, request.bytes));
                assert_eq!(request.chain, if request.kind == 4 { 2 } else { 3 });
                device.answer(&request, 0);
            }
            assert_eq!(seen, [(0, 3 << 13, 2, 512), (4, 0, 0, 0), (8, 0, 0, 20), (1, 0, 7, 4096)]);
            while queue.reap().unwrap().is_some() {}
        }
    }
}

#[test]
fn requests_are_reaped_in_the_order_of_their_submission() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(3, chains, event_idx);
        let ids: Vec<_> =
            (0..3).map(|sector| submit(&mut queue, Request::read(sector, 512))).collect();
        let _ = queue.publish();
        let seen: Vec<_> = (0..3).map(|_| device.next().unwrap()).collect();
        device.answer(&seen[2], 2);
        device.answer(&seen[1], 1);
        assert!(queue.reap().unwrap().is_none());
        assert_eq!(queue.in_flight(), 3);
        assert!(queue.slot().is_none());
        device.answer(&seen[0], 0);
        for (id, status) in ids.into_iter().zip(0..) {
            let done = queue.reap().unwrap().unwrap();
            assert_eq!((done.id(), done.status()), (id, status));
            assert_eq!(done.result().is_ok(), status == 0);
        }
        assert!(queue.reap().unwrap().is_none());
    }
}

#[test]
fn requests_can_be_reaped_in_the_order_of_the_device() {
    let (mut queue, mut device) = pair(3, Chains::Direct, true);
    for sector in 0..3 {
        submit(&mut queue, Request::read(sector, 512));
    }
    let _ = queue.publish();
    let seen: Vec<_> = (0..3).map(|_| device.next().unwrap()).collect();
    for (index, status) in [(2, 2), (0, 0), (1, 1)] {
        device.answer(&seen[index], status);
        assert_eq!(queue.reap_any().unwrap().unwrap().status(), status);
    }
    assert!(queue.reap_any().unwrap().is_none() && queue.in_flight() == 0);
}

#[test]
fn request_taken_by_one_way_of_reaping_is_not_lost_to_the_other() {
    let (mut queue, mut device) = pair(3, Chains::Direct, true);
    for sector in 0..3 {
        submit(&mut queue, Request::read(sector, 512));
    }
    let _ = queue.publish();
    let seen: Vec<_> = (0..3).map(|_| device.next().unwrap()).collect();
    device.answer(&seen[2], 2);
    assert!(queue.reap().unwrap().is_none(), "the oldest is not done");
    device.answer(&seen[0], 0);
    assert_eq!(queue.reap_any().unwrap().unwrap().status(), 2);
    assert_eq!(queue.reap().unwrap().unwrap().status(), 0);
    device.answer(&seen[1], 1);
    queue.replay().unwrap();
    assert_eq!(queue.reap_any().unwrap().unwrap().status(), 1);
    assert!(queue.reap_any().unwrap().is_none() && queue.in_flight() == 0);
}

#[test]
fn a_batch_costs_one_notification_and_none_of_a_device_that_looks() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(8, chains, event_idx);
        for batch in 0..times(10_000) {
            let wanted = batch % 3 == 0;
            assert!(device.ask_for_notification(wanted));
            for sector in 0..4 {
                submit(&mut queue, Request::read(sector, 512));
            }
            assert_eq!(queue.publish(), wanted, "batch {batch} {chains:?} {event_idx}");
            assert!(!queue.publish(), "nothing new");
            if event_idx {
                // It was told already.
                submit(&mut queue, Request::read(4, 512));
                assert!(!queue.publish());
            }
            while let Some(seen) = device.next() {
                device.serve(&seen);
            }
            while queue.reap().unwrap().is_some() {}
        }
    }
}

#[test]
fn an_interrupt_comes_when_it_was_asked_for_and_not_otherwise() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(4, chains, event_idx);
        for round in 0..times(10_000) {
            submit(&mut queue, Request::read(0, 512));
            let _ = queue.publish();
            let seen = device.next().unwrap();
            if round % 2 == 0 {
                assert!(queue.ask_for_interrupt());
                device.serve(&seen);
                assert!(device.interrupts(), "round {round} {event_idx}");
                assert!(!queue.ask_for_interrupt(), "there is one");
            } else {
                queue.refuse_interrupts();
                device.serve(&seen);
                assert!(!device.interrupts(), "round {round} {event_idx}");
            }
            assert!(queue.reap().unwrap().is_some());
        }
    }
}

#[test]
fn no_wake_up_is_lost_in_either_direction() {
    const REQUESTS: u64 = times(20_000);
    for event_idx in [true, false] {
        let (mut queue, mut device) = pair(4, Chains::Direct, event_idx);
        let (kick, kicked) = std::sync::mpsc::channel();
        let (call, called) = std::sync::mpsc::channel();
        let patience = Duration::from_secs(20);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut served = 0;
                while served < REQUESTS {
                    let Some(seen) = device.next() else {
                        if device.ask_for_notification(true) {
                            kicked.recv_timeout(patience).expect("a lost notification");
                        }
                        device.ask_for_notification(false);
                        continue;
                    };
                    device.serve(&seen);
                    served += 1;
                    if device.interrupts() {
                        // Who has seen all that it waited for has left.
                        let _ = call.send(());
                    }
                }
            });
            let (mut sent, mut reaped) = (0, 0);
            while reaped < REQUESTS {
                while let Some(mut slot) = queue.slot().filter(|_| sent < REQUESTS) {
                    slot.fill(&sent.to_le_bytes());
                    slot.submit(Request::write(sent % 64, 512));
                    sent += 1;
                }
                if queue.publish() {
                    let _ = kick.send(());
                }
                while queue.reap().unwrap().is_some() {
                    reaped += 1;
                }
                if queue.in_flight() > 0 && queue.ask_for_interrupt() {
                    called.recv_timeout(patience).expect("a lost interrupt");
                }
                queue.refuse_interrupts();
            }
        });
    }
}

/// Whether there was a completion.
fn reap(queue: &mut BlockQueue) -> Result<bool, Broken> {
    queue.reap_any().map(|done| done.is_some())
}

#[test]
fn a_device_that_breaks_the_rules_is_not_believed() {
    for (chains, event_idx) in SETUPS {
        let broken = |act: &dyn Fn(&mut Device, &device::Seen)| {
            let (mut queue, mut device) = pair(4, chains, event_idx);
            submit(&mut queue, Request::read(0, 512));
            let _ = queue.publish();
            let seen = device.next().unwrap();
            act(&mut device, &seen);
            let mut last = reap(&mut queue);
            while last == Ok(true) {
                last = reap(&mut queue);
            }
            // What the device writes from here on changes nothing.
            device.answer(&seen, 0);
            assert_eq!(last, reap(&mut queue));
            assert_eq!(last.err(), queue.replay().err());
            last
        };
        let jump = broken(&|device, _| device.set_used(2));
        assert_eq!(jump, Err(Broken::Index { from: 0, to: 2 }));
        let back = broken(&|device, _| device.set_used(u16::MAX));
        assert_eq!(back, Err(Broken::Index { from: 0, to: u16::MAX }));
        let unknown = broken(&|device, _| device.give_back(1 << 20));
        assert_eq!(unknown, Err(Broken::Head(1 << 20)));
        for head in 0..pair(4, chains, event_idx).0.layout().size {
            let other = broken(&|device, seen| {
                device.give_back(if head == seen.head { 77 } else { head.into() });
            });
            assert!(matches!(other, Err(Broken::Head(_))), "{head}: {other:?}");
        }
        let twice = broken(&|device, seen| {
            device.answer(seen, 0);
            device.answer(seen, 0);
        });
        assert_eq!(twice, Err(Broken::Index { from: 0, to: 2 }));
    }
}

#[test]
fn shape_is_indirect_where_direct_descriptors_do_not_fit() {
    assert_eq!(Shape::new(1, 512).queue_size(), 4);
    assert_eq!(Shape::new(32, 512).queue_size(), 128);
    let large = Shape::new(128, 512);
    assert_eq!((large.chains(), large.queue_size()), (Chains::Indirect, 128));
    assert_eq!(Shape::new(1 << 15, 512).queue_size(), 1 << 15);
}

#[test]
fn shape_of_no_request_or_of_too_many_is_refused() {
    for depth in [0, (1 << 15) + 1, u16::MAX] {
        let shape = std::panic::catch_unwind(|| Shape::new(depth, 512));
        assert!(shape.is_err(), "{depth}");
    }
}
