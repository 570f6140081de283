//! The library's own code on memory of which loom chooses what each thread sees: every
//! interleaving, and every stale value that the orderings allow, within the bounds that each test
//! states.
//!
//! `MappedDevice`, `Producer`, `Consumer`, `Control`, `Wait` and `Announcement` themselves are
//! searched; only the [memory] below them, the event to sleep on and the glue between the two are
//! models. Beside each promise stand mutants: the same search with an ordering weakened or a step
//! left out, which must find a failure, or the promise was not tested.
//!
//! Loom has two limits. A load never finds a store that comes later in the execution, though a
//! processor may let an unordered one do so; sectors checked for races make up for that. And its
//! sequentially consistent fence orders more than the language's: the order of positions is
//! therefore searched without bells.

#![allow(clippy::unwrap_used)]

mod device;
mod explore;
mod memory;
mod ring;
mod sleep;
mod slots;
mod suspend;
mod wake;
