//! What a thread works for, as its log lines say: one of many alike, by its name.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The names of those that lines can be about, by their numbers.
static NAMES: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The number of the one that this thread works for; 0 for none.
    static SCOPE: Cell<u64> = const { Cell::new(0) };
}

/// Has log lines about that number, which is not 0, begin with this name.
pub fn set_name(number: u64, name: &str) {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.insert(number, name.to_owned());
}

/// Forgets a name: there will be no more lines about it.
pub fn forget_name(number: u64) {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
}

/// Calls `work`, and has this thread's log lines say meanwhile that they are about that number; 0
/// for none. It costs two stores.
#[inline]
pub fn within<T>(number: u64, work: impl FnOnce() -> T) -> T {
    /// Puts the number back, also at a panic.
    struct Back(u64);
    impl Drop for Back {
        fn drop(&mut self) {
            SCOPE.set(self.0);
        }
    }
    let _back = Back(SCOPE.replace(number));
    work()
}

/// Returns `words` with the name of what this thread works for in front, if there is one.
pub(crate) fn about(words: String) -> String {
    let number = SCOPE.get();
    if number == 0 {
        return words;
    }
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    match names.get(&number) {
        Some(name) => format!("{name}: {words}"),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_name_what_their_thread_works_for() {
        let about = || about("words".to_owned());
        set_name(7, "vm7");
        assert_eq!(about(), "words");
        within(7, || {
            assert_eq!(about(), "vm7: words");
            within(0, || assert_eq!(about(), "words"));
            within(8, || assert_eq!(about(), "words", "a number without a name"));
            std::thread::scope(|scope| scope.spawn(|| assert_eq!(about(), "words")).join())
                .unwrap();
            assert_eq!(about(), "vm7: words");
        });
        assert!(std::panic::catch_unwind(|| within(7, || panic!("on purpose"))).is_err());
        assert_eq!(about(), "words");
        forget_name(7);
        within(7, || assert_eq!(about(), "words"));
    }
}
