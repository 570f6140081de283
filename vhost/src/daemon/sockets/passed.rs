//! The sockets that a service manager passes, as the environment describes them (`LISTEN_PID`,
//! `LISTEN_FDS` and `LISTEN_FDNAMES` of `sd_listen_fds(3)`). Text in, numbers and names out; the
//! descriptors are taken later ([`inherited`](super::inherited)).

use super::{Inherited, Purpose};
use std::env;
use std::os::fd::RawFd;

/// The number of the first descriptor that is passed.
const FIRST: RawFd = 3;

/// The most descriptors that are passed: several times what this program has a use for.
const MAX_PASSED: usize = 64;

/// The environment's description of the descriptors is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misdirected {
    /// A variable that does not have a number.
    #[error("{variable}={value}: not a number that a service manager sets (unset {variable})")]
    Number {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// As many names as descriptors are needed.
    #[error(
        "LISTEN_FDS has {descriptors} descriptors, and LISTEN_FDNAMES has {names} names for them: \
         FileDescriptorName= in each socket unit gives one"
    )]
    Names {
        /// The number of descriptors.
        descriptors: usize,
        /// The number of names.
        names: usize,
    },
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

/// A descriptor that was passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The descriptor's number.
    pub number: RawFd,
    /// The descriptor's name.
    pub name: String,
}

/// Everything that was passed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PassedSockets {
    /// The descriptors.
    pub all: Vec<Passed>,
    /// The process that descriptors were passed to, if that is another one than this: its
    /// environment was handed down.
    pub other_process: Option<u32>,
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

impl PassedSockets {
    /// Reads this process's environment.
    ///
    /// # Errors
    ///
    /// A variable makes no sense.
    pub fn from_environment() -> Result<Self, Misdirected> {
        let values = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(env::var_os);
        // A value that is not UTF-8 is refused as what it is shown as.
        let [pid, descriptors, names] =
            values.map(|value| value.map(|value| value.to_string_lossy().into_owned()));
        Self::parse(std::process::id(), pid, descriptors, names.as_deref())
    }

    /// Reads the values of `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` for the process `own`.
    ///
    /// # Errors
    ///
    /// A value makes no sense.
    fn parse(
        own: u32,
        pid: Option<String>,
        descriptors: Option<String>,
        names: Option<&str>,
    ) -> Result<Self, Misdirected> {
        let (Some(pid), Some(descriptors)) = (pid, descriptors) else { return Ok(Self::default()) };
        let wrong = |variable| move |value| Misdirected::Number { variable, value };
        let pid = pid.parse().map_err(|_| wrong("LISTEN_PID")(pid))?;
        if pid != own {
            return Ok(Self { all: Vec::new(), other_process: Some(pid) });
        }
        let count = descriptors.parse().ok().filter(|count| *count <= MAX_PASSED);
        let count = count.ok_or_else(|| wrong("LISTEN_FDS")(descriptors))?;
        let names: Vec<_> = match names {
            Some(names) if !names.is_empty() => names.split(':').collect(),
            _ => Vec::new(),
        };
        if names.len() != count {
            return Err(Misdirected::Names { descriptors: count, names: names.len() });
        }
        let passed = |(number, name): (RawFd, &str)| Passed { number, name: name.to_owned() };
        Ok(Self { all: (FIRST..).zip(names).map(passed).collect(), other_process: None })
    }

    /// Returns sockets as a service manager may pass them, for a check of a configuration that does
    /// not name sockets of its own.
    pub fn assumed(purposes: &[Purpose]) -> Self {
        let passed = |(number, purpose): (RawFd, &Purpose)| {
            let name = purpose.name().to_owned();
            Passed { number, name }
        };
        // No number that `--fd` may have.
        let numbers = 1 << 30..;
        Self { all: numbers.zip(purposes).map(passed).collect(), other_process: None }
    }

    /// Sorts the descriptors by their names, but for the one that `--fd` names by its number.
    ///
    /// # Errors
    ///
    /// A name is unknown, or two sockets have one that only one can have.
    pub fn sort(&self, fd: Option<RawFd>) -> Result<Sorted, Misdirected> {
        let mut sorted = Sorted::default();
        for Passed { number, name } in self.all.iter().filter(|passed| Some(passed.number) != fd) {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(pid: &str, descriptors: &str, names: Option<&str>) -> Result<PassedSockets, String> {
        let values = (Some(pid.to_owned()), Some(descriptors.to_owned()));
        PassedSockets::parse(7, values.0, values.1, names).map_err(|e| e.to_string())
    }

    fn sort(names: &str, fd: Option<RawFd>) -> Result<Sorted, String> {
        let count = names.split(':').count().to_string();
        parse("7", &count, Some(names)).unwrap().sort(fd).map_err(|e| e.to_string())
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
    fn environment_without_sockets_passes_none() {
        assert_eq!(PassedSockets::parse(7, None, None, None), Ok(PassedSockets::default()));
        let stray = PassedSockets::parse(7, None, Some("1".to_owned()), Some("guest"));
        assert_eq!(stray, Ok(PassedSockets::default()));
        assert!(parse("7", "0", None).unwrap().all.is_empty());
    }

    #[test]
    fn sockets_of_another_process_are_not_taken() {
        let other = parse("8", "1", Some("guest")).unwrap();
        assert_eq!(other, PassedSockets { all: Vec::new(), other_process: Some(8) });
    }

    #[test]
    fn environment_that_makes_no_sense_is_refused_with_the_variable() {
        for (refused, words) in [
            (parse("x", "1", None), "LISTEN_PID=x"),
            (parse("7", "-1", None), "LISTEN_FDS=-1"),
            (parse("7", "65", None), "LISTEN_FDS=65"),
            (parse("7", "1", None), "1 descriptors, and LISTEN_FDNAMES has 0 names"),
            (parse("7", "1", Some("guest:metrics")), "LISTEN_FDNAMES has 2 names"),
        ] {
            let error = refused.unwrap_err();
            assert!(error.contains(words), "{error:?} lacks {words:?}");
        }
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
