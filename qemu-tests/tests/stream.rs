//! Streams between guest and host, whole and in order, while their ends wait, die and come back.
#![allow(clippy::unwrap_used)]

use nix::sys::signal::Signal;
use qemu_tests::scene::{
    LONG, SOON, Scene, assert_no_io_error, daemon_report, job_report, numbers,
};
use qemu_tests::{Daemon, Guest, Result, wait_until};
use serde_json::Value;
use std::fs;
use std::time::Duration;

const ITEMS: &str = "100000";
/// Returns the length of the longest item, in bytes. Random bytes and their checksums are most of
/// an emulated guest's work.
fn longest() -> &'static str {
    if std::env::var_os("BLOCKRING_LONG").is_some() { "16384" } else { "4096" }
}

/// Both ends of a stream of random items must agree on it, and each must have waited for the other.
fn assert_crossed(sent: &Value, received: &Value) {
    println!("sent {sent}, received {received}");
    assert_eq!(sent["items"], 100_000);
    for fact in ["items", "bytes", "xxh3"] {
        assert_eq!(sent[fact], received[fact]);
    }
    assert!(sent["waits"].as_u64() > Some(0), "the ring was never full: {sent}");
    assert!(received["waits"].as_u64() > Some(0), "the ring was never empty: {received}");
}

#[test]
fn hundred_thousand_random_items_leave_the_guest() -> Result<()> {
    let scene = Scene::new(&["--size", "8M"]);
    let _backend = scene.backend()?;
    let address = scene.address();
    let mut consumer =
        scene.spawn("consumer", "ringload", &["consume", &address, "--items", ITEMS])?;
    // The consumer meets an empty ring while the guest boots.
    let guest = scene.guest().boot()?;
    assert!(!scene.diagnostics()["holders"]["consumer"].is_null(), "{}", scene.diagnostics());
    consumer.signal(Signal::SIGSTOP)?;
    let sending = guest.spawn(&format!(
        "ringload produce serial:ring --items {ITEMS} --max {} --batch 16",
        longest()
    ))?;
    // No item is taken until the ring is full, and the guest waits: a batch is at most 16 times 16
    // KiB and stays out.
    let nearly = Some((8 << 20) - (17 << 14));
    let full = || scene.held() > 0 && scene.diagnostics()["used"].as_u64() > nearly;
    assert!(wait_until(SOON, full), "{}", scene.diagnostics());
    consumer.signal(Signal::SIGCONT)?;
    let received = daemon_report(&mut consumer, LONG)?;
    assert_crossed(&job_report(&sending, SOON)?, &received);
    let backend = &scene.diagnostics()["backend"];
    assert_eq!(backend["refused"], serde_json::json!({}));
    assert!(backend["written_bytes"].as_u64() > received["bytes"].as_u64(), "{backend}");
    guest.power_off()
}

