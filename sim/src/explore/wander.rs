//! Random exploration of rings that are too large for an exhaustive one: long programs, and random
//! power failures.

use crate::adversary::Adversary;
use crate::disk::Disk;
use crate::explore::control::{Access, Trouble};
use crate::explore::explorer::Failure;
use crate::explore::inspect::inspect;
use crate::explore::oracle::{Found, Oracle};
use crate::explore::step::{BETWEEN, OPS, Op, Step};
use crate::explore::world::{Setting, Sink, World};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shared_block_ring::format::Geometry;
use std::sync::{Arc, Mutex};

/// Power failures examined after each change of the disk.
const SAMPLES: u32 = 3;

/// Accesses of an operation that can have trouble: more than any operation by sectors has.
const ACCESSES: usize = 14;

/// Examines some of the crashes.
struct Samples {
    random: SmallRng,
    data: u64,
    crash_points: u64,
}

impl Sink for Samples {
    fn visit(&mut self, disk: &Disk, oracle: &Oracle) -> Result<(), String> {
        for _ in 0..SAMPLES {
            self.crash_points += 1;
            let (copy, seed) = (disk.fork(), self.random.random());
            let mut adversary = Adversary::new(seed, self.data);
            copy.crash(|sector, versions| adversary.choose(sector, versions));
            oracle.accepts(&inspect(&copy)?)?;
        }
        Ok(())
    }
}

/// Goes through `lives` power failures with about `steps` operations between them, all by `seed`.
/// Returns the number of crash points examined.
pub fn wander(
    seed: u64,
    geometry: Geometry,
    setting: Setting,
    lives: u32,
    steps: u32,
) -> Result<u64, Box<Failure>> {
    let mut random = SmallRng::seed_from_u64(seed);
    let data = geometry.data_start() / u64::from(geometry.sector_size().get());
    let samples = Samples { random: SmallRng::seed_from_u64(!seed), data, crash_points: 0 };
    let samples = Arc::new(Mutex::new(samples));
    let disk = Disk::new(geometry.sector_size(), geometry.sectors());
    let (mut found, mut number) = (Found::Nothing, 0);
    for _ in 0..lives {
        let image = disk.image();
        let world = World::new(disk.clone(), Oracle::of(&found, number), setting);
        world.observe(samples.clone());
        let mut path = Vec::new();
        let failed = |violation, path| Box::new(Failure { violation, path, image: image.clone() });
        for _ in 0..random.random_range(1..=steps) {
            let enabled: Vec<Op> = OPS.into_iter().filter(|&op| world.is_enabled(op)).collect();
            let op = enabled[random.random_range(0..enabled.len())];
            let step = befallen(&mut random, op, setting.mapped);
            path.push(step);
            let trace = world.run(step);
            if let Some(violation) = world.violation() {
                return Err(failed(violation, path));
            }
            // After a failed flush only the power failure follows.
            if let Step::Troubled(_, at, Trouble::Error(_)) = step
                && trace.get(at) == Some(&Access::Flush)
            {
                break;
            }
        }
        number = world.oracle().next_number();
        let mut adversary = Adversary::new(random.random(), data);
        disk.crash(|sector, versions| adversary.choose(sector, versions));
        let verdict = inspect(&disk).and_then(|now| world.oracle().accepts(&now).map(|()| now));
        found = verdict.map_err(|violation| failed(violation, path))?;
    }
    let samples = samples.lock().expect("alive");
    Ok(samples.crash_points)
}

fn befallen(random: &mut SmallRng, op: Op, mapped: bool) -> Step {
    let at = random.random_range(0..ACCESSES);
    match random.random_range(0..10) {
        0 => Step::Troubled(
            op,
            at,
            Trouble::Death(if mapped { 0 } else { random.random_range(0..3) }),
        ),
        // A store does not fail.
        1 if !mapped => Step::Troubled(op, at, Trouble::Error(random.random_range(0..3))),
        2 | 3 => {
            let others: Vec<Op> =
                BETWEEN.into_iter().filter(|inner| inner.party() != op.party()).collect();
            Step::Between(op, at, others[random.random_range(0..others.len())])
        }
        _ => Step::Plain(op),
    }
}
