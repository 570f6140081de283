//! Power cuts: both ends of a ring are in one guest, on a disk that forgets what was not flushed.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use ring_simulation::{Disk, DiskDevice};
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::{CreateOptions, create};

use super::kills::in_parallel;
use super::power::{Flushes, PoweredDisk};
use super::rig::{end_job, start_job, with_ports};
use super::stream::Stream;
use super::{Evidence, Failure, Kind, RING_BYTES, Result, Workshop, unsound};
use crate::load::Random;
use crate::{Guest, GuestBuilder, Job};

/// Cuts of one stream at most.
const STREAM: u32 = 25;

/// Requests until a cut at most, about a second's.
const REQUESTS: u64 = 5000;

/// Runs a campaign; what its streams came to.
pub(super) fn run(
    cuts: u32,
    seed: u64,
    jobs: usize,
    flushes: Flushes,
    workshop: &Workshop<'_>,
) -> Result<Vec<Evidence>> {
    // As many streams as there are jobs, or more.
    let most = cuts.div_ceil(u32::try_from(jobs).unwrap_or(1)).clamp(1, STREAM);
    let streams: Vec<_> =
        (0..cuts.div_ceil(most)).map(|index| most.min(cuts - index * most)).collect();
    in_parallel(streams.len(), jobs, |index| {
        let mut random = Random::of(seed, &[Kind::Cuts as u64, index as u64]);
        workshop
            .in_a_folder(|folder| stream(folder, streams[index], flushes, workshop, &mut random))
    })
}

fn stream(
    folder: &Path,
    cuts: u32,
    flushes: Flushes,
    workshop: &Workshop<'_>,
    random: &mut Random,
) -> Result<Evidence> {
    let disk = Disk::new(SectorSize::DEFAULT, RING_BYTES / 512);
    create(&DiskDevice::new(&disk), CreateOptions::default()).map_err(Failure::ring)?;
    let disk = PoweredDisk::new(disk, flushes);
    let mut stream = Stream::new(workshop.recipe(random)).with_power_cuts();
    for _ in 0..cuts {
        let boot = Boot::start(folder, &disk, &mut stream)?;
        // Mostly under load; at times while the ends attach.
        if !random.one_in(4) {
            boot.wait_for_flow(&mut stream)?;
        }
        disk.fail_after(1 + random.below(REQUESTS), random.one_in(2));
        stream.wait_while_alive("the power cut", || disk.is_off())?;
        boot.kill()?;
        disk.lose(random.next_u64());
        workshop.killed();
    }
    let boot = Boot::start(folder, &disk, &mut stream)?;
    boot.wait_for_flow(&mut stream)?;
    boot.end()?;
    Ok(Evidence { tally: stream.judge()?, stalls: Vec::new() })
}

/// A guest with both ends in it.
struct Boot {
    guest: Guest,
    producer: Job,
    consumer: Job,
    server: thread::JoinHandle<()>,
}

impl Boot {
    fn start(folder: &Path, disk: &Arc<PoweredDisk>, stream: &mut Stream) -> Result<Self> {
        let socket = folder.join("s");
        let server = disk.serve(&socket)?;
        let run = stream.next_run();
        let log = |side: Side| folder.join(format!("{side}-{run}.log"));
        let logs = [Side::Producer, Side::Consumer].map(log);
        let builder = GuestBuilder::new().disk(crate::Disk::vhost_user(&socket));
        let ports = [("producer", logs[0].as_path()), ("consumer", logs[1].as_path())];
        let guest = with_ports(builder, &ports)?.boot()?;
        let producer = start_job(&guest, Side::Producer, "producer", run, stream)?;
        let consumer = start_job(&guest, Side::Consumer, "consumer", run, stream)?;
        stream.follow(Side::Producer, &logs[0]);
        stream.follow(Side::Consumer, &logs[1]);
        Ok(Self { guest, producer, consumer, server })
    }

    fn wait_for_flow(&self, stream: &mut Stream) -> Result<()> {
        stream.wait_for_progress(Side::Producer, 0, 1)?;
        stream.wait_for_progress(Side::Consumer, 0, 1)
    }

    fn kill(self) -> Result<()> {
        self.guest.kill()?;
        join(self.server)
    }

    fn end(self) -> Result<()> {
        end_job(&self.producer)?;
        end_job(&self.consumer)?;
        self.guest.power_off()?;
        join(self.server)
    }
}

/// It ends with its front end.
fn join(server: thread::JoinHandle<()>) -> Result<()> {
    server.join().or_else(|_| unsound("the simulated disk has panicked".to_owned()))
}
