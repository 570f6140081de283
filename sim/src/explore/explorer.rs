//! Every crash of every short program.
//!
//! A node is a disk after a power failure, with no side attached. From a node, programs are carried
//! out breadth first; of those that lead to the same state (disk with its pending writes, both
//! handles, promises) one is continued. After every change of the disk, every combination of
//! versions that a power failure could leave is examined: it must be sound, and allowed by the
//! oracle. Each such disk that was not seen before is a node of the next generation.

use crate::disk::{Content as Bytes, Disk};
use crate::explore::canon::{sector_key, uuid_of};
use crate::explore::control::{Access, Trouble};
use crate::explore::inspect::inspect;
use crate::explore::oracle::{Found, Oracle};
use crate::explore::step::{BETWEEN, OPS, Op, Step};
use crate::explore::world::{Setting, Sink, World};
use shared_block_ring::format::{Geometry, SectorSize};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

/// Distance between the first item numbers of two generations: no item equals one of another
/// generation.
const NUMBERS: u32 = 64;

/// Counts of an exploration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Power failures examined: a change of the disk, and a choice of the versions that it leaves.
    pub crash_points: u64,
    /// Different disks that they left.
    pub crash_states: u64,
    /// Different states of a ring in use.
    pub program_states: u64,
    /// Steps that were carried out.
    pub steps: u64,
    /// Number of nodes of each generation.
    pub nodes: [u64; 4],
}

/// A broken promise, and the steps that break it.
#[derive(Debug)]
pub struct Failure {
    /// The promise.
    pub violation: String,
    /// The steps from the disk in `image` on.
    pub path: Vec<Step>,
    /// The disk before those steps.
    pub image: Vec<u8>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.violation)?;
        self.path.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// Bounds of an exploration.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Operations in a program, by generation; 0 ends the exploration.
    pub lengths: [usize; 4],
    /// Crash points after which no further generation is begun and the present one is cut short.
    pub crash_points: u64,
}

/// A disk with no side attached.
#[derive(Clone)]
struct Node {
    image: Vec<u8>,
    found: Found,
}

/// Examines every crash.
struct Crashes {
    geometry: Geometry,
    found: HashMap<u64, Arc<Result<Found, String>>>,
    fresh: Vec<Node>,
    crash_points: u64,
}

/// An exploration of one ring.
pub struct Explorer {
    geometry: Geometry,
    setting: Setting,
    bounds: Bounds,
    crashes: Arc<Mutex<Crashes>>,
    counts: Counts,
}

impl Explorer {
    /// Makes an exploration of a disk with this many sectors of 512 bytes.
    pub fn new(sectors: u64, setting: Setting, bounds: Bounds) -> Self {
        let geometry = Geometry::new(SectorSize::DEFAULT, sectors).expect("large enough");
        let crashes =
            Crashes { geometry, found: HashMap::new(), fresh: Vec::new(), crash_points: 0 };
        Self {
            geometry,
            setting,
            bounds,
            crashes: Arc::new(Mutex::new(crashes)),
            counts: Counts::default(),
        }
    }

    /// Explores from a blank disk and from what each of the `preludes` leaves on one.
    pub fn explore(mut self, preludes: &[Vec<Op>]) -> Result<Counts, Box<Failure>> {
        let zeros = vec![0; usize::try_from(self.geometry.total_bytes()).expect("small")];
        let blank = Node { image: zeros, found: Found::Nothing };
        let mut nodes = vec![blank.clone()];
        for prelude in preludes {
            nodes.push(self.after(&blank, prelude)?);
        }
        for (generation, length) in self.bounds.lengths.into_iter().enumerate() {
            if length == 0 || self.is_over() {
                break;
            }
            for node in &nodes {
                self.expand(node, generation, length)?;
                self.counts.nodes[generation] += 1;
                if self.is_over() {
                    break;
                }
            }
            let mut crashes = self.crashes.lock().expect("alive");
            nodes = std::mem::take(&mut crashes.fresh);
        }
        let crashes = self.crashes.lock().expect("alive");
        self.counts.crash_points = crashes.crash_points;
        self.counts.crash_states = crashes.found.len() as u64;
        Ok(self.counts)
    }

    fn is_over(&self) -> bool {
        self.crashes.lock().expect("alive").crash_points >= self.bounds.crash_points
    }

    /// Returns the durable disk that a program without trouble leaves.
    fn after(&self, node: &Node, prelude: &[Op]) -> Result<Node, Box<Failure>> {
        let path: Vec<Step> = prelude.iter().map(|&op| Step::Plain(op)).collect();
        let world = self.world(node, 0, &path);
        if let Some(violation) = world.violation() {
            return Err(Box::new(Failure { violation, path, image: node.image.clone() }));
        }
        let disk = world.disk().fork();
        disk.crash(|_, versions| versions - 1);
        let found = inspect(&disk).expect("a sound ring");
        Ok(Node { image: disk.image(), found })
    }

    fn world(&self, node: &Node, generation: usize, path: &[Step]) -> Arc<World> {
        let disk = Disk::of(self.geometry.sector_size(), &node.image);
        let first = NUMBERS * u32::try_from(generation + 1).expect("few");
        let world = World::new(disk, Oracle::of(&node.found, first), self.setting);
        for &step in path {
            world.run(step);
        }
        world
    }

