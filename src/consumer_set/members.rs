//! The consumers of a set by their keys.

use super::Key;
use crate::consumer::Consumer;
use crate::device::RingDevice;
use crate::format::Position;
use std::time::Instant;

/// A consumer in a set.
pub(super) struct Member<D: RingDevice> {
    pub consumer: Consumer<D>,
    pub state: State,
    /// Whether its descriptors are in the epoll.
    pub is_joined: bool,
    /// The time of the next step of the search for the backend, while that is gone.
    pub due: Option<Instant>,
}

/// What the set does with a member.
pub(super) enum State {
    /// Looks for an item at this position.
    Resting(Position),
    /// Nothing: it was reported, and the caller has it.
    Reported,
    /// Nothing until it rests again.
    Failed,
}

/// Members by index. The generation of a place grows with each member, so that the key of one that
/// was removed never names a later one.
pub(super) struct Members<D: RingDevice> {
    places: Vec<(u32, Option<Member<D>>)>,
    free: Vec<u32>,
}

impl<D: RingDevice> Default for Members<D> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<D: RingDevice> Members<D> {
    pub fn insert(&mut self, consumer: Consumer<D>) -> Key {
        let member = Member { consumer, state: State::Reported, is_joined: false, due: None };
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.1 = Some(member);
            return Key { index, generation: place.0 };
        }
        // The set has refused more.
        let index = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.places.push((0, Some(member)));
        Key { index, generation: 0 }
    }

    pub fn remove(&mut self, key: Key) -> Option<Member<D>> {
        let (generation, member) = self.places.get_mut(key.index as usize)?;
        if *generation != key.generation {
            return None;
        }
        let member = member.take()?;
        // A place whose generations are used up stays empty.
        if let Some(next) = generation.checked_add(1) {
            *generation = next;
            self.free.push(key.index);
        }
        Some(member)
    }

    pub fn get(&self, key: Key) -> Option<&Member<D>> {
        let (generation, member) = self.places.get(key.index as usize)?;
        member.as_ref().filter(|_| *generation == key.generation)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut Member<D>> {
        let (generation, member) = self.places.get_mut(key.index as usize)?;
        member.as_mut().filter(|_| *generation == key.generation)
    }

    /// Returns the key of the member with that index, if there is one.
    pub fn key(&self, index: u32) -> Option<Key> {
        let (generation, member) = self.places.get(index as usize)?;
        member.as_ref().map(|_| Key { index, generation: *generation })
    }

    pub fn keys(&self) -> impl Iterator<Item = Key> {
        (0..self.places()).filter_map(|index| self.key(index))
    }

    /// Returns the number of indexes, with those of removed members.
    pub fn places(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
