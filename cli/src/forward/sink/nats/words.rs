//! Errors of the connection and of the server, in words that name the remedy.

use async_nats::ConnectErrorKind;
use std::error::Error;

/// Why there is no connection to a stream.
#[derive(Debug)]
pub enum Trouble {
    /// Another attempt may go well.
    Passing(String),
    /// Somebody has to change something first.
    Lasting(String),
}

/// Returns what became of an attempt to connect.
pub fn connecting(error: &async_nats::ConnectError, address: &str) -> Trouble {
    let cause = deepest(error);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => Trouble::Lasting(format!(
            "{address} refuses the login: check --credentials, --nkey or --user and \
             --password-file against the users of the server"
        )),
        ConnectErrorKind::Authentication => Trouble::Lasting(format!(
            "cannot log in to {address}: {cause}: check the file of --credentials or --nkey"
        )),
        ConnectErrorKind::Tls => Trouble::Lasting(tls(address, &cause)),
        ConnectErrorKind::ServerParse => {
            Trouble::Lasting(format!("{address} is no address of a server: {cause}"))
        }
        // The handshake's errors arrive as errors of the stream.
        ConnectErrorKind::Io if is_tls(error) => Trouble::Lasting(tls(address, &cause)),
        ConnectErrorKind::TimedOut => {
            Trouble::Passing(format!("cannot connect to {address}: no answer in time"))
        }
        ConnectErrorKind::Dns | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            Trouble::Passing(format!("cannot connect to {address}: {cause}"))
        }
    }
}

fn tls(address: &str, cause: &str) -> String {
    format!(
        "TLS with {address} fails: {cause}: check --tls-ca (the authority that signed the server's \
         certificate), the host's name in the certificate, and, if the server asks for one, \
         --tls-cert and --tls-key"
    )
}

/// Returns the words of the innermost cause, which the outer ones only repeat.
pub fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(cause) = inner(deepest) {
        deepest = cause;
    }
    deepest.to_string()
}

/// Returns the cause of an error. One inside of an I/O error is not its source.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inside.map_or_else(|| error.source(), |inside| Some(inside))
}

/// Whether TLS is to blame for an error of the stream.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let mut error = error;
    loop {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput
            )
        }) {
            return true;
        }
        match inner(error) {
            Some(cause) => error = cause,
            None => return false,
        }
    }
}
