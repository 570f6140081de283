//! A ring behind the backend, with one end in a guest and the other on the host. Each process can
//! be killed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_block_ring::UnixDevice;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;

use super::host::{self, HostLoad};
use super::inside::{Manner, Running, end_job, start_guest};
use super::stream::{SOON, Stream};
use super::{Killed, Outcome, RING_BYTES, Result};
use crate::load::Random;
use crate::load::item::Recipe;
use crate::{Daemon, Error, binaries};

/// Processes around one ring, all alive between two calls.
pub struct Rig {
    pub(super) folder: PathBuf,
    pub(super) side: Side,
    pub(super) stream: Stream,
    pub(super) load: HostLoad,
    pub(super) host: Daemon,
    pub(super) guest: Running,
    pub(super) backend: Daemon,
    pub(super) manner: Manner,
    /// Time of the last kill, while the stream has not gone on since.
    died: Option<Instant>,
    stalls: Vec<Duration>,
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig").field("side", &self.side).finish_non_exhaustive()
    }
}

impl Rig {
    /// Starts everything; `side` is the guest's.
    pub(super) fn start(folder: &Path, side: Side, manner: Manner, recipe: Recipe) -> Result<Self> {
        let mut stream = Stream::new(recipe);
        let address = format!("unix:{}", folder.join("c").display());
        let load = HostLoad { address, folder: folder.to_owned(), sector_size: None };
        let backend = start_backend(folder, side, manner, host_build()?)?;
        let guest = start_guest(folder, side, manner, &mut stream)?;
        let host = load.start(other(side), &mut stream)?;
        let (folder, died, stalls) = (folder.to_owned(), None, Vec::new());
        let mut rig =
            Self { folder, side, stream, load, host, guest, backend, manner, died, stalls };
        rig.wait_for_flow()?;
        Ok(rig)
    }

    /// Waits until both ends have advanced since they were started.
    pub(super) fn wait_for_flow(&mut self) -> Result<()> {
        self.stream.wait_for_flow()?;
        self.stalls.extend(self.died.take().map(|at| at.elapsed()));
        Ok(())
    }

    /// Waits for a random instant: mostly under load, and at times while the ends attach.
    fn wait_for_the_instant(&mut self, random: &mut Random) -> Result<()> {
        if !random.one_in(4) {
            self.wait_for_flow()?;
        }
        pause(random);
        Ok(())
    }

    /// Kills the process on the host this many times.
    pub(super) fn kill_host(
        &mut self,
        kills: u32,
        random: &mut Random,
        killed: Killed<'_>,
    ) -> Result<()> {
        let side = other(self.side);
        let Self { load, host, stream, .. } = self;
        let stalls = load.kill_again_and_again(side, kills, host, stream, random, killed)?;
        self.stalls.extend(stalls);
        Ok(())
    }

    /// Kills the backend under the guest.
    ///
    /// QEMU 7.2 gives up for good a backend that dies during negotiation: the guest must have been
    /// served before.
    pub(super) fn kill_backend(&mut self, random: &mut Random) -> Result<()> {
        self.wait_for_more(self.side, 2 + random.below(20))?;
        pause(random);
        host::kill(&mut self.backend)?;
        let died = Instant::now();
        self.backend = self.start_backend(host_build()?)?;
        // One `advance` may have been answered before, and logged after.
        self.wait_for_more(self.side, 2)?;
        self.stalls.push(died.elapsed());
        // The other end has found the new backend, too: it moves with the guest.
        self.wait_for_more(other(self.side), 2)
    }

    pub(super) fn wait_for_more(&mut self, side: Side, steps: u64) -> Result<()> {
        let from = self.stream.progress(side)?;
        self.stream.wait_for_progress(side, from, steps)
    }

    /// Kills QEMU, with the guest in it.
    pub(super) fn kill_qemu(&mut self, random: &mut Random) -> Result<()> {
        self.wait_for_the_instant(random)?;
        kill_process(self.guest.guest.pid())?;
        self.died.get_or_insert_with(Instant::now);
        self.guest = start_guest(&self.folder, self.side, self.manner, &mut self.stream)?;
        Ok(())
    }

