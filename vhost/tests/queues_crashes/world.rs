//! A guest, the worker that serves its two queues, and the medium below.

use crate::flushes::Flushes;
use crate::program::{Program, Request};
use crate::promises::{Crashes, Promises};
use ring_simulation::{BegunFlush, Disk as Medium};
use ring_test_support::executor_disk::{Disk, open};
use ring_test_support::worker_disk::{Direct, Payload, Place};
use shared_block_ring::format::{SectorSize, Side};
use std::collections::VecDeque;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;

pub const QUEUES: usize = 2;

/// A mistake of what is around the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// No flush makes anything durable.
    FlushesNothing,
    /// A FLUSH promises what was answered before its answer, instead of before it was put there:
    /// the flush that was under way would have to answer it.
    PromisesMore,
    /// A killed backend has published the answers to requests that it had not carried out.
    PublishesFirst,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The producer puts its next request into this queue.
    Put(usize),
    /// Somebody else puts a FLUSH into this queue.
    PutFlush(usize),
    /// The worker takes one step in each queue.
    Round,
    /// The flush that is under way ends, and the worker takes one step in each queue.
    EndFlush,
    /// The backend is killed, and another takes its place.
    Kill,
    /// The same in a round, before the last answer was published.
    KillInRound,
}

/// A FLUSH that the worker has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Taken {
    /// It waits for the flush that is under way.
    UnderWay,
    /// It waits for the flush behind that.
    Next,
    /// Its flush has ended.
    Ended,
}

/// A request in a queue.
struct Waiting {
    place: Place,
    /// False of somebody else's FLUSH.
    of_program: bool,
    request: Request,
    /// Writes that were answered before it was put there.
    covered: usize,
    taken: Option<Taken>,
}

/// A guest with its worker.
pub struct World<'a> {
    program: &'a Program,
    mutant: Option<Mutant>,
    flushes: Flushes,
    // An option, so that a killed backend can be replaced.
    direct: Option<Direct>,
    /// The ring as the backend has it.
    file: File,
    /// The same with what a power failure may leave of it.
    medium: Medium,
    /// The flush that is under way.
    begun: BegunFlush,
    /// Contents that each sector has had.
    visible: Vec<Vec<Vec<u8>>>,
    promises: Promises,
    /// The producer's stage, and the number of its requests that are in the queues or answered.
    stage: usize,
    put: usize,
    queues: [VecDeque<Waiting>; QUEUES],
    /// The used index of each queue.
    answered: [u16; QUEUES],
    /// Whether the worker has taken a step since it started, the requests that waited in each queue
    /// then, and whether one was answered since: the first may be a repeated one.
    has_served: bool,
    waited: [usize; QUEUES],
    has_answered: [bool; QUEUES],
    others_flushes: usize,
    kills: usize,
}

fn backend(bytes: &[u8]) -> (Disk, File) {
    let disk = Disk::holding(Side::Producer, SectorSize::DEFAULT, bytes);
    let file = open(&disk.path);
    (disk, file)
}

impl<'a> World<'a> {
    pub fn new(program: &'a Program, mutant: Option<Mutant>) -> Self {
        let (disk, file) = backend(&program.start);
        let (flusher, control) = Flushes::new();
        Self {
            program,
            mutant,
            direct: Some(Direct::with_queues(disk, QUEUES, flusher)),
            flushes: control,
            file,
            medium: Medium::of(SectorSize::DEFAULT, &program.start),
            begun: BegunFlush::default(),
            visible: program.start.chunks(512).map(|sector| vec![sector.to_vec()]).collect(),
            promises: Promises::default(),
            stage: 0,
            put: 0,
            queues: Default::default(),
            answered: [0; QUEUES],
            has_served: false,
            waited: [0; QUEUES],
            has_answered: [false; QUEUES],
            others_flushes: 0,
            kills: 0,
        }
    }

    fn direct(&self) -> &Direct {
        self.direct.as_ref().unwrap()
    }

