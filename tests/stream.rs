//! Producer and consumer in asynchronous programs: whatever await is dropped, nothing is lost.
#![allow(clippy::unwrap_used)]

use futures_util::{FutureExt, Sink, SinkExt, StreamExt, TryStreamExt};
use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Word};
use shared_block_ring::stream::{ItemSink, ItemStream};
use shared_block_ring::{
    Consumer, Control, Error, FileDevice, Position, Producer, RingDevice, Role, State,
};
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Bytes of a small ring, which a few hundred items fill.
const BYTES: usize = 32 << 10;

/// Longest wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs a test that ends.
fn run(test: impl Future<Output = ()>) {
    runtime().block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("it hangs") });
}

fn stream_of(file: &RingFile) -> ItemStream<FileDevice> {
    ItemStream::new(Consumer::attach(file.open(), "queue", "consumer").unwrap()).unwrap()
}

fn sink_of(file: &RingFile) -> ItemSink<FileDevice> {
    ItemSink::new(file.producer().unwrap()).unwrap()
}

fn item(number: u32) -> String {
    format!("{number}:{}", "x".repeat(number as usize * 7 % 90))
}

/// Polls a future at most so often, and drops it then. Returns its output if it was done.
async fn polled_at_most<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.poll_unpin(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left > 0 => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        }
    })
    .await
}

