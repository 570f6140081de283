//! Guests that are saved with their memory, restored and cloned: at once, or after the ring has
//! moved on without them.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{SOON, Scene, assert_no_io_error};
use qemu_tests::{Daemon, Guest, Qemu, Result, Snapshot, wait_until};
use serde_json::{Value, json};
use std::fs;

/// Files of the load's output, and of its orders.
const LOG: &str = "/tmp/log";
const LIFE: &str = "/tmp/life";

fn say(guest: &Guest, life: &str) -> Result<()> {
    // Written aside and renamed: the load must not find the file empty.
    guest.check(&format!("echo {life} >{LIFE}.new && mv {LIFE}.new {LIFE}")).map(drop)
}

/// Starts a load in the guest.
fn start(guest: &Guest, what: &str) -> Result<()> {
    say(guest, "first")?;
    guest.spawn(&format!("exec ringload {what} serial:ring {LIFE} >{LOG} 2>&1")).map(drop)
}

/// Returns the number of times that the load was superseded, and what it printed then: the ring's
/// position, and the ends of what is in doubt.
fn superseded(guest: &Guest) -> Result<Vec<Vec<u64>>> {
    let log = guest.check(&format!("cat {LOG}"))?;
    assert!(!log.contains("ringload:"), "{log}");
    let told = log.lines().filter_map(|line| line.strip_prefix("superseded "));
    Ok(told.map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect()).collect())
}

fn wait_until_superseded(scene: &Scene, guest: &Guest) {
    let told = || superseded(guest).is_ok_and(|told| !told.is_empty());
    assert!(wait_until(SOON, told), "{}", scene.diagnostics());
}

/// Waits until the load in the guest has ended by itself.
fn end(guest: &Guest) -> Result<()> {
    say(guest, "end")?;
    guest.check("while pidof ringload; do usleep 10000; done").map(drop)
}

/// A line of a load: the instance of the guest, and the item's number.
type Line = (String, u64);

fn lines(text: &[u8]) -> Vec<Line> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter(|text| !text.starts_with("superseded")).filter_map(line).collect()
}

/// Splits numbers into parts within which they grow by one.
fn parts(lines: &[Line]) -> Vec<&[Line]> {
    lines.chunk_by(|(_, number), (_, next)| number + 1 == *next).collect()
}

fn consumer(scene: &Scene) -> Result<Daemon> {
    scene.spawn("consumer", "blockring", &["consume", "--follow", &scene.address()])
}

/// Returns a backend, a consumer, and a guest that is about to produce.
fn producing() -> Result<(Scene, Daemon, Daemon, Guest)> {
    let scene = Scene::new(&["--size", "256K", "--migratable"]);
    let backend = scene.backend()?;
    let receiving = consumer(&scene)?;
    let guest = scene.guest().boot()?;
    Ok((scene, backend, receiving, guest))
}

/// Waits until this side of the ring has moved.
fn wait_for_more(scene: &Scene, side: &str) {
    let position = || scene.diagnostics()[side].as_u64().unwrap();
    let before = position();
    assert!(wait_until(SOON, || position() > before + 20_000), "{}", scene.diagnostics());
}

fn save(scene: &Scene, guest: &Guest) -> Result<Snapshot> {
    guest.save(&scene.path("snapshot"))
}

/// Returns what the consumer printed, once it has everything.
fn delivered(scene: &Scene, consumer: &mut Daemon) -> Result<Vec<Line>> {
    scene.wait_until_empty();
    assert!(consumer.terminate(SOON)?.success(), "{}", consumer.stderr());
    Ok(lines(&consumer.stdout()))
}

#[test]
fn guest_restored_at_once_goes_on_and_so_does_its_clone_with_a_copy_of_the_ring() -> Result<()> {
    let (scene, _backend, mut receiving, guest) = producing()?;
    start(&guest, "feed")?;
    wait_for_more(&scene, "producer");
    let snapshot = save(&scene, &guest)?;
    scene.wait_until_empty();
    let copy = Scene::new(&["--migratable"]);
    fs::copy(scene.path("ring"), copy.path("ring")).unwrap();
    guest.kill()?;

    let go_on = |scene: &Scene| -> Result<()> {
        let guest = scene.guest().resume(&snapshot)?;
        wait_for_more(scene, "producer");
        end(&guest)?;
        assert_eq!(superseded(&guest)?, Vec::<Vec<u64>>::new());
        assert_no_io_error(&guest)?;
        assert_eq!(scene.diagnostics()["backend"]["refused"], json!({}));
        guest.power_off()
    };
    go_on(&scene)?;
    let original = delivered(&scene, &mut receiving)?;
    assert_eq!((parts(&original).len(), original[0].1), (1, 1));

    let _backend = copy.backend()?;
    let mut receiving = consumer(&copy)?;
    go_on(&copy)?;
    let clone = delivered(&copy, &mut receiving)?;
    // The position at the time of the copy.
    assert_eq!(parts(&clone).len(), 1);
    assert!(original.contains(&clone[0]));
    Ok(())
}

