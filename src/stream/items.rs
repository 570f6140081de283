//! A consumer as a stream.

use super::at_device::{AtDevice, Attached};
use crate::consumer::Consumer;
use crate::device::{DeviceError, Operation, RingDevice};
use crate::error::{Error, Result};
use crate::format::Position;
use crate::wait::Readiness;
use futures_core::Stream;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// An item of a ring, copied out of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Item {
    /// The position of the item.
    pub position: Position,
    /// The position of the next item: to advance to, when this one was dealt with.
    pub next: Position,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// The items that one call reads, and the bytes of them behind which it stops.
const BATCH_ITEMS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// A [`Consumer`] as a [`Stream`] of its items, from the consumer's position on. It never ends: an
/// empty ring is waited for.
///
/// Items are delivered again after a crash until [`advance`](Self::advance) has freed them. The
/// stream reads ahead: at most 256 items, or the first item with which they are 1 MiB.
///
/// An error is the stream's next element. After a transient one, and after one that the caller has
/// mended (damage, by advancing over it), the stream goes on where it was; a lasting one comes
/// again with each call.
///
/// Dropping the stream drops the consumer, after the call that is at the device. The page of the
/// [module](super) has an example.
#[derive(Debug)]
pub struct ItemStream<D: RingDevice + Send + 'static> {
    consumer: AtDevice<Consumer<D>, Outcome>,
    name: String,
    /// Items that were read and not taken.
    read: VecDeque<Item>,
    /// The position behind the last item that was read.
    end: Position,
    /// The error behind those items, or of an advance that nobody waited for.
    failed: Option<Error>,
    /// Whether the ring was empty at the last look, and the wait is prepared.
    is_armed: bool,
}

/// The result of a call at the device.
struct Outcome {
    /// Items that were read.
    items: VecDeque<Item>,
    /// The consumer's position.
    position: Position,
    result: Result<()>,
    purpose: Purpose,
}

enum Purpose {
    /// To read items. `is_armed` if there was none, and the wait is prepared.
    Read {
        is_armed: bool,
    },
    Advance,
}

impl<D: RingDevice + Send + 'static> ItemStream<D> {
    /// Makes a stream of a consumer.
    ///
    /// # Errors
    /// Those of [`Readiness::for_items`], and of the runtime.
    ///
    /// # Panics
    /// Outside of a `tokio` runtime with I/O enabled.
    pub fn new(consumer: Consumer<D>) -> io::Result<Self> {
        let (name, end) = (consumer.device().name().to_owned(), consumer.position());
        let consumer = AtDevice::new(consumer, Readiness::for_items()?)?;
        let (read, failed, is_armed) = (VecDeque::new(), None, false);
        Ok(Self { consumer, name, read, end, failed, is_armed })
    }

    /// Frees all items before `to`: they are not delivered again.
    ///
    /// Items that the stream has read and not delivered go with it if they lie before `to`.
    ///
    /// # Errors
    /// Those of [`Consumer::advance`], and that of an earlier `advance` that was not waited for.
    pub async fn advance(&mut self, to: Position) -> Result<()> {
        poll_fn(|cx| self.poll_idle(cx)).await?;
        self.consumer.begin(move |attached| {
            let result = attached.handle.advance(to);
            let (items, position) = (VecDeque::new(), attached.handle.position());
            Outcome { items, position, result, purpose: Purpose::Advance }
        });
        poll_fn(|cx| self.poll_idle(cx)).await
    }

    /// Waits for the call that is under way, and returns the consumer, whose position is that
    /// behind the last `advance`. Items that were read and not taken are delivered again to
    /// whoever reads next.
    ///
    /// # Errors
    /// That of the last `advance`, if it was not waited for; the consumer is dropped then.
    pub async fn into_consumer(mut self) -> Result<Consumer<D>> {
        poll_fn(|cx| self.poll_idle(cx)).await?;
        self.consumer.take().ok_or(Error::Detached)
    }

    /// Waits until no call is under way, and returns the error of an advance that was.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(outcome) = ready!(self.consumer.poll_result(cx))? else {
            return Poll::Ready(Ok(()));
        };
        let purpose = self.take_in(outcome);
        Poll::Ready(match purpose {
            Purpose::Advance => self.failed.take().map_or(Ok(()), Err),
            Purpose::Read { .. } => Ok(()),
        })
    }

    fn take_in(&mut self, outcome: Outcome) -> Purpose {
        let Outcome { items, position, result, purpose } = outcome;
        if matches!(&result, Err(e) if e.is_superseded()) {
            // The consumer starts again there.
            self.read.clear();
            self.end = position;
        } else {
            self.read.extend(items);
            let end = self.read.back().map_or(self.end, |item| item.next);
            // Also what was never read can be advanced over.
            self.end = end.max(position);
            while self.read.front().is_some_and(|item| item.position < position) {
                self.read.pop_front();
            }
        }
        // An earlier error may be about what was advanced over. If not, the next look finds it.
        self.failed = result.err();
        self.is_armed = matches!(purpose, Purpose::Read { is_armed: true });
        purpose
    }
}

impl<D: RingDevice + Send + 'static> Stream for ItemStream<D> {
    type Item = Result<Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Item>>> {
        let this = &mut *self;
        // A ring that always has something leaves the thread to others now and then.
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        loop {
            if let Some(item) = this.read.pop_front() {
                turn.made_progress();
                return Poll::Ready(Some(Ok(item)));
            }
            if let Some(error) = this.failed.take() {
                turn.made_progress();
                return Poll::Ready(Some(Err(error)));
            }
            match ready!(this.consumer.poll_result(cx)) {
                Ok(Some(outcome)) => {
                    this.take_in(outcome);
                    continue;
                }
                Ok(None) => {}
                Err(e) => return Poll::Ready(Some(Err(e))),
            }
            if this.is_armed {
                let readable = ready!(this.consumer.poll_ready(cx));
                this.is_armed = false;
                if let Err(e) = readable {
                    let error = DeviceError::new(&*this.name, Operation::Wait, e);
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
            let from = this.end;
            this.consumer.begin(move |attached| read(attached, from));
        }
    }
}

/// Reads items from `from` on; if there are none, prepares the wait for them.
fn read<D: RingDevice>(attached: &mut Attached<Consumer<D>>, from: Position) -> Outcome {
    let (mut items, mut bytes) = (VecDeque::new(), 0);
    let mut is_armed = false;
    let result = loop {
        let at = items.back().map_or(from, |item: &Item| item.next);
        if items.len() >= BATCH_ITEMS || bytes >= BATCH_BYTES {
            break Ok(());
        }
        match attached.handle.pop(at) {
            Ok(item) => {
                bytes += item.bytes.len();
                let (next, bytes) = (item.next, item.bytes.to_vec());
                items.push_back(Item { position: at, next, bytes });
            }
            Err(Error::Retry) if !items.is_empty() => break Ok(()),
            Err(Error::Retry) => match attached.arm(|consumer| consumer.device()) {
                Ok(true) => {}
                Ok(false) => {
                    is_armed = true;
                    break Ok(());
                }
                Err(e) => break Err(e),
            },
            Err(e) => break Err(e),
        }
    };
    let position = attached.handle.position();
    Outcome { items, position, result, purpose: Purpose::Read { is_armed } }
}
