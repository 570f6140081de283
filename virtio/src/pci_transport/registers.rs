//! A device's registers, mapped.

use super::caps::Place;
use super::config::Area;
use crate::{Error, Refusal, Step};
use ring_os::{Mapping, Word};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};

/// One structure of a device. Every access is checked against its bounds, and made as it stands:
/// once, in this order, and of this width.
#[derive(Debug)]
pub struct Registers {
    region: Mapping,
    place: Place,
}

/// An integer that a register can be.
pub trait Value: Copy {
    /// The atomic integer of the same size and alignment.
    type Word: Word;
}

impl Value for u8 {
    type Word = AtomicU8;
}

impl Value for u16 {
    type Word = AtomicU16;
}

impl Value for u32 {
    type Word = AtomicU32;
}

impl Registers {
    /// Maps the structure that lies at `place` in the region that `area` shows.
    pub fn map(area: Area, place: Place) -> Result<Self, Error> {
        if u64::from(place.offset) + u64::from(place.length) > area.bytes {
            let (Place { bar, offset, length }, bytes) = (place, area.bytes);
            return Err(Refusal::Registers { bar, offset, length, bytes }.into());
        }
        let region = Mapping::part(area.file, area.offset, area.bytes);
        Ok(Self { region: region.map_err(Step::MapRegisters.failed())?, place })
    }

    /// Returns the number of bytes.
    pub fn length(&self) -> u32 {
        self.place.length
    }

    /// Reads the register at `at`, a multiple of its size.
    pub fn read<V: Value>(&self, at: u32) -> V {
        let register = self.at::<V>(at);
        // SAFETY: `at` has checked bounds and alignment, and the mapping lives as long as `self`.
        // Integers are valid whatever the device answers; it is no memory of Rust's, so that
        // whoever else stores to it races with nobody's reference.
        unsafe { register.read_volatile() }
    }

    /// Writes the register at `at`, a multiple of its size.
    pub fn write<V: Value>(&self, at: u32, value: V) {
        let register = self.at::<V>(at);
        // SAFETY: as in `read`. What the device does to memory follows from the addresses that it
        // is told: `Common::start` alone tells it any, and is unsafe for that.
        unsafe { register.write_volatile(value) }
    }

    fn at<V: Value>(&self, at: u32) -> *mut V {
        let end = u64::from(at) + size_of::<V>() as u64;
        assert!(end <= u64::from(self.place.length), "a register within its structure");
        let at = u64::from(self.place.offset) + u64::from(at);
        let words: &[V::Word] = self.region.words(at, 1);
        std::ptr::from_ref(&words[0]).cast_mut().cast()
    }
}
