//! A ring behind the backend: one end in a guest, the other one on the host. Everything of it can die.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_block_ring::UnixDevice;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;

use super::host::{self, HostLoad, verb};
use super::stream::{SOON, Stream};
use super::{Killed, Outcome, RING_BYTES, Result, unsound};
use crate::load::Random;
use crate::load::item::Recipe;
use crate::{Daemon, Disk, Error, Guest, GuestBuilder, ImageSpec, Job, binaries};

/// The port of the guest that its load logs to.
const LOG_PORT: &str = "log";

/// Processes around one ring, all alive between two calls.
pub(super) struct Rig {
    folder: PathBuf,
    side: Side,
    stream: Stream,
    load: HostLoad,
    host: Daemon,
    guest: Running,
    backend: Daemon,
    /// When the kill was that the stream has not got over yet.
    died: Option<Instant>,
    stalls: Vec<Duration>,
}

/// A guest and the load in it.
struct Running {
    guest: Guest,
    job: Job,
}

impl Rig {
    /// Starts everything; `side` is the guest's.
    pub fn start(folder: &Path, side: Side, recipe: Recipe) -> Result<Self> {
        let mut stream = Stream::new(recipe);
        let address = format!("unix:{}", folder.join("c").display());
        let load = HostLoad { address, folder: folder.to_owned(), sector_size: None };
        let backend = start_backend(folder, side)?;
        let guest = start_guest(folder, side, &mut stream)?;
        let host = load.start(other(side), &mut stream)?;
        let (folder, died, stalls) = (folder.to_owned(), None, Vec::new());
        let mut rig = Self { folder, side, stream, load, host, guest, backend, died, stalls };
        rig.wait_for_flow()?;
        Ok(rig)
    }

    /// Waits until both ends have advanced since they were started.
    fn wait_for_flow(&mut self) -> Result<()> {
        self.stream.wait_for_flow()?;
        self.stalls.extend(self.died.take().map(|at| at.elapsed()));
        Ok(())
    }

    /// A random instant: under load mostly, and at times while the ends attach.
    fn wait_for_the_instant(&mut self, random: &mut Random) -> Result<()> {
        if !random.one_in(4) {
            self.wait_for_flow()?;
        }
        pause(random);
        Ok(())
    }

    /// Kills the process on the host this many times.
    pub fn kill_host(&mut self, kills: u32, random: &mut Random, killed: Killed<'_>) -> Result<()> {
        let side = other(self.side);
        let Self { load, host, stream, .. } = self;
        let stalls = load.kill_again_and_again(side, kills, host, stream, random, killed)?;
        self.stalls.extend(stalls);
        Ok(())
    }

    /// Kills the backend under the guest.
    ///
    /// QEMU 7.2 gives a backend up for good that dies while the two introduce themselves: the guest must have been served before.
    pub fn kill_backend(&mut self, random: &mut Random) -> Result<()> {
        self.wait_for_more(self.side, 2 + random.below(20))?;
        pause(random);
        host::kill(&mut self.backend)?;
        let died = Instant::now();
        self.backend = start_backend(&self.folder, self.side)?;
        // One `advance` may have been answered before, and logged after.
        self.wait_for_more(self.side, 2)?;
        self.stalls.push(died.elapsed());
        // The other end has found the new one, too: it moves with the guest.
        self.wait_for_more(other(self.side), 2)
    }

    fn wait_for_more(&mut self, side: Side, steps: u64) -> Result<()> {
        let from = self.stream.progress(side)?;
        self.stream.wait_for_progress(side, from, steps)
    }

    /// Kills QEMU, with the guest in it.
    pub fn kill_qemu(&mut self, random: &mut Random) -> Result<()> {
        self.wait_for_the_instant(random)?;
        kill_process(self.guest.guest.pid())?;
        self.died.get_or_insert_with(Instant::now);
        self.guest = start_guest(&self.folder, self.side, &mut self.stream)?;
        Ok(())
    }

    /// Kills everything at once.
    pub fn kill_all(&mut self, random: &mut Random) -> Result<()> {
        self.wait_for_the_instant(random)?;
        let mut processes = [self.guest.guest.pid(), self.backend.pid(), self.host.pid()];
        processes.rotate_left(random.count(3));
        processes.into_iter().try_for_each(kill_process)?;
        self.died.get_or_insert_with(Instant::now);
        // Reaped: they had not ended by themselves.
        host::kill(&mut self.backend)?;
        host::kill(&mut self.host)?;
        self.backend = start_backend(&self.folder, self.side)?;
        self.host = self.load.start(other(self.side), &mut self.stream)?;
        self.guest = start_guest(&self.folder, self.side, &mut self.stream)?;
        Ok(())
    }

    /// Lets the ends come to theirs, and judges the stream.
    pub fn finish(mut self) -> Result<Outcome> {
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
        let log = self.guest.guest.check("dmesg")?;
        if log.contains("I/O error") {
            return unsound(format!("the guest has met an I/O error:\n{log}"));
        }
        self.guest.guest.power_off()?;
        host::end(&mut self.backend)?;
        Ok(Outcome { tally: self.stream.judge()?, stalls: self.stalls })
    }
}

/// The opposite end.
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

fn start_backend(folder: &Path, side: Side) -> Result<Daemon> {
    let mut command = Command::new(binaries::host()?.vhost_device_blockring());
    command.current_dir(folder).args(["--socket-path", "s", "--blk-file", "ring"]);
    command.args(["--consumer-socket", "c", "--serial", "ring", "--guest", &side.to_string()]);
    command.args(["--size", &RING_BYTES.to_string()]);
    let mut backend = Daemon::spawn("backend", command, folder)?;
    // What a killed one left behind does not answer.
    let socket = folder.join("c");
    backend.wait_for("answering", SOON, |_| UnixDevice::connect(&socket, Role::Control).is_ok())?;
    Ok(backend)
}

fn start_guest(folder: &Path, side: Side, stream: &mut Stream) -> Result<Running> {
    let run = stream.next_run();
    let log = folder.join(format!("{side}-{run}.log"));
    let disk = Disk::vhost_user(folder.join("s")).reconnecting();
    let guest = with_ports(GuestBuilder::new().disk(disk), &[(LOG_PORT, &log)])?.boot()?;
    let job = start_job(&guest, side, LOG_PORT, run, stream)?;
    stream.follow(side, &log);
    Ok(Running { guest, job })
}

/// Gives a guest ports for logs, each to a file on the host.
///
/// Without an event descriptor between them QEMU takes a write up while the guest's processor waits for it: when the guest's
/// `write` returns the line is in the file, and outlives QEMU.
pub(super) fn with_ports(builder: GuestBuilder, ports: &[(&str, &Path)]) -> Result<GuestBuilder> {
    let image = ImageSpec::standard()?.module("virtio_console");
    let bus = ["-device", "virtio-serial-pci,ioeventfd=off"].map(str::to_owned);
    let each = ports.iter().flat_map(|(name, path)| {
        // In QEMU's option lists a comma is written twice.
        let path = path.display().to_string().replace(',', ",,");
        [
            "-chardev".to_owned(),
            format!("file,id=port-{name},path={path}"),
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
    port: &str,
    run: u32,
    stream: &Stream,
) -> Result<Job> {
    let (verb, seed) = (verb(side), stream.recipe().seed);
    // In the shell's place, so that a signal to the job is one to it alone.
    let command =
        format!("exec crashload {verb} serial:ring --seed {seed} --run {run} --log port:{port}");
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
