//! The right to drive a PCI device, which one process has at a time.

use super::{PciAddress, Sysfs};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;

/// The right to drive a device past the kernel, or to change its driver. One process at a time has
/// it, until this value is dropped or the process ends.
#[derive(Debug)]
#[must_use = "a claim that is dropped is given up"]
pub struct Claim {
    _lock: Flock<File>,
}

impl Sysfs {
    /// Takes the right to drive the device; `None` while another process has it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn claim(&self, address: PciAddress) -> io::Result<Option<Claim>> {
        // Every device has this file, whoever drives it.
        let file = File::options().read(true).write(true).open(self.config(address))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Claim { _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_device_is_one_process_s_until_that_lets_it_go() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(root.path());
        let address = "00:04.0".parse().unwrap();
        std::fs::create_dir_all(sysfs.device(address)).unwrap();
        assert_eq!(sysfs.claim(address).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(sysfs.config(address), "").unwrap();
        let claim = sysfs.claim(address).unwrap().unwrap();
        assert!(sysfs.claim(address).unwrap().is_none());
        drop(claim);
        assert!(sysfs.claim(address).unwrap().is_some());
    }
}
