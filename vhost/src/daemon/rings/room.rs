//! How many rings one daemon has room for: what its options say, and its limit of open descriptors.
//!
//! A ring that does not fit is refused in words that name the limit. Otherwise it would fail
//! somewhere later, or take a descriptor that another ring's front end needs.

use crate::daemon::clients::MAX_CONNECTIONS;
use ring_program::descriptors::REMEDY;

/// Descriptors of a ring in the control process: its file twice, and each of its two sockets with
/// the folder of that.
pub const KEPT: u64 = 6;

/// Descriptors of an order to serve a ring, which the control process has until it is sent.
const ORDERED: u64 = 4;

/// Descriptors of a ring in the data process while no front end is connected: its file, its two
/// sockets, the page of its bells, and the events by which threads and processes are woken.
pub const SERVED: u64 = 11;

/// Descriptors of a connected front end with one queue: three of the connection, one region of
/// memory, a kick and an interrupt. Each further queue has two more, and each region one.
const CONNECTED: u64 = 6;

/// Descriptors of a process itself: standard ones, orders, sockets of control and metrics with
/// their clients, rings that are being opened.
const OWN: u64 = 100;

/// Descriptors of a thread that drives queues.
const THREAD: u64 = 2;

/// What bounds the number of rings.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The most rings (`--max-rings`).
    pub rings: Option<usize>,
    /// The most bytes of all rings together (`--max-memory`).
    pub memory: Option<u64>,
    /// The most descriptors that each of the two processes may open.
    pub descriptors: u64,
    /// Threads that drive queues.
    pub threads: usize,
}

impl Room {
    /// Checks that there is room for one ring beside so many, and beside `open` rings that have
    /// descriptors, which some still have that end.
    ///
    /// # Errors
    ///
    /// The limit that is reached, in words.
    pub fn expect_one(&self, rings: usize, open: usize) -> Result<(), String> {
        if let Some(most) = self.rings.filter(|most| rings >= *most) {
            return Err(format!(
                "there is no room for one more ring: --max-rings {most} is reached (remove a ring, or start the daemon with a higher limit)"
            ));
        }
        let needed = self.needed(open as u64 + 1);
        if needed > self.descriptors {
            return Err(format!(
                "there is no room for one more ring: with it the daemon needs {needed} open descriptors, and its limit RLIMIT_NOFILE is {} ({REMEDY})",
                self.descriptors
            ));
        }
        Ok(())
    }

    /// Descriptors that the process which has more of them needs for so many rings.
    fn needed(&self, rings: u64) -> u64 {
        let data = OWN + MAX_CONNECTIONS as u64 + THREAD * self.threads as u64;
        (data + rings * (SERVED + CONNECTED)).max(OWN + rings * (KEPT + ORDERED))
    }

    /// Checks that there is room for a ring of `more` bytes beside rings of so many bytes.
    ///
    /// # Errors
    ///
    /// The limit that is reached, in words.
    pub fn expect_memory(&self, bytes: u64, more: u64) -> Result<(), String> {
        match self.memory.filter(|most| bytes.saturating_add(more) > *most) {
            None => Ok(()),
            Some(most) => Err(format!(
                "there is no room for its {more} bytes: the other rings have {bytes}, and --max-memory is {most} (remove a ring, or start the daemon with a higher limit)"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ENDLESS: Room = Room { rings: None, memory: None, descriptors: u64::MAX, threads: 4 };

    #[test]
    fn ring_beyond_a_limit_is_refused_in_words_that_name_it() {
        assert_eq!(ENDLESS.expect_one(100_000, 100_000), Ok(()));
        let room = Room { rings: Some(2), ..ENDLESS };
        assert_eq!(room.expect_one(1, 5), Ok(()));
        let refused = room.expect_one(2, 2).unwrap_err();
        assert!(refused.contains("--max-rings 2"), "{refused}");
        let room = Room { memory: Some(100), ..ENDLESS };
        assert_eq!(room.expect_memory(60, 40), Ok(()));
        let refused = room.expect_memory(60, 41).unwrap_err();
        assert!(refused.contains("--max-memory is 100") && refused.contains("41"), "{refused}");
        assert!(room.expect_memory(u64::MAX, 1).is_err());
    }

    #[test]
    fn rings_fit_as_long_as_each_can_have_a_front_end() {
        let own = ENDLESS.needed(0);
        let room = Room { descriptors: own + 10 * (SERVED + CONNECTED), ..ENDLESS };
        assert_eq!(room.expect_one(9, 9), Ok(()));
        let refused = room.expect_one(9, 10).unwrap_err();
        for words in ["RLIMIT_NOFILE", "LimitNOFILE=", &room.descriptors.to_string()] {
            assert!(refused.contains(words), "{refused}");
        }
    }
}
