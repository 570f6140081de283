//! A driver of lanes over items in memory, and a reader of the stream.

use super::super::Nats;
use super::super::options::NatsOptions;
use super::super::record::Record;
use crate::forward::sink::{
    Batch, Event, Item, Lane, LaneId, Reporter, RingFacts, Sink, SinkError, SinkErrorKind,
};
use async_nats::jetstream::consumer::{AckPolicy, pull::Config as PullConfig};
use bytes::Bytes;
use nix::sys::eventfd::EventFd;
use ring_test_support::process::PATIENCE;
use shared_block_ring::Position;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Stream of the tests.
pub const STREAM: &str = "VMS";

/// Items of a batch, and batches on their way, of one ring.
pub const BATCH: usize = 200;
const ON_THE_WAY: usize = 2;

/// Returns options for a stream that is made when it is missing.
pub fn options() -> NatsOptions {
    NatsOptions {
        stream: Some(STREAM.to_owned()),
        subject: Some("vm.{ring}.log".to_owned()),
        create_stream: true,
        ..NatsOptions::default()
    }
}

/// Starts the sink.
pub fn sink(address: &str, options: NatsOptions) -> Nats {
    Nats::new(options.settings(address).unwrap())
}

/// A ring's items, and how far they are freed.
pub struct Ring {
    pub facts: RingFacts,
    items: Batch,
    lane: Option<Box<dyn Lane>>,
    id: LaneId,
    is_ready: bool,
    /// Items that were given to the lane, and those that it acknowledged.
    sent: usize,
    freed: usize,
    pub error: Option<SinkError>,
}

impl Ring {
    /// Makes a ring with items of these sizes.
    pub fn new(name: &str, uuid: u128, sizes: impl IntoIterator<Item = usize>) -> Self {
        let (mut bytes, mut items, mut position) = (Vec::new(), Vec::new(), Position::ZERO);
        for (number, size) in sizes.into_iter().enumerate() {
            let start = bytes.len();
            let mut text = format!("{name} {number} ").into_bytes();
            text.resize(size, b'.');
            bytes.extend_from_slice(&text);
            let next = position.checked_add(4 + (size as u64).next_multiple_of(4)).unwrap();
            items.push(Item { range: start..bytes.len(), position, next, time: None });
            position = next;
        }
        let facts = RingFacts {
            name: name.to_owned(),
            uuid: Uuid::from_u128(uuid),
            position: Position::ZERO,
        };
        Self {
            facts,
            items: Batch { bytes: bytes.into(), items },
            lane: None,
            id: LaneId(0),
            is_ready: false,
            sent: 0,
            freed: 0,
            error: None,
        }
    }

    fn is_done(&self) -> bool {
        self.freed == self.items.items.len() || self.error.is_some()
    }

    /// Number of the first item at or behind a position.
    fn index(&self, position: Position) -> usize {
        self.items.items.partition_point(|item| item.position < position)
    }

    fn free_up_to(&mut self, position: Position) {
        self.freed = self.freed.max(self.index(position));
        self.facts.position = self.facts.position.max(position);
    }

    fn send(&mut self) {
        let Some(lane) = self.lane.as_mut().filter(|_| self.is_ready) else { return };
        while self.sent < self.items.items.len() && self.sent < self.freed + BATCH * ON_THE_WAY {
            let end = self.items.items.len().min(self.sent + BATCH);
            let items = self.items.items[self.sent..end].to_vec();
            lane.send(Batch { bytes: self.items.bytes.clone(), items });
            self.sent = end;
        }
    }

    /// Payloads with their positions, as the stream should have them.
    pub fn expected(&self) -> Vec<(Position, Bytes)> {
        let bytes = &self.items.bytes;
        let item = |item: &Item| (item.position, bytes.slice(item.range.clone()));
        self.items.items.iter().map(item).collect()
    }
}

/// The engine's part, for a few rings.
pub struct Driver {
    pub rings: Vec<Ring>,
    events: Receiver<(LaneId, Event)>,
    sender: Sender<(LaneId, Event)>,
    wake: Arc<EventFd>,
    lanes: u64,
    /// Words of the failures so far.
    pub failures: Vec<String>,
}

impl Driver {
    pub fn new(rings: Vec<Ring>) -> Self {
        let (sender, events) = channel();
        let wake = Arc::new(EventFd::new().unwrap());
        Self { rings, events, sender, wake, lanes: 0, failures: Vec::new() }
    }