    fn expand(
        &mut self,
        node: &Node,
        generation: usize,
        length: usize,
    ) -> Result<(), Box<Failure>> {
        let mut seen = HashSet::new();
        let mut paths = vec![Vec::new()];
        seen.insert(self.key(&self.world(node, generation, &[])));
        for last in (0..length).rev() {
            let mut next = Vec::new();
            for path in &paths {
                if self.is_over() {
                    return Ok(());
                }
                for (op, trace) in self.plain_steps(node, generation, path) {
                    let mut variants = vec![Step::Plain(op)];
                    variants.extend(self.variants(op, &trace));
                    for variant in variants {
                        let key = self.step(node, generation, path, variant)?;
                        let over = is_failed_flush(variant, &trace);
                        if !over && seen.insert(key) && last > 0 {
                            let mut longer = path.clone();
                            longer.push(variant);
                            next.push(longer);
                        }
                    }
                }
            }
            paths = next;
        }
        self.counts.program_states += seen.len() as u64;
        Ok(())
    }

    /// Returns the operations that can have an effect after `path`, and the accesses that each
    /// takes.
    fn plain_steps(&self, node: &Node, generation: usize, path: &[Step]) -> Vec<(Op, Vec<Access>)> {
        let world = self.world(node, generation, path);
        let enabled: Vec<Op> = OPS.into_iter().filter(|&op| world.is_enabled(op)).collect();
        let trace = |op| {
            let world = self.world(node, generation, path);
            world.run(Step::Plain(op))
        };
        enabled.into_iter().map(|op| (op, trace(op))).collect()
    }

    /// Returns all trouble that an operation can have.
    fn variants(&self, op: Op, trace: &[Access]) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, &access) in trace.iter().enumerate() {
            // Death after an access is death before the next one.
            let troubles = match access {
                // Neither a load nor a store fails, and a store happens whole or not at all.
                Access::Read if self.setting.mapped => vec![],
                Access::Read => vec![Trouble::Error(0)],
                Access::Flush => vec![Trouble::Death(0), Trouble::Error(0)],
                Access::Write { .. } if self.setting.mapped => vec![Trouble::Death(0)],
                Access::Write { sectors: 1, .. } => {
                    vec![Trouble::Death(0), Trouble::Error(0), Trouble::Error(1)]
                }
                Access::Write { sectors, .. } => vec![
                    Trouble::Death(0),
                    Trouble::Death(1),
                    Trouble::Error(0),
                    Trouble::Error(1),
                    Trouble::Error(sectors),
                ],
            };
            steps.extend(troubles.into_iter().map(|trouble| Step::Troubled(op, at, trouble)));
            if at > 0 {
                let others = BETWEEN.into_iter().filter(|inner| inner.party() != op.party());
                steps.extend(others.map(|inner| Step::Between(op, at, inner)));
            }
        }
        steps
    }

    /// Carries out `path` without examination, then `step` with every crash examined.
    fn step(
        &mut self,
        node: &Node,
        generation: usize,
        path: &[Step],
        step: Step,
    ) -> Result<u64, Box<Failure>> {
        let world = self.world(node, generation, path);
        world.observe(self.crashes.clone());
        world.run(step);
        self.counts.steps += 1;
        match world.violation() {
            None => Ok(self.key(&world)),
            Some(violation) => {
                let path = path.iter().copied().chain([step]).collect();
                Err(Box::new(Failure { violation, path, image: node.image.clone() }))
            }
        }
    }

    fn key(&self, world: &World) -> u64 {
        let versions = world.disk().versions();
        let uuid = uuid_of(self.geometry, &versions[0]);
        let mut hasher = DefaultHasher::new();
        for (index, versions) in versions.iter().enumerate() {
            for content in versions {
                sector_key(self.geometry, uuid, index, content).hash(&mut hasher);
            }
            versions.len().hash(&mut hasher);
        }
        (world.sides(), world.oracle()).hash(&mut hasher);
        hasher.finish()
    }
}

impl Sink for Crashes {
    fn visit(&mut self, disk: &Disk, oracle: &Oracle) -> Result<(), String> {
        let versions = disk.versions();
        let uuid = uuid_of(self.geometry, &versions[0]);
        // The different versions of each sector.
        let choices: Vec<Vec<(u64, &Bytes)>> = versions
            .iter()
            .enumerate()
            .map(|(index, versions)| {
                let mut different: Vec<(u64, &Bytes)> = Vec::new();
                for content in versions {
                    let key = sector_key(self.geometry, uuid, index, content);
                    if different.iter().all(|(known, _)| *known != key) {
                        different.push((key, content));
                    }
                }
                different
            })
            .collect();
        let mut chosen = vec![0; choices.len()];
        loop {
            self.crash_points += 1;
            let kept = || chosen.iter().zip(&choices).map(|(&choice, versions)| versions[choice]);
            let mut hasher = DefaultHasher::new();
            kept().for_each(|(key, _)| key.hash(&mut hasher));
            let key = hasher.finish();
            if !self.found.contains_key(&key) {
                let image: Vec<u8> = kept().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
                let found = inspect(&Disk::of(self.geometry.sector_size(), &image));
                if let Ok(found) = &found {
                    self.fresh.push(Node { image, found: found.clone() });
                }
                self.found.insert(key, Arc::new(found));
            }
            let verdict = match &*self.found[&key] {
                Ok(found) => oracle.accepts(found),
                Err(e) => Err(e.clone()),
            };
            verdict.map_err(|e| format!("after a crash that keeps {chosen:?}: {e}"))?;
            let Some(next) = (0..chosen.len()).find(|&at| chosen[at] + 1 < choices[at].len())
            else {
                return Ok(());
            };
            chosen[..next].fill(0);
            chosen[next] += 1;
        }
    }
}

/// Returns whether the step makes a flush fail.
fn is_failed_flush(step: Step, trace: &[Access]) -> bool {
    matches!(step, Step::Troubled(_, at, Trouble::Error(_)) if trace[at] == Access::Flush)
}