    /// Whether the producer has all its answers.
    pub fn is_done(&self) -> bool {
        self.stage == self.program.stages.len() && self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// Returns what can happen now, with so many kills and flushes of somebody else in all.
    pub fn events(&self, kills: usize, others_flushes: usize) -> Vec<Event> {
        let stage = self.program.stages.get(self.stage);
        let mut events = Vec::new();
        if stage.is_some_and(|stage| self.put < stage.len()) {
            events.extend((0..QUEUES).map(Event::Put));
        }
        if self.others_flushes < others_flushes && !self.is_done() {
            events.extend((0..QUEUES).map(Event::PutFlush));
        }
        if !self.is_empty() {
            events.push(Event::Round);
        }
        if self.flushes.is_under_way() {
            events.push(Event::EndFlush);
        }
        if self.kills < kills && !self.is_empty() {
            events.extend([Event::Kill, Event::KillInRound]);
        }
        events
    }

    /// Lets something happen. An error describes a broken promise.
    pub fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Put(queue) => {
                let request = self.program.stages[self.stage][self.put].clone();
                self.put += 1;
                self.put(queue, request, true);
                Ok(())
            }
            Event::PutFlush(queue) => {
                self.others_flushes += 1;
                self.put(queue, Request::Flush, false);
                Ok(())
            }
            Event::Round => {
                self.round(false);
                self.take_answers()
            }
            Event::EndFlush => {
                self.round(true);
                self.take_answers()
            }
            Event::Kill => {
                self.kill();
                self.take_answers()
            }
            Event::KillInRound => {
                self.round(false);
                let answered = |queue: &usize| self.direct().used(*queue) != self.answered[*queue];
                // The worker goes from the first queue to the last.
                if let Some(last) = (0..QUEUES).rev().find(answered) {
                    self.direct().set_used(last, self.direct().used(last).wrapping_sub(1));
                }
                self.take_answers()?;
                self.kill();
                Ok(())
            }
        }
    }

    fn put(&mut self, queue: usize, request: Request, of_program: bool) {
        let place = match &request {
            Request::Write { sector, bytes } => {
                self.direct().put(queue, 0, *sector, Payload::Write(bytes))
            }
            Request::Flush => self.direct().put(queue, 0, 0, Payload::Flush),
        };
        let covered = self.promises.answered();
        self.queues[queue].push_back(Waiting { place, of_program, request, covered, taken: None });
    }

    /// Runs one round of the worker, behind the end of a flush.
    fn round(&mut self, flush_ends: bool) {
        if !std::mem::replace(&mut self.has_served, true) {
            self.waited = [0, 1].map(|queue| self.queues[queue].len());
        }
        let mut begins = flush_ends && self.end_flush();
        // At least what is stored now becomes durable by a flush that begins in this round.
        let stored = self.medium.begin_flush();
        for waiting in self.queues.iter_mut().filter_map(VecDeque::front_mut) {
            if waiting.request == Request::Flush && waiting.taken.is_none() {
                let begins_now = self.flushes.request();
                waiting.taken = Some(if begins_now { Taken::UnderWay } else { Taken::Next });
                begins |= begins_now;
            }
        }
        self.direct().round();
        if begins {
            self.flushes.expect_begun();
            self.begun = stored;
        }
        self.flushes.expect_no_other();
        self.look_at_region();
    }

    /// Ends the flush that is under way. Returns whether the next begins.
    fn end_flush(&mut self) -> bool {
        let begun = std::mem::take(&mut self.begun);
        if self.mutant != Some(Mutant::FlushesNothing) {
            self.medium.end_flush(begun);
        }
        for taken in self.queues.iter_mut().filter_map(|queue| queue.front_mut()?.taken.as_mut()) {
            *taken = if *taken == Taken::Next { Taken::UnderWay } else { Taken::Ended };
        }
        self.flushes.end()
    }

    fn region(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.program.start.len()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Has the medium follow the region.
    fn look_at_region(&mut self) {
        let region = self.region();
        for (sector, (bytes, seen)) in (0..).zip(region.chunks(512).zip(&mut self.visible)) {
            if seen.last().is_none_or(|last| last != bytes) {
                seen.push(bytes.to_vec());
                self.medium.write(sector, bytes).unwrap();
            }
        }
    }

    /// Takes what the used rings have.
    fn take_answers(&mut self) -> Result<(), String> {
        for queue in 0..QUEUES {
            while self.direct().used(queue) != self.answered[queue] {
                let Some(waiting) = self.queues[queue].pop_front() else {
                    return Err(format!("queue {queue} has more answers than requests"));
                };
                let status = self.direct().status(waiting.place);
                let status = status.ok_or(format!("{:?} has no answer", waiting.request))?;
                if status != 0 {
                    return Err(format!("{:?} was answered {status}", waiting.request));
                }
                self.answered[queue] = self.answered[queue].wrapping_add(1);
                self.has_answered[queue] = true;
                self.note(waiting);
            }
        }
        let Some(stage) = self.program.stages.get(self.stage) else { return Ok(()) };
        let all_answered = !self.queues.iter().flatten().any(|waiting| waiting.of_program);
        if all_answered && self.put == stage.len() {
            (self.stage, self.put) = (self.stage + 1, 0);
        }
        Ok(())
    }

    fn note(&mut self, answered: Waiting) {
        match answered.request {
            Request::Flush if self.mutant == Some(Mutant::PromisesMore) => {
                self.promises.answer_flush(self.promises.answered());
            }
            Request::Flush => self.promises.answer_flush(answered.covered),
            write @ Request::Write { .. } => self.promises.answer_write(write),
        }
    }

    /// Puts another backend in the place of this one. The region is in the page cache, and stays.
    fn kill(&mut self) {
        self.kills += 1;
        let killed = self.direct.take().unwrap();
        if self.mutant == Some(Mutant::PublishesFirst) {
            for queue in 0..QUEUES {
                let waiting = u16::try_from(self.queues[queue].len()).unwrap();
                killed.set_used(queue, self.answered[queue].wrapping_add(waiting));
            }
        }
        let (flusher, control) = Flushes::new();
        // Lets the flush of the killed one end.
        self.flushes = control;
        let (disk, file) = backend(&self.region());
        self.file = file;
        self.direct = Some(killed.killed(disk, flusher));
        self.begun = BegunFlush::default();
        self.queues.iter_mut().flatten().for_each(|waiting| waiting.taken = None);
        (self.has_served, self.has_answered) = (false, [false; QUEUES]);
    }

    /// Examines every power failure that could happen now.
    pub fn examine(&self, crashes: &mut Crashes) -> Result<(), String> {
        self.promises.examine(self.program, &self.medium, &self.visible, crashes)
    }

    /// Returns a number that is equal for states which go on alike.
    pub fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.stage, self.put, self.others_flushes, self.kills).hash(&mut hasher);
        for queue in &self.queues {
            for Waiting { place: _, of_program, request, covered, taken } in queue {
                (of_program, request, covered, taken).hash(&mut hasher);
            }
            queue.len().hash(&mut hasher);
        }
        (self.has_served, self.waited, self.has_answered).hash(&mut hasher);
        (self.flushes.is_under_way(), &self.begun, self.medium.versions()).hash(&mut hasher);
        self.promises.hash(&mut hasher);
        hasher.finish()
    }
}
