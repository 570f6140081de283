//! The ways out of a guest: our disk by the guest's kernel and past it, a virtio-serial port, and a
//! plain disk which nobody on the host reads.

use crate::backend::{Backend, consumer_socket};
use crate::error::{Error, Result, doing};
use crate::figures::{Carried, KERNEL, PORT, USERSPACE, Until};
use crate::items::{BATCHES, Look, RING, SIZES, consumer};
use crate::machine::{Processors, finished, median};
use crate::rounds::Rounds;
use qemu_tests::{Disk, Guest, GuestBuilder, ImageSpec, binaries, wait_until};
use serde_json::{Value, json};
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, UnixDevice, make_file};
use std::io::{ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bound on the host's wait for what the guest has sent.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks whether the round is over.
const GLANCE: Duration = Duration::from_millis(50);

/// A way out of the guest: its name for the guest's program, and its argument.
#[derive(Debug, Clone, Copy)]
struct Way<'a> {
    name: &'static str,
    channel: &'static str,
    address: &'a str,
    /// States that can be waited for.
    until: &'static [Until],
}

const RING_WAY: Way<'static> = Way {
    name: KERNEL,
    channel: "ring",
    address: "serial:ring",
    until: &[Until::Sent, Until::Durable, Until::Popped],
};
const PORT_WAY: Way<'static> =
    Way { name: PORT, channel: "port", address: "/dev/vport0p1", until: &[Until::Sent] };
const DISK_WAY: Way<'static> = Way {
    name: "plain disk",
    channel: "disk",
    address: "serial:plain",
    until: &[Until::Sent, Until::Durable],
};

/// Number of bytes or items that have arrived on the host.
#[derive(Default)]
struct Arrived {
    items: AtomicU64,
    port_bytes: AtomicU64,
    over: AtomicBool,
}

/// Measures every way, size and batch. Rings and disks are made in `dir`, on a disk.
pub fn all(program: &Path, dir: &Path, cpus: Processors, rounds: Rounds) -> Result<Vec<Carried>> {
    let dir = tempfile::Builder::new().prefix("ring-bench-").tempdir_in(dir);
    let dir = dir.map_err(doing("making a folder for a guest's disks"))?;
    let dir = dir.path();
    let arguments = ["--serial", "ring"].map(str::to_owned);
    let backend = Backend::ours("guest", program, &arguments, RING, dir, cpus)?;
    backend.resume()?;
    let plain = dir.join("plain.img");
    make_file(&plain, RING).map_err(doing("making a plain disk"))?;
    let socket = dir.join("port.sock");
    let listener = UnixListener::bind(&socket).map_err(doing("listening for a port"))?;
    let guest = GuestBuilder::new()
        .image(image()?)
        .disk(Disk::vhost_user(backend.socket()))
        .disk(Disk::file(plain, "plain"))
        .arguments(["-device", "virtio-serial-pci"])
        .arguments(["-chardev".to_owned(), format!("socket,id=port,path={}", socket.display())])
        .arguments(["-device", "virtserialport,chardev=port"])
        .boot()?;
    // QEMU connected before the guest could boot.
    let (port, _) = listener.accept().map_err(doing("accepting a port"))?;
    let consumer = consumer(&consumer_socket(dir, "guest"), Look::InPlace)?;
    let arrived = Arrived::default();
    let carried = std::thread::scope(|scope| {
        let items = scope.spawn(|| take(consumer, &arrived));
        let bytes = scope.spawn(|| read(port, &arrived));
        let carried = both(&guest, rounds, &arrived);
        arrived.over.store(true, Ordering::Release);
        // The error of a thread says more than a count that does not grow.
        finished(items).and(finished(bytes)).and(carried)
    })?;
    guest.power_off()?;
    Ok(carried)
}

fn image() -> Result<ImageSpec> {
    let programs = binaries::programs()?;
    let image = ImageSpec::minimal().module("virtio_console");
    let image = image.tools(&["channels"])?;
    Ok(image.file("bin/blockring", programs.blockring()))
}

/// First by the guest's kernel, then past it, beside the ways that the kernel keeps.
fn both(guest: &Guest, rounds: Rounds, arrived: &Arrived) -> Result<Vec<Carried>> {
    let mut carried = each(guest, &[RING_WAY], rounds, arrived)?;
    let address = past_the_kernel(guest)?;
    let ways = [PORT_WAY, DISK_WAY, Way { name: USERSPACE, address: &address, ..RING_WAY }];
    carried.extend(each(guest, &ways, rounds, arrived)?);
    Ok(carried)
}

