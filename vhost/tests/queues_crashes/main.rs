//! Every crash of two queues of one worker: a producer's requests go to either queue, as they do
//! when its process moves between processors, beside a FLUSH of somebody else. The power fails, or
//! the backend is killed, at every point of every order in which that can happen.
//!
//! [`program`] has the guest's requests, as the library makes them; [`world`] plays them against
//! the worker, over a region whose unflushed sectors a power failure may lose; [`promises`] says
//! what must survive; [`explorer`] goes through all orders. Mutants of what is around the worker
//! show that it would notice a worker that made those mistakes.
#![allow(clippy::unwrap_used)]

mod explorer;
mod flushes;
mod program;
mod promises;
mod world;

use explorer::{Bounds, Explorer};
use program::Program;
use world::Mutant;

fn explore(bounds: Bounds, program: &Program, mutant: Option<Mutant>) -> Result<String, String> {
    Explorer::new(program, mutant, bounds).explore()
}

#[test]
fn everything_promised_survives_every_crash_of_two_queues() {
    let long = std::env::var_os("BLOCKRING_LONG").is_some();
    let (items, bounds) = if long {
        (3, Bounds { kills: 2, flushes: 1 })
    } else {
        (2, Bounds { kills: 1, flushes: 1 })
    };
    let counts = explore(bounds, &Program::recorded(items), None);
    println!("{items} items, {}", counts.unwrap_or_else(|violation| panic!("{violation}")));
}

/// Each mutant with the words of the promise that it breaks.
#[test]
fn mutants_of_two_queues_are_found() {
    let program = Program::recorded(2);
    for (mutant, program, words) in [
        (Some(Mutant::FlushesNothing), program.clone(), "was promised"),
        (Some(Mutant::PromisesMore), program.clone(), "was promised"),
        (Some(Mutant::PublishesFirst), program.clone(), "has no answer"),
        (None, program.without_waiting(), "after a power failure"),
    ] {
        let bounds = Bounds { kills: 1, flushes: 1 };
        let violation = explore(bounds, &program, mutant).expect_err("it is found");
        assert!(violation.contains(words), "{mutant:?}: {violation}");
    }
}
