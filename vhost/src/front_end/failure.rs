//! The errors that end the connection of a front end.

use crate::front_end::arrival;
use ring_program::descriptors::remedy;
use std::io;
use vhost::vhost_user::Error as VhostUserError;

/// Why a front end cannot be served any more.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused something.
    #[error("cannot {what}: {source}{}", remedy(source))]
    System {
        /// The action that failed.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// The listening socket was shut down.
    #[error(transparent)]
    ShutDown(#[from] arrival::ShutDown),
    /// The front end has asked for something that the disk does not offer.
    #[error("{0}")]
    Misfit(String),
    /// A message could not be received or answered.
    #[error("vhost-user: {0}")]
    VhostUser(VhostUserError),
}

impl From<VhostUserError> for Failure {
    fn from(error: VhostUserError) -> Self {
        Self::VhostUser(error)
    }
}

/// Makes a [`Failure::System`]; `what` completes "cannot".
pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::System { what, source }
}
