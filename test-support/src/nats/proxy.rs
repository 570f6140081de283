//! A proxy between a client and a server, which fails in chosen ways.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Time after which a thread looks whether the proxy has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What happens to the connections that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They are closed.
    Close,
    /// What the client sends ends, while the server's answers still arrive.
    HalfClose,
    /// The server's answers are swallowed while the client's bytes arrive, and then closed.
    LoseAnswers,
    /// Each piece arrives that much later, until another fault follows.
    Delay(Duration),
}

/// A proxy at a port of its own. Its connections end when this is dropped.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: u16,
    has_ended: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    fault: Mutex<Option<Fault>>,
}

impl Proxy {
    /// Starts a proxy before the server at that port.
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server,
            has_ended: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let ours = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || ours.accept(&listener)));
        Self { port, shared, thread }
    }

    /// Returns the address as a client writes it.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Lets the open connections fail. New ones are in order.
    pub fn strike(&self, fault: Fault) {
        self.shared.connections.lock().unwrap().retain(|connection| {
            *connection.fault.lock().unwrap() = Some(fault);
            match fault {
                Fault::Close => connection.close(),
                Fault::HalfClose => {
                    let _ = connection.server.shutdown(Shutdown::Write);
                    let _ = connection.client.shutdown(Shutdown::Read);
                }
                Fault::LoseAnswers | Fault::Delay(_) => {}
            }
            // The others end.
            matches!(fault, Fault::Delay(_))
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Relaxed);
        self.strike(Fault::Close);
        // Wakes the thread up.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while let Ok((client, _)) = listener.accept() {
            if self.has_ended.load(Ordering::Relaxed) {
                return;
            }
            // While the server is away the client finds a connection that ends at once.
            let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else { continue };
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(LOOK)).unwrap();
            }
            let connection = Arc::new(Connection { client, server, fault: Mutex::new(None) });
            self.connections.lock().unwrap().push(Arc::clone(&connection));
            for to_server in [true, false] {
                let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
                thread::spawn(move || {
                    if connection.copy(to_server, &shared.has_ended) == End::Closed {
                        connection.close();
                    }
                });
            }
        }
    }
}

impl Connection {
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    /// Copies one direction until it ends.
    fn copy(&self, to_server: bool, has_ended: &AtomicBool) -> End {
        let (mut from, mut to) =
            if to_server { (&self.client, &self.server) } else { (&self.server, &self.client) };
        let mut piece = [0; 16 << 10];
        while !has_ended.load(Ordering::Relaxed) {
            let read = from.read(&mut piece);
            let fault = *self.fault.lock().unwrap();
            let length = match read {
                // The server's end of its half ends the connection.
                Ok(0) if to_server && fault == Some(Fault::HalfClose) => return End::Half,
                Ok(0) => return End::Closed,
                Ok(length) => length,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    continue;
                }
                Err(_) => return End::Closed,
            };
            match fault {
                // The server has done what it answers to.
                Some(Fault::LoseAnswers) if !to_server => return End::Closed,
                Some(Fault::Delay(delay)) => thread::sleep(delay),
                _ => {}
            }
            if to.write_all(&piece[..length]).is_err() {
                return End::Closed;
            }
        }
        End::Closed
    }
}

/// How one direction of a connection ended.
#[derive(PartialEq, Eq)]
enum End {
    /// With the connection.
    Closed,
    /// The other direction goes on.
    Half,
}
