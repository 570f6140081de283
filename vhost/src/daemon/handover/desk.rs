//! The desk of one ring: its consumer socket, and what its clients get.
//!
//! No method waits: one handles one socket that is readable, another what has come to its time.

use super::estate::Estate;
use super::set::{Set, Token, Watched};
use super::unused;
use crate::daemon::clients::{Client, Clients, PATIENCE, Silent, State, TurnedAway};
use crate::daemon::failure::{Failure, system};
use crate::daemon::peer::Peer;
use crate::daemon::sockets::Listening;
use crate::front_end::arrival::{Arrival, ShutDown, look};
use nix::errno::Errno;
use nix::sys::socket::{SockFlag, accept4};
use ring_program::Pace;
use ring_program::descriptors::remedy;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The number of the listening socket. The clients have the others.
pub const LISTENING: u32 = 0;

/// One ring's consumer socket with its clients. Dropping it closes all connections, and removes the
/// socket's path.
pub struct Desk {
    set: Set,
    number: u32,
    listening: Listening,
    /// Until then connections stay in the backlog: the listening socket is not in the set.
    pause: Option<Instant>,
    estate: Estate,
    clients: Clients,
    /// The number of the last client that has connected.
    last: u32,
    turned_away: TurnedAway,
    lost: Pace,
}

impl Desk {
    /// Opens the desk of that number, whose sockets are in `set` from now on.
    ///
    /// # Errors
    ///
    /// The kernel does not take the listening socket into the set.
    pub fn open(set: &Set, number: u32, listening: Listening, estate: Estate) -> nix::Result<Self> {
        set.add(listening.fd(), Token { desk: number, number: LISTENING })?;
        Ok(Self {
            set: set.clone(),
            number,
            listening,
            pause: None,
            estate,
            clients: Clients::default(),
            last: LISTENING,
            turned_away: TurnedAway::default(),
            lost: Pace::default(),
        })
    }

    /// Handles the socket of that number, which was found readable. A client that has gone since is
    /// none.
    ///
    /// # Errors
    ///
    /// Nobody can connect any more.
    pub fn serve(&mut self, number: u32) -> Result<(), Failure> {
        if number == LISTENING {
            return self.receive();
        }
        if let Some(client) = self.clients.take(number) {
            self.attend(client);
        }
        Ok(())
    }

    /// Gives up clients that are late at `now`, and ends a pause.
    pub fn expire(&mut self, now: Instant) {
        for late in self.clients.expired(now) {
            self.turn_away(&late.peer, &Silent::Late);
        }
        if self.pause.is_some_and(|until| until <= now) {
            let token = Token { desk: self.number, number: LISTENING };
            match self.set.add(self.listening.fd(), token) {
                Ok(()) => self.pause = None,
                Err(e) => self.pause(e),
            }
        }
    }

    /// When [`expire`](Self::expire) has to be called next, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.deadline().into_iter().chain(self.pause).min()
    }

    /// Handles a message of a client, or its end.
    fn attend(&mut self, mut client: Client) {
        let stays = match client.state {
            // A client with a role sends nothing more: its connection is closed.
            State::Served(Some(_)) => false,
            State::Served(None) => self.estate.oblige(&client).is_ok(),
            State::New(_) | State::Unwanted(..) => {
                let refused = match self.estate.greet(&mut client, self.clients.all()) {
                    Ok(refused) => refused,
                    Err(e) => Some(e.to_string()),
                };
                if let Some(reason) = &refused {
                    self.turn_away(&client.peer, reason);
                }
                refused.is_none()
            }
        };
        if stays {
            // It is appended behind the others, as the one that was silent for the shortest time.
            self.make_way(client);
        }
    }

    /// Accepts one connection, if one waits.
    fn receive(&mut self) -> Result<(), Failure> {
        match look(self.listening.fd().as_fd()).map_err(system("look for clients"))? {
            Arrival::None => {}
            Arrival::Waiting => match self.accept() {
                Ok(client) => self.make_way(client),
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(e) => {
                    self.set.delete(self.listening.fd());
                    self.pause(e);
                }
            },
            Arrival::ShutDown => {
                let name = self.listening.name().to_owned();
                return Err(ShutDown { name }.into());
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> nix::Result<Client> {
        // The connection of a client that does not read its answers is closed, not waited for.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let raw = accept4(self.listening.fd().as_raw_fd(), flags)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let peer = Peer::of(socket.as_fd())?;
        let is_taken = |number| {
            number == LISTENING || self.clients.all().iter().any(|other| other.number == number)
        };
        let number = unused(self.last, is_taken);
        let socket = Watched::new(&self.set, socket, Token { desk: self.number, number })?;
        self.last = number;
        let deadline = Instant::now() + PATIENCE;
        let state = match self.estate.admission.refusal(&peer) {
            None => State::New(deadline),
            Some(reason) => State::Unwanted(deadline, reason),
        };
        Ok(Client { number, socket, peer, state })
    }

    /// Leaves connections in the backlog for a while. Out of descriptors, perhaps: there is no busy
    /// loop, and the clients that are there are served meanwhile.
    fn pause(&mut self, error: Errno) {
        self.pause = Some(Instant::now() + ACCEPT_PAUSE);
        if self.lost.due() {
            let remedy = remedy(&error.into());
            log::warn!("{}: a client was lost: {error}{remedy}", self.listening.name());
        }
    }

    /// Adds a client, or adds it again, and closes the connection that has to go for it.
    fn make_way(&mut self, client: Client) {
        if let Some((gone, why)) = self.clients.add(client) {
            self.turn_away(&gone.peer, &why);
        }
    }

    fn turn_away(&mut self, peer: &Peer, reason: &dyn std::fmt::Display) {
        self.turned_away.note(self.listening.name(), peer, reason, &self.estate.counters);
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if self.pause.is_none() {
            self.set.delete(self.listening.fd());
        }
    }
}
