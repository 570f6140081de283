//! `journald:`: items as records of a journal, in journal files of the rings' own or in the journal
//! of this host.

mod export;
mod files;
mod local;
mod record;
#[cfg(test)]
mod scene;

use super::super::super::failure::Failure;
use super::super::values::Seconds;
use super::Sink;
use files::Files;
use local::Local;
use nix::unistd::{AccessFlags, eaccess};
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The socket of this host's journal.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The default of `--gather`.
const GATHER: Duration = Duration::from_millis(200);

const HEADING: &str = "Options of journald";

/// Options of journals.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct JournaldOptions {
    /// journald: the journal's socket, if it is not /run/systemd/journal/socket
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    pub journal_socket: Option<PathBuf>,
    /// journald:DIRECTORY: the program systemd-journal-remote, if it is not in /usr/lib/systemd
    #[arg(long, help_heading = HEADING, value_name = "PATH")]
    pub journal_remote: Option<PathBuf>,
    /// journald:DIRECTORY: gather the items of S seconds (0.2 by default) for a run of
    /// systemd-journal-remote
    #[arg(long, help_heading = HEADING, value_name = "S", value_parser = super::super::super::address::seconds, allow_negative_numbers = true)]
    #[serde(deserialize_with = "duration")]
    pub gather: Option<Duration>,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Seconds::deserialize(deserializer).map(|seconds| Some(seconds.0))
}

impl JournaldOptions {
    /// Returns the options, and whether each was given.
    pub fn given(&self) -> [(&'static str, bool); 3] {
        let Self { journal_socket, journal_remote, gather } = self;
        [
            ("journal-socket", journal_socket.is_some()),
            ("journal-remote", journal_remote.is_some()),
            ("gather", gather.is_some()),
        ]
    }

    fn gather(&self) -> Duration {
        self.gather.unwrap_or(GATHER)
    }
}

/// Returns what keeps journal files from being written in the folder.
pub fn faults(folder: &Path) -> Vec<String> {
    let refused = eaccess(folder, AccessFlags::W_OK | AccessFlags::X_OK).err();
    let words = |e| format!("journald:{}: {e} (may this user make files there?)", folder.display());
    refused.map(words).into_iter().collect()
}

/// Makes the sink `journald:FOLDER`, or `journald:` without one.
pub fn make(folder: Option<&Path>, options: &JournaldOptions) -> Result<Box<dyn Sink>, Failure> {
    if let Some(folder) = folder {
        return Ok(Box::new(Files::new(folder, options)?));
    }
    let socket = options.journal_socket.as_deref().unwrap_or(Path::new(SOCKET));
    let local = Local::new(socket).map_err(Failure::io("cannot start a thread"))?;
    Ok(Box::new(local))
}
