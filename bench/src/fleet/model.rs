//! The events of a fleet: looks of forwarders at their rings, attempts to connect, a failure.

use super::cluster::{Cluster, Outcome, Stored};
use super::figures::{Sample, Samples};
use super::plan::{
    ACKNOWLEDGEMENT, ANSWER, CONNECT, CONNECTION, FAILURE, Plan, SECOND, STEP, Time, connect_pause,
    resend_pause,
};
use super::ring::Ring;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What fails for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Nothing,
    /// One server.
    Server,
    /// The network between every second host and the cluster.
    HalfOfTheHosts,
    /// All servers.
    Cluster,
}

/// Time until a forwarder gives up a connection that answers nothing: the third question, of one
/// every two seconds.
const SILENCE: Time = 6 * SECOND;

/// One event. Those of a host count only as long as its connection is the one that they are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Look { host: u32, epoch: u32 },
    Connect { host: u32, epoch: u32 },
    Begin,
    End,
    Sample,
}

/// A host, and the forwarder on it.
#[derive(Debug, Clone, Default)]
struct Host {
    stream: usize,
    /// Number of the connection, or of the attempts to get one.
    epoch: u32,
    is_connected: bool,
    is_cut_off: bool,
    /// Server to try, and failed attempts.
    server: usize,
    attempt: u32,
    last_look: Time,
    /// Time from sending to the acknowledgement, the last time.
    latency: Time,
    sent: Option<Sent>,
}

/// What a host has sent to its stream, and what is not acknowledged yet.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Time,
    stored: Stored,
}

/// A fleet at one moment.
#[derive(Debug)]
pub struct Model<'a> {
    plan: &'a Plan,
    failure: Failure,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    /// Number of events so far: two of one time come in the order in which they were planned.
    planned: u64,
    hosts: Vec<Host>,
    /// All rings, those of a host one after the other.
    rings: Vec<Ring>,
    cluster: Cluster,
    /// Items that the streams have, by what the servers stored.
    arrived: u64,
    /// Connections since the last sample.
    connections: u64,
    /// Batches that were sent a second time because no acknowledgement came.
    repeated: u64,
}

impl<'a> Model<'a> {
    pub fn new(plan: &'a Plan, failure: Failure) -> Self {
        let mut random = Random(plan.seed);
        let period = 10 * SECOND * plan.burst;
        let rings = plan.hosts as usize * plan.host_rings as usize;
        let host = |number: u32| Host {
            stream: (number % plan.streams) as usize,
            server: (number % plan.nodes) as usize,
            is_connected: true,
            latency: plan.round_trip_us,
            ..Host::default()
        };
        let mut model = Self {
            plan,
            failure,
            now: 0,
            events: BinaryHeap::new(),
            planned: 0,
            hosts: (0..plan.hosts).map(host).collect(),
            rings: (0..rings).map(|_| Ring::new(plan, random.below(period))).collect(),
            cluster: Cluster::new(plan),
            arrived: 0,
            connections: 0,
            repeated: 0,
        };
        for host in 0..plan.hosts {
            model.plan_event(random.below(STEP), Event::Look { host, epoch: 0 });
        }
        if failure != Failure::Nothing {
            model.plan_event(FAILURE, Event::Begin);
            model.plan_event(plan.failure_end(), Event::End);
        }
        model.plan_event(SECOND, Event::Sample);
        model
    }

