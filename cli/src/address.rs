//! The address of a ring on the command line, and how it is opened.

use super::failure::{Failure, Outcome};
use ring_address::Options;
pub use ring_address::{Address as Named, AnyDevice as Device};
use ring_program::Stop;
use ring_program::standard::Standard;
use shared_block_ring::device::{DeviceError, LockRange, RangeLock, holder, shown};
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::wait::Limits;
use shared_block_ring::{
    Error, FileDevice, OpenOptions, RingDevice, UnixDevice, refuse_among_devices,
};
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Help of ADDRESS for a command that takes only files and block devices of this machine's kernel.
pub const KERNEL_ONLY: &str = "Path of a file or block device, or serial:NAME";

/// The arguments that name a ring.
#[derive(clap::Args)]
pub struct Address {
    /// Path of a file or block device, serial:NAME, unix:PATH of a backend's consumer socket,
    /// vhost-user:PATH of a backend's vhost-user socket, or pci:0000:00:04.0 of a disk taken by
    /// blockring bind (blockring --help explains them)
    address: PathBuf,
    /// Sector size in bytes of a ring in a file, if it was not made with 512 (a device has its own)
    #[arg(long, value_name = "N", value_parser = sector_size)]
    sector_size: Option<SectorSize>,
}

/// Longest wait for the answer of a backend where the command has no `--timeout`. A backend answers
/// within milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(5);

impl Address {
    /// Makes the address that a configuration has in the place of a command line.
    pub fn new(address: PathBuf, sector_size: Option<SectorSize>) -> Self {
        Self { address, sector_size }
    }

    /// Opens the ring for `role`; a backend hands a ring over to one producer and one consumer at a
    /// time. `stop` also ends the waits for a backend that is gone, and for one that does not
    /// answer; that wait ends after `timeout`, too.
    pub fn open(
        &self,
        role: Role,
        stop: &Stop,
        timeout: Option<Duration>,
    ) -> Result<Device, Failure> {
        let bounds = Some((stop, timeout.unwrap_or(PATIENCE)));
        self.not_the_output(self.device(role, self.options(), bounds)?)
    }

    pub fn open_read_only(&self) -> Result<Device, Failure> {
        self.not_the_output(self.device(Role::Control, self.options().read_only(true), None)?)
    }

    /// Refuses a ring that is also standard output: a report, items or the output of a command
    /// would overwrite the ring's sectors, or would make its file longer.
    fn not_the_output<D: RingDevice>(&self, device: D) -> Result<D, Failure> {
        match self.refuse_ring(&device, Standard::Output.fd(), OUTPUT) {
            Err(Failure::Refused(text)) => Err(Failure::OutputIsRing(text)),
            kept_apart => kept_apart.map(|()| device),
        }
    }

    /// Refuses standard input that is the ring itself.
    pub fn refuse_as_input<D: RingDevice + ?Sized>(&self, device: &D) -> Outcome {
        self.refuse_ring(device, Standard::Input.fd(), "standard input")
    }

    /// Refuses `file`, which the command uses as `role`, if it holds the ring.
    pub fn refuse_ring<D: RingDevice + ?Sized>(
        &self,
        device: &D,
        file: BorrowedFd<'_>,
        role: &str,
    ) -> Outcome {
        let name = self.name();
        let unknown = format!("{name}: cannot tell whether {role} is the ring itself");
        if device.is_stored_in(file).map_err(Failure::io(unknown))? {
            return Err(Failure::Refused(is_the_ring(&name, role)));
        }
        Ok(())
    }

