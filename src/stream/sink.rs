//! A producer as a sink.

use super::at_device::{AtDevice, Attached};
use crate::device::{DeviceError, Operation, RingDevice};
use crate::error::{Error, Result};
use crate::format::{Position, framed_len};
use crate::item::Encode;
use crate::producer::Producer;
use crate::wait::Readiness;
use futures_sink::Sink;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The items, and the bytes of them, with which the sink is full until some are published.
const BATCH_ITEMS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// A [`Producer`] as a [`Sink`] for items.
///
/// Accepted items are published by a flush, or when there are 256 of them or 1 MiB: as many at once
/// as there is room for. A ring that is full, or suspended, is waited for.
///
/// After an error the sink has what is not published yet, and the next flush tries again. After
/// [`Error::Superseded`] items can therefore be published a second time; after
/// [`Error::Failed`](crate::Error::Failed) nothing is published any more. An item that can never
/// fit is refused as it is accepted.
///
/// Dropping the sink drops what was not flushed. The page of the [module](super) has an example.
#[derive(Debug)]
pub struct ItemSink<D: RingDevice + Send + 'static> {
    producer: AtDevice<Producer<D>, Outcome>,
    name: String,
    /// Bytes of the ring's data area.
    capacity: u64,
    accepted: Accepted,
    /// Whether there was no room at the last look, and the wait is prepared.
    is_armed: bool,
}

/// Items that were accepted and are not known to be published.
#[derive(Debug, Default)]
struct Accepted {
    items: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The number of the first ones that were pushed, and the position to advance to for them.
    pushed: Option<(usize, Position)>,
}

/// The result of a call at the device.
struct Outcome {
    /// The items that are not published yet.
    accepted: Accepted,
    result: Result<()>,
    is_armed: bool,
}

impl<D: RingDevice + Send + 'static> ItemSink<D> {
    /// Makes a sink of a producer.
    ///
    /// # Errors
    /// Those of [`Readiness::for_space`], and of the runtime.
    ///
    /// # Panics
    /// Outside of a `tokio` runtime with I/O enabled.
    pub fn new(producer: Producer<D>) -> io::Result<Self> {
        let name = producer.device().name().to_owned();
        let capacity = producer.device().geometry().capacity().get();
        let producer = AtDevice::new(producer, Readiness::for_space()?)?;
        Ok(Self { producer, name, capacity, accepted: Accepted::default(), is_armed: false })
    }

    /// Publishes what was accepted: it survives any crash from here on.
    ///
    /// # Errors
    /// Those of [`Producer::push`] and [`Producer::advance`] that are not transient.
    pub async fn flush(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll_published(cx)).await
    }

    /// Publishes what was accepted, and returns the producer.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush); the producer is dropped then.
    pub async fn into_producer(mut self) -> Result<Producer<D>> {
        self.flush().await?;
        self.producer.take().ok_or(Error::Detached)
    }

    /// Publishes what was accepted, and gives up the role.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub async fn close(self) -> Result<()> {
        self.into_producer().await.map(drop)
    }

    fn poll_published(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            if let Some(outcome) = ready!(self.producer.poll_result(cx))? {
                self.take_back(outcome)?;
            } else if self.accepted.items.is_empty() {
                return Poll::Ready(Ok(()));
            } else {
                ready!(self.poll_begin(cx))?;
            }
        }
    }

    /// Takes back what a call has left, in front of what was accepted meanwhile.
    fn take_back(&mut self, outcome: Outcome) -> Result<()> {
        let Outcome { accepted: mut left, result, is_armed } = outcome;
        left.items.append(&mut self.accepted.items);
        left.bytes += self.accepted.bytes;
        (self.accepted, self.is_armed) = (left, is_armed);
        result
    }

    /// Begins to publish, when there is room.
    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.is_armed {
            let readable = ready!(self.producer.poll_ready(cx));
            self.is_armed = false;
            readable.map_err(|e| DeviceError::new(&*self.name, Operation::Wait, e))?;
        }
        let accepted = std::mem::take(&mut self.accepted);
        self.producer.begin(move |attached| publish(attached, accepted));
        Poll::Ready(Ok(()))
    }

    fn is_full(&self) -> bool {
        self.accepted.items.len() >= BATCH_ITEMS || self.accepted.bytes >= BATCH_BYTES
    }
}

impl<D: RingDevice + Send + 'static, T: Encode> Sink<T> for ItemSink<D> {
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.is_full() {
            match ready!(self.producer.poll_result(cx))? {
                Some(outcome) => self.take_back(outcome)?,
                None => ready!(self.poll_begin(cx))?,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, item: T) -> Result<()> {
        let payload = item.encode();
        let needed = u32::try_from(payload.len()).map(framed_len);
        let needed = needed.unwrap_or_else(|_| payload.len() as u64);
        if needed > self.capacity {
            return Err(Error::TooLarge { needed, capacity: self.capacity });
        }
        self.accepted.bytes += payload.len();
        self.accepted.items.push_back(payload.into_owned());
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_published(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_published(cx))?;
        drop(self.producer.take());
        Poll::Ready(Ok(()))
    }
}

/// Publishes all of the items, or as many as there is room for, with the wait prepared.
fn publish<D: RingDevice>(attached: &mut Attached<Producer<D>>, mut left: Accepted) -> Outcome {
    loop {
        let result = publish_some(&mut attached.handle, &mut left);
        let is_transient = matches!(&result, Err(e) if e.is_transient());
        if matches!(&result, Err(e) if e.is_superseded()) {
            // They would have to be pushed again, behind the ring's position.
            left.pushed = None;
        }
        if !is_transient {
            if result.is_ok() && !left.items.is_empty() {
                continue;
            }
            return Outcome { accepted: left, result, is_armed: false };
        }
        match attached.arm(|producer| producer.device()) {
            Ok(true) => {}
            Ok(false) => return Outcome { accepted: left, result: Ok(()), is_armed: true },
            Err(e) => return Outcome { accepted: left, result: Err(e), is_armed: false },
        }
    }
}

/// Publishes as many of the items as there is room for.
fn publish_some<D: RingDevice>(producer: &mut Producer<D>, left: &mut Accepted) -> Result<()> {
    let (count, end) = match left.pushed {
        // An advance has failed that can succeed.
        Some(pushed) => pushed,
        None => producer.push_some(left.items.make_contiguous())?,
    };
    left.pushed = Some((count, end));
    producer.advance(end)?;
    left.pushed = None;
    left.bytes -= left.items.drain(..count).map(|item| item.len()).sum::<usize>();
    Ok(())
}
