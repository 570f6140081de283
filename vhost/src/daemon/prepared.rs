//! What takes rights that the daemon gives up later: a ring's sockets and files, opened and
//! checked.

use crate::daemon::failure::{Failure, system};
use crate::daemon::handover::reopen;
use crate::daemon::peer::Admission;
use crate::daemon::ring::{self, Opened};
use crate::daemon::settings::{ConsumerSocket, Settings};
use crate::daemon::sockets::{self, Inherited, Listening, Source};
use crate::daemon::watch::Named;
use crate::data_path::executor::SERIAL_BYTES;
use crate::data_path::fault::{self, Losses};
use crate::data_path::region::Region;
use nix::sys::socket::SockType;
use nix::unistd::Uid;
use ring_metrics::Address;
use shared_block_ring::handover::refuse_descriptors;
use shared_block_ring::wait::Limits;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// A ring that is open, and its listening sockets. Dropped, it leaves nothing behind: sockets are
/// removed, and so is a file that was made for it, until [`keep`](Self::keep).
pub struct Prepared {
    /// The ring's file.
    pub opened: Opened,
    /// The mapped ring.
    pub region: Region,
    /// The socket for front ends.
    pub entrance: Listening,
    /// The socket for processes on the host, and who may use it.
    pub consumers: Option<(Listening, Admission)>,
    /// The name of the ring's file.
    pub ring_file: Named,
    /// All names that are watched while the ring is served.
    pub names: Vec<Named>,
    /// The disk's serial number.
    pub serial: [u8; SERIAL_BYTES],
}

/// Sockets that need not be made.
#[derive(Clone, Copy)]
pub struct Sockets<'a> {
    /// Takes one that was inherited.
    pub inherited: &'a dyn Fn(Inherited) -> io::Result<OwnedFd>,
    /// Takes one that listens at a path already, if there is one.
    pub kept: &'a dyn Fn(&Path) -> Option<Listening>,
}

impl Prepared {
    /// Listens on the ring's sockets, and opens and maps the ring. Returns `None` where `limits`
    /// have ended that, after giving back what was allocated.
    ///
    /// # Errors
    ///
    /// The first thing that cannot be had.
    pub fn new(
        settings: &Settings,
        sockets: Sockets<'_>,
        limits: &Limits<'_>,
    ) -> Result<Option<Self>, Failure> {
        // Sockets first: a second daemon with the same arguments fails before it opens the ring. No
        // connection is accepted before everything is ready, since QEMU gives up on a backend that
        // dies during the handshake.
        let entrance = listen(&settings.front_ends, SockType::Stream, sockets)?;
        let consumers = settings.consumers.as_ref();
        let consumers = consumers.map(|socket| listen_to_consumers(socket, sockets)).transpose()?;
        let Some((opened, region)) = open_ring(settings, limits)? else { return Ok(None) };
        let (ring_file, names) = names(settings, &opened).map_err(system("look at the files"))?;
        let serial = settings.serial.map_or_else(|| opened.serial(), Ok);
        let serial = serial.map_err(system("look at the ring's file"))?;
        Ok(Some(Self { opened, region, entrance, consumers, ring_file, names, serial }))
    }

    /// Keeps what was allocated and made: from here on no failure is expected because of the
    /// settings.
    pub fn keep(&mut self) {
        self.opened.keep();
    }

    /// The folders from which sockets are removed at the end.
    pub fn folders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let consumers = self.consumers.as_ref().map(|(socket, _)| socket);
        [&self.entrance].into_iter().chain(consumers).filter_map(Listening::folder)
    }

    /// Opens the ring's file again, as is done for every client: a failure shows at the start.
    /// `user` is who this process runs as.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn try_reopen(&self, settings: &Settings, user: Uid) -> Result<(), Failure> {
        if self.consumers.is_none() {
            return Ok(());
        }
        let path = || settings.ring.display().to_string();
        let failure = |source| Failure::Reopen { path: path(), source, user };
        reopen(&self.opened.file, true).map(drop).map_err(failure)
    }
}

/// Makes a listening socket, or takes one that there is already.
fn listen(source: &Source, kind: SockType, sockets: Sockets<'_>) -> Result<Listening, Failure> {
    match source {
        Source::Path(path, access) => (sockets.kept)(path)
            .map_or_else(|| Listening::on(path, kind, access), Ok)
            .map_err(|source| Failure::Socket { name: path.display().to_string(), source }),
        Source::Received(received) => {
            let name = received.to_string();
            match received.socket.try_clone() {
                Ok(socket) => Ok(Listening::inherited(socket, name)),
                Err(source) => Err(Failure::Socket { name, source }),
            }
        }
        Source::Inherited(inherited) => {
            let name = inherited.to_string();
            match (sockets.inherited)(*inherited) {
                Ok(socket) => Ok(Listening::inherited(socket, name)),
                Err(source) => Err(Failure::Socket { name, source }),
            }
        }
    }
}

fn listen_to_consumers(
    socket: &ConsumerSocket,
    sockets: Sockets<'_>,
) -> Result<(Listening, Admission), Failure> {
    let listening = listen(&socket.source, SockType::SeqPacket, sockets)?;
    refuse_descriptors(listening.fd().as_fd());
    sockets::do_not_block(listening.fd())
        .map_err(|source| Failure::Socket { name: listening.name().to_owned(), source })?;
    Ok((listening, socket.admission.clone()))
}

/// Opens and maps the ring. Returns `None` where `limits` have ended that, after giving back the
/// space that was allocated.
fn open_ring(
    settings: &Settings,
    limits: &Limits<'_>,
) -> Result<Option<(Opened, Region)>, Failure> {
    let name = settings.ring.display().to_string();
    let fail = |source| Failure::Ring { path: name.clone(), source };
    let opened = match ring::open(settings, limits) {
        Err(e) if ring::is_interrupted(&e) => return Ok(None),
        other => other.map_err(fail)?,
    };
    fault::catch().map_err(system("catch faults of memory"))?;
    let losses = Losses::new().map_err(system("record faults of memory"))?;
    let region = Region::new(Arc::clone(&opened.file), &name, opened.geometry, &losses);
    let region = region.map_err(|e| fail(e.into()))?;
    let prefaulted = region.prefault(&opened.file, settings.huge_pages, limits);
    Ok(prefaulted.is_ok().then_some((opened, region)))
}

/// Returns the ring's name, and all names that are watched.
fn names(settings: &Settings, opened: &Opened) -> io::Result<(Named, Vec<Named>)> {
    let ring = Named::ring(&settings.ring, &opened.file.metadata()?);
    let mut names = vec![ring.clone()];
    let consumers = settings.consumers.as_ref().map(|consumers| &consumers.source);
    for source in [&settings.front_ends].into_iter().chain(consumers) {
        if let Source::Path(path, _) = source {
            names.push(Named::socket(path)?);
        }
    }
    for address in &settings.metrics {
        if let Address::Unix(path) = address {
            names.push(Named::socket(path)?);
        }
    }
    Ok((ring, names))
}