    /// Saves the guest with its memory, and restores it in another QEMU, while both ends work.
    /// Before that a migration is begun and cancelled, so that the backend has changed to logging
    /// and back under load.
    pub(super) fn save_and_restore(&mut self, random: &mut Random) -> Result<()> {
        self.wait_for_more(self.side, 2 + random.below(20))?;
        pause(random);
        self.guest.guest.begin_and_cancel_migration()?;
        self.wait_for_more(self.side, 2 + random.below(20))?;
        pause(random);
        let saved = Instant::now();
        self.guest.save_and_restore(&self.folder.join("snapshot"))?;
        // One `advance` may have been answered before, and logged after.
        self.wait_for_more(self.side, 2)?;
        self.stalls.push(saved.elapsed());
        self.wait_for_more(other(self.side), 2)
    }

    /// Kills everything at once.
    pub(super) fn kill_all(&mut self, random: &mut Random) -> Result<()> {
        self.wait_for_the_instant(random)?;
        let mut processes = [self.guest.guest.pid(), self.backend.pid(), self.host.pid()];
        processes.rotate_left(random.count(3));
        processes.into_iter().try_for_each(kill_process)?;
        self.died.get_or_insert_with(Instant::now);
        // They are reaped: they had not ended by themselves.
        host::kill(&mut self.backend)?;
        host::kill(&mut self.host)?;
        self.backend = self.start_backend(host_build()?)?;
        self.host = self.load.start(other(self.side), &mut self.stream)?;
        self.guest = start_guest(&self.folder, self.side, self.manner, &mut self.stream)?;
        Ok(())
    }

    pub(super) fn start_backend(&self, program: PathBuf) -> Result<Daemon> {
        start_backend(&self.folder, self.side, self.manner, program)
    }

    pub(super) fn backend_command(&self, program: PathBuf) -> Command {
        backend_command(&self.folder, self.side, self.manner, program)
    }

    /// Ends both ends in good order, and judges the stream.
    pub(super) fn finish(mut self) -> Result<Outcome> {
        self.wait_for_flow()?;
        match self.side {
            Side::Producer => {
                end_job(&self.guest.job)?;
                host::end(&mut self.host)?;
            }
            Side::Consumer => {
                host::end(&mut self.host)?;
                end_job(&self.guest.job)?;
            }
        }
        self.guest.expect_no_io_error()?;
        self.guest.guest.power_off()?;
        host::end(&mut self.backend)?;
        Ok(Outcome { tally: self.stream.judge()?, stalls: self.stalls })
    }
}

/// Returns the opposite end.
pub(super) fn other(side: Side) -> Side {
    match side {
        Side::Producer => Side::Consumer,
        Side::Consumer => Side::Producer,
    }
}

fn pause(random: &mut Random) {
    thread::sleep(Duration::from_micros(random.below(300_000)));
}

fn kill_process(id: u32) -> Result<()> {
    // A process id of this system always fits; the fallback names no process.
    let id = Pid::from_raw(id.try_into().unwrap_or(i32::MAX));
    Ok(kill(id, Signal::SIGKILL).map_err(|e| Error::io(format!("killing {id}"))(e.into()))?)
}

/// Returns the backend's release build.
pub(super) fn host_build() -> Result<PathBuf> {
    Ok(binaries::programs()?.vhost_device_blockring())
}

fn start_backend(folder: &Path, side: Side, manner: Manner, program: PathBuf) -> Result<Daemon> {
    let command = backend_command(folder, side, manner, program);
    let mut backend = Daemon::spawn("backend", command, folder)?;
    // The socket of a killed backend does not answer.
    let socket = folder.join("c");
    backend.wait_for("answering", SOON, |_| UnixDevice::connect(&socket, Role::Control).is_ok())?;
    Ok(backend)
}

fn backend_command(folder: &Path, side: Side, manner: Manner, program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).args(["--socket-path", "s", "--blk-file", "ring"]);
    command.args(["--consumer-socket", "c", "--serial", "ring", "--guest", &side.to_string()]);
    command.args(["--size", &RING_BYTES.to_string()]);
    command.args(manner.backend_options());
    command
}
