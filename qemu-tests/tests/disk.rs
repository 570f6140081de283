//! The ring as the guest's disk: its content, refusals, and costs.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{SOON, Scene, assert_no_io_error, numbers};
use qemu_tests::{Daemon, Result, wait_until};
use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Returns what `sha256sum` prints on the host for the ring's file, read from standard input.
fn hash_on_host(scene: &Scene) -> String {
    let output = Command::new("sha256sum").stdin(File::open(scene.path("ring")).unwrap()).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn guest_and_host_see_the_same_bytes_and_only_what_was_advanced() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let address = scene.address();
    guest.check("ringload produce serial:ring --items 50 --max 4000 --batch 8")?;
    guest.check("ringload produce serial:ring --items 1 --max 4000 --seed 2 --push-only")?;
    let producer = scene.diagnostics()["producer"].as_u64().unwrap();
    let in_guest = guest.check("dd if=/dev/vda iflag=direct bs=64k 2>/dev/null | sha256sum")?;
    assert_eq!(in_guest, hash_on_host(&scene));
    let region = fs::read(scene.path("ring")).unwrap();

    // The item that was pushed and not advanced is on the disk, and is not delivered.
    let start = usize::try_from(3 * 512 + producer).unwrap();
    assert!(region[start..start + 4] != [0; 4], "an item's length stands at {producer}");
    let consume = ["consume", "--json", "--framing", "length", address.as_str()];
    let output = scene.blockring(&consume);
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"items\":50,"), "{output:?}");
    assert_eq!(scene.blockring(&consume).stdout, b"");

    // The guest sees the host's changes.
    let in_guest = guest.check("dd if=/dev/vda iflag=direct bs=64k 2>/dev/null | sha256sum")?;
    assert_eq!(in_guest, hash_on_host(&scene));
    guest.power_off()
}

#[test]
fn buffered_write_is_refused_by_name_and_the_ring_goes_on() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    guest.check("seq 1 100 | blockring produce serial:ring")?;
    let before = fs::read(scene.path("ring")).unwrap();
    // The kernel writes whole pages from its cache: the pointer sectors of both sides at once.
    let refused =
        guest.run("head -c 512 /dev/urandom | dd of=/dev/vda bs=512 seek=1 conv=notrunc,fsync")?;
    assert_ne!(refused.status, 0, "{refused:?}");
    let counters = scene.diagnostics()["backend"]["refused"].clone();
    assert!(counters["buffered_page"].as_u64() > Some(0), "{counters}");
    assert!(fs::read(scene.path("ring")).unwrap() == before, "a refused write changes nothing");

    guest.check("echo 3 >/proc/sys/vm/drop_caches; seq 101 200 | blockring produce serial:ring")?;
    assert_eq!(scene.check(&["consume", &scene.address()]), numbers(1, 200));
    guest.power_off()
}

