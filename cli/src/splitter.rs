//! Division of a stream of bytes into items, in one pass. Memory holds no more than the largest
//! item and one read.

use super::framing::Framing;
use super::journald::Scan;
use std::ops::Range;

/// Bytes that were read and not returned yet, and the state of the division.
///
/// A record is what the framing of the input separates. A record that is larger than the largest
/// item is cut into items, or returned in pieces as it arrives.
pub struct Splitter {
    framing: Framing,
    /// Bytes of the largest item.
    max: usize,
    /// Whether larger records are cut into items.
    split: bool,
    pending: Vec<u8>,
    /// Bytes of `pending` that were returned.
    taken: usize,
    /// Bytes behind `taken` that are known to hold no separator.
    searched: usize,
    /// The search for the end of an entry of the journal.
    scan: Scan,
    /// Whether the input has ended.
    ended: bool,
    /// Whether there was any record.
    any: bool,
    record: Option<Record>,
    /// Bytes that were compared with the separator.
    #[cfg(test)]
    compared: usize,
}

/// A record that has begun and not ended.
#[derive(Default)]
struct Record {
    /// Bytes of its framing that belong to no piece yet.
    head: u64,
    /// Bytes of the record that were returned.
    given: u64,
    /// Bytes of the record that are left, if the framing tells its length.
    left: Option<u64>,
    /// Whether a piece of the record was returned.
    begun: bool,
    /// Whether the record is larger than the largest item.
    too_large: bool,
}

/// Bytes of one record in the memory of the splitter; valid until the next `feed`.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// The place of the bytes in `pending`.
    pub bytes: Range<usize>,
    /// Bytes of the input that the piece takes, framing included.
    pub used: u64,
    /// Whether the piece is the first of its record.
    pub first: bool,
    /// Whether the piece is the last of its record.
    pub last: bool,
}

/// The size of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Exactly(u64),
    /// The end of the record was not read yet.
    AtLeast(u64),
}

/// The next step in the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// An item: a record, or a part of one that is too large.
    Item(Piece),
    /// A piece of a record that is too large.
    TooLarge(Piece, Size),
    /// More input is needed.
    More,
    /// The end of the input.
    End,
    /// The end of the input, within a record.
    Truncated,
}

impl Splitter {
    pub fn new(framing: Framing, max: usize, split: bool) -> Self {
        Self {
            framing,
            max,
            split,
            pending: Vec::new(),
            taken: 0,
            searched: 0,
            scan: Scan::default(),
            ended: false,
            any: false,
            record: None,
            #[cfg(test)]
            compared: 0,
        }
    }

