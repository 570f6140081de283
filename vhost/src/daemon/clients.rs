//! The connections of the consumer socket: limits for each kind, and the choice of one to close.
//!
//! Each kind of connection has places of its own, so that connections without a request take none
//! of those with one. If all places of a kind are taken, the connection of that kind that has been
//! silent longest is closed.

use crate::daemon::handover::set::Watched;
use crate::daemon::peer::Peer;
use crate::data_path::counters::Counters;
use ring_program::Pace;
use shared_block_ring::format::Side;
use std::fmt;
use std::time::{Duration, Instant};

/// How long a client may take to send its request.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// A connection of the consumer socket.
pub struct Client {
    /// The connection's number, which no other connection of the socket has.
    pub number: u32,
    /// The connection, which does not block.
    pub socket: Watched,
    /// The process that has connected.
    pub peer: Peer,
    /// The state of the connection.
    pub state: State,
}

/// The state of a connection.
pub enum State {
    /// It has not sent its request yet, and has to by this time.
    New(Instant),
    /// As [`State::New`], from a user that is not admitted, with the reason.
    Unwanted(Instant, String),
    /// It has the region, with this role or without one.
    Served(Option<Side>),
}

/// The kinds of connections, each with places of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    Unwanted,
    Beside,
    Role,
}

/// The most connections of each kind.
const PLACES: [(Kind, usize); 4] = [
    (Kind::New, 32),
    (Kind::Unwanted, 4),
    (Kind::Beside, 32),
    // One connection has the role. The others have given it back, and may take it again.
    (Kind::Role, 4),
];

/// The most connections: one more is closed before the next is accepted.
pub const MAX_CONNECTIONS: usize = {
    let [(_, new), (_, unwanted), (_, beside), (_, role)] = PLACES;
    new + unwanted + beside + role + 1
};

impl Kind {
    fn places(self) -> usize {
        PLACES.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, places)| *places)
    }
}

/// Why the connection of a client was closed that has done nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silent {
    /// It was silent longest among this many without a request.
    Crowded(usize),
    /// It was silent longest among this many with a role, or without one.
    Idle(usize),
    /// It has not sent its request in time.
    Late,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crowded(places) => write!(
                f,
                "it said nothing, and more than {places} such connections have come (what connects there and sends nothing?)"
            ),
            Self::Idle(places) => write!(
                f,
                "it asked for nothing, and more than {places} clients of its kind have come (end those that are not needed)"
            ),
            Self::Late => {
                write!(f, "it did not say within {} s what it wants", PATIENCE.as_secs())
            }
        }
    }
}

impl Client {
    /// When the connection is closed, if no request comes.
    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::New(deadline) | State::Unwanted(deadline, _) => Some(deadline),
            State::Served(_) => None,
        }
    }

    fn kind(&self) -> Kind {
        match self.state {
            State::New(_) => Kind::New,
            State::Unwanted(..) => Kind::Unwanted,
            State::Served(None) => Kind::Beside,
            State::Served(Some(_)) => Kind::Role,
        }
    }
}

/// The connections, in the order of their last message, the oldest first.
#[derive(Default)]
pub struct Clients(Vec<Client>);

impl Clients {
    /// The connections, in that order.
    pub fn all(&self) -> &[Client] {
        &self.0
    }

    /// When the next connection is closed, if no request comes.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.iter().filter_map(Client::deadline).min()
    }

    /// Removes the connection of that number, if there is one.
    pub fn take(&mut self, number: u32) -> Option<Client> {
        let index = self.0.iter().position(|client| client.number == number)?;
        Some(self.0.remove(index))
    }

    /// Adds a connection that has connected or sent a message just now. Returns the one that is
    /// closed for it, and why.
    pub fn add(&mut self, client: Client) -> Option<(Client, Silent)> {
        let kind = client.kind();
        let alike = |other: &Client| other.kind() == kind;
        let places = kind.places();
        let full = self.0.iter().filter(|other| alike(other)).count() >= places;
        let longest = self.0.iter().position(alike).filter(|_| full);
        let gone = longest.map(|index| self.0.remove(index));
        self.0.push(client);
        let why = match kind {
            Kind::New | Kind::Unwanted => Silent::Crowded(places),
            Kind::Beside | Kind::Role => Silent::Idle(places),
        };
        gone.map(|gone| (gone, why))
    }

    /// Removes the connections whose time is up at `now`.
    pub fn expired(&mut self, now: Instant) -> Vec<Client> {
        self.0.extract_if(.., |client| client.deadline().is_some_and(|at| at <= now)).collect()
    }
}

/// Counts the clients that are turned away, and logs some: any process that can connect could fill
/// the log.
#[derive(Default)]
pub struct TurnedAway(Pace);

impl TurnedAway {
    /// Counts a client of the socket `name`, and logs the reason.
    pub fn note(
        &mut self,
        name: &str,
        peer: &Peer,
        reason: &dyn fmt::Display,
        counters: &Counters,
    ) {
        counters.turned_away.count();
        if self.0.due() {
            let all = counters.turned_away.get();
            log::warn!("{name}: process {} was turned away ({all} so far): {reason}", peer.pid);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::daemon::handover::set::{Set, Token};
    use nix::unistd::geteuid;
    use std::os::unix::net::UnixStream;

    /// A client whose number is that of its process.
    fn client(pid: i32, state: State) -> Client {
        let number = pid.cast_unsigned();
        let (set, socket) = (Set::new().unwrap(), UnixStream::pair().unwrap().0);
        let socket = Watched::new(&set, socket.into(), Token { desk: 1, number }).unwrap();
        Client { number, socket, peer: Peer { pid, uid: geteuid(), groups: Vec::new() }, state }
    }

    fn new(pid: i32) -> Client {
        client(pid, State::New(Instant::now() + PATIENCE))
    }

    fn pids(clients: &Clients) -> Vec<i32> {
        clients.all().iter().map(|client| client.peer.pid).collect()
    }

    #[test]
    fn client_that_was_silent_longest_makes_way_for_one_of_its_kind() {
        let mut clients = Clients::default();
        assert!(clients.add(client(0, State::Served(Some(Side::Consumer)))).is_none());
        for pid in 1..=32 {
            assert!(clients.add(client(pid, State::Served(None))).is_none());
        }
        // The first connection has sent a message since.
        let spoken = clients.take(1).unwrap();
        assert!(clients.take(1).is_none());
        assert!(clients.add(spoken).is_none());
        for pid in 101..=132 {
            assert!(clients.add(new(pid)).is_none());
        }
        let (gone, why) = clients.add(client(33, State::Served(None))).unwrap();
        assert_eq!((gone.peer.pid, why), (2, Silent::Idle(32)));
        let (gone, why) = clients.add(new(133)).unwrap();
        assert_eq!((gone.peer.pid, why), (101, Silent::Crowded(32)));
        let left: Vec<_> = [0].into_iter().chain(3..=32).chain([1]).collect();
        assert_eq!(pids(&clients)[..32], left);
        assert!(clients.all().len() < MAX_CONNECTIONS);
    }

    #[test]
    fn client_that_is_late_is_given_up_and_no_other() {
        let mut clients = Clients::default();
        clients.add(new(1));
        clients.add(client(2, State::Served(None)));
        clients.add(client(3, State::Unwanted(Instant::now() + PATIENCE, String::new())));
        assert!(clients.expired(Instant::now()).is_empty());
        let late = clients.expired(clients.deadline().unwrap() + PATIENCE);
        assert_eq!(late.iter().map(|client| client.peer.pid).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((pids(&clients), clients.deadline()), (vec![2], None));
    }
}
