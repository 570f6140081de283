//! `blockring produce --listen`: items of many local processes, by sockets, into one ring.
//!
//! One thread does everything, in turns. In a turn each process that has sent something is read
//! once, everything is pushed, published with one advance, and then acknowledged. While that
//! advance waits for the device, the next turn's items gather in the kernel: the busier the
//! senders, the larger the groups. A record that comes alone is published at once.

mod acknowledgements;
mod connection;
mod door;
mod endpoint;
mod group;
mod options;
mod sender;
mod server;

pub use endpoint::Entrance;
pub use options::ListenOptions;

use crate::failure::{Failure, Outcome};
use crate::fate::Fate;
use crate::framing::Framing;
use crate::life::Life;
use crate::output::say;
use crate::oversize::OnTooLarge;
use crate::pusher::Pusher;
use connection::Division;
use door::Door;
use endpoint::{Datagrams, Kind, Streams};
use ring_program::text::items;
use ring_program::{ServiceManager, Stop};
use server::Server;

/// Counts of what was received.
#[derive(Default, serde::Serialize)]
pub struct Counts {
    /// Connections that were accepted.
    connections: u64,
    /// Datagrams that were received.
    datagrams: u64,
    /// Groups of items that were published, each with one advance.
    groups: u64,
    /// Records whose connection ended before they did.
    incomplete: u64,
    /// Datagrams that were dropped because their sender is not known.
    unnamed: u64,
}

/// Listens at the sockets, and pushes what arrives until the process is asked to stop.
pub fn run(
    (options, entrances): (&ListenOptions, Vec<Entrance>),
    (framing, on_too_large): (Framing, OnTooLarge),
    pusher: &mut Pusher<'_>,
    stop: &Stop,
    counts: &mut Counts,
) -> Outcome {
    let access = options.access()?;
    ring_program::descriptors::raise()
        .map_err(Failure::io("cannot read the limit of open files"))?;
    let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
    let mut names = Vec::new();
    for entrance in entrances {
        let name = entrance.to_string();
        match entrance.kind {
            Kind::Streams => streams.push(Streams::on(entrance, &access)?),
            Kind::Datagrams => {
                datagrams.push(Datagrams::on(entrance, &access, options.credentials)?);
            }
        }
        say(format_args!("takes items at {name}"));
        names.push(name);
    }
    let life = Life::new(ServiceManager::connect()).map_err(Failure::io("cannot make a timer"))?;
    life.manager().ready(&format!("takes items at {}", names.join(", ")));
    pusher.give_signs(life);
    let division = Division {
        framing,
        on_too_large,
        max_item: pusher.max_item(),
        max_record: usize::try_from(options.max_record).unwrap_or(usize::MAX).max(1),
        credentials: options.credentials,
    };
    let door = Door::new(streams, options.max_connections());
    let mut server = Server::new(pusher, stop, (door, datagrams), division);
    let outcome = server.run();
    server.stopping();
    let outcome = server.finish(outcome, explain);
    *counts = server.into_counts();
    outcome
}

/// Adds to a failure what is known of the items.
fn explain(fate: Fate, failure: Failure) -> Failure {
    fate.add_to(failure, |fate| {
        let accepted = match fate.from.items {
            0 => "no item".to_owned(),
            count => format!("{count} {}", items(count)),
        };
        let others = match fate.to.map(|to| to.items - fate.from.items) {
            Some(0) => "what was received behind that is not".to_owned(),
            Some(count) => format!("in doubt: {count} more, what was received behind that is not"),
            None => "everything behind that is in doubt".to_owned(),
        };
        format!(
            "accepted for sure: {accepted}; {others} (on a connection, what was acknowledged is accepted)"
        )
    })
}
