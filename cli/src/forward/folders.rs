//! The folders that patterns look into, and news of them.

use super::settings::RingSource;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};

/// What makes a pattern match something else.
const NEWS: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Watches of the folders that patterns look into.
#[derive(Debug)]
pub struct Folders {
    inotify: Inotify,
}

impl Folders {
    pub fn new() -> io::Result<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        Ok(Self { inotify: Inotify::init(flags)? })
    }

    /// Watches the folders in which the patterns of `sources` could match something new. It is
    /// called before the patterns are looked up, so that nothing is missed in between. Folders that
    /// are watched already stay so, and those that no pattern looks into any more cost a look.
    pub fn watch(&self, sources: &[RingSource]) {
        for pattern in sources.iter().filter_map(RingSource::pattern) {
            for folder in pattern.path().map(folders).unwrap_or_default() {
                // Gone since, not readable, or too many: the pattern is looked up now and then in
                // any case.
                if let Err(e) = self.inotify.add_watch(&folder, NEWS) {
                    log::debug!("{}: not watched: {e}", folder.display());
                }
            }
        }
    }

    /// Takes the news, and returns whether there were any.
    pub fn take(&self) -> bool {
        let mut any = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) if events.is_empty() => return any,
                Ok(_) => any = true,
                Err(Errno::EINTR) => {}
                Err(_) => return any,
            }
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Returns the folders whose entries decide about what a pattern matches: from the last one that
/// needs no pattern on, or the nearest one above it that exists.
fn folders(pattern: &Path) -> Vec<PathBuf> {
    let is_wild =
        |part: &Component<'_>| part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let parts: Vec<_> = pattern.components().collect();
    let fixed = parts.iter().position(is_wild).unwrap_or(parts.len());
    let mut base: PathBuf = parts[..fixed].iter().collect();
    while !base.as_os_str().is_empty() && !base.is_dir() {
        base.pop();
    }
    let mut found = vec![if base.as_os_str().is_empty() { PathBuf::from(".") } else { base }];
    for end in fixed + 1..parts.len() {
        let level: PathBuf = parts[..end].iter().collect();
        let paths = level.to_str().and_then(|text| glob::glob(text).ok());
        found.extend(paths.into_iter().flatten().flatten().filter(|path| path.is_dir()));
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::wait::wait_readable;
    use std::ffi::OsStr;
    use std::fs;
    use std::time::Duration;

    fn is_readable(folders: &Folders) -> bool {
        wait_readable(&[folders.fd()], Some(Duration::ZERO)).unwrap().is_some()
    }

    #[test]
    fn folders_report_what_appears_at_any_level_of_a_pattern() {
        let dir = tempfile::tempdir().unwrap();
        let pattern = dir.path().join("run/*/ring.*");
        let sources = [RingSource::new(OsStr::new(&pattern)).unwrap()];
        let folders = Folders::new().unwrap();
        let heard = |change: &dyn Fn()| {
            folders.watch(&sources);
            assert!(!is_readable(&folders) && !folders.take());
            change();
            assert!(is_readable(&folders) && folders.take());
        };
        heard(&|| fs::create_dir(dir.path().join("run")).unwrap());
        heard(&|| fs::create_dir(dir.path().join("run/a")).unwrap());
        heard(&|| fs::write(dir.path().join("run/a/ring.out"), "").unwrap());
        heard(&|| fs::remove_file(dir.path().join("run/a/ring.out")).unwrap());
        heard(&|| fs::remove_dir(dir.path().join("run/a")).unwrap());
    }
}
