//! The servers, and the streams that they keep.

use super::plan::{ANSWER, BUFFERED, ELECTION, Load, OPEN_BATCHES, Plan, REQUEST, Time};
use std::collections::VecDeque;

/// The servers of a cluster and their streams. A stream stores one thing after the other. All
/// processors of a server work on the same thing, and then on the next.
#[derive(Debug)]
pub struct Cluster {
    servers: Vec<Server>,
    streams: Vec<Stream>,
    replicas: usize,
    processors: u64,
    /// Batches that were refused because too many, or too many messages, were on their way.
    pub refused: u64,
}

#[derive(Debug, Clone, Default)]
struct Server {
    is_down: bool,
    busy_until: Time,
}

#[derive(Debug, Clone, Default)]
struct Stream {
    /// The server that keeps it first; the next ones have its copies.
    home: usize,
    leader: Option<usize>,
    /// There is no leader before that.
    led_from: Time,
    busy_until: Time,
    /// What was received and is not stored yet.
    queue: VecDeque<Queued>,
    /// Messages, and batches that are long, in the queue.
    messages: u64,
    open: usize,
}

/// What one ring has sent to a stream.
#[derive(Debug, Clone, Copy)]
struct Queued {
    end: Time,
    messages: u64,
    is_long: bool,
}

impl Stream {
    /// Lets go of what is stored by now.
    fn settle(&mut self, now: Time) {
        while let Some(first) = self.queue.front().filter(|first| first.end <= now) {
            self.messages -= first.messages;
            self.open -= usize::from(first.is_long);
            self.queue.pop_front();
        }
    }

    /// Returns whether the server takes that much more.
    fn takes(&self, load: Load) -> bool {
        let is_open = load.is_long && self.open >= OPEN_BATCHES;
        let is_full = self.messages > 0 && self.messages + load.messages > BUFFERED;
        !is_open && !is_full
    }

    fn put(&mut self, load: Load, end: Time) {
        let Load { messages, is_long, .. } = load;
        self.messages += messages;
        self.open += usize::from(is_long);
        self.queue.push_back(Queued { end, messages, is_long });
    }
}

/// Whether a stream takes items that were sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It takes them, and stores them in their turn.
    Stored(Stored),
    /// It has no leader, or takes no more batches now: nobody has them.
    Refused,
}

/// Items that a stream will have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The stream has them from then on, and acknowledges them.
    pub end: Time,
    /// The leadership under which they are stored.
    pub led_from: Time,
}

impl Cluster {
    pub fn new(plan: &Plan) -> Self {
        let servers = plan.nodes as usize;
        let stream = |number: usize| {
            let home = number % servers;
            Stream { home, leader: Some(home), ..Stream::default() }
        };
        Self {
            servers: vec![Server::default(); servers],
            streams: (0..plan.streams as usize).map(stream).collect(),
            processors: plan.node_processors,
            replicas: (plan.replicas as usize).min(servers),
            refused: 0,
        }
    }

    pub fn is_up(&self, server: usize) -> bool {
        !self.servers[server].is_down
    }

    /// Ends or starts a server. Streams whose leader it was get another one, if most of their
    /// servers are there.
    pub fn set_up(&mut self, server: usize, is_up: bool, now: Time) {
        self.servers[server] = Server { is_down: !is_up, busy_until: now };
        for number in 0..self.streams.len() {
            let stream = &self.streams[number];
            let is_led = stream.leader.is_some_and(|leader| !self.servers[leader].is_down);
            let keepers = || self.keepers(stream.home).filter(|&one| !self.servers[one].is_down);
            let (present, first) = (keepers().count(), keepers().next());
            let leader = first.filter(|_| present * 2 > self.replicas);
            if is_led && leader.is_some() {
                continue;
            }
            let (home, led_from) = (stream.home, now + ELECTION);
            self.streams[number] =
                Stream { home, leader, led_from, busy_until: led_from, ..Stream::default() };
        }
    }

    /// Returns the servers that keep a stream.
    fn keepers(&self, home: usize) -> impl Iterator<Item = usize> {
        let servers = self.servers.len();
        (0..self.replicas).map(move |next| (home + next) % servers)
    }

    /// Has a server work for that much time of a processor. Returns when it is done.
    pub fn work(&mut self, server: usize, time: Time, now: Time) -> Time {
        let server = &mut self.servers[server];
        server.busy_until = server.busy_until.max(now) + time.div_ceil(self.processors);
        server.busy_until
    }

    /// Asks a server that many questions about streams. Returns when they are answered; without an
    /// answer in time, the server has dropped them.
    pub fn ask(&mut self, server: usize, questions: u64, now: Time) -> Option<Time> {
        let waits = self.servers[server].busy_until.saturating_sub(now);
        (waits <= ANSWER).then(|| self.work(server, questions * REQUEST, now))
    }

    /// Returns the server that leads a stream now.
    pub fn leader(&self, stream: usize, now: Time) -> Option<usize> {
        let stream = &self.streams[stream];
        stream.leader.filter(|_| stream.led_from <= now)
    }

    /// Stores what one ring sends.
    pub fn store(&mut self, stream: usize, load: Load, now: Time) -> Outcome {
        let Some(leader) = self.leader(stream, now) else { return Outcome::Refused };
        let (home, servers) = (self.streams[stream].home, self.servers.len());
        let target = &mut self.streams[stream];
        target.settle(now);
        if !target.takes(load) {
            self.refused += 1;
            return Outcome::Refused;
        }
        target.busy_until = target.busy_until.max(now) + load.store;
        let mut end = target.busy_until;
        for next in 0..self.replicas {
            let keeper = (home + next) % servers;
            if self.servers[keeper].is_down {
                continue;
            }
            let done = self.work(keeper, load.processor, now);
            if keeper == leader {
                end = end.max(done);
            }
        }
        let target = &mut self.streams[stream];
        target.put(load, end);
        Outcome::Stored(Stored { end, led_from: target.led_from })
    }

    /// Returns whether a stream has, or will have, what it has taken: not if it got another leader
    /// before that was stored.
    pub fn is_kept(&self, stream: usize, stored: Stored) -> bool {
        let now = self.streams[stream].led_from;
        now == stored.led_from || stored.end + ELECTION <= now
    }
}
