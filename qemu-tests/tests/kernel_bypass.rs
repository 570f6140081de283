//! The guest's disk driven by its process, with and without an IOMMU in front of it.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{LONG, SOON, Scene, daemon_report, is_full, job_report, numbers, report};
use qemu_tests::{Disk, Guest, GuestBuilder, ImageSpec, Result, wait_until};
use serde_json::{Value, json};

/// The process's way to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By its registers alone, without interrupts.
    Bare,
    /// By its registers, with interrupts through the kernel.
    Uio,
    /// By VFIO, behind Intel's IOMMU.
    Vfio,
}

impl Way {
    fn driver(self) -> &'static str {
        match self {
            Self::Bare => "none",
            Self::Uio => "uio_pci_generic",
            Self::Vfio => "vfio-pci",
        }
    }

    fn guest(self, scene: &Scene) -> Result<GuestBuilder> {
        self.around(scene.guest())
    }

    fn around(self, guest: GuestBuilder) -> Result<GuestBuilder> {
        let guest = guest.image(ImageSpec::standard()?.passing());
        Ok(match self {
            Self::Bare | Self::Uio => guest,
            Self::Vfio => guest.iommu(),
        })
    }

    /// Takes a disk from the kernel. Returns its address then.
    fn take(self, guest: &Guest, disk: &str) -> Result<String> {
        guest.check("echo 4 > /proc/sys/vm/nr_hugepages")?;
        self.bind(guest, &guest.pci_address(disk)?)
    }

    fn bind(self, guest: &Guest, function: &str) -> Result<String> {
        guest.check(&format!("blockring bind --driver {} {function}", self.driver()))?;
        Ok(format!("pci:{function}"))
    }
}

const ITEMS: &str = "100000";

/// Seconds that one end of a stream waits for the other, on a busy machine.
const PATIENCE: &str = "200";

fn assert_same(sent: &Value, received: &Value) {
    println!("sent {sent}, received {received}");
    assert_eq!(sent["items"], 100_000);
    for fact in ["items", "bytes", "xxh3"] {
        assert_eq!(sent[fact], received[fact]);
    }
}

fn leave_the_guest(way: Way) -> Result<()> {
    let scene = Scene::new(&["--size", "8M"]);
    let _backend = scene.backend()?;
    let guest = way.guest(&scene)?.boot()?;
    let address = way.take(&guest, "vda")?;
    let sending = guest.spawn(&format!(
        "ringload produce {address} --items {ITEMS} --max 2000 --batch 16 --patience {PATIENCE}"
    ))?;
    let arguments = ["consume", &scene.address(), "--items", ITEMS, "--patience", PATIENCE];
    let mut consumer = scene.spawn("consumer", "ringload", &arguments)?;
    let received = daemon_report(&mut consumer, LONG)?;
    assert_same(&job_report(&sending, SOON)?, &received);
    assert_eq!(scene.diagnostics()["backend"]["refused"], json!({}));
    guest.power_off()
}

fn enter_the_guest(way: Way) -> Result<()> {
    let scene = Scene::new(&["--size", "8M", "--guest", "consumer"]);
    let _backend = scene.backend()?;
    let guest = way.guest(&scene)?.boot()?;
    let address = way.take(&guest, "vda")?;
    let receiving = guest.spawn(&format!(
        "ringload consume {address} --items {ITEMS} --batch 16 --patience {PATIENCE}"
    ))?;
    let host = scene.address();
    let arguments = [
        "produce",
        &host,
        "--items",
        ITEMS,
        "--max",
        "2000",
        "--batch",
        "16",
        "--patience",
        PATIENCE,
    ];
    let mut producer = scene.spawn("producer", "ringload", &arguments)?;
    // The guest's outcome comes first: without its end the host's waits in vain.
    let received = job_report(&receiving, LONG)?;
    assert_same(&daemon_report(&mut producer, SOON)?, &received);
    assert_eq!(scene.diagnostics()["backend"]["refused"], json!({}));
    guest.power_off()
}

#[test]
fn hundred_thousand_items_leave_the_guest_by_registers_alone() -> Result<()> {
    leave_the_guest(Way::Bare)
}

