//! A turn of the worker: rounds of visits to the open queues, until there is nothing to do.

use super::ahead::Ahead;
use super::session::{self, Open, Session};
use super::step::FAIR_ALLOWANCE;
use super::{Share, TurnEnd, Worker, limited};
use crate::data_path::dirty::GuestMemory;
use crate::data_path::queue::Broken;
use crate::data_path::queue_set::QueueSet;
use crate::data_path::rota::Rota;
use crate::data_path::shared_queue::{Memory, SharedQueue, give_back, is_running};
use crate::data_path::waiters::{Mark, Waiters};
use ring_program::Pace;
use std::sync::Arc;
use vhost_user_backend::VringState;
use virtio_queue::QueueT;

/// Rounds in a fair share of a thread, if there is that much to do: as many requests as make the
/// change of rings cheap.
const FAIR_ROUNDS: u32 = 4;

/// How a visit to a queue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visit {
    /// There was nothing to do.
    Idle,
    /// Everything there was is done.
    Served,
    /// There may be more.
    CutShort,
}

impl Worker {
    /// Serves requests, and polls for more as long as it may, until there is nothing to do or one
    /// of `waiters` needs what the worker holds, or its `share` is over. `kicked` are the queues
    /// whose drivers have kicked since the last turn.
    pub fn turn(&mut self, waiters: &Waiters, kicked: QueueSet, share: Share) -> TurnEnd {
        let mark = waiters.begin_turn();
        self.carrier.flusher.poll();
        (self.carrier.held_looks, self.carrier.spent) = (0, 0);
        self.arrivals_before = self.carrier.arrivals;
        let queues = Arc::clone(&self.queues);
        let Some(memory) = self.memory.as_deref().cloned() else { return TurnEnd::Sleep(None) };
        if self.closed {
            return TurnEnd::Sleep(None);
        }
        // `memory` is held for the whole turn: memory that the front end takes back is unmapped
        // when the turn ends, and the front end's thread waits for that.
        let mut session = Session::new(&queues, &memory);
        self.look_at_all(&queues, mark);
        self.due |= kicked;
        self.due |= self.unfinished;
        if self.is_holding() {
            self.bell.awake();
        }
        (self.rounds, self.carrier.allowance) = if share == Share::Whole {
            (u32::MAX, u64::MAX)
        } else {
            (FAIR_ROUNDS, FAIR_ALLOWANCE)
        };
        let rest = if self.limiter.is_some() { self.begin_limited() } else { None };
        let (wanted, share) = match rest {
            None => (self.due, share),
            Some(_) => (self.unfinished, Share::Unfinished),
        };
        self.open(&mut session, wanted);
        if !std::mem::take(&mut self.goes_on) {
            self.poller.start_turn(!kicked.is_empty(), self.carrier.arrivals);
        }
        let end = limited::resting(self.serve(&mut session, waiters, mark, share), rest);
        self.due = match end {
            TurnEnd::Sleep(_) => QueueSet::EMPTY,
            // During a rest kicks are neither asked for nor counted.
            TurnEnd::GiveWay | TurnEnd::More | TurnEnd::Poll | TurnEnd::Rest { .. } => self.running,
        };
        self.goes_on = matches!(end, TurnEnd::More | TurnEnd::Poll);
        session.close(&mut self.progress);
        end
    }

    /// Finds out which queues are running, unless nothing has changed since that was found out.
    fn look_at_all(&mut self, queues: &[SharedQueue], mark: Mark) {
        if self.looked_at.replace(mark) == Some(mark) {
            return;
        }
        self.running = QueueSet::EMPTY;
        for (number, queue) in queues.iter().enumerate() {
            let state = queue.lock_for_turn();
            if queue.take_restarted() {
                self.forget_queue(number);
            }
            self.running.set(number, is_running(&state));
        }
        self.due = self.running;
    }

    /// Opens those of the running queues that are in `wanted` and were not opened in this turn.
    fn open(&mut self, session: &mut Session<'_>, wanted: QueueSet) {
        let wanted = wanted.and(self.running).without(session.tried);
        session.tried |= wanted;
        for number in wanted {
            let shared = &session.queues[number];
            let mut state = shared.lock_for_turn();
            if shared.take_restarted() {
                self.forget_queue(number);
            }
            if !is_running(&state) {
                continue;
            }
            let progress = &mut self.progress[number];
            match session::open(shared, &state, session.memory, progress) {
                Ok(split) => {
                    progress.rings_missing = false;
                    session.push(Open { number, shared, state, split });
                }
                Err(broken) => self.leave(number, &mut state, broken),
            }
        }
    }

