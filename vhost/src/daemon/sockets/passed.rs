//! The purposes of the sockets that a service manager passes, by their names.

use super::{Inherited, Purpose};
use ring_program::sockets::{Passed, PassedSockets};
use std::os::fd::RawFd;

/// The names of the descriptors are wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misdirected {
    /// A descriptor without use.
    #[error(
        "descriptor {number} of LISTEN_FDS is named `{name}`: FileDescriptorName= in its socket unit has to be \
         guest, consumer or metrics"
    )]
    Unknown {
        /// The descriptor.
        number: RawFd,
        /// Its name.
        name: String,
    },
    /// Two sockets for one purpose that takes one.
    #[error(
        "descriptors {first} and {second} of LISTEN_FDS are both named `{name}`: only one socket can have that name"
    )]
    Twice {
        /// The name.
        name: &'static str,
        /// One of the descriptors.
        first: RawFd,
        /// The other one.
        second: RawFd,
    },
}

/// The sockets by their purposes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// The socket of front ends.
    pub guest: Option<Inherited>,
    /// The socket of the hand-over.
    pub consumer: Option<Inherited>,
    /// The sockets of the metrics.
    pub metrics: Vec<Inherited>,
}

impl Sorted {
    /// Sorts the descriptors by their names, but for the one that `--fd` names by its number.
    ///
    /// # Errors
    ///
    /// A name is unknown, or two sockets have one that only one can have.
    pub fn new(passed: &PassedSockets, fd: Option<RawFd>) -> Result<Self, Misdirected> {
        let mut sorted = Self::default();
        for Passed { number, name } in passed.all.iter().filter(|one| Some(one.number) != fd) {
            let number = *number;
            let purpose = Purpose::ALL.into_iter().find(|purpose| purpose.name() == name);
            let Some(purpose) = purpose else {
                return Err(Misdirected::Unknown { number, name: name.clone() });
            };
            let inherited = Inherited { number, purpose: Some(purpose) };
            let place = match purpose {
                Purpose::Guest => &mut sorted.guest,
                Purpose::Consumer => &mut sorted.consumer,
                Purpose::Metrics => {
                    sorted.metrics.push(inherited);
                    continue;
                }
            };
            if let Some(Inherited { number: first, .. }) = place.replace(inherited) {
                return Err(Misdirected::Twice { name: purpose.name(), first, second: number });
            }
        }
        Ok(sorted)
    }
}

/// Returns sockets as a service manager may pass them, for a check of a configuration that does not
/// name sockets of its own.
pub fn assumed(purposes: &[Purpose]) -> PassedSockets {
    let passed = |(number, purpose): (RawFd, &Purpose)| {
        let name = purpose.name().to_owned();
        Passed { number, name }
    };
    // No number that `--fd` may have.
    let numbers = 1 << 30..;
    PassedSockets { all: numbers.zip(purposes).map(passed).collect(), other_process: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sort(names: &str, fd: Option<RawFd>) -> Result<Sorted, String> {
        let count = names.split(':').count().to_string();
        let passed = PassedSockets::parse(7, Some("7".to_owned()), Some(count), Some(names));
        Sorted::new(&passed.unwrap(), fd).map_err(|e| e.to_string())
    }

    #[test]
    fn sockets_are_sorted_by_name_whatever_their_order() {
        let sorted = sort("metrics:consumer:guest:metrics", None).unwrap();
        let numbered = |number, purpose| Inherited { number, purpose: Some(purpose) };
        assert_eq!(sorted.guest, Some(numbered(5, Purpose::Guest)));
        assert_eq!(sorted.consumer, Some(numbered(4, Purpose::Consumer)));
        assert_eq!(sorted.metrics, [3, 6].map(|number| numbered(number, Purpose::Metrics)));
    }

    #[test]
    fn unknown_name_and_a_second_socket_are_refused() {
        let error = sort("guest:vm1.socket", None).unwrap_err();
        for words in ["descriptor 4", "`vm1.socket`", "FileDescriptorName=", "consumer"] {
            assert!(error.contains(words), "{error:?} lacks {words:?}");
        }
        let error = sort("guest:metrics:guest", None).unwrap_err();
        assert!(error.contains("3 and 5") && error.contains("`guest`"), "{error}");
        // `--fd` says what that descriptor is for, whatever its name is.
        assert_eq!(sort("vm1.socket", Some(3)).unwrap(), Sorted::default());
        assert!(sort("guest:guest", Some(3)).unwrap().guest.is_some());
    }
}