#[test]
fn hundred_thousand_items_enter_the_guest_by_registers_alone() -> Result<()> {
    enter_the_guest(Way::Bare)
}

#[test]
fn hundred_thousand_items_leave_the_guest_with_a_line_that_interrupts() -> Result<()> {
    leave_the_guest(Way::Uio)
}

#[test]
fn hundred_thousand_items_enter_the_guest_with_a_line_that_interrupts() -> Result<()> {
    enter_the_guest(Way::Uio)
}

#[test]
fn hundred_thousand_items_leave_the_guest_behind_an_iommu() -> Result<()> {
    leave_the_guest(Way::Vfio)
}

#[test]
fn hundred_thousand_items_enter_the_guest_behind_an_iommu() -> Result<()> {
    enter_the_guest(Way::Vfio)
}

/// Returns the system calls of a run that pushes that many items, each visible before the next.
fn calls(guest: &Guest, address: &str, items: u64) -> Result<u64> {
    let load = format!("ringload produce {address} --items {items} --max 64 --no-flush --poll");
    let output = guest.run(&format!("syscalls {load}"))?;
    assert_eq!(output.status, 0, "{output:?}");
    Ok(output.stderr.trim().parse().unwrap())
}

#[test]
fn item_takes_no_system_call() -> Result<()> {
    const MORE: u64 = 2000;
    let scene = Scene::new(&["--size", "8M"]);
    let _backend = scene.backend()?;
    // With two emulated processors Linux does not trust their counters, and reading the clock is a
    // system call.
    let guest = Way::Bare.guest(&scene)?.processors(1).boot()?;
    let of_the_kernel = |items| calls(&guest, "serial:ring", items);
    let (few, many) = (of_the_kernel(10)?, of_the_kernel(10 + MORE)?);
    assert!(many - few >= 2 * MORE, "what counts them can count: {few}, {many}");
    let address = Way::Bare.take(&guest, "vda")?;
    let (few, many) = (calls(&guest, &address, 10)?, calls(&guest, &address, 10 + MORE)?);
    println!("{few} system calls in all for 10 items, {many} for {}", 10 + MORE);
    assert_eq!(few, many);
    guest.power_off()
}

#[test]
fn item_reaches_the_host_in_a_fraction_of_the_kernel_driver_s_time() -> Result<()> {
    // A backend that sleeps would dominate the measurement on a busy machine.
    let scene = Scene::new(&["--size", "8M", "--poll", "always"]);
    let _backend = scene.backend()?;
    let guest = Way::Bare.guest(&scene)?.boot()?;
    let shown = |address: &str| {
        let load = format!("ringload show {address} --items 1000 --no-flush --poll");
        let ns = &report(guest.check(&load)?.as_bytes())["shown_ns"];
        Ok([0, 1].map(|at| ns[at].as_u64().unwrap()))
    };
    let kernel = shown("serial:ring")?;
    let ours = shown(&Way::Bare.take(&guest, "vda")?)?;
    println!("quickest tenth and half, in ns: {kernel:?} by the kernel, {ours:?} past it");
    // The machine's other load delays half of the items at times, and a tenth hardly ever.
    assert!(kernel[0] >= 5 * ours[0], "{kernel:?} ns by the kernel, {ours:?} ns past it");
    guest.power_off()
}

