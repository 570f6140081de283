//! `examples/collector.rs` under kill -9 at any moment: each item is in its file, and once.
#![allow(clippy::unwrap_used)]

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use ring_test_support::RingFile;
use ring_test_support::process::{PATIENCE, example};
use shared_block_ring::Error;
use shared_block_ring::wait::{Wait, Woken};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

const ITEMS: u32 = 20_000;
const KILLS: u32 = 25;

/// The program. Cargo is asked for it once, and not for each process.
static COLLECTOR: LazyLock<PathBuf> = LazyLock::new(|| example("collector"));

fn produce(ring: &RingFile) {
    let mut producer = ring.producer().unwrap();
    for number in 0..ITEMS {
        let mut wait = Wait::for_space(Some(PATIENCE));
        let position = loop {
            match producer.push(&format!("item {number}")) {
                Ok(position) => break position,
                Err(Error::Retry) => {
                    let woken = wait.pause(producer.device(), &[]).unwrap();
                    assert!(woken != Woken::TimedOut, "nothing is collected");
                }
                Err(e) => panic!("{e}"),
            }
        };
        producer.advance(position).unwrap();
    }
}

fn collector(ring: &RingFile, file: &Path, seconds: &str) -> Command {
    let mut command = Command::new(&*COLLECTOR);
    command.arg(&ring.path).arg(file).arg(seconds).stdin(Stdio::null());
    command
}

#[test]
fn collector_keeps_each_item_once_however_often_it_is_killed() {
    let ring = RingFile::new(64 * 512, 512);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("collected");
    let seed =
        std::env::var("BLOCKRING_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("BLOCKRING_SEED={seed} again");
    let mut random = SmallRng::seed_from_u64(seed);
    // Before the producer waits for it: a build may take longer than the producer's patience.
    LazyLock::force(&COLLECTOR);
    thread::scope(|scope| {
        let producing = scope.spawn(|| produce(&ring));
        for _ in 0..KILLS {
            let mut child = collector(&ring, &file, "600").spawn().unwrap();
            thread::sleep(Duration::from_micros(random.random_range(1_000..40_000)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut child = collector(&ring, &file, "600").spawn().unwrap();
        producing.join().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let status = collector(&ring, &file, "1").status().unwrap();
    assert!(status.success(), "{status}");
    let text = std::fs::read_to_string(&file).unwrap();
    let items: Vec<_> = text.lines().skip(1).map(|line| line.split_once('\t').unwrap().1).collect();
    let expected: Vec<_> = (0..ITEMS).map(|number| format!("item {number}")).collect();
    assert!(items == expected, "{} items, seed {seed}", items.len());
}

#[test]
fn collector_refuses_an_output_that_is_no_regular_file() {
    let ring = RingFile::new(64 * 512, 512);
    let output = collector(&ring, Path::new("/dev/full"), "0").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no regular file"));
}

#[test]
fn collector_refuses_the_file_of_another_ring() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("collected");
    let [one, other] = [(); 2].map(|()| RingFile::new(64 * 512, 512));
    assert!(collector(&one, &file, "0").status().unwrap().success());
    let output = collector(&other, &file, "0").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not of this ring"));
}
