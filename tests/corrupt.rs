//! Random damage to a valid ring: items that were really pushed, or a typed error; never a panic, a hang, or an allocation
//! above the ring's size.
//!
//! Ten million images with `BLOCKRING_LONG` set (`scripts/test.sh --long`); `BLOCKRING_CASES` and `BLOCKRING_SEED` set how many, and from
//! which seed on.
#![allow(clippy::unwrap_used)]

mod common;

use common::Image;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::{
    Consumer, CreateOptions, Error, MappedDevice, Producer, Repair, check, create,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

const SECTORS: usize = 13;
const BYTES: usize = SECTORS * 512;

/// Above what a small ring's consumer may ever ask for at once: the ring, in whole aligned pages.
const LARGEST: usize = 4 * 4096;

/// The largest allocation so far.
struct Watching(AtomicUsize);

#[global_allocator]
static WATCHING: Watching = Watching(AtomicUsize::new(0));

// SAFETY: everything is passed on to the system's allocator; only the size is noted.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: it was allocated by the same allocator, above.
        unsafe { System.dealloc(at, layout) }
    }
}

fn device(image: &Image) -> MappedDevice<Image> {
    let geometry = Geometry::new(SectorSize::DEFAULT, SECTORS as u64).unwrap();
    MappedDevice::over(image.clone(), "image", geometry)
}

/// A ring in its third lap, with some items waiting, and everything that was ever pushed to it.
fn valid() -> (Image, HashSet<Vec<u8>>) {
    let image = Image::zeroed(BYTES);
    create(&device(&image), CreateOptions::default()).unwrap();
    let mut producer = Producer::attach(device(&image), "q", "producer").unwrap();
    let mut consumer = Consumer::attach(device(&image), "q", "consumer").unwrap();
    let mut pushed = HashSet::new();
    for number in 0..60_u8 {
        let item = vec![number; 40 + usize::from(number) * 3];
        let end = producer.push(&item).unwrap();
        producer.advance(end).unwrap();
        pushed.insert(item);
        if number < 40 {
            let next = consumer.pop(consumer.position()).unwrap().next;
            consumer.advance(next).unwrap();
        }
    }
    (image, pushed)
}

/// Up to 4 KiB of edits of the kinds that damage comes in.
fn damage(bytes: &mut [u8], random: &mut SmallRng) {
    const WORDS: [u32; 8] = [0, 1, 4, 0x7fff_ffff, 0x8000_0000, 0xffff_fffc, 0xffff_ffff, 512];
    // The heads are few bytes, and most of what matters is there.
    let place = |random: &mut SmallRng, len: usize| {
        let end = if random.random_bool(0.6) { 3 * 512 } else { BYTES };
        random.random_range(0..end - len)
    };
    for _ in 0..random.random_range(1..=8) {
        match random.random_range(0..5) {
            0 => bytes[place(random, 1)] ^= 1 << random.random_range(0..8),
            1 => {
                let at = place(random, 4);
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            2 => {
                let len = random.random_range(1..=512);
                let at = place(random, len);
                random.fill_bytes(&mut bytes[at..at + len]);
            }
            3 => {
                let sector = random.random_range(0..SECTORS) * 512;
                bytes[sector..sector + 512].fill(0);
            }
            _ => {
                let [from, to] = [0; 2].map(|_: i32| random.random_range(0..SECTORS) * 512);
                bytes.copy_within(from..from + 512, to);
            }
        }
    }
}

/// What a consumer gets is what was pushed, unless it says that nobody could tell.
fn consume(image: &Image, pushed: &HashSet<Vec<u8>>) {
    let Ok(mut consumer) = Consumer::attach(device(image), "q", "consumer") else { return };
    let mut at = consumer.position();
    loop {
        let item = match consumer.pop(at) {
            Ok(item) => item,
            Err(Error::Retry | Error::Format(_)) => break,
            Err(e) => panic!("{e}"),
        };
        let (next, whole) = (item.next, pushed.contains(item.bytes));
        assert!(whole || consumer.unchecked() > 0, "an item that was never pushed, at {at}");
        assert!(next > at);
        at = next;
    }
    consumer.advance(at).unwrap();
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn damage_is_found_or_does_no_harm() {
    let usual = if std::env::var_os("BLOCKRING_LONG").is_some() { 10_000_000 } else { 500_000 };
    let (cases, seed) = (number("BLOCKRING_CASES", usual), number("BLOCKRING_SEED", 1));
    let (image, pushed) = valid();
    let sound = image.bytes();
    WATCHING.0.store(0, Ordering::Relaxed);
    for case in 0..cases {
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(case));
        let mut bytes = sound.clone();
        damage(&mut bytes, &mut random);
        let outcome = std::panic::catch_unwind(|| try_everything(&bytes, &pushed));
        assert!(outcome.is_ok(), "again with BLOCKRING_CASES=1 BLOCKRING_SEED={}", seed + case);
    }
    let largest = WATCHING.0.load(Ordering::Relaxed);
    assert!(largest <= LARGEST, "{largest} bytes in one piece for a ring of {BYTES}");
    println!("{cases} damaged images from seed {seed} on, largest allocation {largest} bytes");
}

fn try_everything(bytes: &[u8], pushed: &HashSet<Vec<u8>>) {
    let verdict = check(device(&Image::of(bytes)));
    assert!(matches!(verdict, Ok(_) | Err(Error::Format(_))), "{verdict:?}");
    consume(&Image::of(bytes), pushed);
    let image = Image::of(bytes);
    if let Ok(mut producer) = Producer::attach(device(&image), "q", "producer") {
        let _ = producer.push("item").and_then(|end| producer.advance(end));
    }
    let image = Image::of(bytes);
    if let Ok(repair) = Repair::plan(&device(&image)) {
        repair.write(&device(&image)).unwrap();
        // What no head can mend is an item's bytes: the ring is one again, whatever is in it.
        let mut consumer = Consumer::attach(device(&image), "q", "consumer").unwrap();
        assert!(matches!(
            consumer.pop(consumer.position()),
            Ok(_) | Err(Error::Retry | Error::Format(_))
        ));
        drop(consumer);
        Producer::attach(device(&image), "q", "producer").unwrap();
    }
}
