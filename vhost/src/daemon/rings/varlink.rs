//! The control socket: calls by Varlink, JSON objects with a NUL byte behind each. It never waits
//! for one client.
//!
//! The protocol is a page long, and the crates for it need an asynchronous runtime: so the framing
//! is here.

use crate::daemon::peer::{Admission, Peer};
use crate::daemon::sockets::Listening;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};
use shared_block_ring::handover::receive_part;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// The interface.
pub const INTERFACE: &str = "io.blockring.Rings";

/// Its description.
pub const DESCRIPTION: &str = include_str!("io.blockring.Rings.varlink");

/// The most clients at a time; the one that was silent longest makes way.
const MAX_CLIENTS: usize = 64;

/// The longest call.
const MAX_CALL: usize = 1 << 20;

/// Bytes of answers that a client has not read, at most.
const MAX_UNREAD: usize = 32 << 20;

/// Descriptors of calls that are not complete, at most.
const MAX_DESCRIPTORS: usize = 16;

/// The data of the listening socket's event.
const LISTENING: u64 = 0;

/// The connection that a call came by, and is answered on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

/// A call of the interface.
#[derive(Debug)]
pub struct Call {
    /// Who waits for the answer.
    pub client: ClientId,
    /// The method, without the interface.
    pub method: String,
    /// Its parameters.
    pub parameters: Value,
    /// The client may change something.
    pub may_change: bool,
    /// The descriptors that came with it: from a client that may change something.
    pub descriptors: Vec<OwnedFd>,
}

/// An error of the interface: its name, and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// The name, without the interface.
    pub name: &'static str,
    /// The parameters.
    pub parameters: Value,
}

impl CallError {
    /// Something that was not done, for this reason.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { name: "Refused", parameters: json!({ "reason": reason.into() }) }
    }

    /// Something that has taken too long.
    pub fn timed_out(reason: impl Into<String>) -> Self {
        Self { name: "TimedOut", parameters: json!({ "reason": reason.into() }) }
    }

    /// A ring that there is not.
    pub fn no_such_ring(name: &str) -> Self {
        Self { name: "NoSuchRing", parameters: json!({ "name": name }) }
    }

    fn not_permitted() -> Self {
        let reason = "this user may look and not change anything (--control-user, --control-group)";
        Self { name: "NotPermitted", parameters: json!({ "reason": reason }) }
    }
}

/// What a call is answered with.
pub type Answer = Result<Value, CallError>;

/// Who may call.
#[derive(Debug, Clone, Default)]
pub struct Callers {
    /// Users and groups that may change something, besides root.
    pub changing: Admission,
    /// Those that may look, besides these.
    pub looking: Admission,
}

struct Client {
    stream: UnixStream,
    may_change: bool,
    received: Vec<u8>,
    /// Bytes of the calls that were taken.
    taken: u64,
    /// Descriptors that have come, with the number of bytes that had come then: of the call that
    /// the last of these is of.
    descriptors: Vec<(u64, OwnedFd)>,
    to_send: VecDeque<u8>,
    /// A call is under way: the next one waits for its answer.
    busy: bool,
    /// When it last sent something, in calls.
    turn: u64,
    gone: bool,
}

/// The socket and its clients.
pub struct Control {
    listening: Listening,
    callers: Callers,
    epoll: Epoll,
    clients: BTreeMap<u64, Client>,
    next: u64,
    turns: u64,
}

