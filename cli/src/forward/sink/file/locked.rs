//! A file that only one open file description writes to.

use std::fs::{File, TryLockError};
use std::ops::Deref;

/// A locked file. The lock ends with this value.
///
/// To close the descriptor would not suffice: a process that another thread is just starting has a
/// copy of it until it executes its program, and would keep the lock for as long.
#[derive(Debug)]
pub struct Locked(File);

impl Locked {
    /// Locks the file without waiting.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] if another open file description has the lock.
    pub fn try_new(file: File) -> Result<Self, TryLockError> {
        file.try_lock()?;
        Ok(Self(file))
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // It cannot fail on a locked file. If it did, closing the last descriptor would end the lock.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lock_ends_with_its_holder_beside_a_copy_of_the_descriptor() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || Locked::try_new(file.reopen().unwrap());
        let locked = open().unwrap();
        // As in a process that is being started.
        let _copy = locked.try_clone().unwrap();
        assert!(matches!(open(), Err(TryLockError::WouldBlock)));
        drop(locked);
        open().unwrap();
    }
}
