//! `exec:COMMAND`: items for the standard input of children, which say what they have dealt with.

mod child;
mod worker;

use self::worker::Worker;
use super::super::super::failure::Failure;
use super::super::super::framing::{Framing, OnSeparator};
use super::super::super::journal::command::verify;
use super::super::values::choice;
use super::{Batch, Event, Lane, Reporter, RingFacts, Sink, SinkError, SinkErrorKind};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Deserializer};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

/// Stack of a thread in bytes.
const STACK: usize = 256 << 10;

const HEADING: &str = "Options of exec";

/// Options of commands.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ExecOptions {
    /// How the command says that it has dealt with items [default: lines]
    #[arg(long, help_heading = HEADING, value_enum)]
    #[serde(deserialize_with = "acknowledgement")]
    pub ack: Option<Ack>,
    /// Start the command anew for each batch of items, and end its input behind that
    #[arg(long, help_heading = HEADING)]
    pub per_batch: bool,
}

fn acknowledgement<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ack>, D::Error> {
    choice(deserializer).map(Some)
}

impl ExecOptions {
    /// Returns the options, and whether each was given.
    pub fn given(&self) -> [(&'static str, bool); 2] {
        let Self { ack, per_batch } = self;
        [("ack", ack.is_some()), ("per-batch", *per_batch)]
    }
}

/// How a command acknowledges items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Ack {
    /// It prints the position in front of an item as a line: it has dealt with that item and all
    /// before it
    #[default]
    Lines,
    /// Exit code 0, with all of its input read: it has dealt with all items of its batch (implies
    /// --per-batch, and gives no positions)
    Exit,
}

/// What all lanes do alike.
#[derive(Debug)]
pub struct Manner {
    pub command: String,
    pub framing: Framing,
    pub on_separator: OnSeparator,
    pub ack: Ack,
    pub per_batch: bool,
    /// The time by which all children must have ended, once that is known.
    pub deadline: OnceLock<Instant>,
}

/// The sink `exec:COMMAND`.
pub struct Commands {
    manner: Arc<Manner>,
    /// The threads of lanes, some of which have ended.
    threads: Arc<std::sync::Mutex<Vec<JoinHandle<()>>>>,
}

impl Commands {
    /// Makes the sink. The command is not run yet.
    pub fn new(
        command: &str,
        framing: (Framing, OnSeparator),
        options: &ExecOptions,
    ) -> Result<Self, Failure> {
        verify("exec:", command)?;
        let (framing, on_separator) = framing;
        let ack = options.ack.unwrap_or_default();
        let name = match framing {
            Framing::Whole => "whole",
            Framing::Export => "export",
            Framing::Lines | Framing::Nul | Framing::Length => "",
        };
        if !name.is_empty() && ack == Ack::Lines {
            let text = format!(
                "--framing {name} has no place for the positions that --ack lines needs (choose another framing, or --ack exit)"
            );
            return Err(Failure::Usage(text));
        }
        let per_batch = options.per_batch || ack == Ack::Exit;
        let command = command.to_owned();
        let manner =
            Manner { command, framing, on_separator, ack, per_batch, deadline: OnceLock::new() };
        Ok(Self { manner: Arc::new(manner), threads: Arc::default() })
    }
}

impl Sink for Commands {
    fn descriptors(&self) -> u64 {
        // The ends of the child's pipes, an event, and what its start takes for a moment.
        8
    }

    fn end_by(&mut self, deadline: Instant) {
        // The first one stays.
        let _ = self.manner.deadline.set(deadline);
    }

    fn open(&mut self, ring: &RingFacts, events: Reporter) -> Box<dyn Lane> {
        // Nobody but the ring knows what a command has dealt with.
        events.report(Event::Ready { arrived: None });
        let (manner, threads) = (Arc::clone(&self.manner), Arc::clone(&self.threads));
        Box::new(ExecLane { manner, ring: ring.clone(), events, threads, way: None })
    }
}

impl Drop for Commands {
    /// Waits for the children, each of which has a bound.
    fn drop(&mut self) {
        let threads = std::mem::take(
            &mut *self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for thread in threads {
            // A panic has ended the process.
            let _ = thread.join();
        }
    }
}

struct ExecLane {
    manner: Arc<Manner>,
    ring: RingFacts,
    events: Reporter,
    threads: Arc<std::sync::Mutex<Vec<JoinHandle<()>>>>,
    /// The way to the thread, which starts with the first batch: an idle ring has none.
    way: Option<(Sender<Order>, Arc<EventFd>)>,
}

/// What a lane's thread is told. It ends when nobody can tell it anything.
pub enum Order {
    Give(Batch),
    /// No item follows.
    Finish,
}

impl ExecLane {
    fn start(&self) -> io::Result<(Sender<Order>, Arc<EventFd>)> {
        let (sender, orders): (_, Receiver<Order>) = channel();
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let wake = Arc::new(wake);
        let (manner, ring) = (Arc::clone(&self.manner), self.ring.clone());
        let worker = Worker::new(manner, ring, self.events.clone(), orders, Arc::clone(&wake));
        let thread = std::thread::Builder::new().name("exec".to_owned()).stack_size(STACK);
        let thread = thread.spawn(move || worker.run())?;
        let mut threads = self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok((sender, wake))
    }

    fn tell(&self, order: Order) {
        if let Some((orders, wake)) = &self.way {
            // A thread that has ended has reported why.
            let _ = orders.send(order);
            let _ = wake.write(1);
        }
    }
}

impl Lane for ExecLane {
    fn send(&mut self, batch: Batch) {
        if self.way.is_none() {
            match self.start() {
                Ok(way) => self.way = Some(way),
                Err(e) => {
                    let message = format!("cannot start a thread for the command: {e}");
                    let kind = SinkErrorKind::Retry;
                    return self.events.report(Event::Failed(SinkError { message, kind }));
                }
            }
        }
        self.tell(Order::Give(batch));
    }

    fn finish(&mut self) {
        self.tell(Order::Finish);
    }
}

impl Drop for ExecLane {
    fn drop(&mut self) {
        if let Some((orders, wake)) = self.way.take() {
            drop(orders);
            let _ = wake.write(1);
        }
    }
}