impl Control {
    /// Serves `callers` on a listening stream socket.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new(listening: Listening, callers: Callers) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        UnixListener::from(listening.fd().try_clone()?).set_nonblocking(true)?;
        epoll.add(listening.fd(), EpollEvent::new(EpollFlags::EPOLLIN, LISTENING))?;
        let clients = BTreeMap::new();
        Ok(Self { listening, callers, epoll, clients, next: LISTENING + 1, turns: 0 })
    }

    /// The listening socket.
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// The connection of a client, if it is still there.
    pub fn connection(&self, client: ClientId) -> Option<BorrowedFd<'_>> {
        self.clients.get(&client.0).map(|client| client.stream.as_fd())
    }

    /// Takes the connection of a client over that waits for an answer, and may change something.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take_over(&mut self, stream: UnixStream) -> io::Result<ClientId> {
        stream.set_nonblocking(true)?;
        let number = self.add(stream, true)?;
        if let Some(client) = self.clients.get_mut(&number) {
            client.busy = true;
        }
        Ok(ClientId(number))
    }

    /// Readable when [`turn`](Self::turn) has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Receives and sends what can be, and returns the calls that have come.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn turn(&mut self) -> io::Result<Vec<Call>> {
        let mut events = [EpollEvent::empty(); MAX_CLIENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut calls = Vec::new();
        for event in &events[..count] {
            let number = event.data();
            if number == LISTENING {
                self.accept();
                continue;
            }
            self.turns += 1;
            let turns = self.turns;
            if let Some(client) = self.clients.get_mut(&number) {
                client.turn = turns;
                client.receive();
                client.send();
            }
            self.next_call(number, &mut calls);
            self.settle(number)?;
        }
        Ok(calls)
    }

    /// Answers a call, unless its client is gone. Returns the next call of that client, if it has
    /// sent one already.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn answer(&mut self, client: ClientId, answer: &Answer) -> io::Result<Vec<Call>> {
        let number = client.0;
        let Some(client) = self.clients.get_mut(&number) else { return Ok(Vec::new()) };
        client.busy = false;
        client.reply(&message(answer));
        client.send();
        let mut calls = Vec::new();
        self.next_call(number, &mut calls);
        self.settle(number)?;
        Ok(calls)
    }

    fn accept(&mut self) {
        let Ok(listener) = self.listening.fd().try_clone().map(UnixListener::from) else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        let Ok(peer) = Peer::of(stream.as_fd()) else { return };
        let may_change = self.callers.changing.refusal(&peer).is_none();
        if !may_change && self.callers.looking.refusal(&peer).is_some() {
            log::warn!("process {} of user {} may not use the control socket", peer.pid, peer.uid);
            return;
        }
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() >= MAX_CLIENTS {
            let idle = self.clients.iter().min_by_key(|(_, client)| (client.busy, client.turn));
            if let Some(number) = idle.map(|(number, _)| *number) {
                self.clients.remove(&number);
            }
        }
        if let Err(e) = self.add(stream, may_change) {
            log::warn!("cannot serve a client of the control socket: {e}");
        }
    }

    fn add(&mut self, stream: UnixStream, may_change: bool) -> io::Result<u64> {
        let number = self.next;
        self.next += 1;
        self.turns += 1;
        self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        let (received, to_send) = (Vec::new(), VecDeque::new());
        let (taken, descriptors) = (0, Vec::new());
        let (busy, turn, gone) = (false, self.turns, false);
        let client =
            Client { stream, may_change, received, taken, descriptors, to_send, busy, turn, gone };
        self.clients.insert(number, client);
        Ok(number)
    }

    /// Takes calls of a client up to the first that others have to answer.
    fn next_call(&mut self, number: u64, calls: &mut Vec<Call>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        while !client.busy
            && let Some(call) = client.take_call()
        {
            let answer = match call.rsplit_once() {
                Some((INTERFACE, method)) => {
                    client.busy = true;
                    let (client, may_change) = (ClientId(number), client.may_change);
                    let method = method.to_owned();
                    let Received { parameters, descriptors, .. } = call;
                    calls.push(Call { client, method, parameters, may_change, descriptors });
                    continue;
                }
                Some(("org.varlink.service", method)) => about(method, &call.parameters),
                _ => standard_error("InterfaceNotFound", &json!({ "interface": call.method })),
            };
            client.reply(&answer);
            client.send();
        }
    }

    /// Drops a client that is gone, and waits for what the others need.
    fn settle(&mut self, number: u64) -> io::Result<()> {
        let Some(client) = self.clients.get(&number) else { return Ok(()) };
        if client.gone {
            self.clients.remove(&number);
            return Ok(());
        }
        let mut flags = EpollFlags::EPOLLIN;
        if !client.to_send.is_empty() {
            flags |= EpollFlags::EPOLLOUT;
        }
        // The next call is not read before this one is answered.
        if client.busy && client.received.len() >= MAX_CALL {
            flags -= EpollFlags::EPOLLIN;
        }
        let mut event = EpollEvent::new(flags, number);
        Ok(self.epoll.modify(&client.stream, &mut event)?)
    }
}

