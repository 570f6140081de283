//! The sectors that a device lets its user write.

use super::{DeviceError, Operation};
use crate::format::Side;
use crate::handover::Role;
use std::io::{self, ErrorKind};
use std::ops::Range;

/// A write that the device's user has no right to. It is the source of a [`DeviceError`]; see
/// [`Forbidden::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Forbidden {
    /// The ring is mapped for reading.
    #[error("the ring is mapped for reading only")]
    ReadOnly,
    /// The role that a backend has given this device writes other sectors.
    #[error("{}", words(*.0))]
    Role(Role),
}

fn words(role: Role) -> &'static str {
    match role {
        Role::Producer => "a producer writes the data area and sector 1, and nothing else",
        Role::Consumer => "a consumer writes sector 2, and nothing else",
        Role::Control => {
            "without a role nothing is written but the suspend flag, which the backend stores"
        }
    }
}

impl Forbidden {
    /// Returns the missing right, if that is the reason of `error`.
    pub fn of(error: &DeviceError) -> Option<&Self> {
        error.source.get_ref()?.downcast_ref()
    }

    pub(super) fn error(self, name: &str, sector: u64) -> DeviceError {
        let denied = io::Error::new(ErrorKind::PermissionDenied, self);
        DeviceError::new(name, Operation::Write, denied).at_sector(sector)
    }
}

/// Checks that `role` writes all of these sectors.
pub(super) fn check(role: Role, sectors: &Range<u64>) -> Result<(), Forbidden> {
    let one = |side: Side| sectors.start == side.sector() && sectors.end <= side.sector() + 1;
    let data = sectors.start > Side::Consumer.sector();
    let may = match role {
        Role::Producer => data || one(Side::Producer),
        Role::Consumer => one(Side::Consumer),
        Role::Control => false,
    };
    if may { Ok(()) } else { Err(Forbidden::Role(role)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_writes_its_own_sectors_alone() {
        let may = |role, sectors| check(role, &sectors).is_ok();
        assert!(may(Role::Producer, 1..2) && may(Role::Producer, 3..9));
        for sectors in [0..1, 0..2, 1..3, 2..3, 2..4] {
            assert!(!may(Role::Producer, sectors.clone()), "{sectors:?}");
        }
        assert!(may(Role::Consumer, 2..3));
        for sectors in [0..1, 1..2, 1..3, 2..4, 3..4] {
            assert!(!may(Role::Consumer, sectors.clone()), "{sectors:?}");
        }
        for sectors in [0..1, 1..2, 2..3, 3..4] {
            assert!(!may(Role::Control, sectors.clone()), "{sectors:?}");
        }
    }
}
