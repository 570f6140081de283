//! The fate of the input after a `produce` that failed: accepted, in doubt, or not accepted.

use super::failure::Failure;
use super::splitter::Piece;
use shared_block_ring::Error;
use std::fmt;

/// A position in the input, between two items or within one.
#[derive(Default, Clone, Copy)]
pub struct Place {
    /// Records of the input that end before this place.
    pub records: u64,
    /// Bytes of the input before this place.
    pub bytes: u64,
    /// Whether the place is within a record whose first parts were accepted.
    pub within: bool,
    /// Items before this place that were not dropped.
    pub items: u64,
    /// Payload bytes of these items.
    pub payload: u64,
}

impl Place {
    /// Moves over `used` bytes of the input, and behind their record if they are its `last`.
    pub fn pass(&mut self, used: u64, last: bool) {
        self.bytes += used;
        self.records += u64::from(last);
        self.within = !last;
    }

    /// Moves over an item that was pushed.
    pub fn push(&mut self, piece: &Piece) {
        self.pass(piece.used, piece.last);
        self.items += 1;
        self.payload += piece.bytes.len() as u64;
    }

    /// Returns the number of the record that begins or continues here; the first is 1.
    fn number(self) -> u64 {
        self.records + 1
    }
}

/// Shows the item that begins or continues here: "the rest of item 3 of the input (from byte 70)".
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = if self.within { "the rest of " } else { "" };
        write!(f, "{rest}item {} of the input (from byte {})", self.number(), self.bytes)
    }
}

/// The fate of the input: accepted before `from`, in doubt between `from` and `to`, and not
/// accepted behind `to`.
#[derive(Clone, Copy)]
pub struct Fate {
    pub from: Place,
    /// `None` if everything behind `from` is in doubt.
    pub to: Option<Place>,
}

impl Fate {
    /// Adds to a failure what is known of the input.
    pub fn explain(self, failure: Failure) -> Failure {
        self.add_to(failure, |fate| fate.to_string())
    }

    /// Adds to a failure what `words` says.
    pub fn add_to(self, failure: Failure, words: impl Fn(Self) -> String) -> Failure {
        let words = words(self);
        match failure {
            Failure::TimedOut { seconds, what } => {
                Failure::TimedOut { seconds, what: format!("{what}; {words}") }
            }
            Failure::Suspended(what) => Failure::Suspended(format!("{what}; {words}")),
            Failure::Ring(source) => Failure::During { what: words, source },
            other => Failure::Refused(format!("{other}; {words}")),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COMPARE: &str =
            "compare with what the consumer has got, and start again with the rest";
        let Self { from, to } = self;
        let Some(to) = to else {
            return write!(f, "in doubt: {from} and everything behind it ({COMPARE})");
        };
        if to.bytes > from.bytes {
            match from.records {
                0 => f.write_str("accepted for sure: no whole item")?,
                1 => f.write_str("accepted for sure: item 1")?,
                last => write!(f, "accepted for sure: items 1 to {last}")?,
            }
            let last = to.records + u64::from(to.within);
            write!(f, "; in doubt, perhaps delivered: ")?;
            match from.number() {
                first if first == last => write!(f, "item {first}")?,
                first => write!(f, "items {first} to {last}")?,
            }
            write!(f, " of the input (from byte {}), {COMPARE}; ", from.bytes)?;
        }
        write!(f, "not accepted: {to} and everything behind it")
    }
}

/// Returns whether `error` leaves everything behind the last accepted item in doubt: another
/// instance of this process may have read the same input, and published it.
pub fn is_unbounded(error: &Failure) -> bool {
    matches!(error, Failure::Ring(Error::Superseded { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(records: u64, bytes: u64, within: bool) -> Place {
        Place { records, bytes, within, ..Place::default() }
    }

    fn words(from: Place, to: Option<Place>) -> String {
        Fate { from, to }.to_string().replace(
            "compare with what the consumer has got, and start again with the rest",
            "compare",
        )
    }

    #[test]
    fn fate_names_the_first_item_that_was_not_accepted() {
        let from = place(2, 20, false);
        let whole = "not accepted: item 3 of the input (from byte 20) and everything behind it";
        assert_eq!(words(from, Some(from)), whole);
        let from = place(2, 20, true);
        let rest =
            "not accepted: the rest of item 3 of the input (from byte 20) and everything behind it";
        assert_eq!(words(from, Some(from)), rest);
    }

    #[test]
    fn fate_names_what_is_in_doubt_between_what_is_known() {
        assert_eq!(
            words(place(4, 40, false), Some(place(9, 90, false))),
            "accepted for sure: items 1 to 4; in doubt, perhaps delivered: items 5 to 9 of the input (from byte 40), compare; \
             not accepted: item 10 of the input (from byte 90) and everything behind it"
        );
        assert_eq!(
            words(place(0, 0, false), Some(place(0, 50, true))),
            "accepted for sure: no whole item; in doubt, perhaps delivered: item 1 of the input (from byte 0), compare; \
             not accepted: the rest of item 1 of the input (from byte 50) and everything behind it"
        );
        assert_eq!(
            words(place(1, 10, false), None),
            "in doubt: item 2 of the input (from byte 10) and everything behind it (compare)"
        );
    }
}
