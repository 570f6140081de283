//! The driver's side against a small device.
#![allow(clippy::unwrap_used)]

mod device;
mod replay;

use super::{BlockQueue, Broken, Chains, DmaMemory, IDLE, Operation, Pages, Request, Shape, Slot};
use device::Device;
use std::time::Duration;

/// Every way in which a queue can be set up.
const SETUPS: [(Chains, bool); 4] = [
    (Chains::Direct, true),
    (Chains::Direct, false),
    (Chains::Indirect, true),
    (Chains::Indirect, false),
];

fn pair(depth: u16, chains: Chains, event_idx: bool) -> (BlockQueue, Device) {
    let shape = Shape { chains, ..Shape::new(depth, 4096) };
    let memory = DmaMemory::new(shape.memory(), Pages::Small).unwrap();
    let queue = BlockQueue::new(memory, shape, event_idx);
    let device = Device::new(queue.memory(), queue.ring().layout(), event_idx);
    (queue, device)
}

fn request(operation: Operation, sector: u64, bytes: u32) -> Request {
    Request { operation, sector, bytes, priority: 0 }
}

/// Submits without publishing.
fn submit(queue: &mut BlockQueue, request: Request) -> Slot {
    let slot = queue.slot().unwrap();
    queue.submit(slot, request);
    slot
}

#[test]
fn what_is_written_is_read_however_often_the_indices_wrap() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(3, chains, event_idx);
        for number in 0..70_000u64 {
            let (sector, bytes) = (number % 100, if number % 3 == 0 { 1024 } else { 512 });
            let data = vec![u8::try_from(number % 251).unwrap(); bytes as usize];
            let slot = queue.slot().unwrap();
            queue.memory().write(queue.buffer(slot), &data);
            submit(&mut queue, request(Operation::Write, sector, bytes));
            submit(&mut queue, request(Operation::Read, sector, bytes));
            let _ = queue.publish();
            for _ in 0..2 {
                let seen = device.next().unwrap();
                assert_eq!((seen.sector, seen.bytes), (sector, bytes));
                device.serve(&seen);
            }
            assert!(device.next().is_none());
            assert_eq!(queue.reap().unwrap().unwrap().status, 0);
            let read = queue.reap().unwrap().unwrap();
            let mut found = vec![0; bytes as usize];
            queue.memory().read(queue.buffer(read.slot), &mut found);
            assert_eq!(found, data);
            assert_eq!((queue.reap().unwrap(), queue.in_flight()), (None, 0));
        }
    }
}

#[test]
fn a_request_arrives_as_it_is_meant() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(4, chains, event_idx);
        let held = Request { priority: IDLE, ..request(Operation::Read, 2, 512) };
        // The same slots again, so that each has to forget what it was before.
        for _ in 0..3 {
            submit(&mut queue, held);
            submit(&mut queue, request(Operation::Flush, 0, 0));
            submit(&mut queue, request(Operation::GetId, 0, 20));
            submit(&mut queue, request(Operation::Write, 7, 4096));
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
        let slots: Vec<_> = (0..3)
            .map(|sector| submit(&mut queue, request(Operation::Read, sector, 512)))
            .collect();
        let _ = queue.publish();
        let seen: Vec<_> = (0..3).map(|_| device.next().unwrap()).collect();
        device.answer(&seen[2], 2);
        device.answer(&seen[1], 1);
        assert_eq!((queue.reap().unwrap(), queue.in_flight()), (None, 3));
        assert!(queue.slot().is_none());
        device.answer(&seen[0], 0);
        for (slot, status) in slots.into_iter().zip(0..) {
            let done = queue.reap().unwrap().unwrap();
            assert_eq!((done.slot, done.status), (slot, status));
            assert_eq!(done.result().is_ok(), status == 0);
        }
        assert_eq!(queue.reap().unwrap(), None);
    }
}

#[test]
fn requests_can_be_reaped_in_the_order_of_the_device() {
    let (mut queue, mut device) = pair(3, Chains::Direct, true);
    for sector in 0..3 {
        submit(&mut queue, request(Operation::Read, sector, 512));
    }
    let _ = queue.publish();
    let seen: Vec<_> = (0..3).map(|_| device.next().unwrap()).collect();
    for (index, status) in [(2, 2), (0, 0), (1, 1)] {
        device.answer(&seen[index], status);
        assert_eq!(queue.reap_any().unwrap().unwrap().status, status);
    }
    assert_eq!((queue.reap_any().unwrap(), queue.in_flight()), (None, 0));
}

#[test]
fn a_batch_costs_one_notification_and_none_of_a_device_that_looks() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(8, chains, event_idx);
        for batch in 0..10_000 {
            let wanted = batch % 3 == 0;
            assert!(device.ask_for_notification(wanted));
            for sector in 0..4 {
                submit(&mut queue, request(Operation::Read, sector, 512));
            }
            assert_eq!(queue.publish(), wanted, "batch {batch} {chains:?} {event_idx}");
            assert!(!queue.publish(), "nothing new");
            if event_idx {
                // It was told already.
                submit(&mut queue, request(Operation::Read, 4, 512));
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
        for round in 0..10_000 {
            submit(&mut queue, request(Operation::Read, 0, 512));
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
            queue.reap().unwrap().unwrap();
        }
    }
}

#[test]
fn no_wake_up_is_lost_in_either_direction() {
    const REQUESTS: u64 = 20_000;
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
                while let Some(slot) = queue.slot().filter(|_| sent < REQUESTS) {
                    queue.submit(slot, request(Operation::Write, sent % 64, 512));
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

#[test]
fn a_device_that_breaks_the_rules_is_not_believed() {
    for (chains, event_idx) in SETUPS {
        let broken = |act: &dyn Fn(&mut Device, &device::Seen)| {
            let (mut queue, mut device) = pair(4, chains, event_idx);
            submit(&mut queue, request(Operation::Read, 0, 512));
            let _ = queue.publish();
            let seen = device.next().unwrap();
            act(&mut device, &seen);
            let mut last = queue.reap();
            while let Ok(Some(_)) = last {
                last = queue.reap_any();
            }
            last
        };
        let jump = broken(&|device, _| device.set_used(2));
        assert_eq!(jump, Err(Broken::Index { from: 0, to: 2 }));
        let back = broken(&|device, _| device.set_used(u16::MAX));
        assert_eq!(back, Err(Broken::Index { from: 0, to: u16::MAX }));
        let unknown = broken(&|device, _| device.give_back(1 << 20));
        assert_eq!(unknown, Err(Broken::Head(1 << 20)));
        let size = Shape { chains, ..Shape::new(4, 4096) }.queue_size();
        for head in 0..size {
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
fn what_does_not_fit_as_direct_descriptors_is_indirect() {
    assert_eq!(Shape::new(1, 512).queue_size(), 4);
    assert_eq!(Shape::new(32, 512).queue_size(), 128);
    let large = Shape::new(128, 512);
    assert_eq!((large.chains, large.queue_size()), (Chains::Indirect, 128));
}
