//! The sink `nats://` and `tls://`: a JetStream stream that has each item once.
//!
//! Each ring has a subject, and the subject's last message is the record of what has arrived: its
//! headers name the ring, the item's position and the position behind it. A lane reads it when it
//! opens, and goes on behind it. Each group of messages is an atomic batch whose first message
//! names the sequence that the subject's last message must have (the fence): the stream takes all
//! of them, or, if somebody else has published in between, none. When an acknowledgement is lost,
//! the last message tells whether the batch arrived. Nothing rests on windows of time or on which
//! forwarder ran before.
//!
//! One thread runs the connection ([`link`]) and a task for each lane ([`exact`], or [`repeats`]
//! with `--at-least-once`).

mod exact;
mod examine;
mod link;
pub mod options;
mod plan;
mod record;
mod repeats;
mod server_words;
mod stream;
mod subject;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod words;

use super::{
    Arrived, Batch, Event, Lane, Reporter, RingFacts, Sink, SinkError, SinkErrorKind, checksum,
};
use exact::Exact;
use link::Link;
use options::Settings;
use plan::Group;
use repeats::Repeats;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Pauses after failures in a row begin and end with these.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// The time after which failures in a row are no passing matter.
const TROUBLE: Duration = Duration::from_secs(1);

/// A stream of a NATS server.
#[derive(Debug)]
pub struct Nats {
    settings: Arc<Settings>,
    link: Arc<Link>,
    /// None before the first lane.
    thread: Option<Thread>,
}

/// Thread that connects to the server and runs the lanes' tasks. It ends when this is dropped.
#[derive(Debug)]
struct Thread {
    runtime: Handle,
    _alive: oneshot::Sender<()>,
}

impl Nats {
    /// Makes the sink. It connects when the first lane is opened.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), link: Arc::new(Link::new()), thread: None }
    }

    /// Returns the way to the thread, which is started first if need be.
    fn runtime(&mut self) -> io::Result<Handle> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => self.start()?,
        };
        Ok(self.thread.insert(thread).runtime.clone())
    }

    fn start(&self) -> io::Result<Thread> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (alive, ended) = oneshot::channel();
        let thread = Thread { runtime: runtime.handle().clone(), _alive: alive };
        let (settings, link) = (Arc::clone(&self.settings), Arc::clone(&self.link));
        if settings.at_least_once {
            log::warn!(
                "items go to the stream {} at least once: after a failure some may be there twice, or \
                 out of order (--at-least-once)",
                settings.stream
            );
        }
        std::thread::Builder::new().name("nats".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = link::keep(&link, &settings) => {}
                    _ = ended => {}
                }
            });
            // A name that is being looked up holds nobody up.
            runtime.shutdown_background();
        })?;
        Ok(thread)
    }
}

impl Sink for Nats {
    fn descriptors(&self) -> u64 {
        // All lanes share a connection.
        0
    }

    fn open(&mut self, ring: &RingFacts, events: Reporter) -> Box<dyn Lane> {
        let (sender, batches) = mpsc::unbounded_channel();
        let (settings, link) = (Arc::clone(&self.settings), Arc::clone(&self.link));
        let task = match self.runtime() {
            Ok(runtime) => {
                let lane = run(settings, link, ring.clone(), batches, events);
                Some(runtime.spawn(lane).abort_handle())
            }
            Err(error) => {
                let words = format!("cannot start a thread for {}: {error}", settings.address);
                events.report(Event::Failed(retry(words)));
                None
            }
        };
        Box::new(NatsLane { batches: sender, task })
    }
}

/// Way of one ring to its subject.
struct NatsLane {
    batches: mpsc::UnboundedSender<Batch>,
    task: Option<AbortHandle>,
}

impl Lane for NatsLane {
    fn send(&mut self, batch: Batch) {
        // After a failure, which was reported, there is nobody to take it.
        let _ = self.batches.send(batch);
    }
}

impl Drop for NatsLane {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Runs a lane until it fails or is dropped.
async fn run(
    settings: Arc<Settings>,
    link: Arc<Link>,
    ring: RingFacts,
    batches: mpsc::UnboundedReceiver<Batch>,
    events: Reporter,
) {
    let outcome = match settings.template.subject(&ring.name) {
        Err(error) => Err(stop(error.to_string())),
        Ok(subject) if settings.at_least_once => {
            Repeats::new(&settings, &link, &ring, subject, &events).run(batches).await
        }
        Ok(subject) => Exact::new(&settings, &link, &ring, subject, &events).run(batches).await,
    };
    if let Err(error) = outcome {
        events.report(Event::Failed(error));
    }
}

/// Reports that everything up to the end of a group has arrived, or is left out of the stream.
fn group_arrived(ring: &RingFacts, group: &Group, events: &Reporter) {
    for (position, size) in &group.dropped {
        let name = &ring.name;
        log::warn!("dropped an item of {name}, too large: position {position}, {size} bytes");
    }
    events.report(Event::Acknowledged(group.next));
}

fn stop(message: String) -> SinkError {
    SinkError { message, kind: SinkErrorKind::Stop }
}

fn retry(message: String) -> SinkError {
    SinkError { message, kind: SinkErrorKind::Retry }
}
