//! Guests with several processors, which QEMU gives as many queues as they have, unless it is told
//! otherwise.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{LONG, SOON, Scene, assert_no_io_error};
use qemu_tests::{Daemon, Disk, GuestBuilder, Qemu, Result, wait_until};
use std::fmt::Write;
use std::process::Command;

/// Lines of a stream, and the parts in which the guest's processors take turns.
const LINES: u32 = 100_000;
const PARTS: u32 = 20;

/// Kills of backends with QEMU 10, half of them under each way to connect again.
const KILLS_TEN: usize = 10;

/// Kills of backends in each test with the system's QEMU: fifty in all three.
const KILLS: usize = 17;

const IN_SECONDS: [&str; 2] = ["reconnect=1"; 2];

/// Runs `program` of the guest once for each part of a stream, on one processor after the other.
fn in_turns(processors: u32, program: &str) -> String {
    let part = LINES / PARTS;
    format!(
        "part=0; while [ $part -lt {PARTS} ]; do \
         processor=$(printf %x $((1 << part % {processors}))); first=$((part * {part} + 1)); last=$((part * {part} + {part})); \
         {program} || exit 1; part=$((part + 1)); sleep 1; done"
    )
}

fn moved(scene: &Scene, from: u64) -> bool {
    scene.diagnostics()["producer"].as_u64() > Some(from)
}

fn position(scene: &Scene) -> u64 {
    scene.diagnostics()["producer"].as_u64().unwrap()
}

fn lines() -> String {
    (1..=LINES).fold(String::new(), |mut lines, line| {
        writeln!(lines, "{line}").unwrap();
        lines
    })
}

/// Streams out of the guest and into it, by its kernel, while the backends of both disks are killed
/// in turn. QEMU connects to each again by one of the options.
fn streams_cross(
    emulator: Qemu,
    processors: u32,
    kills: usize,
    [reconnect_out, reconnect_into]: [&str; 2],
) -> Result<()> {
    let [out, into] = ["producer", "consumer"].map(|guest| {
        let scene = Scene::new(&["--size", "64K", "--guest", guest]);
        (scene.backend().unwrap(), scene)
    });
    let ((mut first, out), (mut second, into)) = (out, into);
    let disk =
        |scene: &Scene, reconnect| Disk::vhost_user(scene.path("s")).reconnecting_by(reconnect);
    let guest = GuestBuilder::new()
        .emulator(emulator)
        .processors(processors)
        .disk(disk(&out, reconnect_out))
        .disk(disk(&into, reconnect_into))
        .boot()?;
    let queues = guest.check("ls -d /sys/block/vda/mq/* /sys/block/vdb/mq/* | wc -l")?;
    assert_eq!(queues.trim(), (2 * processors).to_string());

    let sending = guest.spawn(&in_turns(
        processors,
        "seq $first $last | taskset $processor blockring produce /dev/vda",
    ))?;
    let mut consumer = out.spawn("consumer", "blockring", &["consume", "--follow", "unix:c"])?;
    let receiving = guest.spawn(&in_turns(
        processors,
        &format!(
            "taskset $processor blockring consume --follow --count {} /dev/vdb >>/tmp/got",
            LINES / PARTS
        ),
    ))?;
    std::fs::write(into.path("lines"), lines()).unwrap();
    let blockring = into.command("blockring", &[])?.get_program().to_owned();
    let mut feed = Command::new("sh");
    feed.args(["-c", "exec \"$0\" produce unix:c <lines"]).arg(blockring).current_dir(into.dir());
    let mut producer = Daemon::spawn("producer", feed, into.dir())?;

    for kill in 0..kills {
        let (backend, scene) =
            if kill % 2 == 0 { (&mut first, &out) } else { (&mut second, &into) };
        let before = position(scene);
        if !wait_until(SOON, || moved(scene, before)) {
            let state =
                "cat /sys/block/vd?/inflight; ps; grep virtio /proc/interrupts; dmesg | tail -n 20";
            let state = guest.check(state).unwrap_or_else(|e| format!("the guest: {e}"));
            panic!("kill {kill}: {}\n{}\n{state}", out.diagnostics(), into.diagnostics());
        }
        backend.kill()?;
        *backend = scene.backend()?;
    }
    assert_eq!(sending.wait(LONG)?.status, 0);
    out.wait_until_empty();
    assert!(consumer.terminate(SOON)?.success());
    assert!(consumer.stdout() == lines().into_bytes(), "out of the guest");
    assert_eq!(receiving.wait(LONG)?.status, 0);
    assert!(producer.wait(SOON)?.success());
    assert!(guest.check("cat /tmp/got")? == lines(), "into the guest");
    for scene in [&out, &into] {
        assert_eq!(scene.diagnostics()["backend"]["refused"], serde_json::json!({}));
    }
    assert_no_io_error(&guest)?;
    guest.power_off()
}

#[test]
fn streams_cross_with_one_processor_while_backends_are_killed() -> Result<()> {
    streams_cross(Qemu::System, 1, KILLS, IN_SECONDS)
}

#[test]
fn streams_cross_with_two_processors_while_backends_are_killed() -> Result<()> {
    streams_cross(Qemu::System, 2, KILLS, IN_SECONDS)
}

#[test]
fn streams_cross_with_four_processors_while_backends_are_killed() -> Result<()> {
    streams_cross(Qemu::System, 4, KILLS, IN_SECONDS)
}

#[test]
fn streams_cross_in_qemu_10_while_backends_are_killed() -> Result<()> {
    assert!(Qemu::Ten.major_version()? >= 10);
    streams_cross(Qemu::Ten, 4, KILLS_TEN, ["reconnect-ms=50", "reconnect=1"])
}

/// Every option that changes the queues, and boots with QEMU's own disks, does with ours.
fn each_disk_is_served(emulator: Qemu) -> Result<()> {
    let options = [
        "queue-size=128",
        "queue-size=1024",
        "queue-size=512,num-queues=64",
        "num-queues=1",
        "packed=on",
        "disable-modern=off,disable-legacy=off",
    ];
    let scenes = options.map(|_| Scene::new(&["--size", "64K"]));
    let _backends: Vec<_> = scenes.iter().map(|scene| scene.backend().unwrap()).collect();
    let mut guest = GuestBuilder::new().emulator(emulator).processors(4);
    for (scene, options) in scenes.iter().zip(options) {
        guest = guest.disk(Disk::vhost_user(scene.path("s")).options(options));
    }
    let guest = guest.boot()?;
    for (number, (scene, options)) in scenes.iter().zip(options).enumerate() {
        let disk = char::from(b"abcdef"[number]);
        guest.check(&format!("seq 1 9 | blockring produce /dev/vd{disk}"))?;
        assert_eq!(
            scene.check(&["consume", &scene.address()]),
            "1\n2\n3\n4\n5\n6\n7\n8\n9\n",
            "{options}"
        );
    }
    guest.power_off()
}

#[test]
fn disks_with_queues_of_each_size_and_number_are_served_in_one_guest() -> Result<()> {
    each_disk_is_served(Qemu::System)
}

#[test]
fn disks_with_queues_of_each_size_and_number_are_served_by_qemu_10() -> Result<()> {
    each_disk_is_served(Qemu::Ten)
}
