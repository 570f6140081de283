//! Items of many senders that are pushed together.

use crate::splitter::Piece;

/// Items in the order in which they are pushed.
#[derive(Default)]
pub struct Group {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// The connection of each item, by its index; none for a datagram's.
    owners: Vec<Option<usize>>,
}

impl Group {
    /// Adds an item: `bytes` behind `prefix`. It is the `first` or the `last` of its record, or
    /// both.
    pub fn add(
        &mut self,
        prefix: &str,
        bytes: &[u8],
        [first, last]: [bool; 2],
        owner: Option<usize>,
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(prefix.as_bytes());
        self.bytes.extend_from_slice(bytes);
        let place = start..self.bytes.len();
        let used = place.len() as u64;
        self.pieces.push(Piece { bytes: place, used, first, last });
        self.owners.push(owner);
    }

    /// Adds the items of a datagram: one, or as many as it takes if an item has at most `max`
    /// bytes.
    pub fn add_datagram(&mut self, prefix: &str, bytes: &[u8], max: usize) {
        let max = max.saturating_sub(prefix.len()).max(1);
        let count = bytes.len().div_ceil(max).max(1);
        for part in 0..count {
            let end = bytes.len().min((part + 1) * max);
            let is = [part == 0, part + 1 == count];
            self.add(prefix, &bytes[part * max..end], is, None);
        }
    }

    /// Returns the bytes of all items.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Returns the items.
    pub fn items(&self) -> Vec<&[u8]> {
        self.pieces.iter().map(|piece| &self.bytes[piece.bytes.clone()]).collect()
    }

    /// Returns what the items are of their records.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns the connections whose records end with one of the items in `range`, once for each
    /// record.
    pub fn ended(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = usize> + '_ {
        let both = self.pieces[range.clone()].iter().zip(&self.owners[range]);
        both.filter(|(piece, _)| piece.last).filter_map(|(_, owner)| *owner)
    }

    /// Removes all items, and keeps the memory up to `kept` bytes.
    pub fn clear(&mut self, kept: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(kept);
        self.pieces.clear();
        self.owners.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_knows_whose_records_end_where() {
        let mut group = Group::default();
        group.add("", b"a", [true, true], Some(0));
        group.add("p ", b"begin", [true, false], Some(1));
        group.add("p ", b"end", [false, true], Some(1));
        group.add("", b"", [true, true], None);
        assert_eq!(group.items(), [&b"a"[..], b"p begin", b"p end", b""]);
        assert_eq!(group.ended(0..2).collect::<Vec<_>>(), [0]);
        assert_eq!(group.ended(2..4).collect::<Vec<_>>(), [1]);
        assert_eq!(group.size(), 13);
        group.clear(0);
        assert!(group.is_empty() && group.items().is_empty());
    }

    #[test]
    fn datagram_is_one_item_or_parts_that_fit_with_their_prefix() {
        let mut group = Group::default();
        group.add_datagram("", b"", 4);
        group.add_datagram("", b"abcd", 4);
        group.add_datagram("p ", b"abcde", 4);
        assert_eq!(group.items(), [&b""[..], b"abcd", b"p ab", b"p cd", b"p e"]);
        let ends: Vec<_> = group.pieces().iter().map(|piece| (piece.first, piece.last)).collect();
        let whole = (true, true);
        assert_eq!(ends, [whole, whole, (true, false), (false, false), (false, true)]);
    }
}
