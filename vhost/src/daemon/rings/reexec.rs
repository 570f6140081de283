//! The control process becomes another program, and goes on as it: what it leaves to that program,
//! and takes over at its start.
//!
//! It keeps its number, and so its place with a service manager. Listening sockets stay open, so
//! that whoever connects meanwhile waits and is not refused. Rings, and everything else, are opened
//! anew: nothing depends on how the other program keeps them.

use crate::daemon::failure::{Failure, system};
use crate::daemon::sockets::{Listening, OwnPath};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The variable of the environment that has the number of the descriptor with a [`Description`].
pub const VARIABLE: &str = "BLOCKRING_TAKE_OVER";

/// The version of that description. A program that knows another one is not started.
const VERSION: u32 = 1;

/// How long a program may take to check the configuration.
const CHECK_PATIENCE: Duration = Duration::from_secs(20);
const CHECK_PAUSE: Duration = Duration::from_millis(5);

/// What is left, as it is written down. Numbers are those of descriptors.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Description {
    version: u32,
    rings: Vec<(String, String)>,
    sockets: Vec<(OwnPath, RawFd)>,
    client: Option<RawFd>,
}

/// What the program before this one has left.
#[derive(Default)]
pub struct TakenOver {
    /// Rings that no file of the folder describes: names and texts.
    pub rings: Vec<(String, String)>,
    /// The sockets that it has listened on.
    pub sockets: KeptSockets,
    /// The client that waits until this program serves the rings.
    pub client: Option<UnixStream>,
}

/// Listening sockets by their paths, for the rings that are to have them. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct KeptSockets(Arc<Mutex<BTreeMap<PathBuf, Listening>>>);

impl KeptSockets {
    /// Takes the socket that listens at a path, if it is kept.
    pub fn take(&self, path: &Path) -> Option<Listening> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(path)
    }

    /// Removes those that nobody has taken: no ring has them any more.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl TakenOver {
    /// Takes what the program before this one has left, if there was one.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn from_environment() -> Result<Self, Failure> {
        let Some(number) = std::env::var_os(VARIABLE) else { return Ok(Self::default()) };
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{VARIABLE} is wrong"));
        let number = number.to_str().and_then(|number| number.parse().ok()).ok_or_else(wrong);
        let taken = number.and_then(Self::read);
        taken.map_err(system("take the rings over from the program before this one"))
    }

    fn read(number: RawFd) -> io::Result<Self> {
        let written = File::from(inherited(number)?);
        let description: Description = serde_json::from_reader(BufReader::new(written))?;
        if description.version != VERSION {
            let text = format!("its description has version {}", description.version);
            return Err(io::Error::other(text));
        }
        let mut sockets = BTreeMap::new();
        for (own, number) in description.sockets {
            let path = own.path.clone();
            sockets.insert(path, Listening::resumed(inherited(number)?, own)?);
        }
        let client = description.client.map(inherited).transpose()?;
        Ok(Self {
            rings: description.rings,
            sockets: KeptSockets(Arc::new(Mutex::new(sockets))),
            client: client.map(UnixStream::from),
        })
    }
}

/// Takes a descriptor that the program before this one has left open.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: that program has written the number down for this purpose alone, each number once,
    // and the numbers that a service manager passes are not among them: it refuses to be followed
    // where there are such.
    unsafe { ring_program::sockets::take(number) }
}

/// What is left to the next program.
#[derive(Default)]
pub struct Left<'a> {
    /// Rings that no file of the folder describes: names and texts.
    pub rings: Vec<(String, String)>,
    /// Sockets that the next program goes on listening on.
    pub sockets: Vec<&'a Listening>,
    /// The client that waits until it serves the rings.
    pub client: Option<BorrowedFd<'a>>,
}

impl Left<'_> {
    /// Becomes `program`. Returns only if that fails, and why.
    pub fn become_program(self, program: &Path) -> Failure {
        let words: Vec<_> = std::env::args_os().collect();
        let start = |source| Failure::Start { program: program.to_owned(), source };
        match self.written() {
            Ok(written) => {
                let mut command = Command::new(program);
                if let Some((name, arguments)) = words.split_first() {
                    command.arg0(name).args(arguments);
                }
                start(command.env(VARIABLE, written.as_raw_fd().to_string()).exec())
            }
            Err(e) => start(e),
        }
    }

    /// Writes it down, and keeps its descriptors open in the next program.
    fn written(self) -> io::Result<OwnedFd> {
        let mut sockets = Vec::new();
        for socket in self.sockets {
            // One that was passed is its maker's.
            if let Some(own) = socket.own_path() {
                sockets.push((own, keep(socket.fd().as_fd())?));
            }
        }
        let client = self.client.map(keep).transpose()?;
        let description = Description { version: VERSION, rings: self.rings, sockets, client };
        let mut file = File::from(memfd_create("blockring-left", MFdFlags::empty())?);
        file.write_all(&serde_json::to_vec(&description)?)?;
        lseek(&file, 0, Whence::SeekSet)?;
        Ok(file.into())
    }
}

/// Keeps a descriptor open in the next program. Returns its number.
fn keep(fd: BorrowedFd<'_>) -> io::Result<RawFd> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd.as_raw_fd())
}

/// Has a program check the command line and the folder of this one.
///
/// # Errors
///
/// It cannot be started, or finds something wrong; in words.
pub fn check(program: &Path) -> Result<(), String> {
    let fail = |e: io::Error| format!("{}: {e}", program.display());
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--check-config").env_remove(VARIABLE);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(fail)?;
    let deadline = Instant::now() + CHECK_PATIENCE;
    loop {
        match child.try_wait().map_err(fail)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(format!(
                    "{} --check-config finds something wrong with the options or a ring's file ({status})",
                    program.display()
                ));
            }
            None if Instant::now() >= deadline => {
                // It may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} --check-config does not end", program.display()));
            }
            None => std::thread::sleep(CHECK_PAUSE),
        }
    }
}
