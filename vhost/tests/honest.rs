//! Writes of the library in a guest are never refused, whatever happens on the host between any two
//! of its requests.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use ring_test_support::executor_disk::{Disk, Driver};
use shared_block_ring::format::{PointerSector, Side};
use shared_block_ring::{Consumer, Error, MappedDevice, Position, Producer, RingDevice};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};

/// A step of the producer or the consumer.
#[derive(Debug, Clone)]
enum Step {
    Nothing,
    /// A producer pushes a batch of items of these lengths; a consumer pops and advances over as
    /// many items.
    Move(Vec<u16>),
    /// A producer advances; a consumer pops everything and advances.
    Whole,
    /// Detaches and attaches again.
    Again,
    /// Another program, which writes no slots, takes the role and moves the pointer by one item.
    Plain,
    /// Suspends or resumes.
    Suspend,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Nothing),
        6 => prop::collection::vec(prop_oneof![0..40u16, 0..700u16], 1..5).prop_map(Step::Move),
        6 => Just(Step::Whole),
        1 => Just(Step::Again),
        1 => Just(Step::Plain),
        1 => Just(Step::Suspend),
    ]
}

/// Returns item `number`, whose bytes tell its number.
fn item(number: u64, len: u16) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(len.into()).collect()
}

/// The items in the ring, as both ends must agree.
type Published = Arc<Mutex<VecDeque<Vec<u8>>>>;

fn expected(error: &Error) -> bool {
    matches!(error, Error::Retry | Error::Suspended | Error::TooLarge { .. })
}

/// A producer, with the items that it has pushed and not yet published.
struct Sender<'a, D> {
    end: Option<Producer<D>>,
    attach: Box<dyn Fn() -> D + Send + 'a>,
    pushed: Vec<(Position, Vec<Vec<u8>>)>,
    numbered: u64,
    published: Published,
}

impl<'a, D: RingDevice> Sender<'a, D> {
    fn new(attach: Box<dyn Fn() -> D + Send + 'a>, published: Published) -> Self {
        let end = Some(Producer::attach(attach(), "q", "sender").unwrap());
        Self { end, attach, pushed: Vec::new(), numbered: 0, published }
    }

    fn step(&mut self, step: &Step) {
        let producer = self.end.as_mut().unwrap();
        match step {
            Step::Move(lengths) => {
                let items: Vec<_> =
                    (self.numbered..).zip(lengths).map(|(n, &len)| item(n, len)).collect();
                match producer.push_batch(&items) {
                    Ok(end) => {
                        self.numbered += items.len() as u64;
                        self.pushed.push((end, items));
                    }
                    Err(e) => assert!(expected(&e), "{e}"),
                }
            }
            Step::Whole => {
                let Some((end, _)) = self.pushed.last() else { return };
                let items: Vec<_> =
                    self.pushed.iter().flat_map(|(_, items)| items.iter().cloned()).collect();
                let count = items.len();
                // Counted before `advance`: the other end may have consumed them when it returns.
                self.published.lock().unwrap().extend(items);
                match producer.advance(*end) {
                    Ok(()) => self.pushed.clear(),
                    Err(e) => {
                        assert!(expected(&e), "{e}");
                        let mut published = self.published.lock().unwrap();
                        let left = published.len() - count;
                        published.truncate(left);
                    }
                }
            }
            Step::Again => {
                self.end = None;
                self.pushed.clear();
                self.end = Some(Producer::attach((self.attach)(), "q", "sender").unwrap());
            }
            Step::Plain => {
                self.end = None;
                self.pushed.clear();
                let device = (self.attach)();
                if plain(&device, Side::Producer, |_, _| 4) {
                    self.published.lock().unwrap().push_back(Vec::new());
                }
                self.end = Some(Producer::attach(device, "q", "sender").unwrap());
            }
            Step::Nothing | Step::Suspend => {}
        }
    }
}

struct Receiver<'a, D: RingDevice> {
    end: Option<Consumer<D>>,
    attach: Box<dyn Fn() -> D + Send + 'a>,
    suspended: bool,
    published: Published,
}

impl<'a, D: RingDevice> Receiver<'a, D> {
    fn new(attach: Box<dyn Fn() -> D + Send + 'a>, published: Published) -> Self {
        let end = Some(Consumer::attach(attach(), "q", "receiver").unwrap());
        Self { end, attach, suspended: false, published }
    }

    fn step(&mut self, step: &Step) {
        let consumer = self.end.as_mut().unwrap();
        let most = match step {
            Step::Move(lengths) => lengths.len(),
            Step::Whole => usize::MAX,
            Step::Again => {
                self.end = None;
                self.end = Some(Consumer::attach((self.attach)(), "q", "receiver").unwrap());
                return;
            }
            Step::Plain => {
                self.end = None;
                let device = (self.attach)();
                if plain(&device, Side::Consumer, |_, len| (u64::from(len) + 7) & !3) {
                    self.published.lock().unwrap().pop_front();
                }
                self.end = Some(Consumer::attach(device, "q", "receiver").unwrap());
                return;
            }
            Step::Suspend => {
                let outcome = if self.suspended { consumer.resume() } else { consumer.suspend() };
                match outcome {
                    Ok(()) => self.suspended = !self.suspended,
                    Err(e) => assert!(expected(&e), "{e}"),
                }
                return;
            }
            Step::Nothing => return,
        };
        let mut at = consumer.position();
        let mut popped = 0;
        while popped < most {
            match consumer.pop(at) {
                Ok(item) => {
                    assert_eq!(item.bytes, self.published.lock().unwrap()[popped]);
                    at = item.next;
                    popped += 1;
                }
                Err(Error::Retry) => break,
                Err(e) => panic!("{e}"),
            }
        }
        consumer.advance(at).unwrap();
        self.published.lock().unwrap().drain(..popped);
    }
}

