//! Items of the input that are larger than the ring.

use super::failure::Failure;
use super::output::say;
use super::splitter::{Piece, Size};
use ring_program::text::items;
use std::time::{Duration, Instant};

/// Bytes that are read of an item that is too large, to name its size. An item without an end must
/// not be read for ever.
const COUNTED: u64 = 1 << 30;

/// What a command does with an item that is larger than the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTooLarge {
    /// End with an error that names its size
    Fail,
    /// Drop the item, count it, and go on
    Drop,
    /// Push the item in parts, in order; each part is an ordinary item, and all but the last are as
    /// large as an item can be
    Split,
}

/// Counts of items that were too large.
#[derive(Debug, Default, Clone, Copy, serde::Serialize)]
pub struct TooLarge {
    /// Items that were dropped.
    #[serde(rename = "too_large_dropped")]
    pub dropped: u64,
    /// Items that were split.
    #[serde(rename = "too_large_split")]
    pub split: u64,
}

/// Returns the failure for an item of the input that does not fit into the `ring`.
pub fn refusal(ring: &str, size: Size, max: usize) -> Failure {
    let size = match size {
        Size::Exactly(bytes) => format!("has {bytes} bytes"),
        Size::AtLeast(bytes) if bytes > COUNTED => "is larger than 1 GiB".to_owned(),
        Size::AtLeast(bytes) => format!("has {bytes} bytes or more"),
    };
    Failure::Refused(format!(
        "an item of the input {size}, and the {ring} holds items of {max} bytes at most (make a larger one, or choose \
         --on-too-large drop or split)"
    ))
}

impl TooLarge {
    /// Counts an item that was split, at its first part.
    pub fn note(&mut self, item: &Piece) {
        self.split += u64::from(item.first && !item.last);
    }

    /// Writes the counts to standard error, if there are any.
    pub fn say(self) {
        for (count, fate) in [(self.dropped, "dropped"), (self.split, "split")] {
            if count > 0 {
                say(format_args!("too large: {count} {} {fate}", items(count)));
            }
        }
    }
}

/// The time at which an item that is too large began to be read, to name its size.
#[derive(Default)]
pub struct Counting {
    began: Option<Instant>,
}

impl Counting {
    /// Returns whether the item is read no further: its size is known or larger than what is
    /// counted, or `timeout` is over.
    pub fn is_over(&mut self, size: Size, timeout: Option<Duration>) -> bool {
        let began = *self.began.get_or_insert_with(Instant::now);
        match size {
            Size::Exactly(_) => true,
            Size::AtLeast(bytes) => {
                bytes > COUNTED || timeout.is_some_and(|timeout| began.elapsed() >= timeout)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_ends_with_the_size_its_bound_or_its_time() {
        let mut counting = Counting::default();
        assert!(counting.is_over(Size::Exactly(1), None));
        assert!(!counting.is_over(Size::AtLeast(1 << 30), None));
        assert!(counting.is_over(Size::AtLeast((1 << 30) + 1), None));
        assert!(!counting.is_over(Size::AtLeast(1), Some(Duration::from_secs(3600))));
        assert!(counting.is_over(Size::AtLeast(1), Some(Duration::ZERO)));
    }

    #[test]
    fn refusal_names_the_size_as_far_as_it_is_known() {
        for (size, words) in [
            (Size::Exactly(9), "has 9 bytes, and"),
            (Size::AtLeast(9), "has 9 bytes or more, and"),
            (Size::AtLeast((1 << 30) + 1), "is larger than 1 GiB, and"),
        ] {
            assert!(refusal("ring", size, 4).to_string().contains(words));
        }
    }
}