    /// Leaves a queue that cannot be served.
    fn leave(&mut self, number: usize, state: &mut VringState<Memory>, broken: Broken) {
        match broken {
            Broken::Rings => self.wait_for_memory(number, state),
            broken => self.stop_broken(number, state, broken),
        }
    }

    /// Waits for rings that are not in guest memory. A front end may take back the memory that they
    /// are in for a moment, to share it again in other pieces (`REM_MEM_REG`, `ADD_MEM_REG`): so
    /// the queue is looked at again whenever something has changed.
    fn wait_for_memory(&mut self, number: usize, state: &mut VringState<Memory>) {
        if !std::mem::replace(&mut self.progress[number].rings_missing, true) {
            let until = "not served until the guest resets it or they are there";
            self.report_broken(number, Broken::Rings, until);
        }
        if self.abandon_request(number) {
            give_back(state.get_queue_mut());
        }
        self.progress[number].signalled = None;
    }

    /// Stops a queue whose addresses or indices no correct driver writes, until the guest resets
    /// it.
    fn stop_broken(&mut self, number: usize, state: &mut VringState<Memory>, broken: Broken) {
        self.report_broken(number, broken, "stopped until the guest resets it");
        self.abandon_request(number);
        self.progress[number].signalled = None;
        give_back(state.get_queue_mut());
        state.get_queue_mut().set_ready(false);
    }

    fn report_broken(&mut self, number: usize, broken: Broken, until: &str) {
        let times = &self.carrier.counters.broken;
        times.count();
        if self.broken_log.due() {
            let times = times.get();
            log::error!("queue {number} is broken and {until}: {broken} ({times} so far)");
        }
    }

    /// The turn's loop: rounds of visits until there is nothing to do, then polls, then asks for
    /// kicks.
    fn serve(
        &mut self,
        session: &mut Session<'_>,
        waiters: &Waiters,
        mark: Mark,
        share: Share,
    ) -> TurnEnd {
        let mut rota = Rota::new();
        let mut rounds = 0;
        loop {
            match self.round(session, &mut rota, waiters, mark) {
                Visit::CutShort => {}
                _ if waiters.any_since(mark) => {}
                _ if self.polls_on(share) => {
                    if share != Share::Whole && rota.visited_all() {
                        return TurnEnd::Poll;
                    }
                }
                // What is unfinished may be able to go on since another queue was visited.
                _ if !rota.visited_all() => {
                    rota.visit_all();
                    continue;
                }
                _ if self.may_sleep(session, &mut rota) => {
                    self.poller.sleeps(self.carrier.arrivals);
                    let nothing = self.unfinished.is_empty();
                    return TurnEnd::Sleep(if nothing { None } else { self.held_until() });
                }
                _ => continue,
            }
            if waiters.any_since(mark) {
                self.interrupt_all(session);
                return TurnEnd::GiveWay;
            }
            rounds += 1;
            if rounds >= self.rounds {
                self.interrupt_all(session);
                return TurnEnd::More;
            }
            // The turn goes on, and nobody tells us meanwhile of kicks.
            self.open(session, self.running);
        }
    }

    fn polls_on(&mut self, share: Share) -> bool {
        let taken = self.carrier.arrivals;
        match share {
            Share::Whole => self.poller.polls_on(taken),
            Share::Fair(now) => self.poller.polls_on_at(now, taken),
            Share::Unfinished => false,
        }
    }

    /// Visits open queues, as the rota says.
    fn round(
        &mut self,
        session: &mut Session<'_>,
        rota: &mut Rota,
        waiters: &Waiters,
        mark: Mark,
    ) -> Visit {
        let mut round = Visit::Idle;
        for place in rota.round(session.len()) {
            let memory = session.memory;
            let Some(open) = session.get_mut(place) else { break };
            match self.visit(open, memory, waiters, mark) {
                Ok(Visit::Idle) => {}
                Ok(visit) => {
                    rota.worked(place);
                    if round != Visit::CutShort {
                        round = visit;
                    }
                }
                Err(broken) => {
                    self.drop_broken(session, place, broken);
                    // The places have changed.
                    rota.visit_all();
                    return Visit::CutShort;
                }
            }
        }
        if round != Visit::Idle {
            self.poller.worked();
        }
        round
    }

