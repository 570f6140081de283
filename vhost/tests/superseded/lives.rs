//! Two lives of one end, the second of which was restored from a snapshot of the first.

use crate::common::disk::Driver;
use crate::snapshotted::{Answers, Snapshotted};
use crate::stream::{Published, Step, steps};
use rand::RngExt;
use rand::rngs::SmallRng;

/// The guest's end of the ring.
pub trait End {
    fn step(&mut self, step: &Step);

    /// From here on what it makes of itself is of this life.
    fn live(&mut self, _life: u8) {}

    /// How often it was told.
    fn superseded(&self) -> u32;

    /// Whether it has got on where the stream ended at `end`.
    fn is_past(&self, end: u64) -> bool;

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }
}

/// How a history goes.
pub struct Plan {
    /// Steps at most: before the snapshot, from there to the first life's end, and of the second life.
    pub early: usize,
    pub late: usize,
    pub restored: usize,
    /// What the restored end does until it has got on.
    pub more: Step,
}

/// How often the restored end was told.
pub fn told<'d>(
    plan: &Plan,
    random: &mut SmallRng,
    driver: &Driver<'d>,
    stream: &Published,
    attach: impl for<'a> Fn(&'a Snapshotted<'a, 'd>) -> Box<dyn End + 'a>,
) -> u32 {
    let (early, late) = (steps(random, plan.early, false), steps(random, plan.late, true));
    let answers = Answers::default();
    let first = Snapshotted::first_life(driver, &answers);
    let mut life = attach(&first);
    let attached = answers.lock().unwrap().len();
    life.steps(&early);
    let requests = answers.lock().unwrap().len();
    life.live(1);
    life.steps(&late);
    assert_eq!(life.superseded(), 0, "nobody has moved what it has moved");
    drop(life);

    let before = random.random_range(attached..=requests);
    let second = Snapshotted::restored(driver, &answers, before);
    let mut life = attach(&second);
    life.live(2);
    life.steps(&early);
    life.steps(&steps(random, plan.restored, true));
    // It goes on, whatever was.
    let end = stream.lock().unwrap().end();
    for _ in 0..10_000 {
        life.step(&plan.more);
        life.step(&Step::Advance(usize::MAX));
        if life.is_past(end) {
            break;
        }
    }
    assert!(life.is_past(end));
    assert!(life.superseded() <= 1);
    life.superseded()
}
