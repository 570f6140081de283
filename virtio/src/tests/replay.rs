//! Devices that take the place of one that is gone, at any moment of a random history.

use super::{Request, SETUPS, pair};
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::VecDeque;

/// More than there are requests at once: two that are under way never touch the same sector.
const SECTORS: u64 = 64;

#[derive(Debug, Clone)]
enum Step {
    Submit,
    Publish,
    Take,
    Answer(Index),
    CarryOut(Index),
    Replace,
    Reap,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Submit),
        4 => Just(Step::Publish),
        4 => Just(Step::Take),
        3 => any::<Index>().prop_map(Step::Answer),
        1 => any::<Index>().prop_map(Step::CarryOut),
        1 => Just(Step::Replace),
        4 => Just(Step::Reap),
    ]
}

proptest! {
    #[test]
    fn each_request_is_carried_out_and_given_back_once_whenever_devices_are_replaced(
        steps in prop::collection::vec(step(), 1..300),
        setup in any::<Index>(),
        any in any::<Index>(),
    ) {
        let (chains, event_idx) = *setup.get(&SETUPS);
        let (mut queue, mut device) = pair(4, chains, event_idx);
        // What the device is at, in any order; and what the driver waits for.
        let (mut taken, mut waited) = (Vec::new(), VecDeque::new());
        let mut sent = 0u64;
        // At the end everything is done, by a last device.
        let end = std::iter::repeat_n([Step::Take, Step::Answer(any), Step::Reap], 4);
        let end = [Step::Publish, Step::Replace].into_iter().chain(end.flatten());
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Submit => {
                    let Some(mut slot) = queue.slot() else { continue };
                    slot.fill(&sent.to_le_bytes());
                    waited.push_back(slot.submit(Request::write(sent % SECTORS, 512)));
                    sent += 1;
                }
                // A device of the test's looks without being told.
                Step::Publish => drop(queue.publish()),
                Step::Take => taken.extend(device.next()),
                Step::Answer(_) | Step::CarryOut(_) if taken.is_empty() => {}
                Step::Answer(which) => {
                    let seen = taken.swap_remove(which.index(taken.len()));
                    device.serve(&seen);
                }
                Step::CarryOut(which) => device.carry_out(which.get(&taken)),
                Step::Replace => {
                    taken.clear();
                    device = device.succeeded(queue.replay().unwrap());
                }
                Step::Reap => {
                    let Some(done) = queue.reap().unwrap() else { continue };
                    prop_assert_eq!((Some(done.id()), done.status()), (waited.pop_front(), 0));
                }
            }
        }
        while queue.reap().unwrap().is_some() {
            waited.pop_front();
        }
        prop_assert_eq!((waited.len(), queue.in_flight()), (0, 0));
        for number in sent.saturating_sub(SECTORS)..sent {
            let at = usize::try_from(number % SECTORS).unwrap() * 512;
            prop_assert_eq!(&device.disk[at..at + 8], &number.to_le_bytes());
        }
    }
}
