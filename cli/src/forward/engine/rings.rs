//! The engine's rings: which there are, and their opening and closing.

use super::super::super::failure::Failure;
use super::super::opener::Open;
use super::super::ring::{Opened, Phase, Ring};
use super::super::rings::{CONFIGURE, Found, find};
use super::super::settings::Settings;
use super::super::sink::{self, LaneId};
use super::{Engine, Reread};
use ring_program::say;
use shared_block_ring::Durability;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes that are freed at once in a busy ring, about: the pointer's write costs flushes.
const FREED_AT_ONCE: u64 = 64 << 10;

/// Pause before the next attempt to open a ring that may still be in the making.
const RETRY_YOUNG: Duration = Duration::from_millis(50);

impl Engine<'_, '_> {
    /// Looks up which rings the configuration stands for now.
    pub fn look_up(&mut self) {
        self.folders.watch(&self.settings.rings);
        let Found { rings, refused, odd, .. } = find(&self.settings.rings, CONFIGURE);
        let odd: Vec<_> = refused.into_iter().chain(odd).collect();
        for words in odd.iter().filter(|words| !self.odd.contains(words)) {
            log::warn!("a ring is left out: {words}");
        }
        self.odd = odd;
        let known: Vec<_> =
            self.names.iter().map(|(name, number)| (name.clone(), *number)).collect();
        for (name, number) in known {
            let Some(ring) = self.rings.get_mut(&number) else { continue };
            match rings.get(&name) {
                Some(spec) if *spec == ring.spec => ring.is_leaving = false,
                Some(_) => drop(self.take_ring(number)),
                None => {
                    ring.is_leaving = true;
                    self.is_unsettled = true;
                }
            }
        }
        for (name, spec) in rings {
            if self.names.contains_key(&name) {
                continue;
            }
            let number = self.number();
            self.names.insert(name.clone(), number);
            let mut ring = Ring::new(name, spec);
            ring.appeared = self.has_looked_up.then(Instant::now);
            self.rings.insert(number, ring);
            self.due.insert((Instant::now(), number));
        }
        self.has_looked_up = true;
    }

    /// Takes another configuration, if it is a good one.
    pub fn reread(&mut self, reread: Reread<'_>) {
        self.told.reloading();
        let outcome = self.take_configuration(reread);
        self.tell_ready(outcome.err().as_deref());
    }

    /// Does the work of [`reread`](Self::reread). The error, which was said, is why nothing has
    /// changed.
    fn take_configuration(&mut self, reread: Reread<'_>) -> Result<(), String> {
        let with_sink = |settings: Settings| {
            let is_same = settings.to == self.settings.to && settings.sinks == self.settings.sinks;
            let sink =
                if is_same { None } else { Some(sink::make(&settings.to, &settings.sinks)?) };
            Ok((settings, sink))
        };
        let (mut settings, sink) = match reread().and_then(with_sink) {
            Ok(read) => read,
            Err(e) => {
                let words = format!("the configuration stays as it was: {}", e.words());
                say!("{words}");
                return Err(words);
            }
        };
        let is_another_sink = sink.is_some();
        if let Some(sink) = sink {
            let numbers: Vec<_> = self.rings.keys().copied().collect();
            for number in numbers {
                self.close_lane(number);
            }
            self.sink = sink;
        }
        if settings.metrics != self.settings.metrics {
            say!("the addresses of metrics stay as they were until the next start");
            settings.metrics.clone_from(&self.settings.metrics);
        }
        self.memory.set_limit(settings.max_memory);
        self.settings = settings;
        self.look_up();
        // A ring that was left alone may be fine now, and one whose lane was closed has to go on.
        let numbers: Vec<_> = self.rings.keys().copied().collect();
        for number in numbers {
            if let Some(ring) = self.rings.get_mut(&number) {
                let is_stopped = matches!(ring.phase, Phase::Stopped);
                if is_stopped {
                    ring.phase = Phase::Closed;
                }
                // What the old sink could not do says nothing of the new one.
                if is_stopped || is_another_sink {
                    ring.report.error = None;
                }
                self.due.insert((Instant::now(), number));
            }
        }
        say!("the configuration was read again: {}", self.ring_count());
        Ok(())
    }

    /// Makes the next attempt for a ring: to open it, or its lane.
    pub fn attempt(&mut self, number: u64) {
        let is_closed = |ring: &Ring| matches!(ring.phase, Phase::Closed) && !ring.is_leaving;
        if self.rings.get(&number).is_some_and(is_closed) && !self.has_files(number) {
            return;
        }
        let Some(ring) = self.rings.get_mut(&number) else { return };
        match &ring.phase {
            Phase::Closed if ring.is_leaving => {}
            Phase::Closed => {
                ring.phase = Phase::Opening;
                self.opener.open(number, ring.spec.address());
            }
            Phase::Open(opened) if opened.lane.is_none() => self.open_lane(number),
            Phase::Open(_) | Phase::Opening | Phase::Stopped => {}
        }
    }

