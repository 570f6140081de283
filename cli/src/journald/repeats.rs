//! The entries at the start of what is read that were sent before.

use super::super::framing::Framing;
use super::super::splitter::{Splitter, Step};
use super::cursor::Cursor;

/// Passes over the entries up to a cursor. The journal is read from the first entry of the cursor's
/// time on, of which there can be several. Of files whose last entry of the boot is older,
/// journalctl prints all entries of the boot instead of none.
pub struct Repeats {
    last: Cursor,
    splitter: Splitter,
    /// Entries of the cursor's time.
    held: Vec<u8>,
    /// Number of these entries.
    count: u64,
    /// Bytes of them up to the end of the last one that has the cursor's fields.
    sent: usize,
}

impl Repeats {
    pub fn until(last: Cursor) -> Self {
        let splitter = Splitter::new(Framing::Export, usize::MAX, false);
        Self { last, splitter, held: Vec::new(), count: 0, sent: 0 }
    }

    /// Takes the next bytes. Returns those that were not sent before, once it is known that
    /// everything behind them was not sent either.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.splitter.feed(bytes);
        while let Step::Item(piece) = self.splitter.next() {
            let entry = self.splitter.bytes(&piece);
            let cursor = Cursor::of_entry(entry).filter(|cursor| cursor.boot == self.last.boot);
            if cursor.as_ref().is_some_and(|cursor| cursor.monotonic < self.last.monotonic) {
                continue;
            }
            self.held.extend_from_slice(entry);
            let cursor = cursor.filter(|cursor| cursor.has_time_of(&self.last));
            let Some(cursor) = cursor else { return Some(self.rest()) };
            self.count += 1;
            // Where entries were removed meanwhile the number is never reached.
            if cursor.hash == self.last.hash {
                self.sent = self.held.len();
            }
            if self.count >= self.last.number && self.sent > 0 {
                return Some(self.rest());
            }
        }
        None
    }

    /// Returns what was not sent, at the end of the journal.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = self.held.split_off(self.sent);
        rest.extend_from_slice(self.splitter.rest());
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(monotonic: u64, hash: u64) -> Cursor {
        Cursor { boot: "0".repeat(32), monotonic, realtime: 5, hash, number: 1 }
    }

    fn entry(monotonic: u64, hash: u64) -> Vec<u8> {
        format!("__CURSOR=i=7;{}\nM\n\x01\0\0\0\0\0\0\0\n\n\n", cursor(monotonic, hash))
            .into_bytes()
    }

    /// Returns what is left of the entries, read in pieces of `chunk` bytes.
    fn left(last: Cursor, entries: &[Vec<u8>], chunk: usize) -> Vec<u8> {
        let bytes = entries.concat();
        let mut repeats = Repeats::until(last);
        let mut read = 0;
        for piece in bytes.chunks(chunk) {
            read += piece.len();
            if let Some(mut new) = repeats.feed(piece) {
                new.extend_from_slice(&bytes[read..]);
                return new;
            }
        }
        repeats.rest()
    }

    #[test]
    fn entries_up_to_the_cursor_are_passed_over() {
        let entries = [entry(8, 1), entry(8, 2), entry(8, 2), entry(8, 3), entry(9, 1)];
        let nth = |number, hash| Cursor { number, ..cursor(8, hash) };
        for chunk in [1, 7, 1000] {
            let left = |last, count: usize| left(last, &entries[..count], chunk);
            for (number, hash) in [(1, 1), (2, 2), (3, 2), (4, 3)] {
                assert_eq!(left(nth(number as u64, hash), 5), entries[number..].concat());
                assert_eq!(left(nth(number as u64, hash), number), b"");
            }
            // Older ones of another file come first.
            assert_eq!(left(cursor(9, 1), 5), b"");
            // The entry is gone: what has its time was not sent.
            assert_eq!(left(nth(2, 4), 5), entries.concat());
            assert_eq!(left(nth(2, 4), 2), entries[..2].concat());
            assert_eq!(left(cursor(7, 4), 5), entries.concat());
            // Others in front of it are gone.
            assert_eq!(left(nth(6, 2), 5), entries[3..].concat());
        }
    }
}
