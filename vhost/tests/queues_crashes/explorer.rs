//! All orders of what can happen, each state once.

use crate::program::Program;
use crate::promises::Crashes;
use crate::world::{Event, Mutant, World};
use std::collections::HashSet;
use std::time::Instant;

/// Bounds of an exploration: how often a backend is killed, and how often somebody else than the
/// producer has the disk flushed.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub kills: usize,
    pub flushes: usize,
}

pub struct Explorer<'a> {
    program: &'a Program,
    mutant: Option<Mutant>,
    bounds: Bounds,
    crashes: Crashes,
    seen: HashSet<u64>,
    events: u64,
    kills: u64,
}

impl<'a> Explorer<'a> {
    pub fn new(program: &'a Program, mutant: Option<Mutant>, bounds: Bounds) -> Self {
        let (crashes, seen) = (Crashes::default(), HashSet::new());
        Self { program, mutant, bounds, crashes, seen, events: 0, kills: 0 }
    }

    /// Explores. Returns what was done in words; an error describes a broken promise, and the
    /// events that break it.
    pub fn explore(mut self) -> Result<String, String> {
        let start = Instant::now();
        let first = self.world(&[]);
        self.seen.insert(first.key());
        let (mut open, mut reached) = (vec![Vec::new()], Some(first));
        while let Some(path) = open.pop() {
            let world = reached.take().unwrap_or_else(|| self.world(&path));
            reached = self.expand(&path, world, &mut open)?;
        }
        Ok(format!(
            "{:?}: {} states of two queues, {} events, {} backends killed, {} crash points, {} states after a crash, {:.1} s",
            self.bounds,
            self.seen.len(),
            self.events,
            self.kills,
            self.crashes.examined,
            self.crashes.different(),
            start.elapsed().as_secs_f64()
        ))
    }

    /// Returns the world behind these events, which broke no promise when they were new.
    fn world(&self, path: &[Event]) -> World<'a> {
        let mut world = World::new(self.program, self.mutant);
        for event in path {
            world.happen(*event).unwrap();
        }
        world
    }

    /// Lets everything happen that can behind `path`, which has led to `world`. Returns the world
    /// of the path that was added to `open` last, if it is there.
    fn expand(
        &mut self,
        path: &[Event],
        world: World<'a>,
        open: &mut Vec<Vec<Event>>,
    ) -> Result<Option<World<'a>>, String> {
        let (key, events) = (world.key(), world.events(self.bounds.kills, self.bounds.flushes));
        let mut goes_on = world.is_done();
        let (mut world, mut last) = (Some(world), None);
        for (number, event) in events.iter().enumerate() {
            let here = if number + 1 == events.len() { world.take() } else { None };
            let mut next = here.unwrap_or_else(|| self.world(path));
            let is_kill = matches!(event, Event::Kill | Event::KillInRound);
            self.events += 1;
            self.kills += u64::from(is_kill);
            let failed = |e| format!("{e}\n{path:?}, {event:?}");
            next.happen(*event).map_err(failed)?;
            let reached = next.key();
            // What need not happen helps nobody on.
            goes_on |= reached != key && !is_kill && !matches!(event, Event::PutFlush(_));
            if self.seen.insert(reached) {
                next.examine(&mut self.crashes).map_err(failed)?;
                open.push([path, &[*event]].concat());
                last = Some(next);
            }
        }
        if goes_on { Ok(last) } else { Err(format!("nothing goes on behind {path:?}")) }
    }
}