#[test]
fn hundred_thousand_random_items_enter_the_guest() -> Result<()> {
    let scene = Scene::new(&["--size", "8M", "--guest", "consumer"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let receiving =
        guest.spawn(&format!("ringload consume serial:ring --items {ITEMS} --batch 16"))?;
    // The guest has met an empty ring once it waits for the host.
    assert!(wait_until(SOON, || scene.held() > 0), "{}", scene.diagnostics());
    let address = scene.address();
    let arguments = ["produce", &address, "--items", ITEMS, "--max", longest(), "--batch", "16"];
    let mut producer = scene.spawn("producer", "ringload", &arguments)?;
    let sent = daemon_report(&mut producer, LONG)?;
    assert_crossed(&sent, &job_report(&receiving, LONG)?);
    assert_eq!(scene.diagnostics()["backend"]["refused"], serde_json::json!({}));
    guest.power_off()
}

/// Returns the bytes that a line of this number takes on the ring.
fn framed(number: u64) -> u64 {
    (number.to_string().len() as u64).next_multiple_of(4) + 4
}

#[test]
fn killed_consumer_loses_nothing_and_repeats_only_what_it_had_not_freed() -> Result<()> {
    const LAST: u64 = 1_000_000;
    const KILLS: u64 = 5;
    // So small that the stream cannot be over before the kills are.
    let scene = Scene::new(&["--size", "128K"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let sending = guest.spawn(&format!("seq 1 {LAST} | blockring produce serial:ring"))?;
    let address = scene.address();
    // The first line that is not yet known to be delivered, and the first that was not freed.
    let (mut delivered, mut freed) = (1, 1);
    // The position of that line.
    let mut position = 0;
    for run in 0..=KILLS {
        let name = format!("run{run}");
        let mut consumer = scene.spawn(&name, "blockring", &["consume", "--follow", &address])?;
        if run < KILLS {
            let enough = |consumer: &Daemon| consumer.printed() > 100_000 * (run + 1);
            consumer.wait_for("receiving", SOON, enough)?;
            consumer.kill()?;
        } else {
            assert_eq!(sending.wait(LONG)?.status, 0);
            scene.wait_until_empty();
            assert!(consumer.terminate(SOON)?.success());
        }
        let output = consumer.stdout();
        // A kill may cut a line short; that line was not freed either.
        let whole = output.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u64> = String::from_utf8_lossy(&output[..whole])
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        assert_eq!(lines.first(), Some(&freed), "run {run} starts where the ring's pointer is");
        assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "run {run} is in order");
        delivered = delivered.max(lines.last().unwrap() + 1);
        let reached = scene.diagnostics()["consumer"].as_u64().unwrap();
        while position < reached {
            position += framed(freed);
            freed += 1;
        }
        assert_eq!(position, reached, "whole items are freed");
        assert!(freed <= delivered, "only what was delivered is freed");
    }
    assert_eq!((delivered, freed), (LAST + 1, LAST + 1));
    guest.power_off()
}

#[test]
fn suspended_guest_sends_nothing_and_loses_nothing() -> Result<()> {
    const LAST: u64 = 1_000_000;
    let scene = Scene::new(&["--size", "128K"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let address = scene.address();
    let consumer = scene.spawn("consumer", "blockring", &["consume", "--follow", &address])?;
    let sending = guest.spawn(&format!("seq 1 {LAST} | blockring produce --json serial:ring"))?;
    let flowing = |more: u64| wait_until(SOON, || consumer.printed() > more);
    assert!(flowing(100_000));
    let mut suspensions = 0;
    for _ in 0..3 {
        scene.check(&["suspend", "--wait", &address]);
        let facts = scene.diagnostics();
        assert_eq!((&facts["suspend"], &facts["suspend_ack"]), (&true.into(), &true.into()));
        // Items that were published before are still delivered.
        scene.wait_until_empty();
        let before = (scene.diagnostics()["producer"].clone(), consumer.printed());
        std::thread::sleep(Duration::from_millis(700));
        let after = (scene.diagnostics()["producer"].clone(), consumer.printed());
        assert_eq!(before, after, "nothing arrives while suspended");
        scene.check(&["resume", "--wait", &address]);
        suspensions += 1;
        assert!(flowing(before.1 + 50_000));
    }
    let sent = sending.wait(LONG)?;
    assert_eq!(sent.status, 0, "{sent:?}");
    let counts: Value = serde_json::from_str(&sent.stderr).unwrap();
    assert_eq!((&counts["items"], &counts["suspend_waits"]), (&LAST.into(), &suspensions.into()));
    scene.wait_until_empty();
    let expected = numbers(1, LAST);
    assert!(wait_until(SOON, || consumer.printed() >= expected.len() as u64));
    assert!(consumer.stdout() == expected.as_bytes());
    guest.power_off()
}

/// A stream that `interrupt` ends in its middle, and that another boot continues, must reach the
/// host whole up to where it was cut.
fn goes_on_in_the_same_stream(
    interrupt: impl FnOnce(Guest, &Scene) -> Result<Guest>,
) -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().reboots().boot()?;
    let address = scene.address();
    let mut consumer = scene.spawn("consumer", "blockring", &["consume", "--follow", &address])?;
    guest.spawn("seq 1 100000000 | blockring produce serial:ring")?;
    consumer.wait_for("receiving", SOON, |consumer| consumer.printed() > 500_000)?;
    let guest = interrupt(guest, &scene)?;
    guest.check("seq 1 1000 | sed 's/^/again /' | blockring produce serial:ring")?;
    scene.wait_until_empty();
    assert!(consumer.terminate(SOON)?.success());
    let output = String::from_utf8(consumer.stdout()).unwrap();
    let (first, second) = output.split_once("again 1\n").expect("the second boot's lines");
    let last = first.lines().last().unwrap().parse().unwrap();
    assert!(first == numbers(1, last), "the first boot's lines are whole and in order");
    let second: Vec<_> = second.lines().collect();
    let expected: Vec<_> = (2..=1000).map(|number| format!("again {number}")).collect();
    assert_eq!(second, expected);
    guest.power_off()
}

#[test]
fn rebooted_guest_goes_on_in_the_same_stream() -> Result<()> {
    goes_on_in_the_same_stream(|guest, _| {
        guest.spawn("reboot -f")?;
        guest.wait_ready()?;
        Ok(guest)
    })
}

#[test]
fn next_guest_on_the_same_backend_goes_on_in_the_same_stream() -> Result<()> {
    goes_on_in_the_same_stream(|guest, scene| {
        // QEMU is killed with requests in flight: the front end's connection just ends.
        drop(guest);
        let next = scene.guest().boot()?;
        assert_eq!(scene.diagnostics()["backend"]["connections"], 2);
        Ok(next)
    })
}

#[test]
fn backend_restarted_under_the_guest_loses_nothing() -> Result<()> {
    const LAST: u64 = 1_000_000;
    let scene = Scene::new(&["--size", "128K"]);
    let mut backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let address = scene.address();
    let mut consumer = scene.spawn("consumer", "blockring", &["consume", "--follow", &address])?;
    let sending = guest.spawn(&format!("seq 1 {LAST} | blockring produce serial:ring"))?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        let seen = consumer.printed();
        consumer.wait_for("receiving", SOON, |consumer| consumer.printed() > seen + 50_000)?;
        backend.signal(signal)?;
        let status = backend.wait(SOON)?;
        assert_eq!(status.success(), signal == Signal::SIGTERM);
        backend = scene.backend()?;
    }
    assert_eq!(sending.wait(LONG)?.status, 0);
    scene.wait_until_empty();
    assert!(consumer.terminate(SOON)?.success());
    assert!(consumer.stdout() == numbers(1, LAST).as_bytes());
    assert_no_io_error(&guest)?;
    guest.power_off()
}

#[test]
fn ordinary_disk_carries_the_stream_without_our_backend() -> Result<()> {
    const LAST: u64 = 100_000;
    let scene = Scene::new(&[]);
    scene.check(&["create", "--size", "256K", "ring"]);
    let disk = qemu_tests::Disk::file(scene.path("ring"), "ring");
    let guest = qemu_tests::GuestBuilder::new().disk(disk).boot()?;
    let mut consumer = scene.spawn("consumer", "blockring", &["consume", "--follow", "ring"])?;
    guest.check(&format!("seq 1 {LAST} | blockring produce serial:ring"))?;
    let expected = numbers(1, LAST);
    consumer.wait_for("receiving", SOON, |consumer| consumer.printed() >= expected.len() as u64)?;
    assert!(consumer.terminate(SOON)?.success());
    assert!(consumer.stdout() == expected.as_bytes());
    assert!(fs::metadata(scene.path("ring")).unwrap().len() == 256 << 10);
    guest.power_off()
}
