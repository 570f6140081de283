//! The sockets that a service manager passes, as the environment describes them (`LISTEN_PID`,
//! `LISTEN_FDS` and `LISTEN_FDNAMES` of `sd_listen_fds(3)`). Text in, numbers and names out; the
//! descriptors are taken later ([`take`]).

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};
use std::env;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The number of the first descriptor that is passed.
const FIRST: RawFd = 3;

/// The most descriptors that are passed: several times what a program has a use for.
const MAX_PASSED: usize = 64;

/// The environment's description of the descriptors is wrong.
#[derive(Debug, PartialEq, Eq)]
pub enum Misdescribed {
    /// A variable that does not have a number.
    Number {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// As many names as descriptors are needed.
    Names {
        /// The number of descriptors.
        descriptors: usize,
        /// The number of names.
        names: usize,
    },
}

impl std::fmt::Display for Misdescribed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number { variable, value } => write!(
                f,
                "{variable}={value}: not a number that a service manager sets (unset {variable})"
            ),
            Self::Names { descriptors, names } => write!(
                f,
                "LISTEN_FDS has {descriptors} descriptors, and LISTEN_FDNAMES has {names} names for them: \
                 FileDescriptorName= in each socket unit gives one"
            ),
        }
    }
}

impl std::error::Error for Misdescribed {}

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

impl PassedSockets {
    /// Reads this process's environment.
    ///
    /// # Errors
    ///
    /// A variable makes no sense.
    pub fn from_environment() -> Result<Self, Misdescribed> {
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
    pub fn parse(
        own: u32,
        pid: Option<String>,
        descriptors: Option<String>,
        names: Option<&str>,
    ) -> Result<Self, Misdescribed> {
        let (Some(pid), Some(descriptors)) = (pid, descriptors) else { return Ok(Self::default()) };
        let wrong = |variable| move |value| Misdescribed::Number { variable, value };
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
            return Err(Misdescribed::Names { descriptors: count, names: names.len() });
        }
        let passed = |(number, name): (RawFd, &str)| Passed { number, name: name.to_owned() };
        Ok(Self { all: (FIRST..).zip(names).map(passed).collect(), other_process: None })
    }
}

/// Takes over a descriptor that the parent process has left open, and has it closed where a program
/// is started.
///
/// A number is no proof of owning what it names, so that a safe program cannot call this:
///
/// ```compile_fail,E0133
/// ring_program::sockets::take(3).unwrap();
/// ```
///
/// # Errors
/// The number is none of an inherited descriptor.
///
/// # Safety
/// Nothing else in this process uses an inherited descriptor by that number, and this is called
/// once for it. A descriptor that this process has opened itself is refused, provided that it was
/// opened to be closed when a program is started (`O_CLOEXEC`), as the standard library does.
pub unsafe fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD changes nothing, and takes any number: one that is not open is answered with
    // an error.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // A descriptor that this process has opened itself is closed when a program is started, so it
    // is not inherited.
    if number < FIRST || flags == -1 || flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such inherited descriptor"));
    }
    // SAFETY: it is open, and by the caller's word nothing else in this process has it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(socket)
}

/// Checks that connections can be accepted on a socket that was passed.
///
/// # Errors
/// It is none that listens; the operating system's.
pub fn require_listening(socket: &OwnedFd) -> io::Result<()> {
    if getsockopt(socket, sockopt::AcceptConn)? {
        return Ok(());
    }
    let text = "not a listening socket: pass the listening one, connections are accepted on it (Accept=no in a socket unit)";
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;

    fn parse(pid: &str, descriptors: &str, names: Option<&str>) -> Result<PassedSockets, String> {
        let values = (Some(pid.to_owned()), Some(descriptors.to_owned()));
        PassedSockets::parse(7, values.0, values.1, names).map_err(|e| e.to_string())
    }

    #[test]
    fn descriptors_have_their_names_in_order() {
        let numbered = |number, name: &str| Passed { number, name: name.to_owned() };
        let found = parse("7", "2", Some("log:in")).unwrap();
        assert_eq!(found.all, [numbered(3, "log"), numbered(4, "in")]);
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
    fn descriptor_that_this_process_has_opened_is_not_taken_as_inherited() {
        let dir = tempfile::tempdir().unwrap();
        let own = UnixListener::bind(dir.path().join("socket")).unwrap();
        own.set_nonblocking(true).unwrap();
        // SAFETY: the standard library has opened it to be closed when a program is started, so
        // that it is refused.
        let error = unsafe { take(own.as_raw_fd()) }.unwrap_err().to_string();
        assert!(error.contains("no such inherited descriptor"), "{error}");
        assert_eq!(own.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "it is open");
    }
}
