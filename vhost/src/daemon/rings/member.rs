//! One ring, as the control process knows it.

use crate::daemon::failure::Failure;
use crate::daemon::handover::reopen;
use crate::daemon::peer::Admission;
use crate::daemon::prepared::Prepared;
use crate::daemon::rings::messages::{Number, Order, Ring};
use crate::daemon::rings::passed::PassedDescriptors;
use crate::daemon::sandbox::without_truncation;
use crate::daemon::service::Terms;
use crate::daemon::settings::Settings;
use crate::daemon::sockets::{Listening, Source};
use crate::daemon::watch::Named;
use serde_json::{Value, json};
use shared_block_ring::device::RangeLock;
use shared_block_ring::device::bell::new_page;
use shared_block_ring::format::Geometry;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A ring, from its configuration to its end.
pub struct Member {
    /// Its number among all that there ever were.
    pub number: Number,
    /// Its configuration, as text and as settings.
    pub text: String,
    /// It is no file of the folder.
    pub added: bool,
    /// What a client has passed for it.
    pub passed: PassedDescriptors,
    /// What the text says; `None` where it is wrong.
    pub settings: Option<Settings>,
    /// How far it is.
    pub state: State,
}

/// How far a ring is.
pub enum State {
    /// Its sockets are made, and its file is opened.
    Preparing,
    /// The data process takes it over.
    Starting(Kept),
    /// It is served.
    Serving(Kept),
    /// It is made durable.
    Ending(Kept),
    /// It is not served, for this reason.
    Failed(String),
}

/// What the control process keeps of a ring that is served: the names of its sockets, which are
/// removed when this is dropped, and all that another data process needs.
pub struct Kept {
    file: Arc<File>,
    geometry: Geometry,
    terms: Terms,
    entrance: Listening,
    consumers: Option<(Listening, Admission)>,
    /// The guest's role. The lock is that of the file's open file description, which the data
    /// process shares.
    _role: RangeLock,
    /// The names that are watched.
    pub names: Vec<Named>,
    ring_file: Named,
}

impl Kept {
    /// Keeps what was prepared for a ring with these settings.
    pub fn new(prepared: Prepared, settings: &Settings) -> Self {
        let Prepared { opened, region, entrance, consumers, ring_file, names, serial } = prepared;
        let (role, content) = opened.split(region);
        // The region is mapped by the data process.
        let (file, geometry) = (content.file, content.geometry);
        let terms = settings.terms(serial);
        Self { file, geometry, terms, entrance, consumers, _role: role, names, ring_file }
    }

    /// Returns the order to serve it, and the descriptors that go with it.
    ///
    /// # Errors
    ///
    /// No descriptor can be made.
    pub fn order(&self, number: Number, name: &str) -> io::Result<(Order, Vec<OwnedFd>)> {
        let mut descriptors = vec![
            OwnedFd::from(self.file.try_clone()?),
            self.entrance.fd().try_clone()?,
            // Made here: the data process may not set a file's length.
            new_page()?.into(),
        ];
        let consumers = self.consumers.as_ref();
        let consumers = consumers.map(|(listening, admission)| {
            descriptors.push(listening.fd().try_clone()?);
            Ok::<_, io::Error>((listening.name().to_owned(), admission.into()))
        });
        let ring = Ring {
            name: name.to_owned(),
            terms: Terms { scope: number, ..self.terms.clone() },
            sector_size: self.geometry.sector_size().get(),
            sectors: self.geometry.sectors(),
            entrance: self.entrance.name().to_owned(),
            consumers: consumers.transpose()?,
        };
        Ok((Order::Serve(number, Box::new(ring)), descriptors))
    }

    /// Opens the ring's file again, for an open file description of its own.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn reopen(&self, writing: bool) -> io::Result<File> {
        // As in the data process, whose sandbox would see to that.
        without_truncation(|| reopen(&self.file, writing))
    }

    /// What is lost of the ring at its end.
    ///
    /// # Errors
    ///
    /// Its file is not at its path any more.
    pub fn finish(&self) -> Result<(), Failure> {
        if self.ring_file.is_lost() {
            return Err(Failure::Lost { path: self.terms.path.display().to_string() });
        }
        Ok(())
    }

    /// Makes the ring durable that no process serves any more.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The listening sockets.
    pub fn sockets(&self) -> impl Iterator<Item = &Listening> {
        let consumers = self.consumers.as_ref().map(|(listening, _)| listening);
        [&self.entrance].into_iter().chain(consumers)
    }

    /// Bytes of the region.
    pub fn bytes(&self) -> u64 {
        self.geometry.total_bytes()
    }
}

impl Member {
    /// What is kept of it, if the data process has it or is about to.
    pub fn kept(&self) -> Option<&Kept> {
        match &self.state {
            State::Starting(kept) | State::Serving(kept) | State::Ending(kept) => Some(kept),
            State::Preparing | State::Failed(_) => None,
        }
    }

    /// Bytes of its region, or those that it is to have; 0 where it has failed, or nobody knows.
    pub fn bytes(&self) -> u64 {
        match &self.state {
            State::Failed(_) => 0,
            State::Preparing => {
                self.settings.as_ref().and_then(|settings| settings.size).unwrap_or(0)
            }
            State::Starting(kept) | State::Serving(kept) | State::Ending(kept) => kept.bytes(),
        }
    }

    /// Whether it is served.
    pub fn is_served(&self) -> bool {
        matches!(self.state, State::Serving(_))
    }

    /// Whether it is about to be served.
    pub fn is_starting(&self) -> bool {
        matches!(self.state, State::Preparing | State::Starting(_))
    }

    /// The ring for clients of the control socket, without what the data process knows.
    pub fn to_json(&self, name: &str) -> Value {
        let path = |source: &Source| match source {
            Source::Path(path, _) => path.display().to_string(),
            Source::Inherited(inherited) => inherited.to_string(),
            Source::Received(received) => received.to_string(),
        };
        let (state, reason) = match &self.state {
            State::Preparing | State::Starting(_) => ("starting", None),
            State::Serving(_) => ("serving", None),
            State::Ending(_) => ("ending", None),
            State::Failed(why) => ("failed", Some(why)),
        };
        let settings = self.settings.as_ref();
        let consumers = settings.and_then(|settings| settings.consumers.as_ref());
        let rates = settings.map(|settings| settings.rates).unwrap_or_default();
        json!({
            "name": name,
            "state": state,
            "reason": reason,
            "path": settings.map(|settings| settings.ring.display().to_string()),
            "socket": settings.map(|settings| path(&settings.front_ends)),
            "consumer_socket": consumers.map(|consumers| path(&consumers.source)),
            "guest": settings.map(|settings| settings.guest.to_string()),
            "bytes": self.kept().map(Kept::bytes),
            "max_bytes_per_second": rates.bytes,
            "max_requests_per_second": rates.requests,
        })
    }
}
