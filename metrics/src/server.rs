//! The thread that answers scrapes.

use crate::address::Address;
use crate::answers::Answers;
use crate::connection::Connection;
use crate::scrape::Scrape;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use ring_program::Pace;
use ring_program::sockets::{Access, Listening};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The most clients at a time. One more closes a connection that is between two requests, or else
/// the one that has been open longest.
const MAX_CONNECTIONS: usize = 8;

/// Pause after a failed accept. The next stop waits for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Metrics and health of a program. Called on the server's thread alone.
pub trait Source: Send {
    /// Adds the program's samples.
    fn scrape(&mut self, scrape: &mut Scrape);

    /// Returns a line of text for a healthy program.
    ///
    /// # Errors
    /// The reason why it is not healthy, in one line.
    fn health(&mut self) -> Result<String, String>;
}

/// A listening socket. The name of a UNIX socket that this process has made is removed when this is
/// dropped.
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    name: String,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, Listening),
    Tcp(TcpListener),
}

impl Bound {
    /// Listens at an address. A UNIX socket's file gets owner and mode of `access`; one that a dead
    /// process has left behind is replaced.
    ///
    /// # Errors
    /// The operating system's; also that a living process listens there.
    pub fn on(address: &Address, access: &Access) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                let listening = Listening::on(path, SockType::Stream, access)?;
                let listener = UnixListener::from(listening.fd().try_clone()?);
                let name = address.to_string();
                Ok(Self { socket: Socket::Unix(listener, listening), name })
            }
            Address::Tcp(address) => Self::tcp(TcpListener::bind(address)?),
        }
    }

    /// Takes a listening stream socket, of UNIX or of TCP, that this process was started with.
    ///
    /// # Errors
    /// The operating system's; also that it is another kind of socket.
    pub fn inherited(socket: OwnedFd) -> io::Result<Self> {
        let address = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
        if getsockopt(&socket, sockopt::SockType)? != SockType::Stream {
            return Err(not_a_stream());
        }
        match address.family() {
            Some(AddressFamily::Unix) => {
                let listener = UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                let path = listener.local_addr()?;
                let path = path.as_pathname().map(|path| Address::Unix(path.to_owned()));
                let name = path.map_or("a socket without a path".to_owned(), |at| at.to_string());
                let listening = Listening::inherited(listener.as_fd().try_clone_to_owned()?, name);
                let name = listening.name().to_owned();
                Ok(Self { socket: Socket::Unix(listener, listening), name })
            }
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                let listener = TcpListener::from(socket);
                let address = listener.local_addr()?;
                Address::of_this_machine(address).map_err(|words| {
                    io::Error::new(io::ErrorKind::InvalidInput, format!("{address}: {words}"))
                })?;
                Self::tcp(listener)
            }
            _ => Err(not_a_stream()),
        }
    }

    /// Takes a listening stream socket that another process has made, and for which it has this
    /// name.
    ///
    /// # Errors
    /// Those of [`inherited`](Self::inherited).
    pub fn passed(socket: OwnedFd, name: String) -> io::Result<Self> {
        Ok(Self { name, ..Self::inherited(socket)? })
    }

    fn tcp(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let name = format!("http://{}/metrics", listener.local_addr()?);
        Ok(Self { socket: Socket::Tcp(listener), name })
    }

    /// Returns the socket if it is a UNIX socket.
    pub fn listening(&self) -> Option<&Listening> {
        match &self.socket {
            Socket::Unix(_, listening) => Some(listening),
            Socket::Tcp(_) => None,
        }
    }

    /// Returns the address for the log, with the port that the kernel has chosen.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The listening socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(listener, _) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<OwnedFd> {
        Ok(match &self.socket {
            Socket::Unix(listener, _) => listener.accept()?.0.into(),
            Socket::Tcp(listener) => listener.accept()?.0.into(),
        })
    }
}

fn not_a_stream() -> io::Error {
    let text = "not a stream socket of UNIX or TCP: ListenStream= in the socket unit";
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// The running server. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a thread that answers the clients of `bound` from `source`.
    ///
    /// # Errors
    /// No event or no thread can be made.
    pub fn start(bound: Vec<Bound>, source: impl Source + 'static) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let asked = Arc::clone(&stop);
        let serve = move || serve(&bound, Answers::new(Box::new(source)), &asked);
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(serve)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The counter of a fresh event takes a one.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
    }
}

fn serve(bound: &[Bound], mut answers: Answers, stop: &EventFd) {
    // The oldest one first.
    let mut connections: Vec<Connection> = Vec::new();
    let mut lost = Pace::default();
    loop {
        let now = Instant::now();
        connections.retain(|connection| now < connection.deadline);
        let ready = match wait(bound, &connections, stop, now) {
            Ok(ready) => ready,
            Err(e) => {
                log::error!("no metrics any more: cannot wait for clients: {e}");
                return;
            }
        };
        let Some(ready) = ready else { return };
        let mut index = 0;
        connections.retain_mut(|connection| {
            index += 1;
            !ready[index - 1] || connection.go_on(&mut answers)
        });
        for (bound, _) in bound.iter().zip(&ready[index..]).filter(|(_, ready)| **ready) {
            match bound.accept() {
                Ok(socket) => {
                    if connections.len() == MAX_CONNECTIONS {
                        let idle = connections.iter().position(Connection::is_idle);
                        connections.remove(idle.unwrap_or(0));
                    }
                    connections.push(Connection::new(socket));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    if lost.due() {
                        log::warn!("cannot accept a client of {}: {e}", bound.name());
                    }
                    // Out of descriptors, perhaps: the client stays in the backlog, without a busy
                    // loop.
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

/// Waits for clients. Returns which connections can go on and which sockets have a new client, in
/// their order; `None` at the stop.
fn wait(
    bound: &[Bound],
    connections: &[Connection],
    stop: &EventFd,
    now: Instant,
) -> io::Result<Option<Vec<bool>>> {
    let awaited = connections.iter().map(Connection::awaits);
    let listening = bound.iter().map(|bound| (bound.fd(), PollFlags::POLLIN));
    let all = [(stop.as_fd(), PollFlags::POLLIN)].into_iter().chain(awaited).chain(listening);
    let mut all: Vec<_> = all.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
    let deadline = connections.iter().map(|connection| connection.deadline).min();
    let timeout = deadline.map_or(PollTimeout::NONE, |at| {
        // Rounded up: the deadline is then over.
        let left = at.saturating_duration_since(now) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut all, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let mut ready = all.iter().map(|fd| fd.any().unwrap_or(false));
    let is_over = ready.next().unwrap_or(true);
    Ok((!is_over).then(|| ready.collect()))
}
