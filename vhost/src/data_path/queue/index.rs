//! A ring's index (virtio 1.3, 2.7.6): 16 bits that wrap around.

/// An index, in a word of its own.
///
/// Compilers may load a whole word where they need half of one. A load that covers more than the
/// last store waits until that store has left the processor's store buffer, and the data of all
/// earlier requests has to leave that first. With two 16-bit indices side by side these waits took a
/// third of the time of small writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Index(u32);

impl Index {
    pub const fn new(index: u16) -> Self {
        Self(index as u32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a word never has more than 16 bits")]
    pub const fn get(self) -> u16 {
        self.0 as u16
    }

    /// The index so many behind this one.
    pub const fn after(self, count: u16) -> Self {
        Self::new(self.get().wrapping_add(count))
    }

    /// How many this index is behind an earlier one.
    pub const fn since(self, earlier: Self) -> u16 {
        self.get().wrapping_sub(earlier.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_wraps_around() {
        let last = Index::new(u16::MAX);
        assert_eq!((last.after(3).get(), last.after(3).since(last)), (2, 3));
        assert_eq!(last.since(last), 0);
    }
}