#[test]
fn backend_killed_again_and_again_costs_the_producer_time_alone() -> Result<()> {
    const KILLS: u32 = 50;
    let scene = Scene::new(&["--size", "128K"]);
    let mut backend = scene.backend()?;
    let guest = Way::Uio.guest(&scene)?.boot()?;
    let address = Way::Uio.take(&guest, "vda")?;
    guest.check("mkfifo /tmp/lines")?;
    let sending = guest.spawn(&format!("blockring produce {address} < /tmp/lines"))?;
    let feeding = guest.spawn(
        "n=0; while ! [ -e /tmp/over ]; do n=$((n + 1)); echo $n; usleep 2000; done > /tmp/lines; echo $n",
    )?;
    let host = scene.address();
    let mut consumer = scene.spawn("consumer", "blockring", &["consume", "--follow", &host])?;
    for kill in 0..KILLS {
        let before = consumer.printed();
        consumer.wait_for("receiving", SOON, |consumer| consumer.printed() > before)?;
        backend.kill()?;
        backend = scene.backend()?;
        println!("kill {kill}");
    }
    guest.check("touch /tmp/over")?;
    let fed: u64 = feeding.wait(SOON)?.stdout.trim().parse().unwrap();
    let sent = sending.wait(SOON)?;
    assert_eq!((sent.status, sent.stderr.as_str()), (0, ""));
    scene.wait_until_empty();
    assert!(consumer.terminate(SOON)?.success(), "{}", consumer.stderr());
    assert!(consumer.stdout() == numbers(1, fed).as_bytes(), "{fed} lines, in order and once");
    guest.power_off()
}

/// A disk of a killed process is driven by the next process, and then by the kernel.
fn outlive_a_kill(way: Way) -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let guest = way.guest(&scene)?.boot()?;
    let address = way.take(&guest, "vda")?;
    for round in 1..=3 {
        // The producer waits in a held read, for room.
        let full = guest.spawn(&format!("yes | blockring produce {address}"))?;
        scene.wait_until_full();
        let busy = guest.run(&format!("blockring diagnostics {address}"))?;
        assert!(busy.stderr.contains("another process drives the device"), "{busy:?}");
        full.signal("KILL")?;
        full.wait(SOON)?;
        let there = format!("blockring diagnostics --json {address}");
        let facts = report(guest.check(&there)?.as_bytes());
        assert!(is_full(&facts), "round {round}: {facts}");
        scene.check(&["consume", &scene.address()]);
        guest.check(&format!("echo {round} | blockring produce {address}"))?;
        assert_eq!(scene.check(&["consume", &scene.address()]), format!("{round}\n"));
    }
    guest.check(&format!("blockring unbind {}", &address["pci:".len()..]))?;
    guest.check("echo by the kernel | blockring produce serial:ring")?;
    assert_eq!(scene.check(&["consume", &scene.address()]), "by the kernel\n");
    guest.power_off()
}

#[test]
fn killed_process_leaves_the_device_to_the_next_by_registers_alone() -> Result<()> {
    outlive_a_kill(Way::Bare)
}

#[test]
fn killed_process_leaves_the_device_to_the_next_with_a_line_that_interrupts() -> Result<()> {
    outlive_a_kill(Way::Uio)
}

#[test]
fn killed_process_leaves_the_device_to_the_next_behind_an_iommu() -> Result<()> {
    outlive_a_kill(Way::Vfio)
}

/// A held read must end with the news rather than with its hold time, with any way to wait.
fn wait_for_room(ways: &[Way]) -> Result<()> {
    let scene = Scene::new(&["--size", "1M", "--hold-ms", "60000"]);
    let _backend = scene.backend()?;
    let guest = ways[0].guest(&scene)?.boot()?;
    let function = guest.pci_address("vda")?;
    guest.check("echo 4 > /proc/sys/vm/nr_hugepages")?;
    for way in ways {
        let address = way.bind(&guest, &function)?;
        let full =
            guest.spawn(&format!("seq 1 200000 | blockring produce {address} --timeout 30"))?;
        scene.wait_until_full();
        assert!(wait_until(SOON, || scene.held() > 0), "{way:?}: {}", scene.diagnostics());
        let host = scene.address();
        let name = format!("{way:?}");
        let mut consumer = scene.spawn(&name, "blockring", &["consume", "--follow", &host])?;
        assert_eq!(full.wait(SOON)?.status, 0, "{way:?}");
        scene.wait_until_empty();
        consumer.terminate(SOON)?;
        assert!(consumer.stdout() == numbers(1, 200_000).as_bytes(), "{way:?}");
    }
    guest.power_off()
}

#[test]
fn full_ring_is_waited_for_in_one_read_with_and_without_a_line_that_interrupts() -> Result<()> {
    wait_for_room(&[Way::Uio, Way::Bare])
}