/// Moves a pointer like a program that knows no slots, by the number of bytes that `bytes` returns
/// for the present position and the item header there; a producer's item is empty. Returns whether
/// there was an item, or space for one.
fn plain<D: RingDevice>(device: &D, side: Side, bytes: impl Fn(u64, u32) -> u64) -> bool {
    let read = |index| {
        let mut sector = vec![0; 512];
        device.read(index, &mut [IoSliceMut::new(&mut sector)]).unwrap();
        sector
    };
    let decode = |side: Side| PointerSector::decode(side, &read(side.sector())).unwrap();
    let (producer, consumer) = (decode(Side::Producer), decode(Side::Consumer));
    let used = producer.position.since(consumer.position).unwrap();
    let capacity = device.geometry().capacity().get();
    let (present, there) = match side {
        Side::Producer => (producer, used + 4 <= capacity && !consumer.flag && !producer.flag),
        Side::Consumer => (consumer, used > 0),
    };
    if !there {
        return false;
    }
    let place = device.geometry().data_offset(present.position.get());
    let (index, within) = (3 + place / 512, usize::try_from(place % 512).unwrap());
    let mut data = read(index);
    let header = data[within..within + 4].try_into().unwrap();
    if side == Side::Producer {
        data[within..within + 4].fill(0);
        device.write(index, &[IoSlice::new(&data)]).unwrap();
    }
    let more = bytes(present.position.get(), u32::from_le_bytes(header));
    let to = PointerSector { position: present.position.checked_add(more).unwrap(), ..present };
    let mut sector = vec![0; 512];
    to.encode(side, Some(("q", "plain")), &mut sector);
    device.write(side.sector(), &[IoSlice::new(&sector)]).unwrap();
    true
}

/// Returns a function that takes the host's next step at each call, over and over.
fn outside(steps: Vec<Step>, mut step: impl FnMut(&Step) + Send) -> impl FnMut() + Send {
    let mut steps = steps.into_iter().cycle();
    move || step(&steps.next().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn guest_producer_is_never_refused(
        sectors in 4..8usize,
        guest in prop::collection::vec(step(), 1..60),
        host in prop::collection::vec(step(), 1..40),
    ) {
        let mut disk = Disk::with(Side::Producer, false, sectors, |_| ());
        let published = Published::default();
        let mut receiver = Receiver::<MappedDevice>::new(Box::new(disk.outside()), Arc::clone(&published));
        let driver = Driver::new(&mut disk, outside(host, move |step| receiver.step(step)));
        let mut sender = Sender::new(Box::new(|| &driver), published);
        for step in &guest {
            sender.step(step);
        }
    }

    #[test]
    fn guest_consumer_is_never_refused(
        sectors in 4..8usize,
        guest in prop::collection::vec(step(), 1..60),
        host in prop::collection::vec(step(), 1..40),
    ) {
        let mut disk = Disk::with(Side::Consumer, false, sectors, |_| ());
        let published = Published::default();
        let mut sender = Sender::<MappedDevice>::new(Box::new(disk.outside()), Arc::clone(&published));
        let driver = Driver::new(&mut disk, outside(host, move |step| sender.step(step)));
        let mut receiver = Receiver::new(Box::new(|| &driver), published);
        for step in &guest {
            receiver.step(step);
        }
    }
}

/// Pushes numbered items up to `count`.
fn push_all<D: RingDevice>(device: D, count: u64) {
    let mut producer = Producer::attach(device, "q", "sender").unwrap();
    let mut number = 0;
    while number < count {
        match producer.push(&item(number, 12)[..]) {
            Ok(end) => {
                producer.advance(end).unwrap();
                number += 1;
            }
            Err(Error::Retry) => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Pops the items and frees them one by one or, if `greedy`, as many as there are.
fn pop_all<D: RingDevice>(device: D, count: u64, greedy: bool) {
    let mut consumer = Consumer::attach(device, "q", "receiver").unwrap();
    let (mut number, mut at) = (0, consumer.position());
    while number < count {
        match consumer.pop(at) {
            Ok(popped) => {
                assert_eq!(popped.bytes, item(number, 12));
                (number, at) = (number + 1, popped.next);
                if !greedy {
                    consumer.advance(at).unwrap();
                }
            }
            Err(Error::Retry) => {
                consumer.advance(at).unwrap();
                std::thread::yield_now();
            }
            Err(e) => panic!("{e}"),
        }
    }
    consumer.advance(at).unwrap();
}

/// Both ends run at full speed on a thread each: the host's pointer changes while a request is
/// judged.
#[test]
fn guest_is_never_refused_while_the_host_never_pauses() {
    const ITEMS: u64 = 20_000;
    for (guest, greedy) in
        [Side::Producer, Side::Consumer].into_iter().flat_map(|side| [(side, true), (side, false)])
    {
        let mut disk = Disk::with(guest, false, 6, |_| ());
        let host = disk.outside();
        let driver = Driver::new(&mut disk, || ());
        std::thread::scope(|scope| match guest {
            Side::Producer => {
                scope.spawn(|| pop_all(host(), ITEMS, greedy));
                push_all(&driver, ITEMS);
            }
            Side::Consumer => {
                scope.spawn(|| push_all(host(), ITEMS));
                pop_all(&driver, ITEMS, greedy);
            }
        });
    }
}