    pub fn take_outcomes(&mut self) {
        while let Some((number, outcome)) = self.opener.take() {
            match outcome.and_then(|open| self.opened(number, open)) {
                Ok(()) => self.open_lane(number),
                Err(e) if e.is_stop() => {}
                Err(e) => self.ring_failed(number, &e),
            }
        }
    }

    /// Takes a ring that was opened.
    fn opened(&mut self, number: u64, open: Open) -> Result<(), Failure> {
        let (mut consumer, info) = *open;
        // Taken out meanwhile: the consumer is dropped.
        let Some(ring) = self.rings.get_mut(&number) else { return Ok(()) };
        let shown = ring.spec.shown();
        let Some(uuid) = info.uuid.as_deref().and_then(|text| text.parse().ok()) else {
            return Err(Failure::Refused(format!(
                "{shown}: a plain ring has no UUID by which its items could be told from another ring's (blockring create makes one that has)"
            )));
        };
        // One flush for each write of the pointer. A power loss can take back the last one: the
        // items come again, as after a crash.
        let durability =
            if self.settings.no_flush { Durability::PageCache } else { Durability::Ordered };
        consumer.set_durability(durability);
        consumer.advance_every(FREED_AT_ONCE.min(info.capacity / 8));
        let position = consumer.position();
        let key = self.set.add(consumer);
        let key = key.map_err(Failure::io(format!("{shown}: cannot wait for the ring")))?;
        self.keys.insert(key, number);
        ring.phase = Phase::Open(Opened {
            key,
            uuid,
            lane: None,
            read: position,
            arrived: position,
            flights: VecDeque::new(),
            waits_since: None,
            cost: 0,
            is_resting: false,
            is_away: false,
        });
        ring.report.error = None;
        // One with items can still fail at the first of them.
        if info.used == 0 {
            ring.note_soundness();
        }
        Ok(())
    }

    /// Closes a ring that has failed, and has it opened again later.
    pub fn ring_failed(&mut self, number: u64, failure: &Failure) {
        self.close(number);
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let words = failure.words();
        let (pause, is_new) = if ring.is_young() {
            log::info!("{}: {words}; it may still be made, and is tried again", ring.name);
            (RETRY_YOUNG, false)
        } else {
            ring.retry.failed(&words)
        };
        if is_new {
            log::warn!("{}: {words}; it is tried again", ring.name);
        }
        ring.report.error = Some(format!("{}: {words}", ring.name));
        ring.phase = Phase::Closed;
        self.due.insert((Instant::now() + pause, number));
    }

    /// Closes a ring, and leaves it alone until the configuration changes.
    pub fn stop_ring(&mut self, number: u64, words: &str) {
        self.close(number);
        let Some(ring) = self.rings.get_mut(&number) else { return };
        log::warn!(
            "{}: {words}; it is left alone until the configuration is read again",
            ring.name
        );
        ring.report.error = Some(format!("{}: {words}", ring.name));
        ring.phase = Phase::Stopped;
    }

    /// Closes lane and ring. What has arrived is freed.
    fn close(&mut self, number: u64) {
        self.close_lane(number);
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let Phase::Open(opened) = std::mem::replace(&mut ring.phase, Phase::Closed) else { return };
        self.keys.remove(&opened.key);
        if let Some(consumer) = self.set.remove(opened.key) {
            ring.report.position = Some(consumer.position());
        }
    }

    /// Closes the lane of a ring; what was in flight is read again for the next one.
    pub fn close_lane(&mut self, number: u64) {
        self.free_ring(number);
        let Some(opened) = self.rings.get_mut(&number).and_then(Ring::opened) else { return };
        if let Some(lane) = opened.lane.take() {
            self.lanes.remove(&lane.id);
        }
        opened.read = opened.arrived;
        opened.flights.clear();
        opened.waits_since = None;
        opened.is_resting = false;
        self.memory.give_back(std::mem::take(&mut opened.cost));
        self.feed_starved();
    }

    /// Takes a ring out for good, and returns what it was.
    pub fn take_ring(&mut self, number: u64) -> Option<Ring> {
        self.close(number);
        let ring = self.rings.remove(&number)?;
        self.names.remove(&ring.name);
        self.former.rings.insert(ring.name.clone(), ring.report.clone());
        Some(ring)
    }

    /// Takes out the rings whose sockets or files are gone, once all of their items have arrived.
    pub fn let_go(&mut self) {
        if self.is_unsettled {
            return;
        }
        let is_gone = |ring: &Ring| ring.is_leaving && ring.has_ended();
        let gone = self.rings.iter().filter(|(_, ring)| is_gone(ring));
        for number in gone.map(|(number, _)| *number).collect::<Vec<_>>() {
            if let Some(ring) = self.take_ring(number) {
                log::info!("{}: the ring is gone, and all of its items have arrived", ring.name);
            }
        }
    }

    pub fn new_lane(&mut self) -> LaneId {
        LaneId(self.number())
    }
}
