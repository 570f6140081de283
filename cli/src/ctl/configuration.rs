//! The configuration of a ring, from a file of the caller.

use super::super::failure::Failure;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::read;
use ring_program::Stop;
use shared_block_ring::device::shown;
use std::io;
use std::path::Path;

/// Bytes of the longest configuration. A ring's own are a few hundred.
const MOST_BYTES: usize = 1 << 20;

/// Returns the text of a file. It may be a pipe, which is waited for until a signal.
pub fn text_of(path: &Path, stop: &Stop) -> Result<String, Failure> {
    let failed = |e: Errno| Failure::io(format!("cannot read {}", shown(path)))(e.into());
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let file = patiently(stop, path, || open(path, flags, Mode::empty()))?.map_err(failed)?;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match patiently(stop, path, || read(&file, &mut chunk))?.map_err(failed)? {
            0 => break,
            count => bytes.extend_from_slice(&chunk[..count]),
        }
        if bytes.len() > MOST_BYTES {
            let words = "is longer than 1 MiB: it is no configuration of a ring";
            return Err(Failure::Refused(format!("{} {words}", shown(path))));
        }
    }
    String::from_utf8(bytes).map_err(|e| {
        let error = io::Error::new(io::ErrorKind::InvalidData, e.utf8_error());
        Failure::io(format!("cannot read {}", shown(path)))(error)
    })
}

/// Makes a system call that may wait, until it has a result or the process is asked to stop.
fn patiently<T>(
    stop: &Stop,
    path: &Path,
    mut call: impl FnMut() -> nix::Result<T>,
) -> Result<nix::Result<T>, Failure> {
    loop {
        if stop.requested() {
            let words = format!("asked to stop before {} was read", shown(path));
            return Err(Failure::Stopped(words));
        }
        match call() {
            Err(Errno::EINTR) => {}
            done => return Ok(done),
        }
    }
}