    /// Ends the lanes, as the end of a forwarder does: what was not acknowledged is sent again.
    pub fn forget(&mut self) {
        for ring in &mut self.rings {
            ring.lane = None;
        }
    }

    /// Forwards until all items are acknowledged or a ring fails for good.
    pub fn finish(&mut self, sink: &mut Nats) {
        self.run(sink, |rings| rings.iter().all(Ring::is_done));
    }

    /// Forwards until that many items are acknowledged since the call, or all.
    pub fn advance(&mut self, sink: &mut Nats, items: usize) {
        let freed = |rings: &[Ring]| rings.iter().map(|ring| ring.freed).sum::<usize>();
        let goal = freed(&self.rings) + items;
        self.run(sink, |rings| freed(rings) >= goal || rings.iter().all(Ring::is_done));
    }

    fn run(&mut self, sink: &mut Nats, is_over: impl Fn(&[Ring]) -> bool) {
        let mut last_news = Instant::now();
        loop {
            for at in 0..self.rings.len() {
                self.open(sink, at);
            }
            if is_over(&self.rings) {
                return;
            }
            match self.events.recv_timeout(Duration::from_millis(50)) {
                Ok((lane, event)) => {
                    last_news = Instant::now();
                    self.handle(lane, event);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the driver has a sender"),
            }
            assert!(last_news.elapsed() < PATIENCE, "no news: {:?}", self.failures);
        }
    }

    fn open(&mut self, sink: &mut Nats, at: usize) {
        let ring = &mut self.rings[at];
        if ring.lane.is_some() || ring.error.is_some() {
            return;
        }
        self.lanes += 1;
        (ring.id, ring.is_ready) = (LaneId(self.lanes), false);
        let reporter = Reporter::new(ring.id, self.sender.clone(), Arc::clone(&self.wake));
        ring.lane = Some(sink.open(&ring.facts, reporter));
    }

    fn handle(&mut self, lane: LaneId, event: Event) {
        let Some(ring) = self.rings.iter_mut().find(|ring| ring.id == lane) else { return };
        if ring.lane.is_none() {
            return;
        }
        match event {
            Event::Ready { arrived } => {
                ring.free_up_to(arrived.map_or(Position::ZERO, |arrived| arrived.position));
                (ring.is_ready, ring.sent) = (true, ring.freed);
            }
            Event::Acknowledged(position) => ring.free_up_to(position),
            Event::Trouble { .. } => {}
            Event::Failed(error) => {
                self.failures.push(error.to_string());
                ring.lane = None;
                ring.error = (error.kind == SinkErrorKind::Stop).then_some(error);
            }
        }
        ring.send();
    }

    /// Verifies that the stream has each item of each ring once, in order.
    pub fn verify(&self, address: &str) {
        let messages = read(address, STREAM);
        for ring in &self.rings {
            let found: Vec<_> = messages
                .iter()
                .filter(|(record, _)| record.ring == ring.facts.uuid)
                .map(|(record, payload)| (record.position, payload.clone()))
                .collect();
            let expected = ring.expected();
            let same = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            assert!(
                found.len() == expected.len() && same == found.len(),
                "{}: {} of {} items, the first {same} are right, then {:?}",
                ring.facts.name,
                found.len(),
                expected.len(),
                found.get(same).map(|(position, _)| position)
            );
        }
    }
}

/// Forwards the items of one ring to the end, and returns the words of its failure for good.
pub fn failure(address: &str, options: NatsOptions, ring: Ring) -> String {
    let mut driver = Driver::new(vec![ring]);
    driver.finish(&mut sink(address, options));
    driver.rings.remove(0).error.map_or_else(String::new, |error| error.to_string())
}

/// Runs a conversation with the server.
pub fn talk<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Returns the context of a connection.
pub async fn context(address: &str) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(address).await.unwrap())
}

/// Reads all messages of a stream.
pub fn read(address: &str, stream: &str) -> Vec<(Record, Bytes)> {
    use futures_util::StreamExt;
    talk(async {
        let stream = context(address).await.get_stream(stream).await.unwrap();
        let count = usize::try_from(stream.cached_info().state.messages).unwrap();
        let config = PullConfig { ack_policy: AckPolicy::None, ..PullConfig::default() };
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut found = Vec::new();
        while found.len() < count {
            let mut some = consumer.fetch().max_messages(500).messages().await.unwrap();
            while let Some(message) = some.next().await {
                let message = message.unwrap();
                let record = Record::read(message.headers.as_ref().unwrap()).unwrap();
                found.push((record, message.payload.clone()));
            }
        }
        found
    })
}
