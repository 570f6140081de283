//! Attacks on the driver and on the device themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shared_block_ring::BlockDevice as _;
use shared_block_ring::format::Side;
use std::io::IoSlice;
use vhost_device_blockring::data_path::guard::Reason;

use super::meanwhile::{Stop, meanwhile};
use super::{Attack, Failure, Group, Raid, ensure};

pub(super) const ATTACKS: &[Attack] = &[
    Group::Driver.attack("driver_taken_away_under_load", &[Reason::Signature], driver_taken_away),
    Group::Driver.attack("device_reset_under_load", &[Reason::Signature], device_reset),
];

/// Made in the guest when the device is reset: no process that waits for it returns, nor does the
/// kernel's driver.
pub const RESET_DONE: &str = "/tmp/reset-done";

const ROUNDS: usize = 3;

const THREADS: usize = 8;

/// Bound on the wait for the disk to come back.
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes to sector 0 and flushes in some threads until the disk is gone, or `work` is over.
fn under_load<T>(
    raid: &mut Raid,
    work: impl FnOnce(&mut Raid) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let devices = (0..THREADS).map(|_| raid.open()).collect::<Result<Vec<_>, _>>()?;
    let junk = raid.bare(0);
    let writers = devices.into_iter().map(|device| {
        let junk = &junk;
        move |stop: &Stop| {
            while !stop.is_told() {
                // Refused, or for a disk that is gone: both are as they should be.
                let _ = device.write(0, &[IoSlice::new(junk)]);
                if device.flush().is_err() {
                    return;
                }
            }
        }
    });
    Ok(meanwhile(writers, || work(raid))?.0)
}

/// Returns the device's folder among the PCI devices.
fn device_of(raid: &Raid) -> Result<PathBuf, Failure> {
    let node = raid.path()?;
    let name = node.file_name().unwrap_or_default();
    let device = fs::canonicalize(Path::new("/sys/block").join(name).join("device"))?;
    let parent = device.parent().map(Path::to_owned);
    parent.ok_or_else(|| Failure::Unsound("a disk of no device".into()))
}

fn driver_taken_away(raid: &mut Raid) -> Result<(), Failure> {
    let device = device_of(raid)?;
    let address = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let driver = Path::new("/sys/bus/pci/drivers/virtio-pci");
    raid.report.at_least = true;
    raid.report.refused.insert(Reason::Signature.to_string(), 1);
    for _ in 0..ROUNDS {
        // In the middle of a publication.
        let item = raid.push()?;
        under_load(raid, |raid| {
            raid.producer()?.advance(item.end)?;
            raid.published(item);
            let next = raid.push()?;
            fs::write(driver.join("unbind"), &address)?;
            ensure(raid.producer()?.advance(next.end).is_err(), || "a disk that is gone".into())
        })?;
        raid.detach();
        fs::write(driver.join("bind"), &address)?;
        let begun = Instant::now();
        while raid.reopen().is_err() {
            ensure(begun.elapsed() < PATIENCE, || "the disk does not come back".to_owned())?;
            std::thread::sleep(Duration::from_millis(10));
        }
        ensure(raid.position(Side::Producer)? == raid.last()?.end, || "it was published".into())?;
        raid.attach()?;
        raid.publish(1)?;
    }
    Ok(())
}

/// Resets the device under load. Requests in flight are lost, and the driver waits for them until
/// the guest boots again: this attack must not end.
fn device_reset(raid: &mut Raid) -> Result<(), Failure> {
    let reset = device_of(raid)?.join("reset");
    under_load(raid, |raid| {
        raid.publish(10)?;
        fs::write(reset, "1")?;
        fs::write(RESET_DONE, "")?;
        loop {
            raid.publish(1)?;
        }
    })
}
