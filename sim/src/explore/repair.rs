//! Every crash of a repair, and of the repairs after it.
//!
//! A damaged ring is repaired on a simulated disk. After every change, every disk that a power
//! failure or the death of the process could leave is examined: repair must bring it to the same
//! end.

use crate::device::DiskDevice;
use crate::disk::Disk;
use crate::hooked::{Access, Hook, Hooked};
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::SectorSize;
use shared_block_ring::{BlockDevice, Consumer, Position, Repair, check};
use std::collections::{HashMap, HashSet};
use std::io::IoSlice;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Mutations of repair, each of which an exploration must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairMutant {
    /// The flush with this number (from 0) is left out.
    NoFlush(usize),
    /// Sector 0 is blanked first and written last.
    SignatureLast,
}

/// Content of a repaired ring.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Delivery {
    consumer: Position,
    producer: Position,
    suspended: bool,
    items: Vec<Vec<u8>>,
}

/// Counts of an exploration.
#[derive(Debug, Clone, Copy, Default)]
pub struct RepairCounts {
    /// Rings that were repaired.
    pub repaired: u64,
    /// Disks that a crash left.
    pub crashes: u64,
}

/// Repairs the ring of `image` (sectors of 512 bytes) and examines every crash, and every crash of
/// the repair after that. A ring that cannot be repaired counts for nothing.
///
/// # Errors
/// The promise that was broken.
pub fn explore_repair(image: &[u8], mutant: Option<RepairMutant>) -> Result<RepairCounts, String> {
    let mut counts = RepairCounts::default();
    let first = Disk::of(SectorSize::DEFAULT, image);
    let Ok(plan) = Repair::plan(&DiskDevice::new(&first)) else { return Ok(counts) };
    if plan.fixes.is_empty() {
        return Ok(counts);
    }
    counts.repaired = 1;
    let mut seen = HashSet::from([image.to_vec()]);
    let (mut left, mut expected) = (vec![image.to_vec()], None);
    while let Some(image) = left.pop() {
        for crashed in repair(&image, mutant, &mut expected)? {
            counts.crashes += 1;
            if seen.insert(crashed.clone()) {
                left.push(crashed);
            }
        }
    }
    Ok(counts)
}

/// Repairs one image, to the same end as those before. Returns the images that a crash could leave.
fn repair(
    image: &[u8],
    mutant: Option<RepairMutant>,
    expected: &mut Option<Delivery>,
) -> Result<Vec<Vec<u8>>, String> {
    let disk = Disk::of(SectorSize::DEFAULT, image);
    let plan = Repair::plan(&DiskDevice::new(&disk)).map_err(|e| format!("repair: {e}"))?;
    let sound = check(DiskDevice::new(&disk)).is_ok();
    if !sound && plan.fixes.is_empty() {
        return Err("damaged, and nothing to repair".to_owned());
    }
    if sound {
        same(expected, &delivered(&disk)?)?;
    }
    let steps = Steps { disk: disk.clone(), mutant, states: Mutex::default() };
    let device = Hooked::new(DiskDevice::new(&disk), steps);
    plan.write(&device).map_err(|e| format!("write: {e}"))?;
    let mut states = device.hook.states.into_inner().unwrap_or_else(PoisonError::into_inner).forks;
    check(DiskDevice::new(&disk)).map_err(|e| format!("check: {e}"))?;
    same(expected, &delivered(&disk)?)?;
    // After a power failure the repaired ring is still sound.
    for image in crashes(&disk) {
        let disk = Disk::of(SectorSize::DEFAULT, &image);
        check(DiskDevice::new(&disk)).map_err(|e| format!("check after a power loss: {e}"))?;
    }
    states.push(disk);
    Ok(states.iter().flat_map(crashes).collect())
}

fn same(expected: &mut Option<Delivery>, found: &Delivery) -> Result<(), String> {
    let expected = expected.get_or_insert_with(|| found.clone());
    if expected == found { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
}

/// Returns every image that a power failure could leave, the visible one among them.
fn crashes(disk: &Disk) -> Vec<Vec<u8>> {
    let mut choices = vec![HashMap::new()];
    for (sector, versions) in disk.choices() {
        let with = |chosen: &HashMap<u64, usize>, version| {
            let mut chosen = chosen.clone();
            chosen.insert(sector, version);
            chosen
        };
        choices = (0..versions)
            .flat_map(|version| choices.iter().map(move |chosen| with(chosen, version)))
            .collect();
    }
    let image = |chosen: &HashMap<u64, usize>| {
        let disk = disk.fork();
        disk.crash(|sector, _| chosen[&sector]);
        disk.image()
    };
    choices.iter().map(image).collect()
}

fn delivered(disk: &Disk) -> Result<Delivery, String> {
    let disk = disk.fork();
    let mut consumer = Consumer::attach(DiskDevice::new(&disk), "queue", "consumer")
        .map_err(|e| format!("consumer: {e}"))?;
    let facts = consumer.debug_info().map_err(|e| format!("facts: {e}"))?;
    let take = |mut items: Vec<Vec<u8>>, bytes: &[u8]| {
        items.push(bytes.to_vec());
        items
    };
    let start = consumer.position();
    let (_, items) = consumer
        .fold(start, Vec::new(), |items, item| take(items, item.bytes))
        .map_err(|e| format!("pop: {e}"))?;
    let (consumer, producer, suspended) = (facts.consumer, facts.producer, facts.suspend);
    Ok(Delivery { consumer, producer, suspended, items })
}

/// A hook that keeps the state of the disk after each access, and carries out a mutation.
struct Steps {
    disk: Disk,
    mutant: Option<RepairMutant>,
    states: Mutex<States>,
}

#[derive(Default)]
struct States {
    forks: Vec<Disk>,
    flushes: usize,
    /// Sector 0, which the mutant writes at the end.
    signature: Option<Vec<u8>>,
}

impl Steps {
    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self, device: &DiskDevice) -> Result<(), DeviceError> {
        let (nth, signature) = {
            let mut states = self.states();
            states.flushes += 1;
            (states.flushes - 1, states.signature.take())
        };
        if self.mutant != Some(RepairMutant::NoFlush(nth)) {
            device.flush()?;
        }
        if let Some(signature) = signature {
            self.noted();
            device.write(0, &[IoSlice::new(&signature)])?;
            device.flush()?;
        }
        Ok(())
    }

    fn noted(&self) {
        self.states().forks.push(self.disk.fork());
    }
}

impl Hook<DiskDevice> for Steps {
    fn access(&self, device: &DiskDevice, access: &mut Access<'_, '_>) -> Result<(), DeviceError> {
        match access {
            Access::Read { .. } => return access.carry_out(device),
            Access::Write { first: 0, bufs }
                if self.mutant == Some(RepairMutant::SignatureLast) =>
            {
                let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                device.write(0, &[IoSlice::new(&vec![0; bytes.len()])])?;
                self.states().signature = Some(bytes);
            }
            Access::Write { .. } => access.carry_out(device)?,
            Access::Flush => self.flush(device)?,
        }
        self.noted();
        Ok(())
    }
}
