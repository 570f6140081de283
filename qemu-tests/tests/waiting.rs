//! Waits in the guest: in one read that the backend holds, at no cost, whatever happens to either
//! side meanwhile.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{
    LONG, SOON, Scene, assert_no_io_error, is_full, job_report, numbers, report,
};
use qemu_tests::{Daemon, Disk, Guest, GuestBuilder, Job, Result, wait_until};
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, UnixDevice};
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Backend options with which nothing but news ends a held read.
const FOR_EVER: &str = "3600000";

/// A job that pushes more than 60 KiB, in lines, in one process.
const TOO_MUCH: &str =
    "seq 1 20000 >/tmp/lines; exec blockring produce --no-flush serial:ring </tmp/lines";

fn scene(more: &[&str]) -> Scene {
    Scene::new(&[&["--size", "64K", "--hold-ms", FOR_EVER], more].concat())
}

/// Returns a producer in the guest that has filled the ring, and waits for space in a read that is
/// held.
fn waiting_producer(scene: &Scene, guest: &Guest) -> Result<Job> {
    let before = scene.held();
    let job = guest.spawn(TOO_MUCH)?;
    assert!(wait_until(SOON, || scene.held() > before), "{}", scene.diagnostics());
    Ok(job)
}

/// Pops everything until the producer has ended.
fn drain(scene: &Scene, job: &Job) -> Result<()> {
    let consumer = scene.spawn("consumer", "blockring", &["consume", "-f", &scene.address()])?;
    assert_eq!(job.wait(LONG)?.status, 0);
    let all = numbers(1, 20_000);
    let ended = || consumer.stdout().ends_with(all.as_bytes());
    assert!(wait_until(SOON, ended), "{} bytes", consumer.printed());
    Ok(())
}

/// Returns the processor time that the guest used in ten seconds, in hundredths of a second.
fn guest_ticks(guest: &Guest) -> Result<u64> {
    let text =
        guest.check("read -r a </proc/stat; sleep 10; read -r b </proc/stat; echo $a; echo $b")?;
    // Columns: cpu user nice system idle iowait irq softirq steal. Idle and waiting time are not
    // counted.
    let busy = |line: &str| -> u64 {
        let fields = line.split_whitespace().skip(1).map(|field| field.parse::<u64>().unwrap());
        fields
            .enumerate()
            .filter(|(index, _)| [0, 1, 2, 5, 6].contains(index))
            .map(|(_, n)| n)
            .sum()
    };
    let lines: Vec<u64> = text.lines().map(busy).collect();
    Ok(lines[1] - lines[0])
}

/// Neither the guest nor the backend may use a hundredth of a processor. The machine's other load
/// is not counted.
fn assert_idle(guest: &Guest, backend: &Daemon) -> Result<()> {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let before = backend.cpu_time()?;
        let ticks = guest_ticks(guest)?;
        let used = backend.cpu_time()?.saturating_sub(before);
        println!("of 10 s: guest {ticks}0 ms, backend {used:?}");
        if ticks < 10 && used < Duration::from_millis(20) {
            return Ok(());
        }
        seen.push((ticks, used));
    }
    panic!("busy: {seen:?}");
}

#[test]
fn producer_without_space_sleeps_in_one_read_at_no_cost() -> Result<()> {
    let scene = scene(&[]);
    let backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    guest.check("echo 10 >/proc/sys/kernel/hung_task_timeout_secs")?;
    let job = waiting_producer(&scene, &guest)?;
    let (start, reads) = (Instant::now(), scene.diagnostics()["backend"]["reads"].clone());
    let states =
        guest.check("for p in $(pidof blockring); do grep State: /proc/$p/status; done")?;
    assert!(states.contains('S') && !states.contains('D'), "{states}");
    assert_idle(&guest, &backend)?;
    std::thread::sleep(Duration::from_secs(30).saturating_sub(start.elapsed()));
    assert_eq!(scene.diagnostics()["backend"]["reads"], reads, "one read is all it takes");
    let log = guest.check("dmesg")?;
    assert!(!log.contains("blocked for more than") && !log.contains("hung"), "{log}");
    drain(&scene, &job)?;
    assert_no_io_error(&guest)?;
    guest.power_off()
}

#[test]
fn consumer_without_items_sleeps_in_one_read_at_no_cost() -> Result<()> {
    let scene = scene(&["--guest", "consumer"]);
    let backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let job = guest.spawn("exec blockring consume -f serial:ring >/tmp/out")?;
    for number in 1..=3 {
        assert!(wait_until(SOON, || scene.held() >= number), "{}", scene.diagnostics());
        let line = format!("echo {number} | ");
        let produce = scene.path("produce.sh");
        let program = scene.command("blockring", &[])?.get_program().to_owned();
        let program = program.to_str().unwrap();
        std::fs::write(&produce, format!("{line}{program} produce {}", scene.address())).unwrap();
        assert!(std::process::Command::new("sh").arg(&produce).status().unwrap().success());
        let got = || guest.check("cat /tmp/out").is_ok_and(|text| text == numbers(1, number));
        assert!(wait_until(SOON, got), "{}", guest.console_tail());
    }
    assert!(wait_until(SOON, || scene.held() >= 4));
    assert_idle(&guest, &backend)?;
    job.signal("TERM")?;
    assert_eq!(job.wait(SOON)?.status, 0);
    assert_no_io_error(&guest)?;
    guest.power_off()
}

