//! Attacks by many requests at once.

use std::io;

use shared_block_ring::BlockDevice as _;
use shared_block_ring::device::AlignedBuf;
use shared_block_ring::format::Side;
use std::io::{IoSlice, IoSliceMut};
use vhost_device_blockring::data_path::guard::Reason;

use super::meanwhile::{Stop, meanwhile};
use super::{Attack, Failure, Group, Raid, index};

pub(super) const ATTACKS: &[Attack] = &[
    Group::Storms.attack("idle_reads", &[], idle_reads),
    Group::Storms.attack("flushes", &[], flushes),
    Group::Storms.attack(
        "twenty_thousand_refused",
        &[
            Reason::Signature,
            Reason::HostPointer,
            Reason::PointerBackwards,
            Reason::PointerBeyond,
            Reason::PointerMisaligned,
            Reason::PointerFlag,
        ],
        mixed,
    ),
    Group::Storms.attack("huge_writes", &[Reason::BufferedPage, Reason::PublishedData], huge),
];

/// Number of honest items that are published meanwhile.
const ITEMS: usize = 30;

const THREADS: usize = 6;

/// Number of threads, and of refused writes of each.
const WRITERS: usize = 32;
const WRITES: usize = 625;

/// Runs `load` in some threads again and again while honest items are published.
fn beside(
    raid: &mut Raid,
    load: impl Fn(&shared_block_ring::FileDevice) -> io::Result<()> + Sync,
) -> Result<(), Failure> {
    let devices = (0..THREADS).map(|_| raid.open()).collect::<Result<Vec<_>, _>>()?;
    let threads = devices.into_iter().map(|device| {
        let load = &load;
        move |stop: &Stop| {
            let mut times = 0;
            while !stop.is_told() {
                load(&device)?;
                times += 1;
            }
            Ok::<u64, io::Error>(times)
        }
    });
    let ((), times) = meanwhile(threads, || raid.publish(ITEMS))?;
    for times in times {
        raid.report.passed += times?;
    }
    Ok(())
}

/// Gives the thread the idle class for its requests.
fn become_idle() -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    const IDLE: i32 = 3 << 13;
    // SAFETY: the call takes three integers, and concerns the calling thread alone.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes reads that are each held until another request comes.
fn idle_reads(raid: &mut Raid) -> Result<(), Failure> {
    beside(raid, |device| {
        become_idle()?;
        let mut sector = AlignedBuf::zeroed(512);
        device
            .read(Side::Consumer.sector(), &mut [IoSliceMut::new(&mut sector)])
            .map_err(|e| e.source)
    })
}

fn flushes(raid: &mut Raid) -> Result<(), Failure> {
    beside(raid, |device| device.flush().map_err(|e| e.source))
}

/// Fills the queue with writes that are refused, with reads and flushes among them.
fn mixed(raid: &mut Raid) -> Result<(), Failure> {
    let (mut flag, mut junk) = (raid.bare(4), raid.bare(0));
    flag[8] = 7;
    junk.fill(0x3c);
    let mine = Side::Producer.sector();
    let kinds = [
        (Reason::Signature, 0, &junk),
        (Reason::HostPointer, Side::Consumer.sector(), &junk),
        (Reason::PointerBackwards, mine, &raid.bare(0)),
        (Reason::PointerBeyond, mine, &raid.bare(1 << 62)),
        (Reason::PointerMisaligned, mine, &raid.bare(2)),
        (Reason::PointerFlag, mine, &flag),
    ];
    let devices = (0..WRITERS).map(|_| raid.open()).collect::<Result<Vec<_>, _>>()?;
    let writers = (0..).zip(devices).map(|(number, device)| {
        let kinds = &kinds;
        // Each write to its end: their number is known.
        move |_: &Stop| {
            let mut outcomes = Vec::new();
            let mut sector = AlignedBuf::zeroed(512);
            for (turn, (reason, at, bytes)) in
                kinds.iter().cycle().skip(number).take(WRITES).enumerate()
            {
                let written = device.write(*at, &[IoSlice::new(bytes)]);
                outcomes.push((*reason, written.map_err(|e| e.source)));
                if turn % 16 == 0 {
                    let read = device.read(0, &mut [IoSliceMut::new(&mut sector)]);
                    read.and_then(|()| device.flush()).map_err(|e| e.source)?;
                }
            }
            Ok::<_, io::Error>(outcomes)
        }
    });
    let ((), outcomes) = meanwhile(writers, || raid.publish(ITEMS))?;
    for of_a_thread in outcomes {
        for (reason, outcome) in of_a_thread? {
            raid.refused(reason, outcome)?;
        }
    }
    Ok(())
}

/// Writes far more in one call than a request carries: the kernel makes many requests of it.
fn huge(raid: &mut Raid) -> Result<(), Failure> {
    raid.report.at_least = true;
    let consumer = raid.settle()?;
    let end = raid.last()?.end;
    let before = raid.stream(consumer, end)?;
    let junk = vec![0x99; index(raid.geometry().total_bytes())];
    for _ in 0..2 {
        let outcome = raid.write(0, &junk);
        raid.refused(Reason::BufferedPage, outcome)?;
    }
    let (first, _) = raid.place(consumer);
    let outcome = raid.write(first, &junk[..junk.len() - index(first * 512)]);
    raid.refused(Reason::PublishedData, outcome)?;
    super::ensure(raid.stream(consumer, end)? == before, || "published bytes changed".to_owned())
}
