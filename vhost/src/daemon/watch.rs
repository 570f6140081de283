//! Checking, every few seconds, that the names that a backend was started with still lead to what
//! it serves: the ring's file, and the sockets. Without that, a backend would go on silently in a
//! file that nobody else can open.

use crate::daemon::condition::Condition;
use ring_program::ServiceManager;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The time between two checks.
pub(super) const PERIOD: Duration = Duration::from_secs(2);

/// A name, and the file that it led to at the start.
#[derive(Debug, Clone)]
pub struct Named {
    path: PathBuf,
    kind: Kind,
    identity: Identity,
}

/// The kind of file that is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ring,
    Socket,
}

/// The identity of a file or device, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// File system and inode.
    File(u64, u64),
    /// The number of a block device, whose node may be made anew.
    Device(u64),
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    There,
    Missing,
    Another,
    /// The check failed, with this error.
    Unknown(Option<i32>),
}

impl From<&Metadata> for Identity {
    fn from(about: &Metadata) -> Self {
        if about.file_type().is_block_device() {
            Self::Device(about.rdev())
        } else {
            Self::File(about.dev(), about.ino())
        }
    }
}

impl Named {
    /// The name of a ring at `path`, the file or device that `about` describes.
    pub fn ring(path: &Path, about: &Metadata) -> Self {
        Self { path: path.to_owned(), kind: Kind::Ring, identity: about.into() }
    }

    /// The name of the socket that was made at `path`.
    ///
    /// # Errors
    ///
    /// There is nothing to be seen.
    pub fn socket(path: &Path) -> io::Result<Self> {
        let about = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), kind: Kind::Socket, identity: (&about).into() })
    }

    /// Whether the name now leads to another file, or to none.
    pub fn is_lost(&self) -> bool {
        matches!(self.check(), Found::Missing | Found::Another)
    }

    /// Looks at the name.
    pub(super) fn check(&self) -> Found {
        let about = match self.kind {
            Kind::Ring => std::fs::metadata(&self.path),
            Kind::Socket => std::fs::symlink_metadata(&self.path),
        };
        match about {
            Ok(about) if Identity::from(&about) == self.identity => Found::There,
            Ok(_) => Found::Another,
            Err(e) => match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Found::Missing,
                _ => Found::Unknown(e.raw_os_error()),
            },
        }
    }

    /// Logs a change. Whether the ring's file is lost is noted, and the service manager told;
    /// `serving` is the status while it is not.
    fn report(&self, found: Found, condition: &Condition, manager: &ServiceManager, serving: &str) {
        self.log(found);
        let Some(displaced) = self.is_displaced(found) else { return };
        condition.set_displaced(displaced);
        if displaced {
            let name = self.path.display();
            manager.status(&format!(
                "{name}: the ring's file was moved, removed or replaced (the log says what to do)"
            ));
        } else {
            manager.status(serving);
        }
    }

    /// Whether the ring's file is somewhere else than at its path, if that was found out.
    pub(super) fn is_displaced(&self, found: Found) -> Option<bool> {
        match (self.kind, found) {
            (Kind::Ring, Found::Missing | Found::Another) => Some(true),
            (Kind::Ring, Found::There) => Some(false),
            _ => None,
        }
    }

    /// Logs a change.
    pub(super) fn log(&self, found: Found) {
        let name = self.path.display();
        let change = match found {
            Found::There => return log::warn!("{name}: is there again"),
            Found::Unknown(error) => {
                let error = io::Error::from_raw_os_error(error.unwrap_or(0));
                return log::warn!(
                    "{name}: cannot check whether it was replaced or removed: {error}"
                );
            }
            Found::Missing => "was moved or removed",
            Found::Another => "was replaced",
        };
        match self.kind {
            Kind::Ring => log::error!(
                "{name}: the ring's file {change}: guest and host go on with the old one, which is lost when this backend ends \
                 unless it has another name (put it back, or copy it from /proc/{}/fd; then start the backend anew)",
                std::process::id()
            ),
            Kind::Socket => log::error!(
                "{name}: the socket {change}: nobody can connect there any more (end this backend with SIGTERM and start it anew)"
            ),
        }
    }
}

/// The watch of names. Once this is dropped nothing is logged about them: it is dropped before this
/// process removes one of them.
#[derive(Debug)]
pub struct Watch {
    over: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread is not joined: a check hangs where the file system does.
        self.over.store(true, Ordering::Release);
    }
}

/// The watched names, each with the last result.
struct Checks {
    names: Vec<(Named, Found)>,
    over: Arc<AtomicBool>,
}

impl Checks {
    fn new(names: Vec<Named>) -> (Self, Watch) {
        let over = Arc::new(AtomicBool::new(false));
        let names = names.into_iter().map(|named| (named, Found::There)).collect();
        (Self { names, over: Arc::clone(&over) }, Watch { over })
    }

    /// Checks each name, and reports those whose result has changed. Returns whether the watch goes
    /// on.
    fn run(&mut self, mut report: impl FnMut(&Named, Found)) -> bool {
        for (named, before) in &mut self.names {
            let found = named.check();
            // Looked at after the check, which may have seen that this process has removed the
            // name.
            if self.over.load(Ordering::Acquire) {
                return false;
            }
            if found != *before {
                report(named, found);
                *before = found;
            }
        }
        true
    }
}

/// Watches these names on a thread of its own, and notes in `condition` whether the ring's file has
/// its name. `serving` is the service manager's status as long as it does.
///
/// # Errors
///
/// No thread can be made.
pub fn start(
    names: Vec<Named>,
    condition: &Arc<Condition>,
    manager: &Arc<ServiceManager>,
    serving: &str,
) -> io::Result<Watch> {
    let (condition, manager) = (Arc::clone(condition), Arc::clone(manager));
    let serving = serving.to_owned();
    let (mut checks, watch) = Checks::new(names);
    let run = move || {
        while checks.run(|named, found| named.report(found, &condition, &manager, &serving)) {
            std::thread::sleep(PERIOD);
        }
    };
    std::thread::Builder::new().name("watch".to_owned()).spawn(run)?;
    Ok(watch)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn watch_reports_a_removed_name_once_and_none_after_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["one", "two"].map(|name| folder.path().join(name));
        for name in &names {
            std::fs::write(name, "").unwrap();
        }
        let watched = names.iter().map(|name| Named::ring(name, &name.metadata().unwrap()));
        let (mut checks, watch) = Checks::new(watched.collect());
        let mut reported = Vec::new();
        let mut run = || checks.run(|named, found| reported.push((named.path.clone(), found)));
        assert!(run());
        std::fs::remove_file(&names[0]).unwrap();
        assert!(run() && run());
        drop(watch);
        std::fs::remove_file(&names[1]).unwrap();
        assert!(!run());
        assert_eq!(reported, [(names[0].clone(), Found::Missing)]);
    }
}
