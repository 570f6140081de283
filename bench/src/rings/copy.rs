//! What the processor of the daemon can copy between such memory as many rings have: the bound of
//! their writes, and the reason where their number makes them slower.

use super::front::{DEPTH, MOST, RING, START};
use crate::error::{Result, doing};
use crate::machine::{Processors, finished, pin};
use shared_block_ring::device::{AlignedBuf, Mapping, Memory};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// Copies between two looks at the clock.
const STRIDE: u64 = 1024;

/// A region and a front end's buffers for each ring.
pub struct Copies {
    regions: Vec<(Mapping, u64)>,
    buffers: Vec<AlignedBuf>,
}

impl Copies {
    /// Makes memory for that many rings, the regions in files in `dir`, and touches all of it.
    pub fn new(dir: &Path, rings: usize) -> Result<Self> {
        let region = |ring| {
            let path = dir.join(format!("copy-{ring}"));
            let make = || {
                let file = File::options().read(true).write(true).create_new(true).open(&path)?;
                file.set_len(RING)?;
                let mapping = Mapping::new(file, RING)?.without_file();
                mapping.write(0, &vec![1; RING as usize]);
                Ok::<_, std::io::Error>((mapping, START))
            };
            make().map_err(doing(format!("making {}", path.display())))
        };
        let mut buffers = Vec::new();
        for _ in 0..rings {
            let mut buffer = AlignedBuf::zeroed(DEPTH * MOST as usize);
            buffer.fill(1);
            buffers.push(buffer);
        }
        Ok(Self { regions: (0..rings).map(region).collect::<Result<_>>()?, buffers })
    }

    /// Copies to the first `active` regions in turn, as many pieces of so many bytes as a front end
    /// has requests at once. Returns how many pieces that are per second.
    pub fn rate(
        &mut self,
        processors: Processors,
        active: usize,
        bytes: u32,
        time: Duration,
    ) -> Result<f64> {
        let rings = self.regions.iter_mut().zip(&self.buffers).take(active);
        let mut rings: Vec<_> = rings.collect();
        std::thread::scope(|scope| {
            finished(scope.spawn(move || {
                pin(processors.back)?;
                let (mut copied, start) = (0u64, Instant::now());
                loop {
                    for ((region, at), buffers) in &mut rings {
                        for buffer in buffers.chunks(MOST as usize) {
                            let buffer = &buffer[..bytes as usize];
                            if *at + u64::from(bytes) > RING {
                                *at = START;
                            }
                            region.write(*at, buffer);
                            *at += u64::from(bytes);
                            copied += 1;
                        }
                        if copied.is_multiple_of(STRIDE) && start.elapsed() >= time {
                            return Ok(copied as f64 / start.elapsed().as_secs_f64());
                        }
                    }
                }
            }))
        })
    }
}
