//! A device that takes the place of one that is gone.

use super::{Broken, Request, SETUPS, pair, submit};

#[test]
fn successor_carries_out_what_was_not_given_back_in_the_order_of_submission() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(4, chains, event_idx);
        for sector in 0..4u8 {
            let mut slot = queue.slot().unwrap();
            slot.fill(&[sector + 1; 512]);
            slot.submit(Request::write(sector.into(), 512));
        }
        let _ = queue.publish();
        let seen: Vec<_> = (0..4).map(|_| device.next().unwrap()).collect();
        // One is given back out of order, and one was carried out without an answer.
        device.serve(&seen[2]);
        device.carry_out(&seen[1]);
        let mut device = device.succeeded(queue.replay().unwrap());
        let again: Vec<_> = std::iter::from_fn(|| device.next()).collect();
        let sectors: Vec<_> = again.iter().map(|seen| seen.sector).collect();
        assert_eq!(sectors, [0, 1, 3], "{chains:?} {event_idx}");
        for seen in again.iter().rev() {
            device.serve(seen);
        }
        for sector in 0..4u8 {
            assert_eq!(queue.reap().unwrap().unwrap().status(), 0);
            assert_eq!(device.disk[usize::from(sector) * 512], sector + 1);
        }
        assert!(queue.reap().unwrap().is_none());
    }
}

#[test]
fn device_that_has_broken_the_rules_has_no_successor() {
    for (chains, event_idx) in SETUPS {
        let (mut queue, mut device) = pair(4, chains, event_idx);
        submit(&mut queue, Request::read(0, 512));
        let _ = queue.publish();
        device.set_used(2);
        let broken = Err(Broken::Index { from: 0, to: 2 });
        assert_eq!(queue.replay(), broken);
        assert_eq!(queue.replay(), broken, "nor later");
    }
}
