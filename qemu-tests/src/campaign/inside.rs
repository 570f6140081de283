//! The end of a ring that is in a guest, and the guest around it.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use shared_block_ring::format::Side;

use super::host::verb;
use super::stream::{SOON, Stream};
use super::{Result, unsound};
use crate::{Disk, Guest, GuestBuilder, ImageSpec, Job};

/// Largest number of runs of a load in one guest: each has a port of its own for its log.
const RUNS: usize = 6;

/// The guest's disk as QEMU knows it, what that is plugged into, and the connection to the backend.
pub(super) const DISK: &str = "ring";
pub(super) const SLOT: &str = "port0";
pub(super) const CHARDEV: &str = "c0";

/// Way to wait of the end in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Polling.
    Plain,
    /// Polling, in a guest that can be saved with its memory.
    Migratable,
    /// Reads of the idle class, which the backend holds for a short while. Items that this end
    /// keeps meanwhile may be what the other end waits for.
    HeldReads,
}

impl Manner {
    pub fn backend_options(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Migratable => &["--migratable"],
            Self::HeldReads => &["--hold-ms", "500"],
        }
    }

    fn launcher(self) -> &'static str {
        match self {
            Self::Plain | Self::Migratable => "",
            Self::HeldReads => "ionice -c 3 ",
        }
    }
}

/// A guest and the load in it.
pub(super) struct Running {
    pub guest: Guest,
    pub job: Job,
    /// Builder that boots the guest, and resumes it.
    builder: GuestBuilder,
    /// Log files of the next runs.
    ports: VecDeque<(String, PathBuf)>,
}

/// Boots a guest with the ring's disk at the socket `s`, and starts the load in it.
pub(super) fn start_guest(
    folder: &Path,
    side: Side,
    manner: Manner,
    stream: &mut Stream,
) -> Result<Running> {
    // Its runs will have higher numbers: no other guest of this folder logs to these files.
    let first = stream.next_run();
    let port =
        |number| (format!("log{number}"), folder.join(format!("{side}-{first}-{number}.log")));
    let mut ports: VecDeque<_> = (0..RUNS).map(port).collect();
    let each: Vec<_> = ports.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
    let disk = Disk::vhost_user(folder.join("s")).reconnecting();
    let disk = disk.options(&format!("id={DISK},bus={SLOT}"));
    let builder = GuestBuilder::new().reboots().slot(SLOT).disk(disk);
    let builder = with_ports(builder, &each)?;
    let guest = builder.clone().boot()?;
    let job = start_next(&guest, &mut ports, side, manner, stream)?;
    Ok(Running { guest, job, builder, ports })
}

impl Running {
    /// Starts the load again, which has ended.
    pub fn restart_load(&mut self, side: Side, manner: Manner, stream: &mut Stream) -> Result<()> {
        self.job = start_next(&self.guest, &mut self.ports, side, manner, stream)?;
        Ok(())
    }

    /// Saves the guest, ends its QEMU, and has another one go on with it.
    pub fn save_and_restore(&mut self, file: &Path) -> Result<()> {
        let snapshot = self.guest.save(file)?;
        // Its ports and its connection to the backend are the next one's.
        self.guest.end()?;
        self.guest = self.builder.clone().resume(&snapshot)?;
        self.job = self.guest.adopt(&self.job);
        Ok(fs::remove_file(file).map_err(crate::Error::file("removing", file))?)
    }

    /// Fails where the guest's kernel has met an I/O error since it booted.
    pub fn expect_no_io_error(&self) -> Result<()> {
        let log = self.guest.check("dmesg")?;
        if log.contains("I/O error") {
            return unsound(format!("the guest has met an I/O error:\n{log}"));
        }
        Ok(())
    }
}

fn start_next(
    guest: &Guest,
    ports: &mut VecDeque<(String, PathBuf)>,
    side: Side,
    manner: Manner,
    stream: &mut Stream,
) -> Result<Job> {
    let Some((port, log)) = ports.pop_front() else {
        return unsound(format!("more than {RUNS} runs in one guest"));
    };
    let job = start_job(guest, side, manner, &port, stream.next_run(), stream)?;
    stream.follow(side, &log);
    Ok(job)
}

/// Gives a guest ports for logs, each to a file on the host.
///
/// Without an event descriptor between them QEMU takes a write up while the guest's processor waits
/// for it: when the guest's `write` returns the line is in the file, and outlives QEMU.
pub(super) fn with_ports(builder: GuestBuilder, ports: &[(&str, &Path)]) -> Result<GuestBuilder> {
    let image = ImageSpec::standard()?.module("virtio_console");
    let bus = ["-device", "virtio-serial-pci,ioeventfd=off"].map(str::to_owned);
    let each = ports.iter().flat_map(|(name, path)| {
        // In QEMU's option lists a comma is written twice.
        let path = path.display().to_string().replace(',', ",,");
        [
            "-chardev".to_owned(),
            // A guest that is restored goes on with the same file.
            format!("file,id=port-{name},path={path},append=on"),
            "-device".to_owned(),
            format!("virtserialport,chardev=port-{name},name={name}"),
        ]
    });
    Ok(builder.image(image).arguments(bus.into_iter().chain(each)))
}

/// Starts an end in a guest, on the disk with the serial number `ring`.
pub(super) fn start_job(
    guest: &Guest,
    side: Side,
    manner: Manner,
    port: &str,
    run: u32,
    stream: &Stream,
) -> Result<Job> {
    let (verb, seed, launcher) = (verb(side), stream.recipe().seed, manner.launcher());
    // In the shell's place, so that a signal to the job is one to it alone.
    let command = format!(
        "exec {launcher}crashload {verb} serial:ring --seed {seed} --run {run} --log port:{port}"
    );
    Ok(guest.spawn(&command)?)
}

/// Asks an end in a guest to come to its end, which it must do in good order.
pub(super) fn end_job(job: &Job) -> Result<()> {
    job.signal("TERM")?;
    let output = job.wait(SOON)?;
    if output.status == 0 {
        return Ok(());
    }
    unsound(format!("an end in the guest ended badly: {output:?}"))
}
