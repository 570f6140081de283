//! The stream of items, and the steps that a side of the ring takes.

use rand::RngExt;
use rand::rngs::SmallRng;
use shared_block_ring::format::framed_len;
use std::sync::{Arc, Mutex};

/// The items that are published, or about to be, in order, each with the position behind it.
#[derive(Default)]
pub struct Stream(pub Vec<(u64, Vec<u8>)>);

impl Stream {
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |(end, _)| *end)
    }

    pub fn at(&self, end: u64) -> Option<&Vec<u8>> {
        let index = self.0.binary_search_by_key(&end, |(end, _)| *end).ok()?;
        Some(&self.0[index].1)
    }

    /// Returns the item that starts at that position.
    pub fn behind(&self, start: u64) -> Option<&(u64, Vec<u8>)> {
        self.0.get(self.0.partition_point(|(end, _)| *end <= start))
    }
}

pub type Published = Arc<Mutex<Stream>>;

pub fn item(life: u8, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![life; len];
    bytes.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, digit)| *byte ^= digit);
    bytes
}

pub fn end_of(start: u64, item: &[u8]) -> u64 {
    start + framed_len(u32::try_from(item.len()).unwrap())
}

#[derive(Debug, Clone)]
pub enum Step {
    /// Push a batch of items of these lengths, or pop as many items.
    Move(Vec<usize>),
    /// Advance over that many pushed batches, or over all popped items.
    Advance(usize),
    /// The process ends, and another one takes the role.
    Again,
}

pub fn steps(random: &mut SmallRng, most: usize, again: bool) -> Vec<Step> {
    let count = random.random_range(0..most);
    // Mostly of equal lengths: then different histories have the same positions.
    let longest = if random.random_bool(0.6) { 9 } else { 300 };
    (0..count)
        .map(|_| match random.random_range(0..10) {
            0 if again => Step::Again,
            0..6 => Step::Move(
                (0..random.random_range(1..4)).map(|_| random.random_range(8..longest)).collect(),
            ),
            _ => Step::Advance(random.random_range(1..6)),
        })
        .collect()
}
