//! Places in the journal, and the text in the ring's pointer sector that says up to which place the
//! journal was sent.

use super::reprints::Reprints;
use shared_block_ring::Position;
use shared_block_ring::format::Tally;
use std::fmt;
use std::str::FromStr;

/// The first line of an entry in the export format.
const LINE: &[u8] = b"__CURSOR=";

/// The longest line of an entry that is looked at for a cursor.
const LONGEST: usize = 512;

/// The words that the text of a pointer sector has in front of a trail.
const HEAD: &str = "journal ";

/// The words between the last entry and the one before.
const BEFORE: &str = ", before ";

/// The words in front of the checksum.
const CHECK: &str = ", check ";

/// A place in the journal: that of one entry. It has those parts of journald's own cursor that an
/// entry keeps when journald copies it to another file: boot, time since the boot, time, and a hash
/// of its fields. (Sequence numbers change with the file, and are given twice after a crash.)
/// Entries that arrive together have one time, and can have the same fields, so they are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// 32 hexadecimal digits.
    pub boot: String,
    /// Microseconds since the boot.
    pub monotonic: u64,
    /// Microseconds since 1970.
    pub realtime: u64,
    /// Hash of the entry's fields.
    pub hash: u64,
    /// Number of the entry among those of its boot and time, from 1 on.
    pub number: u64,
}

impl Cursor {
    /// Returns the cursor of an entry in the export format, if it has one.
    pub fn of_entry(entry: &[u8]) -> Option<Self> {
        let rest = entry.strip_prefix(LINE)?;
        let end = memchr::memchr(b'\n', &rest[..rest.len().min(LONGEST)])?;
        std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
    }

    /// Returns whether two entries have the same time of the same boot.
    pub fn has_time_of(&self, other: &Self) -> bool {
        self.boot == other.boot && self.monotonic == other.monotonic
    }

    /// Returns the place as journalctl takes it: the first entry of that time.
    pub fn place(&self) -> String {
        format!("b={};m={:x}", self.boot, self.monotonic)
    }
}

/// Returns what journald's cursor of an entry says of the file: the same for all that one journald
/// writes, and another for files that entries are copied to.
pub fn file_of_entry(entry: &[u8]) -> Option<&str> {
    let rest = entry.strip_prefix(LINE)?;
    let end = memchr::memchr2(b';', b'\n', &rest[..rest.len().min(LONGEST)])?;
    std::str::from_utf8(&rest[..end]).ok()?.strip_prefix("s=")
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { boot, monotonic, realtime, hash, number } = self;
        write!(f, "b={boot};m={monotonic:x};t={realtime:x};x={hash:x};n={number:x}")
    }
}

/// Reads what journald writes, where each entry is the first of its time, and what is displayed:
/// parts in any order, of which unknown ones are passed over.
impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let part = |key: &str| {
            text.split(';').find_map(|part| part.strip_prefix(key)?.strip_prefix('=')).ok_or(())
        };
        let number = |key| u64::from_str_radix(part(key)?, 16).map_err(drop);
        let boot = part("b")?;
        let is_id = boot.len() == 32 && boot.bytes().all(|byte| byte.is_ascii_hexdigit());
        let boot = is_id.then(|| boot.to_ascii_lowercase()).ok_or(())?;
        Ok(Self {
            boot,
            monotonic: number("m")?,
            realtime: number("t")?,
            hash: number("x")?,
            number: if part("n").is_ok() { number("n")? } else { 1 },
        })
    }
}

/// The last entries that were sent: that of the advance that is being made, and that of the last
/// one that was. A pointer sector in shared memory is not written in one step, and a suspend is
/// acknowledged without an advance, so the text can be ahead of the position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trail {
    last: Option<Mark>,
    before: Option<Mark>,
    /// The last entry that was pushed.
    pushed: Option<Cursor>,
    reprints: Reprints,
}

/// An entry, and the position behind its item.
type Mark = (Cursor, Position);

impl Trail {
    /// Returns the trail of a ring, if the text of its pointer sector has one.
    pub fn in_text(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once(HEAD)?;
        let (marks, rest) = rest.split_once(CHECK)?;
        let check = rest.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok())?;
        if check != checksum(marks.as_bytes()) {
            return None;
        }
        let mark = |words: &str| {
            let (cursor, position) = words.split_once(" at ")?;
            Some((cursor.parse().ok()?, position.parse().ok()?))
        };
        let (last, before) = match marks.split_once(BEFORE) {
            Some((last, before)) => (last, Some(mark(before)?)),
            None => (marks, None),
        };
        Some(Self { last: Some(mark(last)?), before, ..Self::default() })
    }

    /// Returns the entry that ends at a position of the ring, if the trail has it.
    pub fn at(&self, position: Position) -> Option<&Cursor> {
        let marks = [&self.last, &self.before];
        marks.into_iter().flatten().find(|mark| mark.1 == position).map(|mark| &mark.0)
    }

    /// Returns the trail of a ring whose last advance was at `position`.
    pub fn of_ring(text: &str, position: Position) -> Self {
        let cursor = Self::in_text(text).and_then(|trail| trail.at(position).cloned());
        let mark = cursor.map(|cursor| (cursor, position));
        let pushed = mark.as_ref().map(|mark: &Mark| mark.0.clone());
        let reprints = Reprints::behind(pushed.as_ref());
        Self { last: mark.clone(), before: mark, pushed, reprints }
    }

    /// Returns the entry that was sent last.
    pub fn sent(&self) -> Option<&Cursor> {
        self.before.as_ref().map(|mark| &mark.0)
    }

    /// Returns whether this item, the next one that was read, is an entry that was read before.
    pub fn is_reprint(&mut self, item: &[u8]) -> bool {
        self.reprints.has(item)
    }

    /// Notes an item that was pushed. One without a cursor is no entry of the journal.
    pub fn push(&mut self, item: &[u8]) {
        let before = self.pushed.take();
        self.pushed = Cursor::of_entry(item).map(|cursor| {
            let twin = before.filter(|before| before.has_time_of(&cursor));
            Cursor { number: twin.map_or(1, |twin| twin.number + 1), ..cursor }
        });
    }

    /// Notes that the last entry that was pushed is the one at which the next advance ends.
    pub fn begin(&mut self, position: Position) {
        self.last = self.pushed.clone().map(|cursor| (cursor, position));
    }

    /// Notes that the advance was made.
    pub fn settle(&mut self) {
        self.before.clone_from(&self.last);
    }

    /// Returns the trail for the text of a pointer sector, if there is one.
    pub fn text(&self) -> Option<String> {
        let last = self.last.as_ref()?;
        let before = self.before.as_ref().filter(|before| *before != last);
        let marks: Vec<_> = [last]
            .into_iter()
            .chain(before)
            .map(|(cursor, position)| format!("{cursor} at {position}"))
            .collect();
        let marks = marks.join(BEFORE);
        Some(format!("{HEAD}{marks}{CHECK}{:08x}", checksum(marks.as_bytes())))
    }
}

