//! Power cuts: both ends of a ring are in one guest, on a disk that forgets what was not flushed.

use std::path::Path;
use std::sync::Arc;

use ring_simulation::{Disk, DiskDevice};
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::{CreateOptions, create};

use super::cut::Cut;
use super::inside::{Manner, end_job, start_job, with_ports};
use super::kills::in_parallel;
use super::power::{Flushes, PoweredDisk};

use super::served::Served;
use super::stream::Stream;
use super::{Killed, Kind, Outcome, RING_BYTES, Result, in_a_folder, recipe};
use crate::load::Random;
use crate::{Guest, GuestBuilder, Job};

/// Largest number of cuts of one stream.
const STREAM: u32 = 25;

/// Largest number of requests until a cut: a few seconds.
const REQUESTS: u64 = 2000;

/// Runs a campaign. Returns the outcome of its streams.
pub(super) fn run(
    cuts: u32,
    seed: u64,
    jobs: usize,
    flushes: Flushes,
    killed: Killed<'_>,
) -> Result<Vec<Outcome>> {
    // As many streams as there are jobs, or more.
    let most = cuts.div_ceil(u32::try_from(jobs).unwrap_or(1)).clamp(1, STREAM);
    let streams: Vec<_> =
        (0..cuts.div_ceil(most)).map(|index| most.min(cuts - index * most)).collect();
    in_parallel(streams.len(), jobs, |index| {
        let mut random = Random::of(seed, &[Kind::Cuts as u64, index as u64]);
        in_a_folder(|folder| stream(folder, streams[index], flushes, killed, &mut random))
    })
}

fn stream(
    folder: &Path,
    cuts: u32,
    flushes: Flushes,
    killed: Killed<'_>,
    random: &mut Random,
) -> Result<Outcome> {
    let disk = Disk::new(SectorSize::DEFAULT, RING_BYTES / 512);
    create(&DiskDevice::new(&disk), CreateOptions::default())?;
    let disk = PoweredDisk::new(disk, flushes).map_err(crate::Error::io("making a timer"))?;
    let disk = Arc::new(disk);
    let mut stream = Stream::new(recipe(random)).with_power_cuts();
    for _ in 0..cuts {
        let boot = Boot::start(folder, &disk, &mut stream, random)?;
        // Mostly under load; at times while the ends attach.
        if !random.one_in(4) {
            stream.wait_for_flow()?;
        }
        disk.cut(Cut::at_random(REQUESTS, random));
        stream.wait_while_alive("the power cut", || disk.is_off())?;
        boot.kill()?;
        disk.lose(random.next_u64());
        killed();
    }
    let boot = Boot::start(folder, &disk, &mut stream, random)?;
    stream.wait_for_flow()?;
    boot.end()?;
    Ok(Outcome { tally: stream.judge()?, stalls: Vec::new() })
}

/// A guest with both ends in it.
struct Boot {
    guest: Guest,
    producer: Job,
    consumer: Job,
    served: Served,
}

impl Boot {
    fn start(
        folder: &Path,
        disk: &Arc<PoweredDisk>,
        stream: &mut Stream,
        random: &mut Random,
    ) -> Result<Self> {
        let socket = folder.join("s");
        let served = Served::start(disk, &socket, random.next_u64())?;
        let run = stream.next_run();
        let log = |side: Side| folder.join(format!("{side}-{run}.log"));
        let logs = [Side::Producer, Side::Consumer].map(log);
        let builder = GuestBuilder::new().disk(crate::Disk::vhost_user(&socket));
        let ports = [("producer", logs[0].as_path()), ("consumer", logs[1].as_path())];
        let guest = with_ports(builder, &ports)?.boot()?;
        let producer = start_job(&guest, Side::Producer, Manner::Plain, "producer", run, stream)?;
        let consumer = start_job(&guest, Side::Consumer, Manner::Plain, "consumer", run, stream)?;
        stream.follow(Side::Producer, &logs[0]);
        stream.follow(Side::Consumer, &logs[1]);
        Ok(Self { guest, producer, consumer, served })
    }

    fn kill(self) -> Result<()> {
        self.guest.kill()?;
        self.served.join()
    }

    fn end(self) -> Result<()> {
        end_job(&self.producer)?;
        end_job(&self.consumer)?;
        self.guest.power_off()?;
        self.served.join()
    }
}
