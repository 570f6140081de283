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
mod stream;
mod subject;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod words;

use super::{Batch, Event, Lane, Reporter, RingFacts, Sink, SinkError, SinkErrorKind};
use exact::Exact;
use link::Link;
use options::Settings;
use repeats::Repeats;
use std::io;
use std::sync::Arc;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// A stream of a NATS server.
#[derive(Debug)]
pub struct Nats {
    settings: Arc<Settings>,
    link: Arc<Link>,
    runtime: Handle,
    /// The thread ends when this is dropped.
    _alive: oneshot::Sender<()>,
}

impl Nats {
    /// Starts the thread that connects to the server. Connecting itself waits for no caller.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (settings, link) = (Arc::new(settings), Arc::new(Link::new()));
        let (alive, ended) = oneshot::channel();
        if settings.at_least_once {
            log::warn!(
                "items go to the stream {} at least once: after a failure some may be there twice, or \
                 out of order (--at-least-once)",
                settings.stream
            );
        }
        let nats = Self {
            settings: Arc::clone(&settings),
            link: Arc::clone(&link),
            runtime: runtime.handle().clone(),
            _alive: alive,
        };
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
        Ok(nats)
    }
}

impl Sink for Nats {
    fn open(&mut self, ring: &RingFacts, events: Reporter) -> Box<dyn Lane> {
        let (sender, batches) = mpsc::unbounded_channel();
        let task =
            run(Arc::clone(&self.settings), Arc::clone(&self.link), ring.clone(), batches, events);
        Box::new(NatsLane { batches: sender, task: self.runtime.spawn(task).abort_handle() })
    }
}

/// Way of one ring to its subject.
struct NatsLane {
    batches: mpsc::UnboundedSender<Batch>,
    task: AbortHandle,
}

impl Lane for NatsLane {
    fn send(&mut self, batch: Batch) {
        // After a failure, which was reported, there is nobody to take it.
        let _ = self.batches.send(batch);
    }
}

impl Drop for NatsLane {
    fn drop(&mut self) {
        self.task.abort();
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

fn stop(message: String) -> SinkError {
    SinkError { message, kind: SinkErrorKind::Stop }
}

fn retry(message: String) -> SinkError {
    SinkError { message, kind: SinkErrorKind::Retry }
}