/// Checks the stream of a guest whose older instance has taken its place again.
fn assert_taken_over(lines: &[Line], told: &[Vec<u64>]) {
    assert_eq!(told.len(), 1, "{told:?}");
    let parts = parts(lines);
    let [before, after] = parts[..] else {
        panic!("{:?}", parts.iter().map(|part| (&part[0], part.last())).collect::<Vec<_>>())
    };
    println!("{:?} to {:?}, then {:?}, told {told:?}", before[0], before.last(), after[0]);
    assert_eq!(before[0].1, 1);
    assert_eq!(before.last().unwrap().0, "original");
    assert!(before.iter().all(|(life, _)| life != "restored"));
    // Back to the snapshot, but for items in doubt, one batch, and one that was not pushed.
    let first = before.iter().take_while(|(life, _)| life == "first").count() as u64;
    assert!(after[0].1 <= first + 9, "{} {first}", after[0].1);
    assert_eq!(after.last().unwrap().0, "restored");
    let lost = told[0].get(3).copied().unwrap();
    assert!(lost <= 4, "{told:?}");
}

/// Returns the bytes of the ring from its consumer's position to its producer's.
fn published(scene: &Scene) -> Vec<u8> {
    let facts = scene.diagnostics();
    let position = |side: &str| usize::try_from(facts[side].as_u64().unwrap()).unwrap();
    let region = fs::read(scene.path("ring")).unwrap();
    let data = &region[3 * 512..];
    (position("consumer")..position("producer")).map(|at| data[at % data.len()]).collect()
}

#[test]
fn older_guest_is_told_that_it_is_superseded_and_overwrites_nothing() -> Result<()> {
    let (scene, _backend, mut receiving, guest) = producing()?;
    start(&guest, "feed")?;
    wait_for_more(&scene, "producer");
    let snapshot = save(&scene, &guest)?;
    guest.cont()?;
    say(&guest, "original")?;
    wait_for_more(&scene, "producer");
    // The rest stays in the ring, and fills it.
    assert!(receiving.terminate(SOON)?.success());
    scene.wait_until_full();
    let before = published(&scene);
    guest.kill()?;

    let guest = scene.guest().resume(&snapshot)?;
    wait_until_superseded(&scene, &guest);
    say(&guest, "restored")?;
    assert!(published(&scene).starts_with(&before), "what was published has changed");
    let mut receiving = consumer(&scene)?;
    let restored =
        |receiving: &Daemon| lines(&receiving.stdout()).iter().any(|(life, _)| life == "restored");
    receiving.wait_for("the restored life", SOON, restored)?;
    wait_for_more(&scene, "producer");
    end(&guest)?;
    let lines = delivered(&scene, &mut receiving)?;
    assert_taken_over(&lines, &superseded(&guest)?);
    guest.power_off()
}

/// Runs a job of QEMU's snapshots of a running machine to its end.
fn snapshot_job(guest: &Guest, command: &str, node: &str) -> Result<()> {
    let arguments =
        json!({ "job-id": command, "tag": "older", "vmstate": node, "devices": [node] });
    run_job(guest, command, command, &arguments)
}

fn run_job(guest: &Guest, id: &str, command: &str, arguments: &Value) -> Result<()> {
    guest.qmp(command, arguments)?;
    let mut last = Value::Null;
    let concluded = || {
        let jobs = guest.qmp("query-jobs", &json!({})).unwrap();
        let jobs = jobs.as_array().unwrap();
        last = jobs.iter().find(|job| job["id"] == id).cloned().unwrap();
        last["status"] == "concluded"
    };
    assert!(wait_until(SOON, concluded));
    assert_eq!(last["error"], Value::Null, "{last}");
    guest.qmp("job-dismiss", &json!({ "id": id })).map(drop)
}

