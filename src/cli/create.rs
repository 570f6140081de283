//! `blockring create`.

use super::address::{Device, both_roles, driven, sector_size};
use super::failure::{Failure, Outcome};
use shared_block_ring::format::{Geometry, SIGNATURE, SectorSize};
use shared_block_ring::{
    BlockDevice, CreateOptions, Error, OpenOptions, create, first_used, make_file, parse_size,
};
use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  blockring create --size 8M /var/lib/rings/web-1   make a file of 8 MiB with an empty ring
  blockring create /dev/vg0/ring                    make a ring on an empty block device
  blockring create --plain --size 1M shared.img     byte for byte as the OCaml program makes it
  blockring create vhost-user:/run/disk.sock        make a ring on the empty disk that a backend serves there";

/// Make an empty ring
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Create {
    /// File, block device, vhost-user:PATH of a backend's socket, or pci:ADDRESS of a disk of this machine
    path: PathBuf,
    /// Make a new file of this size (K, M and G are powers of 1024), all of it allocated
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Bytes in a sector of the file
    #[arg(long, value_name = "N", value_parser = sector_size)]
    sector_size: Option<SectorSize>,
    /// Without identity (size, sector size, UUID), as the OCaml program does it
    #[arg(long)]
    plain: bool,
    /// Replace what is there: a ring with its items, or anything else
    #[arg(long)]
    force: bool,
}

impl Create {
    pub fn run(self) -> Outcome {
        let made = match self.size {
            Some(_) if driven(&self.path).is_some() => {
                let text = "such a disk has its size: leave out --size";
                return Err(Failure::Refused(text.to_owned()));
            }
            Some(bytes) => self.make_file(bytes)?,
            None => false,
        };
        let outcome = self.open().and_then(|device| self.fill(&device));
        if outcome.is_err() && made {
            // Ours, and of no use to anybody.
            let _ = std::fs::remove_file(&self.path);
        }
        outcome
    }

    fn open(&self) -> Result<Device, Failure> {
        if let Some(disk) = driven(&self.path) {
            return Ok(Box::new(disk.open(self.sector_size)?));
        }
        let mut options = OpenOptions::default();
        if let Some(size) = self.sector_size {
            options = options.sector_size(size);
        }
        match options.open(&self.path) {
            Err(e) if !self.path.exists() => {
                Err(Failure::Refused(format!("{e} (--size 8M makes a file of that size)")))
            }
            opened => Ok(Box::new(opened?)),
        }
    }

    /// Whether a new file was made.
    fn make_file(&self, bytes: u64) -> Result<bool, Failure> {
        let sector_size = self.sector_size.unwrap_or(SectorSize::DEFAULT);
        Geometry::new(sector_size, bytes / u64::from(sector_size.get())).map_err(Error::from)?;
        let path = self.path.display();
        if self.path.exists() {
            let there = std::fs::metadata(&self.path).map_err(Failure::io(format!("{path}")))?;
            if there.is_file() && there.len() == bytes {
                return Ok(false);
            }
            let text = format!(
                "{path} exists and is not a file of {bytes} bytes: remove it, or leave out --size"
            );
            return Err(Failure::Refused(text));
        }
        make_file(&self.path, bytes).map_err(Failure::io(format!("cannot make {path}")))?;
        Ok(true)
    }

    fn fill(&self, device: &Device) -> Outcome {
        let _alone = both_roles(device)?;
        let path = self.path.display();
        let size = device.geometry().sector_size().bytes();
        if self.force {
            // A crash from here on leaves no ring, rather than the old one with its pointers wiped.
            let blank = vec![0; size];
            device.write(0, &[IoSlice::new(&blank)]).map_err(Error::from)?;
            device.flush().map_err(Error::from)?;
        } else {
            let mut first = vec![0; size];
            device.read(0, &mut [IoSliceMut::new(&mut first)]).map_err(Error::from)?;
            if first.starts_with(SIGNATURE) {
                return Err(Failure::Refused(format!(
                    "{path} holds a ring already (--force replaces it, items and all)"
                )));
            }
            if let Some(byte) = first_used(device).map_err(Error::from)? {
                let text =
                    format!("{path} is not empty: byte {byte} is not zero (--force overwrites it)");
                return Err(Failure::Refused(text));
            }
        }
        create(device, CreateOptions { plain: self.plain })?;
        Ok(())
    }
}
