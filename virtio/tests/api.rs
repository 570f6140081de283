//! The traits that users of the public types rely on: a change that takes one away breaks programs,
//! and fails to compile here first.

use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use virtio_blk_driver::pci::{Claim, Ids, ParsePciAddressError, PciAddress, Sysfs};
use virtio_blk_driver::{
    BlockDriver, Broken, CapabilityError, Chains, Completion, Difference, Disk, Error, Pci,
    Reconnect, Refusal, Request, RequestId, ResumeError, Shape, Slot, Step, VhostUser,
};

fn is_send<T: Debug + Send + Unpin + 'static>() {}
fn is_thread_safe<T: Debug + Send + Sync + Unpin + 'static>() {}
fn is_error<T: StdError + Send + Sync + 'static>() {}
fn is_value<T: Debug + Clone + Eq + Hash + Send + Sync + 'static>() {}
fn is_shown<T: Display>() {}

#[test]
fn public_types_cross_threads() {
    is_send::<BlockDriver>();
    is_send::<Pci>();
    is_send::<Completion<'static>>();
    is_send::<Slot<'static>>();
    is_thread_safe::<Claim>();
    is_thread_safe::<Reconnect>();
    is_thread_safe::<Sysfs>();
    is_thread_safe::<VhostUser>();
    #[cfg(feature = "ring")]
    is_thread_safe::<virtio_blk_driver::VirtioDevice>();
}

#[test]
fn errors_can_be_boxed_and_sent() {
    is_error::<Broken>();
    is_error::<CapabilityError>();
    is_error::<Error>();
    is_error::<ParsePciAddressError>();
    is_error::<Refusal>();
    is_error::<ResumeError>();
}

#[test]
fn plain_values_can_be_cloned_compared_and_hashed() {
    is_value::<Broken>();
    is_value::<CapabilityError>();
    is_value::<Chains>();
    is_value::<Difference>();
    is_value::<Disk>();
    is_value::<Ids>();
    is_value::<ParsePciAddressError>();
    is_value::<PciAddress>();
    is_value::<Request>();
    is_value::<RequestId>();
    is_value::<Shape>();
    is_value::<Step>();
    is_shown::<Difference>();
    is_shown::<PciAddress>();
    is_shown::<Step>();
}