/// Repeats an operation that is dropped after no poll, one, two and so on, until it is done.
macro_rules! dropped_at_every_point {
    ($future:expr) => {{
        let mut polls = 0;
        loop {
            if let Some(output) = polled_at_most(polls, $future).await {
                break output;
            }
            // What goes on at the device comes on in between.
            if polls % 2 == 1 {
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
            polls = (polls + 1) % 5;
        }
    }};
}

#[test]
fn nothing_is_lost_or_doubled_whichever_await_is_dropped() {
    const ITEMS: u32 = 1500;
    let file = RingFile::new(BYTES, 512);
    run(async {
        let (mut sink, mut stream) = (sink_of(&file), stream_of(&file));
        let produce = async {
            for number in 0..ITEMS {
                // Accepted once: `start_send` is no await.
                dropped_at_every_point!(std::future::poll_fn(|cx| {
                    Sink::<String>::poll_ready(Pin::new(&mut sink), cx)
                }))
                .unwrap();
                Pin::new(&mut sink).start_send(item(number)).unwrap();
                if number % 7 == 0 {
                    dropped_at_every_point!(sink.flush()).unwrap();
                }
            }
            dropped_at_every_point!(sink.flush()).unwrap();
        };
        let consume = async {
            for number in 0..ITEMS {
                let got = dropped_at_every_point!(stream.next()).unwrap().unwrap();
                assert_eq!(got.bytes, item(number).as_bytes());
                if number % 5 == 0 {
                    dropped_at_every_point!(stream.advance(got.next)).unwrap();
                }
                if number % 400 == 399 {
                    // Items that were read and not freed come again.
                    let consumer = stream.into_consumer().await.unwrap();
                    stream = ItemStream::new(consumer).unwrap();
                    let first = number / 5 * 5 + 1;
                    for again in first..=number {
                        let got = stream.try_next().await.unwrap().unwrap();
                        assert_eq!(got.bytes, item(again).as_bytes());
                    }
                }
            }
        };
        tokio::join!(produce, consume);
    });
}

#[test]
fn stream_that_is_dropped_leaves_its_items_to_the_next_consumer() {
    let file = RingFile::new(BYTES, 512);
    run(async {
        let mut sink = sink_of(&file);
        for number in 0..10 {
            sink.feed(item(number)).await.unwrap();
        }
        sink.flush().await.unwrap();
        let mut stream = stream_of(&file);
        let first = stream.try_next().await.unwrap().unwrap();
        stream.advance(first.next).await.unwrap();
        // The second is read, and the third was read ahead.
        stream.try_next().await.unwrap().unwrap();
        drop(stream);
        let mut stream = stream_of(&file);
        assert_eq!(stream.try_next().await.unwrap().unwrap().bytes, item(1).as_bytes());
    });
}

#[test]
fn batches_of_what_is_ready() {
    let file = RingFile::new(BYTES, 512);
    run(async {
        let mut sink = sink_of(&file);
        let stream = stream_of(&file);
        let produce = async {
            for number in 0..600 {
                sink.feed(item(number)).await.unwrap();
                if number % 50 == 49 {
                    sink.flush().await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        };
        let consume = async {
            let (mut seen, mut batches) = (0, stream.ready_chunks(64));
            while seen < 600 {
                let batch = batches.next().await.unwrap();
                let mut end = Position::ZERO;
                for got in batch {
                    let got = got.unwrap();
                    assert_eq!(got.bytes, item(seen).as_bytes());
                    (seen, end) = (seen + 1, got.next);
                }
                batches.get_mut().advance(end).await.unwrap();
            }
        };
        tokio::join!(produce, consume);
    });
}

#[test]
fn idle_stream_of_a_backend_sleeps_until_it_is_woken() {
    let file = RingFile::new(BYTES, 512);
    let (device, client) = Backend::new(&file, Word::Guarded).connect_and_stay(Role::Consumer);
    let mut producer = file.producer().unwrap();
    run(async {
        let mut stream = ItemStream::new(Consumer::attach(device, "", "").unwrap()).unwrap();
        for number in 0..200 {
            let mut next = stream.next();
            let start = Instant::now();
            while !client.is_asleep() {
                assert!(start.elapsed() < Duration::from_secs(60), "the stream does not sleep");
                assert!(polled_at_most(1, &mut next).await.is_none());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let end = producer.push(&item(number)).unwrap();
            producer.advance(end).unwrap();
            assert!(client.ring(), "the stream was woken by itself");
            let got = next.await.unwrap().unwrap();
            assert_eq!(got.bytes, item(number).as_bytes());
            stream.advance(got.next).await.unwrap();
        }
    });
}

#[test]
fn busy_stream_leaves_the_thread_to_other_tasks() {
    let file = RingFile::new(1 << 20, 512);
    let mut producer = file.producer().unwrap();
    let items = vec!["item"; 20_000];
    let end = producer.push_batch(&items).unwrap();
    producer.advance(end).unwrap();
    run(async {
        let other = async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        };
        let mut other = pin!(other.map(|()| 0));
        let stream = stream_of(&file);
        let taken = async {
            let mut stream = pin!(stream);
            for _ in 0..items.len() {
                stream.next().await.unwrap().unwrap();
            }
            items.len()
        };
        let mut taken = pin!(taken);
        let first = futures_util::future::select(&mut taken, &mut other).await;
        let is_other = matches!(first, futures_util::future::Either::Right(_));
        assert!(is_other, "the stream kept the thread for all of its items");
    });
}

#[test]
fn sink_waits_while_the_ring_is_suspended() {
    let file = RingFile::new(BYTES, 512);
    let mut control = Control::open(file.open()).unwrap();
    run(async {
        let mut sink = sink_of(&file);
        let mut stream = stream_of(&file);
        sink.send("x".repeat(20_000)).await.unwrap();
        control.suspend().unwrap();
        // There is no room for both: it looks at the ring, and acknowledges.
        sink.feed("y".repeat(20_000)).await.unwrap();
        {
            let mut flush = pin!(sink.flush());
            while control.state().unwrap() == State::Running {
                assert!(polled_at_most(1, &mut flush).await.is_none(), "the sink went on");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let first = stream.try_next().await.unwrap().unwrap();
            stream.advance(first.next).await.unwrap();
            for _ in 0..20 {
                assert!(polled_at_most(1, &mut flush).await.is_none(), "the sink went on");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            control.resume().unwrap();
            flush.await.unwrap();
        }
        let second = stream.try_next().await.unwrap().unwrap();
        assert_eq!(second.bytes, "y".repeat(20_000).as_bytes());
        let mut producer = sink.into_producer().await.unwrap();
        assert_eq!(producer.state().unwrap(), State::Running);
    });
}

#[test]
fn closed_sink_has_published_and_has_given_up_its_role() {
    let file = RingFile::new(BYTES, 512);
    run(async {
        let mut sink = sink_of(&file);
        sink.feed(item(0)).await.unwrap();
        sink.close().await.unwrap();
        file.producer().unwrap();
        let mut stream = stream_of(&file);
        assert_eq!(stream.try_next().await.unwrap().unwrap().bytes, item(0).as_bytes());
    });
}

#[test]
fn item_that_cannot_fit_is_refused_and_others_are_not() {
    let file = RingFile::new(BYTES, 512);
    run(async {
        let mut sink = sink_of(&file);
        sink.feed(item(0)).await.unwrap();
        let refused = sink.feed("x".repeat(BYTES)).await;
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
        SinkExt::<String>::close(&mut sink).await.unwrap();
        // The role is free, and what was accepted is published.
        let mut stream = stream_of(&file);
        assert_eq!(stream.try_next().await.unwrap().unwrap().bytes, item(0).as_bytes());
        let mut next = file.producer().unwrap();
        let end = next.push(&item(1)).unwrap();
        next.advance(end).unwrap();
        assert_eq!(stream.try_next().await.unwrap().unwrap().bytes, item(1).as_bytes());
        assert!(matches!(sink.send(item(2)).await, Err(Error::Detached)));
    });
}

#[test]
fn stream_goes_on_behind_damage_that_was_advanced_over() {
    let file = RingFile::new(BYTES, 512);
    let mut producer = file.producer().unwrap();
    let end = producer.push("damaged").unwrap();
    producer.advance(end).unwrap();
    let bytes = std::fs::read(&file.path).unwrap();
    let at = bytes.windows(7).position(|bytes| bytes == b"damaged").unwrap();
    let mut changed = bytes;
    changed[at] ^= 1;
    std::fs::write(&file.path, changed).unwrap();
    run(async {
        let mut stream = stream_of(&file);
        for _ in 0..2 {
            let error = stream.try_next().await.unwrap_err();
            assert_eq!(error.name(), "format", "{error}");
        }
        stream.advance(end).await.unwrap();
        let end = producer.push("whole").unwrap();
        producer.advance(end).unwrap();
        assert_eq!(stream.try_next().await.unwrap().unwrap().bytes, b"whole");
    });
}

#[test]
fn error_of_an_advance_that_was_not_waited_for_is_that_of_the_next_call() {
    let file = RingFile::new(BYTES, 512);
    run(async {
        let mut stream = stream_of(&file);
        let far = Position::ZERO.checked_add(4000).unwrap();
        assert!(polled_at_most(1, stream.advance(far)).await.is_none());
        let error = stream.try_next().await.unwrap_err();
        assert_eq!(error.name(), "invalid_advance", "{error}");
    });
}

#[test]
fn stream_and_sink_can_be_moved_to_other_threads() {
    fn is_send<T: Send>() {}
    fn assert_unpin<T: Unpin>(_: &T) {}
    is_send::<ItemStream<Box<dyn RingDevice + Send>>>();
    is_send::<ItemSink<Box<dyn RingDevice + Send>>>();
    let file = RingFile::new(BYTES, 512);
    run(async {
        assert_unpin(&stream_of(&file));
        let mut sink: ItemSink<FileDevice> = sink_of(&file);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Sink::<&str>::poll_ready(Pin::new(&mut sink), &mut cx).is_ready());
        let producer: Producer<FileDevice> = sink.into_producer().await.unwrap();
        assert_eq!(producer.position(), Position::ZERO);
    });
}
