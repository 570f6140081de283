//! The control process's end of the data process: starting it, and talking to it without waiting.

use crate::daemon::failure::{Failure, system};
use crate::daemon::rings::messages::{Begin, News, Order, Reopen, Reopened};
use crate::daemon::rings::reexec;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use ring_metrics::Bound;
use ring_os::{Limits, await_readable};
use shared_block_ring::handover::{receive, receive_words, send};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long the data process may take to start.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How long the data process may take to end.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// The running data process.
pub struct Plane {
    child: Child,
    /// It does not block: what does not fit waits in `unsent`.
    orders: OwnedFd,
    /// By which it asks for files.
    files: OwnedFd,
    unsent: VecDeque<(Order, Vec<OwnedFd>)>,
    /// What is restricted of its file system, in words.
    pub confinement: String,
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

impl Drop for Plane {
    fn drop(&mut self) {
        // One that was not waited for has not begun, or hangs.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Plane {
    /// Starts a data process of `program`, which gets the sockets in `metrics`, and waits until it
    /// takes orders.
    ///
    /// # Errors
    ///
    /// It cannot be started, or has ended; its log says why.
    pub fn start(program: &Path, begin: &Begin, metrics: &[Bound]) -> Result<Self, Failure> {
        let start = system("start the data process");
        let (orders, theirs) = pair().map_err(&start)?;
        let (files, their_files) = pair().map_err(&start)?;
        let mut command = Command::new(program);
        command.arg("--data-process").env_remove(reexec::VARIABLE);
        // Its end goes with the socket's: nobody else has it.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let child = command.spawn().map_err(&start)?;
        drop(command);
        let plane =
            Self { child, orders, files, unsent: VecDeque::new(), confinement: String::new() };
        plane.begin(begin, their_files.as_fd(), metrics)
    }

    fn begin(
        mut self,
        begin: &Begin,
        files: BorrowedFd<'_>,
        metrics: &[Bound],
    ) -> Result<Self, Failure> {
        let start = system("start the data process (its log says why)");
        send(self.orders.as_fd(), begin, &[files]).map_err(&start)?;
        for bound in metrics {
            send(self.orders.as_fd(), &bound.name(), &[bound.fd()]).map_err(&start)?;
        }
        // A signal that comes meanwhile does not end the wait.
        let limits = Limits::within(START_PATIENCE);
        await_readable(self.orders.as_fd(), &limits).map_err(&start)?;
        match receive_words(self.orders.as_fd()).map_err(&start)? {
            News::Begun(confinement) => self.confinement = confinement,
            _ => return Err(start(io::ErrorKind::InvalidData.into())),
        }
        let flags = fcntl(&self.orders, FcntlArg::F_GETFL).map_err(|e| start(e.into()))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&self.orders, FcntlArg::F_SETFL(flags)).map_err(|e| start(e.into()))?;
        Ok(self)
    }

    /// Readable when there are news, and when the process has ended.
    pub fn news_fd(&self) -> BorrowedFd<'_> {
        self.orders.as_fd()
    }

    /// Readable when it asks for a file.
    pub fn files_fd(&self) -> BorrowedFd<'_> {
        self.files.as_fd()
    }

    /// Whether an order waits to be sent.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends an order, or keeps it until [`flush`](Self::flush) can.
    pub fn order(&mut self, order: Order, descriptors: Vec<OwnedFd>) {
        self.unsent.push_back((order, descriptors));
        self.flush();
    }

    /// Sends what can be sent. A process that is gone is noticed by [`news`](Self::news).
    pub fn flush(&mut self) {
        while let Some((order, descriptors)) = self.unsent.front() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match send(self.orders.as_fd(), order, &borrowed) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Gone, or the order cannot be sent at all.
                Ok(()) | Err(_) => drop(self.unsent.pop_front()),
            }
        }
    }

    /// Takes one piece of news; `None` when there is none now.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn news(&self) -> io::Result<Option<News>> {
        match receive_words(self.orders.as_fd()) {
            Ok(news) => Ok(Some(news)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Answers a request for a file by what `open` returns for it.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn open_file(&self, open: impl FnOnce(&Reopen) -> io::Result<File>) -> io::Result<()> {
        let (request, _) = receive::<Reopen>(self.files.as_fd())?;
        let ticket = request.ticket;
        match open(&request) {
            Ok(file) => send(self.files.as_fd(), &Reopened { ticket, why: None }, &[file.as_fd()]),
            Err(e) => {
                let why = Some(e.to_string());
                send(self.files.as_fd(), &Reopened { ticket, why }, &[])
            }
        }
    }

    /// Kills the process, which [`news`](Self::news) tells of then.
    pub fn kill(&mut self) {
        if let Err(e) = self.child.kill() {
            log::error!("cannot kill the data process: {e}");
        }
    }

    /// Has the process end, by the end of its orders, and waits for that. One that does not end in
    /// time, since it is stopped or a thread of it waits in the kernel, is killed.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub fn finish(&mut self) -> io::Result<ExitStatus> {
        // One that has ended already needs no word.
        let _ = shutdown(self.orders.as_raw_fd(), Shutdown::Write);
        let limits = Limits::within(END_PATIENCE);
        // Its end of the socket is closed when it has ended. What it tells until then is read, so
        // that it need not wait for that.
        while self.news().is_ok() {
            match await_readable(self.orders.as_fd(), &limits) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    log::error!("the data process does not end: it is killed");
                    self.child.kill()?;
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        self.child.wait()
    }
}
