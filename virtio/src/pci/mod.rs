//! PCI devices of this machine, as sysfs shows them: where a device is, what it is, and who drives
//! it.
//!
//! Only names and numbers: nothing here touches a device or changes who drives it.

mod address;
mod claim;
mod sysfs;

pub use address::{ParsePciAddressError, PciAddress};
pub use claim::Claim;
pub use sysfs::{Ids, Sysfs};