    fn device(
        &self,
        role: Role,
        options: OpenOptions,
        bounds: Option<(&Stop, Duration)>,
    ) -> Result<Device, Failure> {
        let interrupts: Vec<_> = bounds.iter().map(|(stop, _)| stop.fd()).collect();
        let patience = bounds.map_or(PATIENCE, |(_, timeout)| timeout);
        let limits = Limits::within(patience).or_on(&interrupts);
        let named = self.named();
        if let Named::Path(_) | Named::Serial(_) = named {
            // Whoever only looks at a ring, or mends it, has misspelt its name.
            let remedy = match role {
                Role::Control => IS_IT_RIGHT.to_owned(),
                Role::Producer | Role::Consumer => self.how_to_make(),
            };
            return Ok(Box::new(self.open_as(options, &remedy)?));
        }
        let mut options = driven_options(role, self.sector_size);
        if let Some((stop, _)) = bounds {
            let stop = stop.fd().try_clone_to_owned();
            options = options.stop_on(stop.map_err(Failure::io("cannot duplicate a descriptor"))?);
        }
        // SAFETY: whoever names the socket vouches for the backend behind it and for the
        // permissions of its ring's file: the manual asks for both (docs/security.md, "Reading in
        // place"). This program changes the ring by this device alone: it refuses to use the ring's
        // file as input or output, and opens no ring twice.
        let options = unsafe { options.lend_in_place() };
        Ok(named.open(options, &limits)?)
    }

    /// Returns what the address names.
    fn named(&self) -> Named {
        Named::from(self.address.as_path())
    }

    /// Returns whether a backend serves the ring, or may serve it.
    pub fn is_served(&self) -> bool {
        !matches!(self.named(), Named::Path(_) | Named::Serial(_))
    }

    /// Returns the socket of the backend that hands the ring over, if the address names one.
    pub fn socket(&self) -> Option<PathBuf> {
        if let Named::Unix(socket) = self.named() { Some(socket) } else { None }
    }

    pub fn connect(&self, role: Role) -> Result<UnixDevice, Failure> {
        let socket = self.socket().unwrap_or_default();
        self.not_the_output(UnixDevice::connect(socket, role)?)
    }

    /// Connects without a role, and waits no longer than this for the backend's answer.
    pub fn connect_within(&self, patience: Duration) -> Result<UnixDevice, Failure> {
        let socket = self.socket().unwrap_or_default();
        let limits = Limits::within(patience);
        self.not_the_output(UnixDevice::connect_within(socket, Role::Control, &limits)?)
    }