#[test]
fn waiting_process_can_be_stopped_and_killed_and_the_next_attaches_at_once() -> Result<()> {
    let scene = scene(&[]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let job = waiting_producer(&scene, &guest)?;
    job.signal("TERM")?;
    let ended = job.wait(SOON)?;
    let words = "asked to stop while the ring was full";
    assert!(ended.status == 1 && ended.stderr.contains(words), "{ended:?}");
    for _ in 0..5 {
        let job = waiting_producer(&scene, &guest)?;
        // The kernel ends no process whose read is in flight; the next request on the disk has the
        // read answered.
        job.signal("KILL")?;
        let next = guest.run("echo more | blockring produce --on-full fail serial:ring")?;
        assert!(next.status == 1 && next.stderr.contains("full"), "{next:?}");
        assert_eq!(job.wait(SOON)?.status, 137);
    }
    let late = guest.run("echo more | blockring produce --timeout 0.5 serial:ring")?;
    assert!(late.status == 3, "{late:?}");
    assert_no_io_error(&guest)?;
    guest.power_off()
}

#[test]
fn waiting_guest_is_stopped_and_reset_and_its_backend_replaced() -> Result<()> {
    let scene = scene(&[]);
    let mut backend = scene.backend()?;
    let guest = scene.guest().reboots().boot()?;
    let job = waiting_producer(&scene, &guest)?;
    guest.stop()?;
    std::thread::sleep(Duration::from_millis(500));
    guest.cont()?;
    let before = scene.held();
    assert_eq!(scene.check(&["consume", "--count", "1", &scene.address()]), "1\n");
    assert!(wait_until(SOON, || scene.held() > before), "{}", scene.diagnostics());

    backend.kill()?;
    drop(backend);
    let mut backend = scene.backend()?;
    // QEMU finds it within a second or two, and what was held before comes again.
    let consumed = || scene.blockring(&["consume", "--count", "1000", &scene.address()]);
    assert_eq!(consumed().stdout, numbers(2, 1001).into_bytes());
    assert!(wait_until(SOON, || scene.held() > 0), "{}", scene.diagnostics());
    assert!(backend.terminate(SOON)?.success());
    drop(backend);
    let _backend = scene.backend()?;
    assert!(wait_until(SOON, || scene.held() > 0), "{}", scene.diagnostics());

    guest.reset()?;
    guest.wait_ready()?;
    drop(job);
    let late = guest.run("echo more | blockring produce --on-full fail serial:ring")?;
    // There is room or not, by what was pushed before.
    assert!(late.status == 0 || late.stderr.contains("full"), "{late:?}");
    assert_eq!(scene.blockring(&["consume", &scene.address()]).status.code(), Some(0));
    let job = waiting_producer(&scene, &guest)?;
    drain(&scene, &job)?;
    assert_no_io_error(&guest)?;
    guest.power_off()
}

#[test]
fn wait_on_a_disk_that_holds_no_reads_polls() -> Result<()> {
    let scene = Scene::new(&[]);
    let file = scene.path("plain.img");
    std::fs::File::create(&file).unwrap().set_len(64 << 10).unwrap();
    let guest = GuestBuilder::new().disk(Disk::file(&file, "ring")).boot()?;
    guest.check("blockring create /dev/vda")?;
    let job = guest.spawn(TOO_MUCH)?;
    let consume = "timeout -s TERM 60 blockring consume --count 20000 -f serial:ring >/tmp/out";
    let facts = || guest.check("blockring diagnostics --json serial:ring");
    let full = || facts().is_ok_and(|facts| is_full(&report(facts.as_bytes())));
    assert!(wait_until(SOON, full), "{:?}", facts());
    guest.check(consume)?;
    assert_eq!(job.wait(SOON)?.status, 0);
    assert_eq!(guest.check("cat /tmp/out")?, numbers(1, 20_000));
    assert_no_io_error(&guest)?;
    guest.power_off()
}

#[test]
fn waiting_process_is_woken_about_as_fast_as_the_disk_answers() -> Result<()> {
    const TIMES: usize = 51;
    let scene = scene(&[]);
    let _backend = scene.backend()?;
    let port = scene.path("port");
    let chardev = format!("socket,id=port,path={},server=on,wait=off", port.display());
    let guest = scene
        .guest()
        .arguments(["-chardev", &chardev, "-device", "isa-debugcon,iobase=0xe9,chardev=port"])
        .boot()?;
    let mut port = UnixStream::connect(port).unwrap();
    port.set_read_timeout(Some(SOON)).unwrap();
    guest.check("seq 1 100 | blockring produce serial:ring")?;
    // Its first wait ends at once: it has had no answer yet.
    let job = guest.spawn(&format!("ringload wake serial:ring {} 233", TIMES + 1))?;
    let mut woken = || {
        let read = port.read_exact(&mut [0]);
        read.unwrap_or_else(|e| panic!("{e}: {:?}", job.wait(Duration::ZERO)));
    };
    woken();
    let device = UnixDevice::connect(scene.path("c"), Role::Consumer).unwrap();
    let mut consumer = Consumer::attach(device, "q", "test").unwrap();
    consumer.set_durability(shared_block_ring::Durability::PageCache);
    let mut times = Vec::new();
    for number in 1..=TIMES {
        assert!(wait_until(SOON, || scene.held() >= number as u64));
        let next = consumer.pop(consumer.position()).unwrap().next;
        let start = Instant::now();
        consumer.advance(next).unwrap();
        woken();
        times.push(start.elapsed());
    }
    times.sort();
    let read = job_report(&job, SOON)?["read_ns"].as_u64().unwrap();
    println!(
        "from the host's advance to the guest's next instruction: median {:?} (of {TIMES}; {:?} to {:?}); a plain read of a sector: {:?}",
        times[TIMES / 2],
        times[0],
        times[TIMES - 1],
        Duration::from_nanos(read),
    );
    guest.power_off()
}
