//! Times of single operations at one end of a ring.

use super::report::{Report, nanoseconds};
use qemu_tests::load::{Device, Failure};
use shared_block_ring::device::{AlignedBuf, DeviceError};
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{BlockDevice, Error, Producer};
use std::io::{self, IoSliceMut};
use std::time::{Duration, Instant};

/// Reads of one sector of which [`wake`] takes the median.
const READS: usize = 201;

/// Reads the consumer's pointer sector.
pub fn look(device: &Device) -> Result<(), Failure> {
    Ok(read_pointer(device, &mut sector_of(device))?)
}

fn sector_of(device: &Device) -> AlignedBuf {
    AlignedBuf::zeroed(device.geometry().sector_size().bytes())
}

fn read_pointer(device: &Device, sector: &mut AlignedBuf) -> Result<(), DeviceError> {
    device.read(Side::Consumer.sector(), &mut [IoSliceMut::new(sector)])
}

/// Pushes items of 64 bytes one by one, and measures the time until the other end can have each.
pub fn show(producer: &mut Producer<Device>, items: usize) -> Result<Report, Failure> {
    let mut times = Vec::with_capacity(items);
    for _ in 0..items {
        let start = Instant::now();
        let end = producer.push(&[7; 64])?;
        producer.advance(end)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let shown_ns = Some([10, 2].map(|part| nanoseconds(&times, part)));
    Ok(Report { shown_ns, ..Report::default() })
}

/// Waits for the consumer `times` times, writes a byte to an I/O port at the end of each wait, and
/// measures a plain read.
pub fn wake(device: &Device, times: u32, port: u16, patience: Duration) -> Result<Report, Failure> {
    let mut sector = sector_of(device);
    let mut reads = [Duration::ZERO; READS];
    for time in &mut reads {
        let start = Instant::now();
        read_pointer(device, &mut sector)?;
        *time = start.elapsed();
    }
    reads.sort_unstable();
    // SAFETY: the call lets this process write to a port that no driver of the guest's kernel uses,
    // and touches no memory.
    if unsafe { libc::ioperm(port.into(), 1, 1) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    for _ in 0..times {
        if Wait::new(Side::Consumer, Some(patience)).pause(device, &[])? == Woken::TimedOut {
            return Err(Error::Retry.into());
        }
        // SAFETY: the port is the test's debug console, which takes any byte; no memory of this
        // process changes by it.
        unsafe { std::arch::asm!("out dx, al", in("dx") port, in("al") b'w') };
        // A program that was woken looks at the ring.
        read_pointer(device, &mut sector)?;
    }
    Ok(Report { read_ns: Some(nanoseconds(&reads, 2)), ..Report::default() })
}
