//! The acknowledgements of one connection: after each batch one line with the number of its records
//! that are in the ring.

/// How far a connection's records have come, and the line that is being sent.
///
/// However many batches pass while the sender does not read, there is at most one line in memory;
/// the next one has the newest number.
#[derive(Debug, Default)]
pub struct Acknowledgements {
    /// Records that were pushed whole.
    pushed: u64,
    /// Records of these that are published.
    safe: u64,
    /// The number in the last line.
    told: u64,
    /// Bytes of that line that were not sent yet.
    line: Vec<u8>,
    /// Whether the sender takes no more lines.
    refused: bool,
}

impl Acknowledgements {
    /// Notes that one more record was pushed.
    pub fn push(&mut self) {
        self.pushed += 1;
    }

    /// Notes that everything that was pushed is published.
    pub fn settle(&mut self) {
        self.safe = self.pushed;
    }

    /// Notes that the sender takes no more lines.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    /// Returns the number of records that are published.
    pub fn safe(&self) -> u64 {
        self.safe
    }

    /// Returns whether there is anything to send.
    pub fn is_due(&self) -> bool {
        !self.refused && (!self.line.is_empty() || self.told < self.safe)
    }

    /// Returns the bytes to send; none if there is nothing to send.
    pub fn next(&mut self) -> &[u8] {
        if self.line.is_empty() && self.told < self.safe {
            self.told = self.safe;
            self.line = format!("{}\n", self.safe).into_bytes();
        }
        &self.line
    }

    /// Notes that the first `count` of these bytes were sent.
    pub fn sent(&mut self, count: usize) {
        self.line.drain(..count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_slow_sender_are_whole_and_the_newest_number_follows() {
        let mut acknowledgements = Acknowledgements::default();
        assert!(!acknowledgements.is_due() && acknowledgements.next().is_empty());
        (0..10).for_each(|_| acknowledgements.push());
        assert!(!acknowledgements.is_due(), "nothing is published yet");
        acknowledgements.settle();
        assert_eq!(acknowledgements.next(), b"10\n");
        acknowledgements.sent(1);
        for _ in 0..1000 {
            acknowledgements.push();
            acknowledgements.settle();
        }
        assert_eq!(acknowledgements.next(), b"0\n", "the line that was begun ends first");
        acknowledgements.sent(2);
        assert!(acknowledgements.is_due());
        assert_eq!(acknowledgements.next(), b"1010\n");
        acknowledgements.sent(5);
        assert!(!acknowledgements.is_due());
    }

    #[test]
    fn sender_that_takes_no_lines_is_sent_none() {
        let mut acknowledgements = Acknowledgements::default();
        acknowledgements.push();
        acknowledgements.settle();
        acknowledgements.refuse();
        assert!(!acknowledgements.is_due());
        assert_eq!(acknowledgements.safe(), 1);
    }
}
