//! The writing of records to a descriptor.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, ftruncate, lseek, write};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Bytes that a writable pipe accepts without blocking, completely or not at all (`PIPE_BUF`).
const ATOMIC: usize = 4096;

nix::ioctl_read_bad!(
    /// Reads how many bytes a pipe holds.
    fionread,
    libc::FIONREAD,
    libc::c_int
);

/// Pause after a write to a descriptor that is writable and accepts nothing.
const REFUSED: Duration = Duration::from_millis(1);

/// Why a write has ended before all bytes were accepted.
#[derive(Debug)]
pub enum Halt {
    /// The process was asked to stop while nothing was accepted.
    Stopped,
    /// Nothing was accepted for this time.
    TimedOut(Duration),
    /// The operating system's error.
    Failed(io::Error),
}

impl Halt {
    pub fn into_error(self) -> io::Error {
        match self {
            Self::Stopped => io::Error::new(ErrorKind::Interrupted, "asked to stop"),
            Self::TimedOut(timeout) => {
                let text = format!("nothing was accepted for {} s", timeout.as_secs_f64());
                io::Error::new(ErrorKind::TimedOut, text)
            }
            Self::Failed(error) => error,
        }
    }
}

impl From<Errno> for Halt {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno.into())
    }
}

/// A descriptor that records are written to, and the known end of a regular file.
pub struct Sink<F> {
    fd: F,
    regular: bool,
    /// The byte behind the last one that was written, in a regular file.
    end: u64,
    /// Bytes before `end` that this sink has written without a gap.
    run: u64,
}

impl<F: AsFd> Sink<F> {
    pub fn new(fd: F) -> io::Result<Self> {
        let mode = fstat(fd.as_fd())?.st_mode;
        Ok(Self { fd, regular: mode & libc::S_IFMT == libc::S_IFREG, end: 0, run: 0 })
    }

    pub fn is_regular(&self) -> bool {
        self.regular
    }

    pub fn descriptor(&self) -> &F {
        &self.fd
    }

    /// Writes `bytes`, and returns how many were accepted and, if not all, why. The write ends when
    /// `stop` is readable and nothing more is accepted, or when nothing was accepted for `timeout`.
    ///
    /// `whole(at)` is the end of the last record that ends within the first `at` bytes.
    pub fn write(
        &mut self,
        bytes: &[u8],
        whole: &dyn Fn(usize) -> usize,
        stop: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> (usize, Result<(), Halt>) {
        let mut accepted = 0;
        while accepted < bytes.len() {
            match self.write_some(bytes, accepted, whole, stop, timeout) {
                Ok(count) => accepted += count,
                Err(halt) => return (accepted, Err(halt)),
            }
        }
        (accepted, Ok(()))
    }

    /// Writes some of `bytes` from the index `from` on, and returns how many.
    fn write_some(
        &mut self,
        bytes: &[u8],
        from: usize,
        whole: &dyn Fn(usize) -> usize,
        stop: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> Result<usize, Halt> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if !self.regular {
                self.await_room(stop, deadline, timeout)?;
            }
            let most = bytes.len().min(from.saturating_add(self.room()));
            // Whole records if possible. A file accepts all of them at once.
            let end = Some(whole(most)).filter(|end| *end > from && !self.regular);
            match write(self.fd.as_fd(), &bytes[from..end.unwrap_or(most)]) {
                Ok(0) => return Err(Halt::Failed(ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.note(count as u64)?;
                    return Ok(count);
                }
                Err(Errno::EAGAIN) => std::thread::sleep(REFUSED),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Returns how many bytes a write accepts without blocking, once the descriptor is writable. An
    /// empty pipe is filled by one write, which costs fewer system calls and wake-ups than a page
    /// at a time.
    fn room(&self) -> usize {
        if self.regular {
            return usize::MAX;
        }
        let Ok(size) = fcntl(self.fd.as_fd(), FcntlArg::F_GETPIPE_SZ) else { return ATOMIC };
        let mut unread = 0;
        // SAFETY: FIONREAD writes one int to the address that it is given, which is that of a live
        // int.
        let asked = unsafe { fionread(self.fd.as_fd().as_raw_fd(), &raw mut unread) };
        let empty = asked.is_ok() && unread == 0;
        if empty { usize::try_from(size).unwrap_or(ATOMIC) } else { ATOMIC }
    }

    /// Waits until a write does not block. It does not block either if the reader is gone: the
    /// write reports that.
    fn await_room(
        &self,
        stop: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
        timeout: Option<Duration>,
    ) -> Result<(), Halt> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let mut polled = vec![PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
            polled.extend(stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
            match ppoll(&mut polled, left.map(TimeSpec::from), None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
            if ready(&polled[0]) {
                return Ok(());
            }
            if polled.get(1).is_some_and(ready) {
                return Err(Halt::Stopped);
            }
            if let (Some(at), Some(timeout)) = (deadline, timeout)
                && at <= Instant::now()
            {
                return Err(Halt::TimedOut(timeout));
            }
        }
    }

    /// Notes the end of the file after a write. The kernel moves the position of an appending
    /// descriptor, too.
    fn note(&mut self, count: u64) -> Result<(), Halt> {
        if self.regular {
            let end = lseek(self.fd.as_fd(), 0, Whence::SeekCur)?.cast_unsigned();
            self.run = if self.end + count == end { self.run + count } else { count };
            self.end = end;
        }
        Ok(())
    }

    /// Removes the last `bytes` that were written from the end of a regular file, and returns
    /// whether that was possible. It is not if another process has written after or between them.
    pub fn cut(&mut self, bytes: usize) -> io::Result<bool> {
        let bytes = bytes as u64;
        if bytes == 0 {
            return Ok(true);
        }
        let size = || Ok::<_, Errno>(fstat(self.fd.as_fd())?.st_size.cast_unsigned());
        if !self.regular || bytes > self.run || size()? != self.end {
            return Ok(false);
        }
        let end = (self.end - bytes).cast_signed();
        ftruncate(self.fd.as_fd(), end)?;
        // A process that shares the descriptor continues here, and leaves no hole.
        lseek(self.fd.as_fd(), end, Whence::SeekSet)?;
        (self.end, self.run) = (end.cast_unsigned(), self.run - bytes);
        Ok(true)
    }

    /// Returns the bytes behind the last `delimiter` in an appending regular file, at most `most`;
    /// no bytes for other descriptors, and for a file that this process may not read.
    pub fn open_record(&self, delimiter: u8, most: usize) -> io::Result<Vec<u8>> {
        let flags = OFlag::from_bits_retain(fcntl(self.fd.as_fd(), FcntlArg::F_GETFL)?);
        if !self.regular || !flags.contains(OFlag::O_APPEND) {
            return Ok(Vec::new());
        }
        let path = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        let Ok(file) = File::open(path) else { return Ok(Vec::new()) };
        let size = file.metadata()?.len();
        let from = size.saturating_sub(most as u64);
        let mut tail = vec![0; usize::try_from(size - from).unwrap_or(most)];
        file.read_exact_at(&mut tail, from)?;
        let start = tail.iter().rposition(|&byte| byte == delimiter).map_or(0, |at| at + 1);
        tail.drain(..start);
        Ok(tail)
    }

    /// Removes `bytes` at the end of an appending regular file, which an earlier process has
    /// written.
    pub fn cut_found(&mut self, bytes: usize) -> io::Result<bool> {
        self.end = fstat(self.fd.as_fd())?.st_size.cast_unsigned();
        self.run = bytes as u64;
        self.cut(bytes)
    }
}
