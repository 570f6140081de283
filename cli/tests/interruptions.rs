//! Storms of harmless signals, and processes that are stopped and continued.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::assert_ok;
use ring_test_support::process::{ended, signal};
use std::io::Write;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Sends the processes all signals that they ignore, until `work` is done.
fn interrupted<T>(children: &[&Child], work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let harmless = [
                Signal::SIGWINCH,
                Signal::SIGCHLD,
                Signal::SIGURG,
                Signal::SIGSTOP,
                Signal::SIGCONT,
            ];
            while !done.load(Ordering::Relaxed) {
                for child in children {
                    for harmless in harmless {
                        signal(child, harmless);
                    }
                }
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

fn lines(count: usize) -> Vec<u8> {
    (0..count).fold(String::new(), |all, i| all + &format!("line {i}\n")).into_bytes()
}

#[test]
fn signal_storm_does_not_disturb_producer_and_consumer() {
    let scene = Scene::with_ring("8K");
    let input = lines(3000);
    let mut producer = scene.spawn(&["produce", "--no-flush", "ring"]);
    let mut consumer =
        scene.spawn(&["consume", "--count", "3000", "--timeout", "60", "--no-flush", "ring"]);
    let (mut stdin, mut stdout) = (producer.stdin.take().unwrap(), consumer.stdout.take().unwrap());
    let mut output = Vec::new();
    interrupted(&[&producer, &consumer], || {
        thread::scope(|scope| {
            scope.spawn(|| {
                for chunk in input.chunks(100) {
                    stdin.write_all(chunk).unwrap();
                }
            });
            std::io::Read::read_to_end(&mut stdout, &mut output).unwrap();
        });
    });
    drop(stdin);
    assert_ok(&ended(producer, "produce"));
    assert_ok(&ended(consumer, "consume"));
    assert!(output == input);
}

#[test]
fn signal_storm_does_not_disturb_a_journal() {
    let scene = Scene::new();
    let exec = "cat >> done; echo >> done";
    let mut child = scene.spawn(&["journal", "--size", "8K", "--exec", exec, "journal"]);
    let mut stdin = child.stdin.take().unwrap();
    let input = lines(30);
    interrupted(&[&child], || {
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            stdin.write_all(line).unwrap();
        }
        scene.wait_for("done", |done| done == input);
    });
    drop(stdin);
    assert_ok(&ended(child, "blockring"));
    assert!(scene.read("done") == input);
}