    /// Refuses a ring that is also standard output, for a command to which a ring that cannot be
    /// opened is no error. A backend is given `patience` to answer.
    pub fn refuse_as_output(&self, patience: Duration) -> Outcome {
        let opened = match self.socket() {
            Some(_) => self.connect_within(patience).map(drop),
            None => self.open_read_only().map(drop),
        };
        match opened {
            Err(failure @ Failure::OutputIsRing(_)) => Err(failure),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Opens the file or block device for this process alone. `remedy` is for a missing file.
    pub fn open_alone(&self, remedy: &str) -> Result<FileDevice, Failure> {
        self.not_the_output(self.open_as(self.options().exclusive(true), remedy)?)
    }

    /// Returns what makes a missing ring, in words.
    fn how_to_make(&self) -> String {
        format!("blockring create --size 8M {} makes a ring", self.name())
    }

    fn open_as(&self, options: OpenOptions, remedy: &str) -> Result<FileDevice, Failure> {
        let path = self.named().find()?.unwrap_or_else(|| self.address.clone());
        // Before it is opened: with --json a report that it is no ring would be written into it,
        // too.
        if is_output(&path) {
            return Err(Failure::OutputIsRing(is_the_ring(&self.name(), OUTPUT)));
        }
        options.open(&path).map_err(|e| match e {
            Error::Device(e) if e.source.kind() == ErrorKind::NotFound && self.path().is_some() => {
                missing(&path, &e, remedy)
            }
            Error::Device(_) => e.into(),
            source => Failure::During { what: self.name(), source },
        })
    }

    fn options(&self) -> OpenOptions {
        self.sector_size
            .map_or_else(OpenOptions::default, |size| OpenOptions::default().sector_size(size))
    }

    /// Returns the path of the ring if the address is a path.
    pub fn path(&self) -> Option<&Path> {
        matches!(self.named(), Named::Path(_)).then_some(self.address.as_path())
    }

    /// Returns the address as messages show it.
    pub fn name(&self) -> String {
        shown(&self.address)
    }

    /// Returns the address.
    pub fn as_os_str(&self) -> &OsStr {
        self.address.as_os_str()
    }
}

/// The name of standard output in the error about a ring that is also standard output.
const OUTPUT: &str = "standard output";

/// What to do about a ring that is not there, for commands that make none.
pub const IS_IT_RIGHT: &str = "is the path right?";

fn is_the_ring(name: &str, role: &str) -> String {
    format!("{name}: {role} is the ring itself (give another file, or a pipe)")
}

/// Returns whether standard output is the file or block device at `path`, as far as this process
/// can see.
fn is_output(path: &Path) -> bool {
    let output = Standard::Output.fd().try_clone_to_owned().map(File::from);
    let output = output.and_then(|output| output.metadata());
    let (Ok(output), Ok(there)) = (output, std::fs::metadata(path)) else { return false };
    if there.file_type().is_block_device() {
        return output.file_type().is_block_device() && output.rdev() == there.rdev();
    }
    there.is_file() && (output.dev(), output.ino()) == (there.dev(), there.ino())
}

/// Returns the failure for a path that does not exist. `remedy` is how to make a ring there; it is
/// replaced where the path leads elsewhere, or where only device nodes belong.
pub fn missing(path: &Path, error: &DeviceError, remedy: &str) -> Failure {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let remedy = match (std::fs::read_link(path), folder, refuse_among_devices(path)) {
        (Ok(target), ..) => {
            let target = shown(&target);
            format!(
                "it is a symbolic link to {target}, which does not exist: correct the link, or make the ring there"
            )
        }
        (_, Some(folder), _) if !folder.exists() => {
            format!("there is no folder {}", shown(folder))
        }
        (_, _, Err(e)) if e.kind() == ErrorKind::Unsupported => {
            "is the disk there? lsblk lists those that are".to_owned()
        }
        _ => remedy.to_owned(),
    };
    Failure::Missing(format!("{error} ({remedy})"))
}

/// Returns the options of a disk that this process drives by itself.
pub fn driven_options(role: Role, sector_size: Option<SectorSize>) -> Options {
    let options = Options::new(role);
    let options = match sector_size {
        Some(size) => options.sector_size(size),
        None => options,
    };
    // SAFETY: the device is the machine's, and was taken from the kernel by root for a program like
    // this one; docs/kernel-bypass.md says what that rests on. A lock keeps other processes of ours
    // away.
    unsafe { options.drive_pci() }
}

/// Takes the locks of both roles, so that no producer or consumer can attach. It fails while one is
/// attached.
pub fn both_roles<D: RingDevice + ?Sized>(device: &D) -> Result<[RangeLock; 2], Failure> {
    let take = |side| {
        let lock = RangeLock::try_acquire(device, LockRange::Role(side)).map_err(Error::from)?;
        lock.ok_or_else(|| Error::RoleTaken { role: side, holder: holder(device, side) })
    };
    Ok([take(Side::Producer)?, take(Side::Consumer)?])
}

pub fn sector_size(text: &str) -> Result<SectorSize, String> {
    let size = text.parse().ok().and_then(|bytes| SectorSize::new(bytes).ok());
    size.ok_or_else(|| "it takes a power of two from 512 to 65536, such as 4096".to_owned())
}

/// Reads a whole number.
pub fn whole<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "it takes a whole number, such as 10")
}

/// Reads a whole number that is not 0.
pub fn positive<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "it takes a whole number larger than 0, such as 10")
}

/// The largest number of seconds that an option takes: about 30 years, which every clock can count.
const MOST_SECONDS: f64 = 1e9;

/// A number of seconds: whole, or with a fraction.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=MOST_SECONDS).contains(seconds));
    let seconds = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let takes = "it takes a number of seconds from 0 to 1000000000, such as 10 or 0.5";
    seconds.ok_or_else(|| takes.to_owned())
}

/// A number of seconds that is not 0.
pub fn positive_seconds(text: &str) -> Result<Duration, String> {
    let takes = "it takes a number of seconds larger than 0, up to 1000000000, such as 10 or 0.5";
    let seconds = seconds(text).ok().filter(|seconds| !seconds.is_zero());
    seconds.ok_or_else(|| takes.to_owned())
}
