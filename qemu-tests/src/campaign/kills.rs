//! The campaigns of kills, and how each is divided into streams.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use shared_block_ring::format::{SectorSize, Side};

use super::host::on_a_file;
use super::inside::Manner;
use super::rig::{Rig, other};
use super::{Killed, Kind, Outcome, Result, in_a_folder, recipe};
use crate::load::Random;

/// Largest number of kills of one stream: failures show soon, and logs stay small.
const STREAM: u32 = 50;

/// A stream of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Task {
    place: Place,
    kills: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A ring in a file with such sectors, both ends on the host.
    File(SectorSize),
    /// A ring behind the backend; the guest has this end of it.
    Guest(Side),
}

/// Returns the streams of a campaign. Most lead out of the guest, as most rings do; some into it.
fn tasks(kind: Kind, kills: u32) -> Vec<Task> {
    let large = SectorSize::new(4096).unwrap_or(SectorSize::DEFAULT);
    let parts = if let Some(victim) = kind.victim() {
        let beside_a_guest = kills / 5;
        let on_large_sectors = kills / 4;
        vec![
            (Place::Guest(other(victim)), beside_a_guest),
            (Place::File(large), on_large_sectors),
            (Place::File(SectorSize::DEFAULT), kills - beside_a_guest - on_large_sectors),
        ]
    } else {
        let inward = kills / 4;
        vec![(Place::Guest(Side::Producer), kills - inward), (Place::Guest(Side::Consumer), inward)]
    };
    // A few at a time, also where there are few kills.
    let most = kills.div_ceil(3).clamp(1, STREAM);
    let mut tasks = Vec::new();
    for (place, mut left) in parts {
        while left > 0 {
            let kills = left.min(most);
            tasks.push(Task { place, kills });
            left -= kills;
        }
    }
    tasks
}

/// Runs a campaign. Returns the outcome of its streams. All random choices follow from `seed`.
pub(super) fn run(
    kind: Kind,
    kills: u32,
    seed: u64,
    jobs: usize,
    killed: Killed<'_>,
) -> Result<Vec<Outcome>> {
    let tasks = tasks(kind, kills);
    in_parallel(tasks.len(), jobs, |index| {
        let mut random = Random::of(seed, &[kind as u64, index as u64]);
        let Task { place, kills } = tasks[index];
        match place {
            Place::File(sector_size) => {
                let victim = kind.victim().unwrap_or(Side::Producer);
                on_a_file(victim, kills, sector_size, killed, &mut random)
            }
            Place::Guest(side) => in_a_rig(kind, side, kills, killed, &mut random),
        }
    })
}

fn in_a_rig(
    kind: Kind,
    side: Side,
    kills: u32,
    killed: Killed<'_>,
    random: &mut Random,
) -> Result<Outcome> {
    in_a_folder(|folder| {
        let manner = if kind == Kind::Saved { Manner::Migratable } else { Manner::Plain };
        let mut rig = Rig::start(folder, side, manner, recipe(random))?;
        if kind.victim().is_some() {
            rig.kill_host(kills, random, killed)?;
            return rig.finish();
        }
        for _ in 0..kills {
            match kind {
                Kind::Backend => rig.kill_backend(random)?,
                Kind::Qemu => rig.kill_qemu(random)?,
                Kind::Saved => rig.save_and_restore(random)?,
                _ => rig.kill_all(random)?,
            }
            killed();
        }
        rig.finish()
    })
}

/// Runs `work` for the numbers below `count`, a few at a time; none is begun after one has failed.
pub(super) fn in_parallel<T: Send>(
    count: usize,
    jobs: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let put = |outcome| outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
    let worker = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let outcome = work(index);
            if outcome.is_err() {
                next.store(count, Ordering::Relaxed);
            }
            put(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs.min(count) {
            scope.spawn(worker);
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kill_has_a_place_and_every_place_has_kills() {
        let kinds = [Kind::Producer, Kind::Consumer, Kind::Backend, Kind::Qemu, Kind::All];
        for kind in kinds.into_iter().chain([Kind::Saved]) {
            for kills in [0, 1, 10, 30, 500] {
                let tasks = tasks(kind, kills);
                assert_eq!(tasks.iter().map(|task| task.kills).sum::<u32>(), kills);
                assert!(tasks.iter().all(|task| (1..=STREAM).contains(&task.kills)));
                let side = kind.victim().map_or(Side::Consumer, other);
                let place = Place::Guest(side);
                assert_eq!(kills >= 10, tasks.iter().any(|task| task.place == place));
            }
        }
    }
}
