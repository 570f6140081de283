//! Addresses at which metrics are offered.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a metrics server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A UNIX socket at this path.
    Unix(PathBuf),
    /// A TCP port of this machine's loopback interface; port 0 is one that the kernel chooses.
    Tcp(SocketAddr),
}

impl Address {
    /// Returns the address of a TCP port, provided that only this machine reaches it.
    pub(crate) fn of_this_machine(address: SocketAddr) -> Result<Self, String> {
        if address.ip().is_loopback() {
            return Ok(Self::Tcp(address));
        }
        // The server has neither encryption nor a password.
        Err("only addresses of this machine are served (127.0.0.1:PORT); put a proxy with a \
             password in front for other machines"
            .to_owned())
    }
}

impl FromStr for Address {
    type Err = String;

    /// Reads `unix:PATH`, `127.0.0.1:PORT` or `[::1]:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => match text.parse::<SocketAddr>() {
                Ok(address) => Self::of_this_machine(address),
                Err(_) => Err("it takes unix:PATH, 127.0.0.1:PORT or [::1]:PORT".to_owned()),
            },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_a_path_or_a_port_of_this_machine() {
        assert_eq!("unix:/run/m".parse(), Ok(Address::Unix("/run/m".into())));
        for text in ["127.0.0.1:9100", "[::1]:0"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(text.into()));
        }
        for (text, words) in [
            ("unix:", "path"),
            ("0.0.0.0:9100", "this machine"),
            ("10.0.0.1:9100", "this machine"),
            ("localhost:9100", "127.0.0.1:PORT"),
            ("9100", "127.0.0.1:PORT"),
        ] {
            let error = text.parse::<Address>().err().unwrap_or_default();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
