//! Checking that the names of all rings still lead to what is served, on a thread that may hang
//! where a file system does.

use crate::daemon::rings::member::{Kept, Member};
use crate::daemon::rings::messages::Number;
use crate::daemon::watch::{Found, Named, PERIOD};
use shared_block_ring::device::bell::new_event;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Rings that are checked in a second, at most: many have a longer period.
const RINGS_PER_SECOND: u32 = 250;

/// The names of each ring, with what was found last.
type Names = BTreeMap<Number, Vec<(Named, Found)>>;

/// The watch. It ends with the process.
pub struct Watch {
    names: Arc<Mutex<Names>>,
    changes: Receiver<(Number, bool)>,
    changed: OwnedFd,
}

impl Watch {
    /// Starts to watch nothing.
    ///
    /// # Errors
    ///
    /// No thread can be made.
    pub fn start() -> io::Result<Self> {
        let names = Arc::new(Mutex::new(Names::new()));
        let (sender, receiver) = channel();
        let changed = new_event()?;
        let (watched, event) = (Arc::clone(&names), changed.try_clone()?);
        let watch = move || {
            while check(&watched, &sender, &event) {
                let count = watched.lock().unwrap_or_else(PoisonError::into_inner).len();
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                thread::sleep(PERIOD.max(Duration::from_secs(1) * (count / RINGS_PER_SECOND)));
            }
        };
        thread::Builder::new().name("watch".to_owned()).spawn(watch)?;
        Ok(Self { names, changes: receiver, changed })
    }

    /// Watches the names of the rings that are served now, and no others.
    pub fn watch(&mut self, members: &BTreeMap<String, Member>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let served: BTreeMap<Number, &Kept> = members
            .values()
            .filter(|member| member.is_served())
            .filter_map(|member| Some((member.number, member.kept()?)))
            .collect();
        names.retain(|number, _| served.contains_key(number));
        for (number, kept) in served {
            let found = |named: &Named| (named.clone(), Found::There);
            names.entry(number).or_insert_with(|| kept.names.iter().map(found).collect());
        }
    }

    /// Readable when there are changes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Takes the rings whose file is somewhere else than at its path now, or there again.
    pub fn changes(&self) -> Vec<(Number, bool)> {
        let _ = nix::unistd::read(&self.changed, &mut [0; 8]);
        self.changes.try_iter().collect()
    }
}

/// Checks all names, and tells of changes. Returns whether somebody waits for them.
fn check(names: &Mutex<Names>, changes: &Sender<(Number, bool)>, event: &OwnedFd) -> bool {
    let all: Vec<_> = {
        let names = names.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().map(|(number, names)| (*number, names.clone())).collect()
    };
    for (number, of_ring) in all {
        for (index, (named, before)) in of_ring.iter().enumerate() {
            let found = named.check();
            if found == *before {
                continue;
            }
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            // A ring that has ended meanwhile has had its sockets removed.
            let Some((_, last)) = names.get_mut(&number).and_then(|all| all.get_mut(index)) else {
                continue;
            };
            *last = found;
            drop(names);
            named.log(found);
            if let Some(displaced) = named.is_displaced(found) {
                if changes.send((number, displaced)).is_err() {
                    return false;
                }
                let _ = nix::unistd::write(event, &1u64.to_ne_bytes());
            }
        }
    }
    true
}