    #[cfg(test)]
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// Runs to the end, and looks each second.
    pub fn run(mut self) -> Samples {
        let mut samples = Samples::default();
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > self.plan.end() {
                break;
            }
            self.now = now;
            match event {
                Event::Look { host, epoch } => self.look(host, epoch),
                Event::Connect { host, epoch } => self.connect(host, epoch),
                Event::Begin => self.set_failed(true),
                Event::End => self.set_failed(false),
                Event::Sample => {
                    let sample = self.sample(&mut samples);
                    samples.add(sample);
                    self.plan_event(now + SECOND, Event::Sample);
                }
            }
        }
        samples.refused = self.cluster.refused;
        samples.repeated = self.repeated;
        samples.first_full = self.rings.iter().filter_map(Ring::first_full).min();
        samples.ever_full = self.rings.iter().filter(|ring| ring.first_full().is_some()).count();
        samples
    }

    fn plan_event(&mut self, at: Time, event: Event) {
        self.planned += 1;
        self.events.push(Reverse((at, self.planned, event)));
    }

    fn rings_of(&self, host: u32) -> std::ops::Range<usize> {
        let rings = self.plan.host_rings as usize;
        host as usize * rings..(host as usize + 1) * rings
    }

    /// A forwarder looks whether what it has sent has arrived, and sends what its rings have.
    fn look(&mut self, number: u32, epoch: u32) {
        let host = &self.hosts[number as usize];
        if host.epoch != epoch {
            return;
        }
        if let Some(sent) = host.sent {
            let back = sent.stored.end + self.plan.round_trip_us;
            let is_kept = self.cluster.is_kept(host.stream, sent.stored);
            if is_kept && back <= self.now {
                self.settle(number);
            } else if self.now < sent.at + ACKNOWLEDGEMENT {
                let next = if is_kept { back } else { Time::MAX };
                let next = next.min(sent.at + ACKNOWLEDGEMENT);
                return self.plan_event(next, Event::Look { host: number, epoch });
            } else if is_kept {
                return self.repeat(number, epoch, back);
            } else {
                self.settle(number);
            }
        }
        let next = self.send(number);
        self.plan_event(next, Event::Look { host: number, epoch });
    }

    /// Sends what the rings of a host have. Returns the time of the next look.
    fn send(&mut self, number: u32) -> Time {
        let (plan, now, range) = (self.plan, self.now, self.rings_of(number));
        let host = &mut self.hosts[number as usize];
        let since = now - host.last_look;
        host.last_look = now;
        let (mut last, mut is_busy) = (None::<Stored>, false);
        for ring in &mut self.rings[range] {
            if ring.not_before > now {
                continue;
            }
            let items = ring.send(plan, now);
            if items == 0 {
                continue;
            }
            // The real forwarder has sent a batch whenever the one before was acknowledged.
            let batches = (since / host.latency.max(1)).clamp(1, items);
            match self.cluster.store(host.stream, plan.load(items, batches), now) {
                Outcome::Stored(stored) => {
                    is_busy |= items == plan.batch_items();
                    let end = last.map_or(0, |last| last.end).max(stored.end);
                    last = Some(Stored { end, ..stored });
                }
                Outcome::Refused => {
                    ring.take_back();
                    ring.not_before = now + resend_pause(ring.failures);
                    ring.failures += 1;
                    // It asks for the subject's last message first.
                    if let Some(leader) = self.cluster.leader(host.stream, now) {
                        let _ = self.cluster.ask(leader, 1, now);
                    }
                }
            }
        }
        let host = &mut self.hosts[number as usize];
        host.sent = last.map(|stored| Sent { at: now, stored });
        let Some(stored) = last else { return now + STEP };
        let back = stored.end + plan.round_trip_us;
        let next = if is_busy { back } else { back.max(now + STEP) };
        next.min(now + ACKNOWLEDGEMENT)
    }

    /// No acknowledgement has come in time: the forwarder asks, and sends again. The stream takes
    /// the first batch that it gets and refuses the second, which costs it as much.
    fn repeat(&mut self, number: u32, epoch: u32, back: Time) {
        let (plan, range) = (self.plan, self.rings_of(number));
        let stream = self.hosts[number as usize].stream;
        for at in range.clone() {
            let items = self.rings[at].flight();
            if items > 0 {
                self.repeated += 1;
                let _ = self.cluster.store(stream, plan.load(items, 1), self.now);
            }
        }
        if let Some(sent) = &mut self.hosts[number as usize].sent {
            sent.at = self.now;
        }
        let next = back.min(self.now + ACKNOWLEDGEMENT);
        self.plan_event(next, Event::Look { host: number, epoch });
    }

    /// The forwarder learns what has arrived of what it had sent: all of it, or nothing.
    fn settle(&mut self, number: u32) {
        let range = self.rings_of(number);
        let host = &mut self.hosts[number as usize];
        let Some(sent) = host.sent.take() else { return };
        let has_arrived =
            sent.stored.end <= self.now && self.cluster.is_kept(host.stream, sent.stored);
        if has_arrived {
            host.latency = sent.stored.end + self.plan.round_trip_us - sent.at.min(sent.stored.end);
        }
        for ring in &mut self.rings[range] {
            if has_arrived {
                self.arrived += ring.acknowledge();
            } else {
                ring.take_back();
            }
        }
    }

    /// An attempt to connect.
    fn connect(&mut self, number: u32, epoch: u32) {
        let host = &mut self.hosts[number as usize];
        if host.epoch != epoch {
            return;
        }
        host.attempt += 1;
        let (server, stream, attempt) = (host.server, host.stream, host.attempt);
        let pause = connect_pause(attempt + 1);
        // The next attempt is at the next server.
        host.server = (server + 1) % self.plan.nodes as usize;
        if host.is_cut_off || !self.cluster.is_up(server) {
            return self
                .plan_event(self.now + CONNECT + pause, Event::Connect { host: number, epoch });
        }
        let mut done = self.cluster.work(server, CONNECTION, self.now);
        if done - self.now > CONNECT {
            return self
                .plan_event(self.now + CONNECT + pause, Event::Connect { host: number, epoch });
        }
        // About the stream, and about the last message of each ring.
        if let Some(leader) = self.cluster.leader(stream, self.now) {
            let questions = 1 + u64::from(self.plan.host_rings);
            let answered = self.cluster.ask(leader, questions, self.now);
            done = done.max(answered.unwrap_or(self.now + ANSWER));
        }
        self.connections += 1;
        let host = &mut self.hosts[number as usize];
        (host.is_connected, host.attempt, host.server) = (true, 0, server);
        self.settle(number);
        self.hosts[number as usize].last_look = self.now;
        self.plan_event(done + self.plan.round_trip_us, Event::Look { host: number, epoch });
    }

    /// Begins or ends the failure.
    fn set_failed(&mut self, is_failed: bool) {
        let servers = self.plan.nodes as usize;
        let mut random = Random(self.plan.seed ^ 1);
        match self.failure {
            Failure::Nothing => {}
            Failure::Server => self.cluster.set_up(0, !is_failed, self.now),
            Failure::Cluster => {
                (0..servers).for_each(|one| self.cluster.set_up(one, !is_failed, self.now));
            }
            Failure::HalfOfTheHosts => {
                self.hosts.iter_mut().step_by(2).for_each(|host| host.is_cut_off = is_failed);
            }
        }
        if !is_failed {
            return;
        }
        for number in 0..self.plan.hosts {
            let host = &mut self.hosts[number as usize];
            if !host.is_cut_off && self.cluster.is_up(host.server) {
                continue;
            }
            host.is_connected = false;
            host.epoch += 1;
            let connect = Event::Connect { host: number, epoch: host.epoch };
            let noticed = self.now + SILENCE - random.below(2 * SECOND);
            self.plan_event(noticed, connect);
        }
    }

    /// Looks at all rings.
    fn sample(&mut self, samples: &mut Samples) -> Sample {
        let (plan, now) = (self.plan, self.now);
        let mut sample = Sample { second: now / SECOND, ..Sample::default() };
        let mut freed = 0;
        samples.clear();
        for ring in &mut self.rings {
            let (used, waiting) = ring.backlog(plan, now);
            if waiting > 0 {
                ring.look(now);
                sample.full += 1;
            }
            freed += ring.freed();
            sample.in_rings += used;
            sample.waiting += waiting;
            samples.note(used as f64 / plan.capacity() as f64);
        }
        assert_eq!(freed, self.arrived, "an item was freed that did not arrive, or arrived twice");
        sample.delivered = freed;
        [sample.p50, sample.p99, sample.max] = samples.fullness();
        sample.connected = self.hosts.iter().filter(|host| host.is_connected).count();
        sample.connections = std::mem::take(&mut self.connections);
        sample
    }
}

/// Random numbers that depend on the seed alone (splitmix64). Those of `rand`'s quick generators may
/// change with its version and the platform, and the figures of docs/scaling.md with them.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}
