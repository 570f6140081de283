//! Numbers of the entries in a table of a fixed size.

/// The numbers below `LIMIT`, each taken at most once until it is given back. Neither takes longer
/// with more numbers.
#[derive(Debug)]
pub(super) struct Numbers<const LIMIT: usize> {
    given_back: Vec<usize>,
    /// The first number that was never taken.
    next: usize,
}

impl<const LIMIT: usize> Numbers<LIMIT> {
    pub const fn new() -> Self {
        Self { given_back: Vec::new(), next: 0 }
    }

    /// Takes the number that was given back last, or else the first that was never taken. `None`
    /// while all are taken.
    pub fn take(&mut self) -> Option<usize> {
        self.given_back.pop().or_else(|| {
            let next = self.next;
            (next < LIMIT).then(|| self.next += 1).map(|()| next)
        })
    }

    /// Gives a number back that was taken.
    pub fn give_back(&mut self, number: usize) {
        debug_assert!(number < self.next);
        self.given_back.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_taken_once_until_it_is_given_back() {
        let mut numbers = Numbers::<3>::new();
        assert_eq!([(); 4].map(|()| numbers.take()), [Some(0), Some(1), Some(2), None]);
        numbers.give_back(1);
        assert_eq!([(); 2].map(|()| numbers.take()), [Some(1), None]);
    }

    #[test]
    fn number_that_was_given_back_is_taken_before_a_new_one() {
        let mut numbers = Numbers::<3>::new();
        assert_eq!([(); 2].map(|()| numbers.take()), [Some(0), Some(1)]);
        numbers.give_back(0);
        assert_eq!([(); 2].map(|()| numbers.take()), [Some(0), Some(2)]);
    }
}
