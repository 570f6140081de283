//! `blockring create`.

use super::address::{Device, Named, PATIENCE, both_roles, driven_options, missing, sector_size};
use super::failure::{Failure, Outcome};
use ring_program::parse_size;
use shared_block_ring::device::shown;
use shared_block_ring::format::{MIN_SECTORS, SIGNATURE, SectorSize};
use shared_block_ring::wait::Limits;
use shared_block_ring::{
    BlockDevice, CreateOptions, Error, OpenOptions, Role, create, first_used_byte, make_file,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  blockring create --size 8M /var/lib/rings/web-1   make a file of 8 MiB with an empty ring
  blockring create /dev/vg0/ring                    make a ring on an empty block device
  blockring create --plain --size 1M shared.img     make the same bytes as the OCaml program
  blockring create vhost-user:/run/disk.sock        make a ring on the empty disk of a backend";

/// Make an empty ring
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Create {
    /// Path of a file or block device, serial:NAME, vhost-user:PATH of a backend's vhost-user
    /// socket, or pci:0000:00:04.0 of a disk taken by blockring bind
    path: PathBuf,
    /// Make a new file of this size (K, M and G are powers of 1024), with all of its space
    /// allocated
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Sector size in bytes of a ring in a file [default: 512] (a device has its own)
    #[arg(long, value_name = "N", value_parser = sector_size)]
    sector_size: Option<SectorSize>,
    /// Leave out the identity (size, sector size, UUID), as the OCaml program does
    #[arg(long)]
    plain: bool,
    /// Overwrite what is there, a ring with its items or anything else
    #[arg(long)]
    force: bool,
}

impl Create {
    pub fn run(self) -> Outcome {
        let named = Named::from(self.path.as_path());
        if let Named::Unix(_) = named {
            let text = format!(
                "{}: that ring is its backend's (--size of vhost-device-blockring makes one)",
                shown(&self.path)
            );
            return Err(Failure::Refused(text));
        }
        let made = match self.size {
            Some(_) if !matches!(named, Named::Path(_)) => {
                let text = "such a disk has its size: leave out --size";
                return Err(Failure::Refused(text.to_owned()));
            }
            Some(bytes) => self.make_file(bytes)?,
            None => false,
        };
        let outcome = self.open(&named).and_then(|device| self.fill(&device));
        if outcome.is_err() && made {
            // This command has made the file, and it holds no ring.
            let _ = std::fs::remove_file(&self.path);
        }
        outcome
    }

    fn open(&self, named: &Named) -> Result<Device, Failure> {
        if named.is_driven() {
            let options = driven_options(Role::Control, self.sector_size);
            return Ok(named.open(options, &Limits::within(PATIENCE))?);
        }
        let path = named.find()?.unwrap_or_else(|| self.path.clone());
        // Also with --force: a mounted file system would be destroyed under its users.
        let mut options = OpenOptions::default().exclusive(true);
        if let Some(size) = self.sector_size {
            options = options.sector_size(size);
        }
        match options.open(&path) {
            Err(Error::Device(e)) if !path.exists() => {
                Err(missing(&path, &e, "--size 8M makes a file of that size"))
            }
            opened => Ok(Box::new(opened.map_err(Failure::about(shown(&self.path)))?)),
        }
    }

    /// Makes the file, and returns whether it is new.
    fn make_file(&self, bytes: u64) -> Result<bool, Failure> {
        let sector = u64::from(self.sector_size.unwrap_or(SectorSize::DEFAULT).get());
        let least = MIN_SECTORS * sector;
        if bytes < least {
            return Err(Failure::Refused(format!(
                "--size {bytes} is too small: a ring with sectors of {sector} bytes takes at least {least} bytes"
            )));
        }
        let path = shown(&self.path);
        if self.path.exists() {
            let there = std::fs::metadata(&self.path).map_err(Failure::io(path.clone()))?;
            let text = if there.file_type().is_block_device() {
                format!("{path} is a block device, which has its size: leave out --size")
            } else if !there.is_file() {
                format!(
                    "{path} exists, and is neither a file nor a block device: give another path"
                )
            } else if there.len() == bytes {
                return Ok(false);
            } else if there.len() < least {
                let size = there.len();
                format!("{path} exists, and is too small for a ring: {size} bytes: remove it")
            } else {
                let size = there.len();
                format!(
                    "{path} exists, and has {size} bytes, not {bytes}: remove it, or leave out --size"
                )
            };
            return Err(Failure::Refused(text));
        }
        make_file(&self.path, bytes).map_err(Failure::io(format!("cannot make {path}")))?;
        Ok(true)
    }

    fn fill(&self, device: &Device) -> Outcome {
        let _alone = both_roles(device)?;
        let path = shown(&self.path);
        let size = device.geometry().sector_size().bytes();
        if self.force {
            // Sector 0 first: a crash from here on leaves no ring, rather than the old ring without
            // its pointers.
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
            if let Some(byte) = first_used_byte(device).map_err(Error::from)? {
                let text =
                    format!("{path} is not empty: byte {byte} is not zero (--force overwrites it)");
                return Err(Failure::Refused(text));
            }
        }
        create(device, CreateOptions::new().plain(self.plain))?;
        Ok(())
    }
}
