//! The control process becomes another program, and goes on as it: what it leaves to that program,
//! and takes over at its start.
//!
//! It keeps its number, and so its place with a service manager. Listening sockets stay open, so
//! that whoever connects meanwhile waits and is not refused. Rings, and everything else, are opened
//! anew: nothing depends on how the other program keeps them.

use crate::daemon::failure::{Failure, system};
use crate::daemon::rings::passed::PassedDescriptors;
use crate::daemon::sockets::{Listening, OwnPath};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::execve;
use ring_program::text::one_line;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The variable of the environment that has the number of the descriptor with a [`Description`].
pub const VARIABLE: &str = "BLOCKRING_TAKE_OVER";

/// The version of that description. A program that knows another one is not started.
const VERSION: u32 = 1;

/// The value of [`VARIABLE`] for a program that is asked whether it would follow.
const ASKED: &str = "asked";

/// How long a program may take to check the configuration.
const CHECK_PATIENCE: Duration = Duration::from_secs(20);
const CHECK_PAUSE: Duration = Duration::from_millis(5);

/// Bytes of its output that are read, and that an error repeats, at most. It may have a warning for
/// each file.
const MOST_READ: u64 = 1 << 20;
const MOST_WORDS: usize = 1000;

/// The descriptors that were passed for a ring, in the order of [`Passed::numbered`].
type Numbers = [Option<RawFd>; 3];

/// What the next program is told, as JSON in a file without a name. Numbers are those of descriptors
/// that are open in it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Description {
    version: u32,
    rings: Vec<(String, String, Numbers)>,
    sockets: Vec<(OwnPath, RawFd)>,
    client: Option<RawFd>,
    stop: Option<RawFd>,
}

/// What the program before this one has left.
#[derive(Default)]
pub struct TakenOver {
    /// Rings that no file of the folder describes.
    pub rings: Vec<TakenRing>,
    /// The sockets that it has listened on.
    pub sockets: KeptSockets,
    /// The client that waits until this program serves the rings.
    pub client: Option<UnixStream>,
    /// That program was asked to stop, and has not done so.
    pub stops: bool,
}

/// A ring that no file of the folder describes.
pub struct TakenRing {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub text: String,
    /// What a client has passed for it.
    pub passed: PassedDescriptors,
}

/// Listening sockets by their paths, for the rings that are to have them. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct KeptSockets(Arc<Mutex<BTreeMap<PathBuf, Listening>>>);