/// Gives the machine a file for snapshots of its memory.
fn add_state(scene: &Scene, guest: &Guest) -> Result<()> {
    let file = scene.path("state.qcow2");
    let size = 1u64 << 30;
    let create = |id: &str, options: Value| {
        run_job(guest, id, "blockdev-create", &json!({ "job-id": id, "options": options }))
    };
    create("c0", json!({ "driver": "file", "filename": file, "size": 0 }))?;
    guest
        .qmp("blockdev-add", &json!({ "driver": "file", "filename": file, "node-name": "file" }))?;
    create("c1", json!({ "driver": "qcow2", "file": "file", "size": size }))?;
    guest
        .qmp("blockdev-add", &json!({ "driver": "qcow2", "file": "file", "node-name": "state" }))
        .map(drop)
}

#[test]
fn loadvm_takes_a_running_guest_back_to_an_older_snapshot() -> Result<()> {
    let (scene, _backend, mut receiving, guest) = producing()?;
    add_state(&scene, &guest)?;
    start(&guest, "feed")?;
    wait_for_more(&scene, "producer");
    snapshot_job(&guest, "snapshot-save", "state")?;
    say(&guest, "original")?;
    wait_for_more(&scene, "producer");
    snapshot_job(&guest, "snapshot-load", "state")?;
    say(&guest, "restored")?;
    wait_for_more(&scene, "producer");
    end(&guest)?;
    let lines = delivered(&scene, &mut receiving)?;
    assert_taken_over(&lines, &superseded(&guest)?);
    guest.power_off()
}

/// Has a guest go to another QEMU and back while it produces.
fn migrate(emulator: Qemu) -> Result<()> {
    let scene = Scene::new(&["--size", "256K", "--migratable"]);
    let _backend = scene.backend()?;
    let mut receiving = consumer(&scene)?;
    let builder = || scene.guest().emulator(emulator);
    let mut guest = builder().boot()?;
    start(&guest, "feed")?;
    for _ in 0..3 {
        wait_for_more(&scene, "producer");
        let next = builder().migrate(&guest)?;
        wait_for_more(&scene, "producer");
        std::mem::replace(&mut guest, next).kill()?;
    }
    wait_for_more(&scene, "producer");
    end(&guest)?;
    assert_eq!(superseded(&guest)?, Vec::<Vec<u64>>::new());
    assert_no_io_error(&guest)?;
    assert_eq!(scene.diagnostics()["backend"]["refused"], json!({}));
    let lines = delivered(&scene, &mut receiving)?;
    assert_eq!((parts(&lines).len(), lines[0].1), (1, 1));
    guest.power_off()
}

#[test]
fn guest_is_migrated_between_two_qemus_on_one_ring() -> Result<()> {
    migrate(Qemu::System)
}

#[test]
fn guest_is_migrated_between_two_newer_qemus_on_one_ring() -> Result<()> {
    migrate(Qemu::Ten)
}

#[test]
fn older_consuming_guest_frees_nothing_twice_and_goes_on() -> Result<()> {
    let scene = Scene::new(&["--size", "256K", "--migratable", "--guest", "consumer"]);
    let _backend = scene.backend()?;
    fs::write(scene.path("life"), "host").unwrap();
    let mut sending = scene.spawn("producer", "ringload", &["feed", &scene.address(), "life"])?;
    let guest = scene.guest().boot()?;
    start(&guest, "drain")?;
    wait_for_more(&scene, "consumer");
    let snapshot = save(&scene, &guest)?;
    guest.cont()?;
    wait_for_more(&scene, "consumer");
    guest.kill()?;

    let guest = scene.guest().resume(&snapshot)?;
    wait_until_superseded(&scene, &guest);
    wait_for_more(&scene, "consumer");
    fs::write(scene.path("life"), "end").unwrap();
    assert!(sending.wait(SOON)?.success(), "{}", sending.stderr());
    scene.wait_until_empty();
    end(&guest)?;
    let told = superseded(&guest)?;
    let log = guest.check(&format!("cat {LOG}"))?;
    let got = lines(log.as_bytes());
    let parts = parts(&got);
    println!(
        "told {told:?}, parts {:?}",
        parts.iter().map(|p| (&p[0], p.last())).collect::<Vec<_>>()
    );
    assert_eq!((told.len(), parts.len()), (1, 2));
    // The items between were freed by the original instance, and by no other.
    assert_eq!(told[0][3], parts[1][0].1 - parts[0].last().unwrap().1 - 1);
    guest.power_off()
}