#[test]
fn full_ring_is_waited_for_in_one_read_behind_an_iommu() -> Result<()> {
    wait_for_room(&[Way::Vfio])
}

/// A process that waits at a disk gets an error when the disk is unplugged.
fn lose_the_disk(way: Way) -> Result<()> {
    let scene = Scene::new(&["--size", "1M", "--hold-ms", "60000"]);
    let _backend = scene.backend()?;
    let disk = Disk::vhost_user(scene.path("s")).reconnecting().options("bus=plug,id=ring");
    let guest = way.around(GuestBuilder::new().slot("plug").disk(disk))?.boot()?;
    let address = way.take(&guest, "vda")?;
    let full = guest.spawn(&format!("yes | blockring produce {address}"))?;
    scene.wait_until_full();
    guest.qmp("device_del", &json!({ "id": "ring" }))?;
    let lost = full.wait(SOON)?;
    assert!(lost.status == 1 && lost.stderr.contains("the device is gone"), "{lost:?}");
    guest.power_off()
}

#[test]
fn disk_that_is_unplugged_is_gone_by_registers_alone() -> Result<()> {
    lose_the_disk(Way::Bare)
}

#[test]
fn disk_that_is_unplugged_is_gone_with_a_line_that_interrupts() -> Result<()> {
    lose_the_disk(Way::Uio)
}

#[test]
fn disk_that_is_unplugged_is_gone_behind_an_iommu() -> Result<()> {
    lose_the_disk(Way::Vfio)
}

#[test]
fn impossible_addresses_are_refused_with_what_to_do() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let disk = |name: &str, options: &str| {
        std::fs::write(scene.path(name), vec![0; 1 << 20]).unwrap();
        Disk::file(scene.path(name), name).options(options)
    };
    let guest = Way::Bare
        .guest(&scene)?
        .disk(disk("translated", "iommu_platform=on,disable-legacy=on"))
        .disk(disk("legacy", "disable-modern=on,disable-legacy=off"))
        .disk(disk("plain", ""))
        .boot()?;
    let refused = |command: &str, words: &[&str]| -> Result<()> {
        let output = guest.run(command)?;
        assert_eq!(output.status, 1, "{command}: {output:?}");
        for wanted in words {
            assert!(output.stderr.contains(wanted), "{command}: {wanted:?} in {output:?}");
        }
        Ok(())
    };
    let ours = guest.pci_address("vda")?;
    let look = |address: &str| format!("blockring diagnostics {address}");
    refused(&look("pci:1:2:3"), &["is not the address of a PCI device, as in 0000:00:04.0"])?;
    refused(&look("pci:0000:00:1e.7"), &["there is no such PCI device"])?;
    refused(&look("pci:0000:00:00.0"), &["8086:29c0 is no virtio block device"])?;
    let bind = format!("blockring bind {ours}");
    refused(&look(&format!("pci:{ours}")), &["the kernel's driver virtio-pci has it", &bind])?;
    let [translated, legacy, plain] =
        ["vdb", "vdc", "vdd"].map(|disk| Way::Bare.take(&guest, disk).unwrap());
    refused(&look(&translated), &["leave out iommu_platform=on"])?;
    refused(&look(&legacy), &["from before virtio 1", "disable-modern=on"])?;
    refused(&format!("unshare -U {}", look(&plain)), &["only root may drive a device"])?;
    guest.check("echo 0 > /proc/sys/vm/nr_hugepages")?;
    let remedy = "echo 8 > /proc/sys/vm/nr_hugepages";
    refused(&look(&plain), &["no huge page of 2 MiB is free", remedy])?;
    guest.check("echo 4 > /proc/sys/vm/nr_hugepages")?;
    // A disk that QEMU serves itself works, too.
    guest.check(&format!("blockring create {plain} && echo one | blockring produce {plain}"))?;
    assert_eq!(guest.check(&format!("blockring consume {plain}"))?, "one\n");
    refused(&format!("blockring create --size 1M {plain}"), &["leave out --size"])?;
    guest.power_off()
}