/// Tells a text that was stored in part from a whole one.
fn checksum(marks: &[u8]) -> u32 {
    Tally::from_here(Position::ZERO).extend(1, marks).crc
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::format::TEXT_BYTES;

    const BOOT: &str = "0123456789abcdef0123456789abcdef";

    fn cursor(number: u64) -> Cursor {
        let (boot, hash) = (BOOT.to_owned(), u64::MAX - number);
        Cursor { boot, monotonic: u64::MAX - number, realtime: u64::MAX, hash, number: 1 }
    }

    fn entry(number: u64) -> Vec<u8> {
        format!("__CURSOR={}\n\n", cursor(number)).into_bytes()
    }

    fn position(at: u64) -> Position {
        Position::new(at).unwrap()
    }

    #[test]
    fn cursor_is_found_in_an_entry() {
        let line =
            format!("__CURSOR=s={BOOT};i=1f;b={BOOT};m=3e8;t=60a24181e4000;x=6470c215a80496d");
        let entry = format!("{line}\n__REALTIME_TIMESTAMP=1\n\n");
        let found = Cursor::of_entry(entry.as_bytes()).unwrap();
        assert_eq!((found.monotonic, found.realtime), (1000, 1_700_000_000_000_000));
        assert_eq!(found.place(), format!("b={BOOT};m=3e8"));
        assert_eq!(found.to_string().parse(), Ok(found));
        for entry in [
            "MESSAGE=a\n",
            "__CURSOR=\n",
            &line,
            &entry.replace("b=", "c="),
            &entry.replace(BOOT, &BOOT[1..]),
            &entry.replace("m=", "m=-"),
            &format!("__CURSOR={}\n", ";".repeat(LONGEST)),
        ] {
            assert_eq!(Cursor::of_entry(entry.as_bytes()), None, "{entry}");
        }
    }

    #[test]
    fn entries_of_one_time_are_counted() {
        let mut trail = Trail::default();
        for (number, expected) in [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)] {
            trail.push(&entry(number));
            assert_eq!(trail.pushed, Some(Cursor { number: expected, ..cursor(number) }));
        }
        trail.begin(position(8));
        let text = trail.text().unwrap();
        let mut trail = Trail::of_ring(&text, position(8));
        trail.push(&entry(3));
        assert_eq!(trail.pushed, Some(Cursor { number: 2, ..cursor(3) }));
        trail.push(b"MESSAGE=x\n\n");
        trail.begin(position(16));
        assert_eq!(trail.text(), None);
    }

    #[test]
    fn trail_tells_the_entry_of_a_position_and_of_the_one_before() {
        let at = |number| position((1 << 62) + 4 * number);
        let mut trail = Trail::default();
        assert_eq!(trail.text(), None);
        for number in 0..3 {
            trail.settle();
            trail.push(&entry(number));
            trail.begin(at(number));
        }
        trail.pushed = None;
        assert_eq!(trail.sent(), Some(&cursor(1)));
        let client = trail.text().unwrap();
        let text =
            format!("blockring used by {client}; producer = {}; suspend_ack = false", 1u64 << 63);
        assert!(text.len() <= TEXT_BYTES, "{}", text.len());
        assert_eq!(Trail::in_text(&text), Some(trail));
        for (position, sent) in
            [(at(2), Some(cursor(2))), (at(1), Some(cursor(1))), (at(0), None), (at(3), None)]
        {
            let ring = Trail::of_ring(&text, position);
            assert_eq!(ring.sent(), sent.as_ref());
            // Unchanged by a write of the pointer that only acknowledges a suspend.
            let text = ring.text().unwrap_or_default();
            assert_eq!(Trail::of_ring(&text, position), ring);
        }
        // As it is when only some of its bytes were stored.
        for at in 0..client.len() {
            let mut torn = client.clone().into_bytes();
            torn[at] ^= 1;
            let torn = String::from_utf8(torn).unwrap();
            // Capital letters mean the same.
            assert!(Trail::in_text(&torn).is_none(), "{torn}");
        }
        assert_eq!(Trail::in_text("blockring used by pid 7; producer = 8"), None);
    }
}
