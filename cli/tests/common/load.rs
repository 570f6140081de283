//! Rings under load: numbered items of random sizes, which a test finds again.

use crate::common::scene::Scene;
use ring_test_support::assert_ok;
use ring_test_support::process::{Guarded, PATIENCE, ended};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const RINGS: [&str; 4] = ["a", "b", "c", "d"];

/// Returns the items of all rings together: 400,000 with `BLOCKRING_LONG` set.
pub fn items() -> usize {
    if is_long() { 400_000 } else { 20_000 }
}

pub fn is_long() -> bool {
    std::env::var_os("BLOCKRING_LONG").is_some()
}

/// Makes a folder with the rings, `a.img` and so on.
pub fn rings() -> Scene {
    let scene = Scene::new();
    for ring in RINGS {
        scene.succeed(&format!("$RING create --size 512K {ring}.img"));
    }
    scene
}

/// Returns an item: its ring, its number, and a filling whose size is drawn by the number, up to
/// 64 KiB but mostly less than one.
pub fn item(ring: &str, number: usize) -> Vec<u8> {
    let mut bytes = format!("{ring} {number} ").into_bytes();
    let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let size = if random.is_multiple_of(32) { random / 32 % 65_500 } else { random / 32 % 1000 };
    let filling = (bytes.len()..size).map(|at| (number + at).to_le_bytes()[0]);
    bytes.extend(filling.collect::<Vec<_>>());
    bytes
}

/// Feeds a ring's producer, which waits while the ring is full, with the items that `make` returns.
pub fn produce(
    scene: &Scene,
    ring: &str,
    items: usize,
    fed: &AtomicUsize,
    make: impl Fn(&str, usize) -> Vec<u8>,
) {
    let file = format!("{ring}.img");
    let arguments = ["produce", "--no-flush", "--framing", "length", &file];
    let mut child = Guarded::start(&mut scene.command(&arguments));
    let mut input = child.stdin.take().unwrap();
    for number in 0..items {
        let item = make(ring, number);
        let head = u32::try_from(item.len()).unwrap().to_le_bytes();
        input.write_all(&[&head, item.as_slice()].concat()).unwrap();
        fed.fetch_add(1, Ordering::Relaxed);
    }
    drop(input);
    assert_ok(&ended(child, "the producer"));
}

/// Waits until that many items were fed.
pub fn wait_for(fed: &AtomicUsize, goal: usize) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = fed.load(Ordering::Relaxed);
        if now >= goal {
            return;
        }
        if now > last {
            (last, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "nothing moves at item {now}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
