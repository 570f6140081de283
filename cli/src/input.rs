//! Standard input, read without a buffer. The standard library's own takes an input that cannot be
//! read (`EBADF`) for an empty one.

use super::failure::Failure;
use super::output::say;
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::read;
use ring_program::standard::Standard;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes of one read, and so about the size of a batch.
pub const CHUNK: usize = 64 * 1024;

/// The input of `produce`. Its descriptor is readable when there is something to read.
pub trait Source: AsFd {
    /// Reads into `buffer`, and returns the number of bytes, which is 0 at the end of the input;
    /// `None` if there is nothing to read now.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Failure>;

    /// Returns whether there is something to read that the descriptor does not tell of.
    fn has_read_ahead(&self) -> bool {
        false
    }
}

/// Standard input, which was found to be readable.
pub struct Input(());

impl Input {
    /// Checks standard input before anything else is done. If it is a terminal, where nothing would
    /// seem to happen, a message says what to do.
    ///
    /// # Errors
    /// Standard input is closed, open for writing only, or a folder.
    pub fn open() -> Result<Self, Failure> {
        Standard::Input.check().map_err(Failure::io("standard input"))?;
        let fd = Standard::Input.fd();
        let mode = fstat(fd).map_err(io::Error::from).map_err(reading())?.st_mode;
        if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            let text = "standard input is a folder: give a file, or a pipe from a program";
            return Err(Failure::Refused(text.to_owned()));
        }
        if fd.is_terminal() {
            say("reads items from this terminal (Ctrl-D in an empty line ends them)");
        }
        Ok(Self(()))
    }

    /// Reads into `buffer`, and returns the number of bytes, which is 0 at the end of the input;
    /// `None` if there is nothing to read now.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>, Failure> {
        match read(self.as_fd(), buffer) {
            Ok(count) => Ok(Some(count)),
            // Another process that shares the descriptor has made it non-blocking, or has read the
            // bytes.
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(e) => Err(reading()(e.into())),
        }
    }
}

impl Source for Input {
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Failure> {
        Self::read(self, buffer)
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        Standard::Input.fd()
    }
}

pub fn reading() -> impl FnOnce(io::Error) -> Failure {
    Failure::io("cannot read standard input")
}
