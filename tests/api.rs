//! The traits that users of the public types rely on: a change that takes one away breaks programs,
//! and fails to compile here first.

use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_block_ring::device::{
    AlignedBuf, BlockDevice, DeviceError, Displaced, FileDevice, Forbidden, HeldReadOutcome,
    HeldReads, LockRange, Lookout, Mapping, Memory, Operation, RangeLock, SharedSleep, Sleep,
};
use shared_block_ring::format::{
    Capacity, Extent, FormatError, Geometry, Header, Identity, ParsePositionError, PointerSector,
    SectorSize, Side, Signed, Slot, Tally,
};
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{
    Aside, CheckReport, Consumer, ConsumerSet, Control, CreateOptions, Created, DebugInfo,
    Durability, Encode, Error, Fix, Journal, JournalError, JournalOptions, Key, MappedDevice,
    Notice, Occurrence, OpenOptions, Popped, Position, Producer, Repair, RingDevice, Role, State,
    SyncError, Synced, Ticket, UnixDevice, WhenAbsent, WhenFull,
};
use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::str::FromStr;

fn is_send<T: Debug + Send + Unpin + 'static>() {}
fn is_thread_safe<T: Debug + Send + Sync + Unpin + 'static>() {}
fn is_error<T: StdError + Send + Sync + 'static>() {}
fn is_value<T: Debug + Clone + Eq + Hash + Send + Sync + 'static>() {}
fn is_serialised<T: Serialize + DeserializeOwned>() {}

#[test]
fn handles_and_devices_cross_threads() {
    is_thread_safe::<AlignedBuf>();
    is_thread_safe::<Consumer<FileDevice>>();
    is_thread_safe::<Control<FileDevice>>();
    is_thread_safe::<FileDevice>();
    is_thread_safe::<Journal<String>>();
    is_thread_safe::<Lookout>();
    is_thread_safe::<Occurrence>();
    is_thread_safe::<Producer<FileDevice>>();
    is_thread_safe::<RangeLock>();
    is_thread_safe::<Repair>();
    is_thread_safe::<Ticket>();
    is_thread_safe::<Wait>();
    // A mapping's device has memory for one caller at a time.
    is_send::<Consumer<MappedDevice>>();
    is_send::<Consumer<UnixDevice>>();
    is_send::<ConsumerSet<Box<dyn RingDevice>>>();
    is_send::<JournalOptions>();
    is_send::<Producer<Box<dyn RingDevice>>>();
}

#[test]
fn errors_can_be_boxed_and_sent() {
    is_error::<DeviceError>();
    is_error::<Displaced>();
    is_error::<Error>();
    is_error::<Forbidden>();
    is_error::<FormatError>();
    is_error::<JournalError>();
    is_error::<ParsePositionError>();
    is_error::<SyncError>();
}

#[test]
fn plain_values_can_be_cloned_compared_and_hashed() {
    is_value::<Aside>();
    is_value::<Capacity>();
    is_value::<CheckReport>();
    is_value::<CreateOptions>();
    is_value::<Created>();
    is_value::<DebugInfo>();
    is_value::<Displaced>();
    is_value::<Durability>();
    is_value::<Extent>();
    is_value::<Fix>();
    is_value::<Forbidden>();
    is_value::<FormatError>();
    is_value::<Geometry>();
    is_value::<Header>();
    is_value::<HeldReadOutcome>();
    is_value::<Identity>();
    is_value::<Key>();
    is_value::<LockRange>();
    is_value::<Notice>();
    is_value::<OpenOptions>();
    is_value::<Operation>();
    is_value::<ParsePositionError>();
    is_value::<PointerSector>();
    is_value::<Popped<'static>>();
    is_value::<Position>();
    is_value::<Repair>();
    is_value::<Role>();
    is_value::<SectorSize>();
    is_value::<Side>();
    is_value::<Signed>();
    is_value::<Slot>();
    is_value::<State>();
    is_value::<Synced>();
    is_value::<Tally>();
    is_value::<WhenAbsent>();
    is_value::<WhenFull>();
    is_value::<Woken>();
}

#[test]
fn devices_and_items_can_be_trait_objects() {
    fn is_trait<T: ?Sized>() {}
    is_trait::<dyn BlockDevice>();
    is_trait::<dyn Encode>();
    is_trait::<dyn HeldReads>();
    is_trait::<dyn Memory>();
    is_trait::<dyn RingDevice>();
    is_trait::<dyn SharedSleep>();
    is_trait::<dyn Sleep>();
    is_send::<MappedDevice<Mapping>>();
}

#[test]
fn reports_and_settings_are_serialised_and_come_back() {
    is_serialised::<CheckReport>();
    is_serialised::<DebugInfo>();
    is_serialised::<Role>();
    is_serialised::<State>();
    for (durability, text) in [
        (Durability::Flush, "\"flush\""),
        (Durability::Ordered, "\"ordered\""),
        (Durability::PageCache, "\"page-cache\""),
    ] {
        assert_eq!(serde_json::to_string(&durability).expect("text"), text);
        assert_eq!(serde_json::from_str::<Durability>(text).expect("a durability"), durability);
    }
    for side in [Side::Producer, Side::Consumer] {
        let text = serde_json::to_string(&side).expect("text");
        assert_eq!(text, format!("\"{side}\""));
        assert_eq!(serde_json::from_str::<Side>(&text).expect("a side"), side);
    }
}

#[test]
fn position_is_the_same_by_text_and_by_number() {
    fn is_number<T: FromStr + TryFrom<u64> + Into<u64> + Display + Copy + Ord + Default>() {}
    is_number::<Position>();
    let position = Position::try_from(61992).expect("a multiple of 4");
    assert_eq!("61992".parse(), Ok(position));
    assert_eq!(u64::from(position), 61992);
    let (text, number) = ("61993".parse::<Position>(), Position::try_from(61993));
    assert_eq!(text, number);
    assert!(number.expect_err("no multiple of 4").to_string().contains("61993"));
}

#[test]
fn sector_size_of_a_number_is_one_that_a_disk_has() {
    assert_eq!(SectorSize::default(), SectorSize::DEFAULT);
    assert_eq!(SectorSize::try_from(4096).map(SectorSize::get), Ok(4096));
    assert_eq!(SectorSize::try_from(1000), Err(FormatError::SectorSize(1000)));
}