    fn drop_broken(&mut self, session: &mut Session<'_>, place: usize, broken: Broken) {
        let Some(mut open) = session.take(place) else { return };
        open.close(&mut self.progress[open.number]);
        self.leave(open.number, &mut open.state, broken);
    }

    /// Takes steps in one queue, until it is the others' turn or there is nothing to do there, and
    /// then decides about its interrupts.
    fn visit(
        &mut self,
        open: &mut Open<'_>,
        memory: &GuestMemory,
        waiters: &Waiters,
        mark: Mark,
    ) -> Result<Visit, Broken> {
        let number = open.number;
        let progress = &mut self.progress[number];
        let mut visit = Visit::Idle;
        let mut ahead = Ahead::default();
        let most = self.visit;
        for step in 1..=most {
            if !self.carrier.step(number, &mut open.split, &mut ahead, progress, memory)? {
                break;
            }
            if step == most || waiters.any_since(mark) || self.carrier.is_spent() {
                visit = Visit::CutShort;
                break;
            }
            visit = Visit::Served;
            if open.split.wants_interrupt_meanwhile()? {
                interrupt(open, &mut self.interrupt_log);
            }
        }
        if visit != Visit::Idle {
            self.unfinished.set(number, progress.is_unfinished());
        }
        if visit == Visit::CutShort {
            if self.limiter.is_some() {
                self.charge();
            }
            if self.carrier.is_spent() {
                // The turn ends with this round: each other queue takes a step before.
                self.rounds = 0;
            }
        }
        if open.split.wants_interrupt(visit == Visit::CutShort)? {
            interrupt(open, &mut self.interrupt_log);
        }
        Ok(visit)
    }

    /// Decides about the interrupts of all open queues before the worker leaves them.
    fn interrupt_all(&mut self, session: &mut Session<'_>) {
        for place in (0..session.len()).rev() {
            let Some(open) = session.get_mut(place) else { continue };
            match open.split.wants_interrupt(false) {
                Ok(true) => interrupt(open, &mut self.interrupt_log),
                Ok(false) => {}
                Err(broken) => self.drop_broken(session, place, broken),
            }
        }
    }

    /// Asks for kicks, and announces to the host that a read is held. Returns false if there is
    /// something to do meanwhile.
    fn may_sleep(&mut self, session: &mut Session<'_>, rota: &mut Rota) -> bool {
        let is_quiet = !self.ask_for_kicks(session) && !self.announce_sleep();
        if !is_quiet {
            rota.visit_all();
            self.suppress_kicks(session);
        }
        is_quiet
    }

    fn suppress_kicks(&mut self, session: &mut Session<'_>) {
        for place in (0..session.len()).rev() {
            let suppressed = session.get_mut(place).map(|open| open.split.suppress_kicks());
            if let Some(Err(broken)) = suppressed {
                self.drop_broken(session, place, broken);
            }
        }
    }

    /// Asks the drivers of all open queues for kicks. Returns whether one has offered something
    /// meanwhile, which may have come without a kick.
    fn ask_for_kicks(&mut self, session: &mut Session<'_>) -> bool {
        let mut has_more = false;
        for place in (0..session.len()).rev() {
            let Some(open) = session.get_mut(place) else { continue };
            if self.progress[open.number].is_blocked() {
                continue;
            }
            match open.split.ask_for_kick() {
                Ok(more) => has_more |= more,
                Err(broken) => self.drop_broken(session, place, broken),
            }
        }
        has_more
    }

    /// Announces to the host that a read is held and we are about to sleep, then looks once more:
    /// the host looks for a sleeper after it has moved. Returns whether it has moved.
    fn announce_sleep(&mut self) -> bool {
        if !self.is_holding() {
            return false;
        }
        self.bell.announce();
        let Self { carrier, progress, unfinished, .. } = self;
        let news = (*unfinished).into_iter().map(|number| &progress[number]).any(|progress| {
            progress.held_until().is_some()
                && (!progress.is_last(carrier.arrivals) || carrier.executor.has_news())
        });
        if news {
            self.bell.awake();
        }
        news
    }
}

#[cold]
fn interrupt(open: &Open<'_>, log: &mut Pace) {
    if let Err(e) = open.shared.interrupt(&open.state)
        && log.due()
    {
        log::warn!("cannot interrupt the guest: {e}");
    }
}