/// Returns the error for a call that needs more rights, if `call` has too few.
pub fn expect_rights(call: &Call) -> Result<(), CallError> {
    if call.may_change { Ok(()) } else { Err(CallError::not_permitted()) }
}

/// A call as it came.
struct Received {
    method: String,
    parameters: Value,
    descriptors: Vec<OwnedFd>,
}

impl Received {
    fn rsplit_once(&self) -> Option<(&str, &str)> {
        self.method.rsplit_once('.')
    }
}

impl Client {
    fn receive(&mut self) {
        let mut bytes = [0; 8192];
        while self.received.len() <= MAX_CALL {
            match self.receive_part(&mut bytes) {
                Ok(0) => {
                    self.gone = true;
                    return;
                }
                Ok(len) => self.received.extend_from_slice(&bytes[..len]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    /// Reads from the socket. Whoever may change nothing can have no descriptor closed by this
    /// process, which may take as long as the process likes that serves it.
    fn receive_part(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.may_change {
            return self.stream.read(bytes);
        }
        let (len, descriptors) = receive_part(self.stream.as_fd(), bytes)?;
        let at = self.taken + (self.received.len() + len) as u64;
        self.descriptors.extend(descriptors.into_iter().map(|descriptor| (at, descriptor)));
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
        }
        Ok(len)
    }

    fn take_call(&mut self) -> Option<Received> {
        let Some(end) = self.received.iter().position(|byte| *byte == 0) else {
            // What is no call will not become one.
            self.gone |= self.received.len() > MAX_CALL;
            return None;
        };
        let bytes: Vec<u8> = self.received.drain(..=end).collect();
        self.taken += bytes.len() as u64;
        let taken = self.taken;
        let descriptors = self.descriptors.extract_if(.., |(at, _)| *at <= taken);
        let descriptors: Vec<_> = descriptors.map(|(_, descriptor)| descriptor).collect();
        let call = serde_json::from_slice::<Value>(&bytes[..end]).ok().and_then(|mut call| {
            let method = call.get("method")?.as_str()?.to_owned();
            let parameters = call.get_mut("parameters").map_or(json!({}), Value::take);
            Some(Received { method, parameters, descriptors })
        });
        self.gone |= call.is_none();
        call
    }

    fn reply(&mut self, message: &Value) {
        self.to_send.extend(message.to_string().as_bytes());
        self.to_send.push_back(0);
        self.gone |= self.to_send.len() > MAX_UNREAD;
    }

    fn send(&mut self) {
        while !self.to_send.is_empty() {
            let (first, _) = self.to_send.as_slices();
            match self.stream.write(first) {
                Ok(len) => drop(self.to_send.drain(..len)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }
}

fn message(answer: &Answer) -> Value {
    match answer {
        Ok(parameters) => json!({ "parameters": parameters }),
        Err(CallError { name, parameters }) => {
            json!({ "error": format!("{INTERFACE}.{name}"), "parameters": parameters })
        }
    }
}

fn standard_error(name: &str, parameters: &Value) -> Value {
    json!({ "error": format!("org.varlink.service.{name}"), "parameters": parameters })
}

/// Returns the answer for the error of a method that there is not.
pub fn no_such_method(method: &str) -> CallError {
    CallError::refused(format!("there is no method {method} in {INTERFACE}"))
}

/// The interface that every Varlink service has.
fn about(method: &str, parameters: &Value) -> Value {
    match method {
        "GetInfo" => json!({ "parameters": {
            "vendor": "shared-block-ring",
            "product": "vhost-device-blockring",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "",
            "interfaces": ["org.varlink.service", INTERFACE],
        }}),
        "GetInterfaceDescription" if parameters["interface"] == INTERFACE => {
            json!({ "parameters": { "description": DESCRIPTION } })
        }
        "GetInterfaceDescription" => {
            standard_error("InterfaceNotFound", &json!({ "interface": parameters["interface"] }))
        }
        _ => standard_error("MethodNotFound", &json!({ "method": method })),
    }
}
