//! Entries that `journalctl --follow` prints again.

use super::cursor::{Cursor, file_of_entry};
use std::collections::HashMap;

/// Passes over entries that journalctl prints again once journald has copied them to another file,
/// as it does when the disk can be written to, some seconds after the boot. journalctl knows an
/// entry of another file by boot, time and hash: of those that have one time it prints again what
/// has a higher hash than the last one, and now and then all that the new file has of a boot.
///
/// Within a boot it prints entries in the order of their times, whatever files they are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reprints {
    boot: String,
    /// The time of the last entry that was not printed again, since the boot.
    monotonic: u64,
    /// What tells the files that entry was in from those written before or after; a file's copies
    /// differ in it. None if that entry was sent by an earlier process.
    file: Option<String>,
    /// How many entries of that time were new, for each hash.
    new: HashMap<u64, u32>,
    /// How many were printed, for each file and hash.
    printed: HashMap<(Option<String>, u64), u32>,
}

impl Reprints {
    /// Begins behind an entry that was sent before.
    pub fn behind(sent: Option<&Cursor>) -> Self {
        let place = sent.map(|sent| (sent.boot.clone(), sent.monotonic));
        let (boot, monotonic) = place.unwrap_or_default();
        Self { boot, monotonic, ..Self::default() }
    }

    /// Returns whether this entry, the next one that journalctl has printed, was printed before.
    pub fn has(&mut self, entry: &[u8]) -> bool {
        let Some(cursor) = Cursor::of_entry(entry) else { return false };
        let file = file_of_entry(entry).map(str::to_owned);
        if cursor.boot == self.boot && cursor.monotonic < self.monotonic && file != self.file {
            return true;
        }
        if cursor.boot != self.boot || cursor.monotonic != self.monotonic {
            *self = Self::behind(Some(&cursor));
        }
        let printed = self.printed.entry((file.clone(), cursor.hash)).or_default();
        *printed += 1;
        let new = self.new.entry(cursor.hash).or_default();
        if *printed <= *new {
            return true;
        }
        *new += 1;
        self.file = file;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns which of these entries, each a file, a boot, a time and a hash, are new.
    fn new(reprints: &mut Reprints, entries: &[(u8, u8, u64, u64)]) -> Vec<bool> {
        let entry = |(file, boot, monotonic, hash): (u8, u8, u64, u64)| {
            format!("__CURSOR=s={file:032x};i=1;b={boot:032x};m={monotonic:x};t=5;x={hash:x}\n\n")
        };
        entries.iter().map(|&parts| !reprints.has(entry(parts).as_bytes())).collect()
    }

    #[test]
    fn copies_in_another_file_are_passed_over() {
        let mut reprints = Reprints::default();
        let first = [(1, 1, 10, 1), (1, 1, 20, 3), (1, 1, 20, 2), (1, 1, 20, 2)];
        assert_eq!(new(&mut reprints, &first), [true; 4]);
        // All of the boot again, and then what is new.
        let copies = first.map(|(_, boot, monotonic, hash)| (2, boot, monotonic, hash));
        assert_eq!(new(&mut reprints, &copies), [false; 4]);
        assert_eq!(new(&mut reprints, &[(2, 1, 20, 2), (2, 1, 30, 1)]), [true; 2]);
        assert_eq!(new(&mut reprints, &[(1, 1, 20, 3)]), [false]);
    }

    #[test]
    fn entries_of_another_boot_and_those_of_a_file_whose_time_goes_back_are_new() {
        let mut reprints = Reprints::default();
        let entries = [(1, 1, 20, 1), (1, 1, 10, 1), (2, 2, 5, 1), (2, 1, 5, 1)];
        assert_eq!(new(&mut reprints, &entries), [true; 4]);
    }

    #[test]
    fn entries_before_the_one_that_was_sent_are_not_new() {
        let boot = format!("{:032x}", 1);
        let sent = Cursor { boot, monotonic: 20, realtime: 5, hash: 1, number: 1 };
        let mut reprints = Reprints::behind(Some(&sent));
        let entries = [(1, 1, 10, 1), (1, 1, 20, 2), (1, 1, 30, 1)];
        assert_eq!(new(&mut reprints, &entries), [false, true, true]);
    }
}
