//! Waking a process that sleeps, without a system call while both are awake.
//!
//! The sleeper announces itself in a shared page, looks once more for what it waits for, and only
//! then sleeps on an event descriptor. The other side publishes first and looks for a sleeper
//! afterwards. Between a store and the following load of each side stands a sequentially consistent
//! fence: at least one of them sees the other's store, so no wake-up is lost.

use super::event::{Signaller, drain};
use super::{Mapping, Memory};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bytes of the shared page.
pub const PAGE_BYTES: u64 = 4096;

/// Side that sleeps. Each has a cache line of its own in the page, since different cores write
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleeper {
    /// The process on the host.
    Host,
    /// The backend, on behalf of a guest whose read it holds.
    Backend,
}

impl Sleeper {
    const fn offset(self) -> u64 {
        match self {
            Self::Host => 0,
            Self::Backend => 64,
        }
    }
}

/// Announcement of a sleep in the shared page: the part of a [`Bell`] that is memory alone.
#[derive(Debug)]
pub struct Announcement<M = Mapping> {
    page: M,
    sleeper: Sleeper,
}

impl<M: Memory> Announcement<M> {
    /// Makes the announcement of `sleeper` in a page that both sides share.
    pub fn new(page: M, sleeper: Sleeper) -> Self {
        Self { page, sleeper }
    }

    /// Announces that this side is about to sleep. Before it does, it has to look once more for
    /// what it waits for.
    pub fn announce(&self) {
        self.page.store_u64(self.sleeper.offset(), 1);
        self.page.fence();
    }

    /// Takes the announcement back: this side is awake.
    pub fn withdraw(&self) {
        self.page.store_u64(self.sleeper.offset(), 0);
    }

    /// Returns whether there is a sleeper, which must then be woken. It is called after publishing
    /// what the sleeper waits for.
    pub fn take(&self) -> bool {
        self.page.fence();
        if self.page.load_u64(self.sleeper.offset()) == 0 {
            return false;
        }
        self.withdraw();
        true
    }
}

/// Wake-ups in one direction: the announcement of the sleeper, and the event that wakes it.
#[derive(Debug)]
pub struct Bell {
    announcement: Announcement,
    event: Arc<OwnedFd>,
    signaller: Option<Arc<Signaller>>,
}

impl Bell {
    /// Over a page made by [`new_page`] and an event made by [`new_event`].
    pub fn new(page: &File, event: impl Into<Arc<OwnedFd>>, sleeper: Sleeper) -> io::Result<Self> {
        let page = Mapping::new(page.try_clone()?, PAGE_BYTES)?.without_file();
        let (announcement, event) = (Announcement::new(page, sleeper), event.into());
        Ok(Self { announcement, event, signaller: None })
    }

    /// Has [`ring`](Self::ring) go by `signaller`, which waits for nobody. Without it a process
    /// that holds the same event, fills it and clears its `O_NONBLOCK` can block whoever rings.
    #[must_use]
    pub fn signalled_by(self, signaller: Arc<Signaller>) -> Self {
        Self { signaller: Some(signaller), ..self }
    }

    /// Says that this side is about to sleep. It has to look once more for what it waits for before
    /// it does.
    pub fn announce(&self) {
        self.announcement.announce();
    }

    /// Says that this side is awake, and forgets rings that came meanwhile.
    pub fn awake(&self) {
        self.announcement.withdraw();
        // Cannot fail on an event.
        let _ = drain(self.event.as_fd());
    }

    /// Wakes the sleeper if there is one; to be called after publishing what it waits for. Whether
    /// it was asleep.
    pub fn ring(&self) -> bool {
        let asleep = self.announcement.take();
        if asleep {
            match &self.signaller {
                // Cannot fail on an event.
                Some(signaller) => drop(signaller.signal(self.event.as_fd())),
                // A full counter means that it is about to wake up anyway.
                None => drop(nix::unistd::write(&self.event, &1u64.to_ne_bytes())),
            }
        }
        asleep
    }

    /// The addresses of the shared page, for a handler of SIGBUS to know it by.
    pub fn addresses(&self) -> std::ops::Range<usize> {
        self.announcement.page.addresses()
    }

    /// The event, which is readable when rung.
    pub fn event(&self) -> &Arc<OwnedFd> {
        &self.event
    }

    /// Readable when rung.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A page for both directions, of a size that nobody can change any more.
pub fn new_page() -> io::Result<File> {
    let page = File::from(memfd_create(
        "blockring-bell",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?);
    page.set_len(PAGE_BYTES)?;
    let seals = nix::fcntl::SealFlag::F_SEAL_SHRINK
        | nix::fcntl::SealFlag::F_SEAL_GROW
        | nix::fcntl::SealFlag::F_SEAL_SEAL;
    nix::fcntl::fcntl(&page, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
    Ok(page)
}

/// An event that reads without blocking.
pub fn new_event() -> Result<OwnedFd, Errno> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wait::wait_readable;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn a_ring_reaches_only_a_sleeper() {
        let (page, event) = (new_page().unwrap(), new_event().unwrap());
        let host = Bell::new(&page, event.try_clone().unwrap(), Sleeper::Host).unwrap();
        let backend = Bell::new(&page, event, Sleeper::Host).unwrap();
        assert!(!backend.ring());
        host.announce();
        assert!(backend.ring() && !backend.ring());
        assert_eq!(wait_readable(&[host.fd()], Some(Duration::ZERO)).unwrap(), Some(0));
        host.awake();
        assert_eq!(wait_readable(&[host.fd()], Some(Duration::ZERO)).unwrap(), None);
    }

    #[test]
    fn no_wake_up_is_lost() {
        let (page, event) = (new_page().unwrap(), new_event().unwrap());
        let host = Bell::new(&page, event.try_clone().unwrap(), Sleeper::Host).unwrap();
        let backend = Bell::new(&page, event, Sleeper::Host).unwrap();
        let published = AtomicU64::new(0);
        let seen = AtomicU64::new(0);
        let (published, seen) = (&published, &seen);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 1..=20_000 {
                    published.store(number, Ordering::Release);
                    backend.ring();
                    while number % 3 == 0 && seen.load(Ordering::Acquire) < number {
                        std::hint::spin_loop();
                    }
                }
            });
            while seen.load(Ordering::Relaxed) < 20_000 {
                let last = seen.load(Ordering::Relaxed);
                if published.load(Ordering::Acquire) == last {
                    host.announce();
                    if published.load(Ordering::Acquire) == last {
                        let woken = wait_readable(&[host.fd()], Some(Duration::from_secs(10)));
                        assert_eq!(woken.unwrap(), Some(0), "slept through number {last}");
                    }
                    host.awake();
                }
                seen.store(published.load(Ordering::Acquire), Ordering::Release);
            }
        });
    }
}
