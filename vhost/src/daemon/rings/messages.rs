//! What the two processes that serve many rings say to each other.
//!
//! The control process has the rights to open files and make sockets; the data process has none,
//! and gets what it serves as descriptors. Messages are JSON, one a packet, with their descriptors.

use crate::daemon::peer::Admission;
use crate::daemon::service::Terms;
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of these messages: a data process of another build may have another one.
pub const VERSION: u32 = 1;

/// The first message to the data process, with the socket by which it asks for files.
#[derive(Debug, Serialize, Deserialize)]
pub struct Begin {
    /// [`VERSION`].
    pub version: u32,
    /// Threads that drive queues, unless `cpus` says so.
    pub workers: usize,
    /// The processors of those threads, one each.
    pub cpus: Vec<usize>,
    /// The user and group to become.
    pub identity: Option<(u32, u32)>,
    /// Whether to apply the sandbox.
    pub confined: bool,
    /// The form of the log.
    pub log_format: String,
    /// How many sockets of the metrics follow. Each comes with a message that is its name.
    pub metrics: usize,
}

impl Begin {
    /// The number of threads that drive queues.
    pub fn threads(&self) -> usize {
        if self.cpus.is_empty() { self.workers } else { self.cpus.len() }
    }
}

/// The number of a ring, which no other one has had.
pub type Number = u64;

/// To the data process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Serve a ring, which is in the first descriptor; its sockets follow.
    Serve(Number, Box<Ring>),
    /// Let its front end go, make it durable, and serve it no more.
    Release(Number),
    /// Have its guest suspend or resume.
    Suspend(Number, bool),
    /// Answer scrapes: this is the process that serves the rings now.
    AnswerScrapes,
    /// Let all front ends go, and end: another process serves the rings from then on.
    Yield,
    /// Tell of it.
    Report(Number),
    /// Its file is somewhere else than at its path, or is there again.
    Displaced(Number, bool),
}

/// From the data process.
#[derive(Debug, Serialize, Deserialize)]
pub enum News {
    /// Orders are taken; what is restricted of the file system.
    Begun(String),
    /// The ring is served.
    Serving(Number),
    /// It cannot be served, for this reason.
    Refused(Number, String),
    /// It is served no more: as ordered, or for this reason.
    Ended(Number, Option<String>),
    /// The answer to [`Order::Suspend`]: false where it has to be tried again.
    Suspended(Number, Result<bool, String>),
    /// The answer to [`Order::Report`].
    Report(Number, Box<Report>),
    /// A thread has waited for long in the kernel while it served this ring.
    Hangs(Number),
}

/// A request for a new open file description of a ring's file, which is the answer's descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reopen {
    /// The ring.
    pub number: Number,
    /// Open it for writing, too.
    pub writing: bool,
    /// Returned with the answer.
    pub ticket: u64,
}

/// The answer to [`Reopen`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Reopened {
    /// The request's.
    pub ticket: u64,
    /// Why there is no descriptor with this, if there is none.
    pub why: Option<String>,
}

/// A ring that is to be served.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ring {
    /// Its name among the rings.
    pub name: String,
    /// How it is served.
    pub terms: Terms,
    /// Bytes in a sector.
    pub sector_size: u32,
    /// The number of sectors.
    pub sectors: u64,
    /// The name of its socket for front ends, the second descriptor.
    pub entrance: String,
    /// That of the socket for processes on the host, the fourth descriptor, and who may use it. The
    /// third is the page of the bells.
    pub consumers: Option<(String, Admitted)>,
}

/// The users and groups of an [`Admission`], by their numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Admitted {
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl From<&Admission> for Admitted {
    fn from(admission: &Admission) -> Self {
        Self {
            users: admission.users.iter().map(|user| user.as_raw()).collect(),
            groups: admission.groups.iter().map(|group| group.as_raw()).collect(),
        }
    }
}

impl From<Admitted> for Admission {
    fn from(admitted: Admitted) -> Self {
        Self {
            users: admitted.users.into_iter().map(Uid::from_raw).collect(),
            groups: admitted.groups.into_iter().map(Gid::from_raw).collect(),
        }
    }
}

/// What the data process knows of a ring.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// A front end is connected.
    pub front_end: bool,
    /// Bytes that are published and not consumed.
    pub used: Option<u64>,
    /// The guest is asked to suspend.
    pub suspended: Option<bool>,
    /// What is wrong with the ring.
    pub fault: Option<String>,
    /// The counters of the data path.
    pub counters: Value,
}
