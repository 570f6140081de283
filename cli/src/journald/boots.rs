//! The parts of the journal that are to be read, boot by boot. Within a boot the journal's order is
//! certain; over boots it depends on the clock, and sequence numbers that a crash took back are
//! given again.

use super::cursor::Cursor;

/// A part of the journal: entries of one boot.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The boot, as 32 hexadecimal digits.
    pub boot: String,
    /// The last entry that was sent of it.
    pub after: Option<Cursor>,
    /// Whether entries are waited for that the journal does not have yet.
    pub follows: bool,
}

/// Returns the boots in the output of `journalctl --list-boots`, the oldest first.
pub fn listed(output: &str) -> Vec<String> {
    let id = |line: &str| {
        let id = line.split_whitespace().nth(1)?;
        let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| id.to_ascii_lowercase())
    };
    output.lines().filter_map(id).collect()
}

/// Returns the parts of the journal that were not sent yet. `boots` are those that the journal has,
/// `current` is the one that goes on, and `started` tells when a boot's first entry was written, in
/// microseconds since 1970.
pub fn parts(
    mut boots: Vec<String>,
    current: Option<&str>,
    sent: Option<&Cursor>,
    mut started: impl FnMut(&str) -> Option<u64>,
) -> Vec<Part> {
    if let Some(current) = current {
        // Nothing comes after it, whatever the clock said; and it may have no entry yet.
        boots.retain(|boot| boot != current);
        boots.push(current.to_owned());
    }
    let is_sent = |boot: &str, started: &mut dyn FnMut(&str) -> Option<u64>| match sent {
        // Its journal is gone: all that is known is the time.
        Some(sent) => started(boot).is_some_and(|start| start <= sent.realtime),
        None => false,
    };
    let last = boots.len().saturating_sub(1);
    let known = sent.and_then(|sent| boots.iter().position(|boot| *boot == sent.boot));
    let mut parts = Vec::new();
    for (number, boot) in boots.into_iter().enumerate() {
        let goes_on = number == last;
        let skipped = match known {
            Some(known) => number < known,
            None => !goes_on && is_sent(&boot, &mut started),
        };
        if !skipped {
            let after = sent.filter(|_| known == Some(number)).cloned();
            parts.push(Part { boot, after, follows: goes_on });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn boot(number: u8) -> String {
        format!("{number:032x}")
    }

    fn sent(number: u8) -> Cursor {
        Cursor { boot: boot(number), monotonic: 1, realtime: 100, hash: 2, number: 1 }
    }

    /// Returns the parts by their numbers, with whether they begin within the boot.
    fn planned(boots: &[u8], current: Option<u8>, sent: Option<&Cursor>) -> Vec<(u8, bool)> {
        let current = current.map(boot);
        // A boot starts at ten times its number.
        let number = |boot: &str| u8::from_str_radix(boot, 16).unwrap();
        let started = |boot: &str| Some(10 * u64::from(number(boot)));
        let boots = boots.iter().copied().map(boot).collect();
        let parts = parts(boots, current.as_deref(), sent, started);
        let (last, others) = parts.split_last().unwrap();
        assert!(last.follows && others.iter().all(|part| !part.follows));
        parts.iter().map(|part| (number(&part.boot), part.after.is_some())).collect()
    }

    #[test]
    fn boots_are_found_in_the_list() {
        let text = format!(
            "IDX BOOT ID   FIRST\n -1 {} Tue\u{2014}Tue\n  0 {} x\nnone\n",
            boot(1),
            boot(2)
        );
        assert_eq!(listed(&text), [boot(1), boot(2)]);
        assert_eq!(listed("No journal files were found.\n"), [""; 0]);
    }

    #[test]
    fn journal_is_read_from_the_entry_that_was_sent_last() {
        assert_eq!(planned(&[1, 2, 3], Some(3), None), [(1, false), (2, false), (3, false)]);
        assert_eq!(planned(&[1, 2, 3], Some(3), Some(&sent(2))), [(2, true), (3, false)]);
        assert_eq!(planned(&[1, 2, 3], Some(3), Some(&sent(3))), [(3, true)]);
        assert_eq!(planned(&[1, 2], None, Some(&sent(1))), [(1, true), (2, false)]);
    }

    #[test]
    fn current_boot_is_the_last_one_whatever_the_list_says() {
        assert_eq!(planned(&[], Some(3), None), [(3, false)]);
        assert_eq!(planned(&[3, 1, 2], Some(3), Some(&sent(2))), [(2, true), (3, false)]);
        assert_eq!(planned(&[1, 2], Some(3), Some(&sent(2))), [(2, true), (3, false)]);
    }

    #[test]
    fn boots_after_one_that_is_lost_are_told_by_their_time() {
        assert_eq!(planned(&[9, 10, 11], Some(12), Some(&sent(200))), [(11, false), (12, false)]);
        // The current one was not sent, since what was sent last is of another boot.
        assert_eq!(planned(&[9], Some(2), Some(&sent(200))), [(2, false)]);
    }
}