#[test]
fn oldest_bytes_in_the_last_sector_of_the_newest_item_are_kept() -> Result<()> {
    let scene = Scene::new(&["--size", "64K"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let address = scene.address();
    let capacity = scene.diagnostics()["capacity"].as_u64().unwrap();
    let line = |letter: char| letter.to_string().repeat(96);
    // Two items of 100 bytes in the first sector; the first is consumed.
    for letter in ['a', 'b'] {
        guest.check(&format!("echo {} | blockring produce serial:ring", line(letter)))?;
    }
    assert_eq!(scene.check(&["consume", "--count", "1", &address]), line('a') + "\n");
    // The third takes all that is free: it ends at byte 100 of that sector, where the second
    // begins.
    let length = capacity - 100 - 4;
    guest.check(&format!(
        "tr '\\0' c </dev/zero | head -c {length} | blockring produce --framing whole serial:ring"
    ))?;
    assert_eq!(scene.diagnostics()["used"].as_u64(), Some(capacity));
    let full = guest.run("echo d | blockring produce --on-full fail serial:ring")?;
    assert_eq!(full.status, 1, "{full:?}");
    let third = "c".repeat(usize::try_from(length).unwrap());
    assert!(scene.check(&["consume", &address]) == format!("{}\n{third}\n", line('b')));
    assert_eq!(scene.diagnostics()["backend"]["refused"], serde_json::json!({}));
    guest.power_off()
}

#[test]
fn read_of_idle_class_waits_for_the_host_to_move() -> Result<()> {
    const READ: &str = "ionice -c 3 ringload look serial:ring";
    let scene = Scene::new(&["--size", "1M", "--hold-ms", "3600000"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    guest.check("seq 1 3 | blockring produce serial:ring")?;
    guest.check(READ)?;
    assert_eq!(scene.held(), 0, "the first is answered at once");
    let held = guest.spawn(READ)?;
    assert!(wait_until(SOON, || scene.held() == 1));
    assert!(held.wait(Duration::from_millis(300)).is_err(), "it is not answered before");
    assert_eq!(scene.check(&["consume", "--count", "1", &scene.address()]), "1\n");
    assert_eq!(held.wait(SOON)?.status, 0);
    // Nothing moved since, but a later request ends the held read.
    let held = guest.spawn(READ)?;
    assert!(wait_until(SOON, || scene.held() == 2));
    guest.check("seq 4 5 | blockring produce serial:ring")?;
    assert_eq!(held.wait(SOON)?.status, 0);
    assert_no_io_error(&guest)?;
    guest.power_off()
}

/// Largest share of one processor that counts as no processor time.
const NONE: f64 = 0.002;

/// Largest share of one processor for polling every few milliseconds, where no peer wakes the
/// waiter.
const POLLING: f64 = 0.02;

fn assert_idle(processes: &[(&str, &Daemon, f64)]) -> Result<()> {
    const SPAN: Duration = Duration::from_secs(5);
    let times = || -> Result<Vec<Duration>> {
        processes.iter().map(|(_, process, _)| process.cpu_time()).collect()
    };
    // A wake-up takes longer on a busy machine, whose caches others have filled: each process is
    // judged by its least share of several spans.
    let mut least = vec![f64::INFINITY; processes.len()];
    for _ in 0..6 {
        let before = times()?;
        std::thread::sleep(SPAN);
        for (least, (after, before)) in least.iter_mut().zip(times()?.iter().zip(&before)) {
            *least = least.min(after.saturating_sub(*before).as_secs_f64() / SPAN.as_secs_f64());
        }
        if processes.iter().zip(&least).all(|((_, _, limit), share)| share < limit) {
            return Ok(());
        }
    }
    let shares = processes.iter().zip(&least);
    let shares = shares.map(|((name, ..), share)| format!("{name} {:.3} %", share * 100.0));
    panic!("of a processor, at least: {}", shares.collect::<Vec<_>>().join(", "))
}

#[test]
fn waiting_costs_no_processor_time() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let consumer = scene.spawn("consumer", "blockring", &["consume", "-f", &scene.address()])?;
    // Both ends are attached, and there are no items.
    let attached = guest.spawn("(echo hello; sleep 1000) | blockring produce serial:ring")?;
    assert!(wait_until(SOON, || consumer.stdout() == b"hello\n"));
    scene.check(&["create", "--size", "1M", "file"]);
    let on_file = scene.spawn("on_file", "blockring", &["consume", "-f", "file"])?;
    let mut produce = scene.command("blockring", &["produce", "file"])?;
    let mut produce = produce.stdin(Stdio::piped()).spawn().unwrap();
    produce.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    assert!(produce.wait().unwrap().success());
    assert!(wait_until(SOON, || on_file.stdout() == b"hello\n"));
    assert_idle(&[
        ("backend", &backend, NONE),
        ("consumer", &consumer, NONE),
        ("consumer of a file", &on_file, POLLING),
    ])?;
    attached.signal("TERM")?;
    guest.power_off()
}

#[test]
fn misuse_in_the_guest_is_refused_with_what_to_do() -> Result<()> {
    let scene = Scene::new(&["--size", "64K"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let says = |command: &str, status: i32, words: &str| -> Result<()> {
        let output = guest.run(command)?;
        assert_eq!(output.status, status, "{output:?}");
        assert!(output.stderr.contains(words), "{output:?} lacks {words:?}");
        Ok(())
    };
    says("blockring produce serial:nowhere </dev/null", 1, "serial:nowhere")?;
    says("blockring produce /dev/none </dev/null", 1, "/dev/none")?;
    // The guest is this ring's producer: it cannot free what the host has not consumed.
    guest.check("seq 1 10 | blockring produce serial:ring")?;
    says("blockring consume serial:ring >/dev/null", 1, "")?;
    says(
        "head -c 63990 /dev/zero | blockring produce --framing whole --timeout 1 serial:ring",
        3,
        "full",
    )?;
    let counters = scene.diagnostics()["backend"]["refused"].clone();
    assert!(counters["host_pointer"].as_u64() > Some(0), "{counters}");
    assert_eq!(scene.check(&["consume", &scene.address()]), numbers(1, 10));
    guest.power_off()
}

#[test]
fn failed_flush_ends_all_acknowledgements() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let mut backend = scene.backend()?;
    scene.check(&["diagnostics", &scene.address()]);
    assert!(backend.terminate(SOON)?.success());
    drop(backend);
    let mut backend = scene.backend_with(|command| {
        ring_simulation::fail_flushes(command);
    })?;
    let guest = scene.guest().boot()?;
    for _ in 0..2 {
        let refused = guest.run("seq 1 100 | blockring produce serial:ring")?;
        assert_eq!(refused.status, 1, "{refused:?}");
        assert!(refused.stderr.contains("Input/output error"), "{refused:?}");
    }
    // Not even a write without a flush.
    let before = fs::read(scene.path("ring")).unwrap();
    guest.run("tr '\\0' x </dev/zero | dd of=/dev/vda bs=4096 seek=100 count=1 iflag=fullblock conv=notrunc; sync")?;
    assert!(fs::read(scene.path("ring")).unwrap() == before, "a refused write changes nothing");
    let failed = scene.diagnostics()["backend"]["failed"].clone();
    assert!(failed.as_u64() > Some(0), "{failed}");
    assert!(backend.stderr().contains("cannot make the region durable"), "{}", backend.stderr());
    assert_eq!(scene.check(&["consume", &scene.address()]), "");

    // The daemon does not end with 0 either.
    assert!(!backend.terminate(SOON)?.success());
    drop(backend);
    let _backend = scene.backend()?;
    let again = || {
        let output = guest.run("seq 1 100 | blockring produce serial:ring");
        output.is_ok_and(|output| output.status == 0)
    };
    assert!(wait_until(SOON, again));
    assert_eq!(scene.check(&["consume", &scene.address()]), numbers(1, 100));
    guest.power_off()
}