    /// Adds bytes of the input. Pieces that were returned before become invalid.
    pub fn feed(&mut self, bytes: &[u8]) {
        // Only bytes of the last read are moved: all bytes before them are in pieces, or none is
        // taken.
        self.pending.drain(..self.taken);
        self.taken = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// Notes the end of the input.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Returns the bytes of a piece.
    pub fn bytes(&self, piece: &Piece) -> &[u8] {
        &self.pending[piece.bytes.clone()]
    }

    /// Returns whether all bytes that were read are in pieces, and no record has begun.
    pub fn is_between_records(&self) -> bool {
        self.record.is_none() && self.available() == 0
    }

    /// Returns the size, as far as it is known, of the record that is being returned in pieces.
    pub fn too_large(&self) -> Option<Size> {
        let record = self.record.as_ref().filter(|record| record.too_large)?;
        Some(Size::AtLeast(record.given))
    }

    /// Returns the bytes that were read and are not in pieces.
    pub fn rest(&self) -> &[u8] {
        &self.pending[self.taken..]
    }

    fn available(&self) -> usize {
        self.pending.len() - self.taken
    }

    /// Returns the next step.
    pub fn next(&mut self) -> Step {
        let mut record = match self.record.take() {
            Some(record) => record,
            None => match self.begin() {
                Ok(record) => record,
                Err(step) => return step,
            },
        };
        self.any = true;
        let step = self.step(&mut record);
        let is_over = matches!(
            step,
            Step::Item(Piece { last: true, .. }) | Step::TooLarge(Piece { last: true, .. }, _)
        );
        self.record = (!is_over).then_some(record);
        step
    }

    /// Returns the next record, if there is one.
    fn begin(&mut self) -> Result<Record, Step> {
        let rest = &self.pending[self.taken..];
        if self.ended && rest.is_empty() && (self.framing != Framing::Whole || self.any) {
            return Err(Step::End);
        }
        if self.framing != Framing::Length {
            // An empty line is a record; no bytes at all are none yet.
            let is_there = self.ended || !rest.is_empty();
            return if is_there { Ok(Record::default()) } else { Err(Step::More) };
        }
        let head = rest.first_chunk::<4>().ok_or_else(|| self.lacking())?;
        let left = u32::from_le_bytes(*head).into();
        self.taken += head.len();
        Ok(Record { head: 4, left: Some(left), ..Record::default() })
    }

    fn lacking(&self) -> Step {
        if self.ended { Step::Truncated } else { Step::More }
    }

    fn step(&mut self, record: &mut Record) -> Step {
        let (length, is_all) = self.extent(record);
        let available = self.available();
        let fits = length <= self.max as u64;
        record.too_large |= !fits;
        if record.too_large && !self.split {
            let count = usize::try_from(length).map_or(available, |length| length.min(available));
            let last = is_all && count as u64 == length;
            let size = record.given + length;
            let size = if is_all { Size::Exactly(size) } else { Size::AtLeast(size) };
            // A framing with lengths tells the size before the first byte.
            if count == 0 && !last && record.begun {
                return self.lacking();
            }
            return Step::TooLarge(self.take(record, count, last), size);
        }
        // A record that fits, or the next part of one that does not. A part that is not the last
        // has at least one byte behind it.
        let count = if fits { usize::try_from(length).unwrap_or(self.max) } else { self.max };
        if count > available || (fits && !is_all) {
            return self.lacking();
        }
        Step::Item(self.take(record, count, fits))
    }

    /// Returns the bytes that are known to be left of the record, and whether these are all.
    fn extent(&mut self, record: &Record) -> (u64, bool) {
        let rest = &self.pending[self.taken..];
        let (length, is_all) = match (record.left, self.framing.delimiter()) {
            (Some(left), _) => return (left, true),
            (None, None) if self.framing == Framing::Export => match self.scan.end_in(rest) {
                Some(end) => (end, true),
                None => (rest.len(), false),
            },
            (None, None) => (rest.len(), self.ended),
            (None, Some(separator)) => {
                let unknown = &rest[self.searched..];
                let found = memchr::memchr(separator, unknown);
                let compared = found.unwrap_or(unknown.len());
                #[cfg(test)]
                {
                    self.compared += compared;
                }
                self.searched += compared;
                (self.searched, found.is_some() || self.ended)
            }
        };
        (length as u64, is_all)
    }

    /// Takes the next bytes of the record, and the separator behind its last byte.
    fn take(&mut self, record: &mut Record, count: usize, last: bool) -> Piece {
        let bytes = self.taken..self.taken + count;
        self.taken = bytes.end;
        self.searched = self.searched.saturating_sub(count);
        if last {
            self.scan = Scan::default();
        } else {
            self.scan.pass(count);
        }
        let mut used = std::mem::take(&mut record.head) + count as u64;
        // A separator or the end of the input follows a record.
        if last && self.framing.delimiter().is_some() && self.available() > 0 {
            self.taken += 1;
            used += 1;
        }
        record.given += count as u64;
        record.left = record.left.map(|left| left - count as u64);
        let first = !std::mem::replace(&mut record.begun, true);
        Piece { bytes, used, first, last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 9;

    /// What becomes of an input that is read in pieces of `chunk` bytes: items, sizes of what is
    /// too large, and the last step.
    type Found = (Vec<Vec<u8>>, Vec<u64>, Step);

    fn split(framing: Framing, parts: bool, input: &[u8], chunk: usize) -> Found {
        let mut splitter = Splitter::new(framing, MAX, parts);
        let (mut items, mut sizes, mut used, mut passed) = (Vec::new(), Vec::new(), 0, 0);
        let mut chunks = input.chunks(chunk);
        let last = loop {
            let piece = match splitter.next() {
                Step::Item(piece) => {
                    items.push(splitter.bytes(&piece).to_vec());
                    piece
                }
                Step::TooLarge(piece, size) => {
                    passed += piece.bytes.len() as u64;
                    if piece.last {
                        assert_eq!(size, Size::Exactly(passed));
                        sizes.push(std::mem::take(&mut passed));
                    }
                    piece
                }
                Step::More => {
                    assert!(splitter.available() <= MAX + chunk);
                    match chunks.next() {
                        Some(chunk) => splitter.feed(chunk),
                        None => splitter.end(),
                    }
                    continue;
                }
                last => break last,
            };
            used += piece.used;
        };
        if last == Step::End {
            assert_eq!(used, input.len() as u64, "every byte is accounted for");
        }
        (items, sizes, last)
    }

    /// The same for every size of a piece.
    fn assert_splits(framing: Framing, parts: bool, input: &[u8], items: &[&[u8]], sizes: &[u64]) {
        for chunk in 1..=input.len().max(1) {
            let result = split(framing, parts, input, chunk);
            let items: Vec<_> = items.iter().map(|item| item.to_vec()).collect();
            assert_eq!(result, (items, sizes.to_vec(), Step::End), "{framing:?} by {chunk}");
        }
    }

    #[test]
    fn splitter_tells_items_apart_however_they_are_read() {
        let lines = Framing::Lines;
        assert_splits(lines, false, b"", &[], &[]);
        assert_splits(lines, false, b"a\n\nb", &[b"a", b"", b"b"], &[]);
        assert_splits(lines, false, b"a\r\n\0\xff\n", &[b"a\r", b"\0\xff"], &[]);
        assert_splits(lines, false, b"123456789\n", &[b"123456789"], &[]);
        assert_splits(Framing::Nul, false, b"a\nb\0\0", &[b"a\nb", b""], &[]);
        assert_splits(Framing::Nul, false, b"no end", &[b"no end"], &[]);
        assert_splits(Framing::Length, false, b"\x01\0\0\0x\0\0\0\0", &[b"x", b""], &[]);
        assert_splits(Framing::Whole, false, b"a\nb\0", &[b"a\nb\0"], &[]);
        assert_splits(Framing::Whole, false, b"", &[b""], &[]);
        let entries: &[&[u8]] = &[b"A=\n\n", b"\n", b"B=1\nC=\n\n"];
        assert_splits(Framing::Export, false, &entries.concat(), entries, &[]);
    }

    #[test]
    fn splitter_finds_the_end_of_an_entry_behind_values_with_empty_lines() {
        let entry = b"A\n\x04\0\0\0\0\0\0\0=\n\n\n\nB=C\n\n";
        let input = [&entry[..], b"A=\n\n"].concat();
        // Larger than an item, and so taken in pieces.
        assert_splits(Framing::Export, false, &input, &[b"A=\n\n"], &[entry.len() as u64]);
        let parts: Vec<_> = entry.chunks(MAX).chain([&b"A=\n\n"[..]]).collect();
        assert_splits(Framing::Export, true, &input, &parts, &[]);
        let mut splitter = Splitter::new(Framing::Export, 100, false);
        splitter.feed(&input[..input.len() - 1]);
        let Step::Item(piece) = splitter.next() else { panic!("no entry") };
        assert_eq!(splitter.bytes(&piece), &entry[..]);
        assert_eq!(splitter.next(), Step::More);
        assert_eq!(splitter.rest(), b"A=\n");
    }

    #[test]
    fn splitter_passes_records_that_are_too_large_with_their_size() {
        let input = b"one\n0123456789abcdef\ntwo\n0123456789";
        assert_splits(Framing::Lines, false, input, &[b"one", b"two"], &[16, 10]);
        let input = b"\x0a\0\0\x000123456789\x01\0\0\0x";
        assert_splits(Framing::Length, false, input, &[b"x"], &[10]);
        assert_splits(Framing::Whole, false, b"0123456789", &[], &[10]);
    }

    #[test]
    fn splitter_cuts_records_that_are_too_large_into_the_fewest_items() {
        let input = b"one\n0123456789abcdefgh\ntwo\n0123456789";
        let items: &[&[u8]] = &[b"one", b"012345678", b"9abcdefgh", b"two", b"012345678", b"9"];
        assert_splits(Framing::Lines, true, input, items, &[]);
        let input = b"\x0a\0\0\x000123456789\x01\0\0\0x";
        assert_splits(Framing::Length, true, input, &[b"012345678", b"9", b"x"], &[]);
        assert_splits(Framing::Whole, true, b"0123456789", &[b"012345678", b"9"], &[]);
        assert_splits(Framing::Nul, true, b"0123456789\0", &[b"012345678", b"9"], &[]);
    }

    #[test]
    fn splitter_notices_an_input_that_ends_within_a_record() {
        for input in [&b"\x02\0\0\0x"[..], b"\x02\0", b"\xff\0\0\x000123456789"] {
            for parts in [false, true] {
                assert_eq!(split(Framing::Length, parts, input, 3).2, Step::Truncated);
            }
        }
        for input in [&b"A=\n"[..], b"A", b"A\n\x01\0", b"A=\n\nLONGER=1234"] {
            for parts in [false, true] {
                assert_eq!(split(Framing::Export, parts, input, 3).2, Step::Truncated);
            }
        }
    }

    #[test]
    fn splitter_knows_a_size_that_the_framing_tells_at_once() {
        let mut splitter = Splitter::new(Framing::Length, MAX, false);
        splitter.feed(b"\xff\xff\xff\xff");
        let Step::TooLarge(piece, size) = splitter.next() else { panic!("not too large") };
        assert_eq!((piece.first, piece.last, size), (true, false, Size::Exactly(0xffff_ffff)));
        assert_eq!(splitter.next(), Step::More);
    }

    #[test]
    fn splitter_compares_each_byte_once() {
        for split in [false, true] {
            let mut splitter = Splitter::new(Framing::Lines, 1 << 20, split);
            for _ in 0..1 << 10 {
                splitter.feed(&[b'x'; 1 << 11]);
                while splitter.next() != Step::More {}
                assert!(splitter.available() <= (1 << 20) + (1 << 11));
            }
            splitter.feed(b"\n");
            while splitter.next() != Step::More {}
            assert!(splitter.is_between_records());
            assert_eq!(splitter.compared, 1 << 21);
        }
    }
}