impl KeptSockets {
    /// Takes the socket that listens at a path, if it is kept.
    pub fn take(&self, path: &Path) -> Option<Listening> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        // Nobody could connect to one whose path is another file's by now.
        kept.filter(|listening| !listening.is_lost())
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
        let stop = description.stop.map(inherited).transpose()?;
        // A byte for each request; the other end is closed.
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let asked = |stop: OwnedFd| recv(stop.as_raw_fd(), &mut [0], flags).unwrap_or(0) > 0;
        let stops = stop.is_some_and(asked);
        let take = |number: Option<RawFd>| number.map(inherited).transpose();
        let ring = |(name, text, numbers): (String, String, Numbers)| -> io::Result<TakenRing> {
            let [ring, guest, consumer] = numbers;
            let passed = PassedDescriptors::of([take(ring)?, take(guest)?, take(consumer)?]);
            Ok(TakenRing { name, text, passed })
        };
        let rings = description.rings.into_iter().map(ring).collect::<io::Result<_>>()?;
        Ok(Self {
            rings,
            sockets: KeptSockets(Arc::new(Mutex::new(sockets))),
            client: client.map(UnixStream::from),
            stops,
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

/// What this program hands to the next one.
#[derive(Default)]
pub struct Left<'a> {
    /// Rings that no file of the folder describes: names, texts, and what was passed for them.
    pub rings: Vec<(&'a str, &'a str, &'a PassedDescriptors)>,
    /// Sockets that the next program goes on listening on.
    pub sockets: Vec<&'a Listening>,
    /// The client that waits until it serves the rings.
    pub client: Option<BorrowedFd<'a>>,
    /// Readable when this program is asked to stop.
    pub stop: Option<BorrowedFd<'a>>,
}

impl Left<'_> {
    /// Becomes `program`. Returns only if that fails, and why.
    pub fn become_program(self, program: &Path) -> Failure {
        let Err(source) = self.execute(program);
        Failure::Start { program: program.to_owned(), source }
    }

    fn execute(self, program: &Path) -> io::Result<Infallible> {
        let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
        let path = text(program.as_os_str().to_owned())?;
        let words = std::env::args_os().map(text).collect::<io::Result<Vec<_>>>()?;
        let written = self.written()?;
        let own = (VARIABLE.into(), written.as_raw_fd().to_string().into());
        let others = std::env::vars_os().filter(|(name, _)| name != VARIABLE);
        let variable = |(name, value): (OsString, OsString)| text([name, value].join("=".as_ref()));
        let variables = others.chain([own]).map(variable).collect::<io::Result<Vec<_>>>()?;
        // The next program has no handlers yet: what comes meanwhile waits until it has. What comes
        // to another thread of this one before is found in `stop`.
        let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
        SigSet::from_iter(signals).thread_block()?;
        let outcome = execve(&path, &words, &variables);
        SigSet::from_iter(signals).thread_unblock()?;
        Ok(outcome?)
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
        let mut rings = Vec::new();
        for (name, text, passed) in self.rings {
            let [ring, guest, consumer] = passed.numbered().map(|one| one.map(keep).transpose());
            rings.push((name.to_owned(), text.to_owned(), [ring?, guest?, consumer?]));
        }
        let stop = self.stop.map(keep).transpose()?;
        let description = Description { version: VERSION, rings, sockets, client, stop };
        let mut file = unnamed_file(MFdFlags::empty())?;
        file.write_all(&serde_json::to_vec(&description)?)?;
        file.rewind()?;
        Ok(file.into())
    }
}

/// Keeps a descriptor open in the next program. Returns its number.
fn keep(fd: BorrowedFd<'_>) -> io::Result<RawFd> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd.as_raw_fd())
}

/// What a program that checks the configuration says if it is asked whether it would follow.
pub fn answer_if_asked() -> Option<String> {
    let asked = std::env::var_os(VARIABLE).is_some_and(|value| value == ASKED);
    asked.then(|| format!("takes over by version {VERSION}\n"))
}

/// Has a program check the command line and the folder of this one, and say that it would follow.
///
/// # Errors
///
/// It cannot be started, finds something wrong, or does not know how to follow; in words.
pub fn check(program: &Path) -> Result<(), String> {
    let name = program.display();
    let fail = |e: io::Error| format!("{name}: {e}");
    let mut said = unnamed_file(MFdFlags::MFD_CLOEXEC).map_err(fail)?;
    let output = || said.try_clone().map(Stdio::from).map_err(fail);
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--check-config").env(VARIABLE, ASKED);
    command.stdin(Stdio::null()).stdout(output()?).stderr(output()?);
    let mut child = command.spawn().map_err(fail)?;
    let deadline = Instant::now() + CHECK_PATIENCE;
    let status = loop {
        match child.try_wait().map_err(fail)? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                // It may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{name} --check-config does not end"));
            }
            None => std::thread::sleep(CHECK_PAUSE),
        }
    };
    let mut words = Vec::new();
    let read = said.rewind().and_then(|()| said.take(MOST_READ).read_to_end(&mut words));
    read.map_err(fail)?;
    let words = String::from_utf8_lossy(&words);
    if !status.success() {
        let words = one_line(format_args!("{}", words.trim()), MOST_WORDS);
        return Err(format!("{name} --check-config: {status}: {words}"));
    }
    let answer = format!("takes over by version {VERSION}");
    if words.lines().any(|line| line == answer) {
        return Ok(());
    }
    Err(format!(
        "{name} does not say that it can follow this program: stop the daemon, and start it anew"
    ))
}

fn unnamed_file(flags: MFdFlags) -> io::Result<File> {
    Ok(memfd_create("blockring-reexec", flags)?.into())
}
