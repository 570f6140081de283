//! The daemons that are compared.

use crate::error::{Result, doing};
use crate::front::Front;
use crate::machine::Processors;
use nix::sys::signal::Signal;
use qemu_tests::Daemon;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Bound on the start of a daemon.
const PATIENCE: Duration = Duration::from_secs(20);

/// A backend on its processor. It is stopped unless it is measured: one that polls would take the
/// processor from the other.
pub struct Backend {
    /// Name in messages.
    pub name: &'static str,
    daemon: Daemon,
    socket: PathBuf,
}

impl Backend {
    /// Starts our daemon with an empty ring of that many bytes.
    pub fn ours(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        bytes: u64,
        dir: &Path,
        processors: Processors,
    ) -> Result<Self> {
        let socket = dir.join(format!("{name}.sock"));
        let mut command = on_processor(processors.back, program);
        command.arg("--socket-path").arg(&socket);
        command.arg("--blk-file").arg(dir.join(format!("{name}.ring")));
        command.arg("--consumer-socket").arg(consumer_socket(dir, name));
        command.arg("--size").arg(bytes.to_string()).args(arguments);
        Self::start(name, command, dir, socket)
    }

    /// Starts the peer: QEMU's storage daemon with a file of that many bytes.
    pub fn peer(bytes: u64, dir: &Path, processors: Processors) -> Result<Self> {
        let (name, file, socket) = ("qsd", dir.join("qsd.img"), dir.join("qsd.sock"));
        let what = || format!("cannot make {}", file.display());
        let made = File::create(&file).map_err(doing(what()))?;
        shared_block_ring::allocate(&made, bytes).map_err(doing(what()))?;
        let mut command = on_processor(processors.back, Path::new("qemu-storage-daemon"));
        let file = file.display();
        command.arg("--blockdev");
        command.arg(format!("driver=file,node-name=f,filename={file},cache.direct=off"));
        command.arg("--blockdev").arg("driver=raw,node-name=r,file=f").arg("--export");
        command.arg(format!(
            "type=vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path={},writable=on",
            socket.display()
        ));
        Self::start(name, command, dir, socket)
    }

    /// Starts the bare loop with a file of that many bytes.
    pub fn reference(
        program: &Path,
        bytes: u64,
        dir: &Path,
        processors: Processors,
    ) -> Result<Self> {
        let (name, file, socket) = ("loop", dir.join("loop.img"), dir.join("loop.sock"));
        let what = || format!("cannot make {}", file.display());
        let made = File::create(&file).map_err(doing(what()))?;
        shared_block_ring::allocate(&made, bytes).map_err(doing(what()))?;
        let mut command = on_processor(processors.back, program);
        command.arg(&socket).arg(&file);
        Self::start(name, command, dir, socket)
    }

    fn start(name: &'static str, command: Command, dir: &Path, socket: PathBuf) -> Result<Self> {
        let mut daemon = Daemon::spawn(name, command, dir)?;
        daemon.wait_for_path(&socket, PATIENCE)?;
        let backend = Self { name, daemon, socket };
        // Every page is in memory before the first figure.
        let mut front = backend.front(64 << 10, 8)?;
        front.walk_once()?;
        drop(front);
        backend.halt()?;
        Ok(backend)
    }

    /// Connects a front end for requests of that size, `depth` at once.
    pub fn front(&self, bytes: u32, depth: u16) -> Result<Front> {
        Front::connect(self.name, &self.socket, bytes, depth)
    }

    /// Returns the socket for front ends.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Continues the daemon.
    pub fn resume(&self) -> Result<()> {
        Ok(self.daemon.signal(Signal::SIGCONT)?)
    }

    /// Stops the daemon.
    pub fn halt(&self) -> Result<()> {
        Ok(self.daemon.signal(Signal::SIGSTOP)?)
    }

    /// Returns the processor time that the daemon has used.
    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(self.daemon.cpu_time()?)
    }
}

/// Returns the hand-over socket of our daemon of that name.
pub fn consumer_socket(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.out"))
}

fn on_processor(processor: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("--cpu-list").arg(processor.to_string()).arg(program);
    command
}
