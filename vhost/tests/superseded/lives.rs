//! Two instances of one side of the ring, the second restored from a snapshot of the first.

use crate::snapshotted::{Answers, Snapshotted};
use crate::stream::{Published, Step, steps};
use rand::RngExt;
use rand::rngs::SmallRng;
use ring_test_support::executor_disk::Driver;

/// The guest's side of the ring.
pub trait End {
    fn step(&mut self, step: &Step);

    /// Marks everything made from here on as made by this instance.
    fn live(&mut self, _life: u8) {}

    /// How often it was superseded.
    fn superseded(&self) -> u32;

    /// Whether it has gone on behind position `end`.
    fn is_past(&self, end: u64) -> bool;

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }
}

/// The parameters of a history.
pub struct Plan {
    /// The most steps before the snapshot, from there to the first instance's end, and of the
    /// second instance.
    pub early: usize,
    pub late: usize,
    pub restored: usize,
    /// The steps of the restored instance until it has gone on.
    pub more: Step,
}

/// Runs a history. Returns how often the restored instance was superseded.
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
    // The restored instance goes on, whatever came before.
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