/// Measures the rows of those ways, in turns: the machine's other load changes within seconds, and
/// some rows are compared with others.
fn each(
    guest: &Guest,
    ways: &[Way<'_>],
    rounds: Rounds,
    arrived: &Arrived,
) -> Result<Vec<Carried>> {
    let kvm = guest.qmp("query-kvm", &json!({}))?;
    let machine = if kvm["enabled"] == true { "KVM" } else { "emulated" };
    let mut rows: Vec<_> = ways.iter().flat_map(Way::rows).collect();
    rounds.each(|| {
        for row in &mut rows {
            row.rates.push(one(guest, row, rounds.time, arrived)?);
        }
        Ok(())
    })?;
    let carried = rows.into_iter().map(|mut row| Carried {
        machine,
        way: row.way.name,
        bytes: row.bytes,
        batch: row.batch,
        until: row.until,
        rate: median(&mut row.rates),
    });
    Ok(carried.collect())
}

/// A load of a way, and the messages per second of each round.
struct Row<'a> {
    way: Way<'a>,
    bytes: usize,
    batch: usize,
    until: Until,
    rates: Vec<f64>,
}

impl<'a> Way<'a> {
    fn rows(&self) -> impl Iterator<Item = Row<'a>> {
        let way = *self;
        let all = way.until.iter().flat_map(|&until| SIZES.map(|bytes| (until, bytes)));
        let all = all.flat_map(|(until, bytes)| BATCHES.map(|batch| (until, bytes, batch)));
        // One by one, otherwise the time says nothing about one.
        let all = all.filter(|&(until, _, batch)| until != Until::Popped || batch == 1);
        all.map(move |(until, bytes, batch)| Row { way, bytes, batch, until, rates: Vec::new() })
    }
}

/// Takes the ring's disk from the guest's kernel. Returns the ring's address then.
fn past_the_kernel(guest: &Guest) -> Result<String> {
    let function = guest.pci_address("vda")?;
    guest.check("echo 4 > /proc/sys/vm/nr_hugepages")?;
    guest.check(&format!("blockring bind --driver none {function}"))?;
    Ok(format!("pci:{function}"))
}

/// Runs one round of a row. Returns the messages per second.
fn one(guest: &Guest, row: &Row<'_>, time: Duration, arrived: &Arrived) -> Result<f64> {
    let Row { way: Way { name, channel, address, .. }, bytes, batch, until, .. } = row;
    let (time, until) = (time.as_millis(), until.name());
    let command = format!(
        "channels {channel} {address} --bytes {bytes} --batch {batch} --ms {time} --until {until}"
    );
    let before = [&arrived.items, &arrived.port_bytes].map(|count| count.load(Ordering::Acquire));
    let answer = guest.check(&command)?;
    let nonsense = || qemu_tests::Error::Answer { what: command.clone(), answer: answer.clone() };
    let report: Value = serde_json::from_str(&answer).map_err(|_| nonsense())?;
    let sent = report["messages"].as_u64().ok_or_else(nonsense)?;
    let rate = report["rate"].as_f64().ok_or_else(nonsense)?;
    let (count, wanted) = match *channel {
        "ring" => (&arrived.items, before[0] + sent),
        "port" => (&arrived.port_bytes, before[1] + sent * *bytes as u64),
        _ => return Ok(rate),
    };
    if wait_until(PATIENCE, || count.load(Ordering::Acquire) == wanted) {
        Ok(rate)
    } else {
        Err(Error::Stalled(name))
    }
}

/// Pops the ring's items until the round is over.
fn take(mut consumer: Consumer<UnixDevice>, arrived: &Arrived) -> Result<()> {
    let mut wait = Wait::new(Side::Producer, Some(GLANCE));
    while !arrived.over.load(Ordering::Acquire) {
        let (end, items) = consumer.fold(consumer.position(), 0, |items, _| items + 1)?;
        if items > 0 {
            arrived.items.fetch_add(items, Ordering::AcqRel);
            consumer.advance(end)?;
            wait = Wait::new(Side::Producer, Some(GLANCE));
        } else if wait.pause(consumer.device(), &[])? == Woken::TimedOut {
            wait = Wait::new(Side::Producer, Some(GLANCE));
        }
    }
    Ok(())
}

/// Reads from the port until the round is over.
fn read(mut port: UnixStream, arrived: &Arrived) -> Result<()> {
    let failed = || doing("reading from a port");
    port.set_read_timeout(Some(GLANCE)).map_err(failed())?;
    let mut bytes = vec![0; 1 << 20];
    while !arrived.over.load(Ordering::Acquire) {
        match port.read(&mut bytes) {
            Ok(0) => return Err(Error::Stalled("the port")),
            Ok(count) => {
                arrived.port_bytes.fetch_add(count as u64, Ordering::AcqRel);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(failed()(e)),
        }
    }
    Ok(())
}
