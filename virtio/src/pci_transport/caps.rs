//! Where a virtio device has its registers: the vendor's capabilities in the configuration space
//! (virtio 1.3, 4.1.4).
//!
//! Every byte is the device's word: offsets and lengths are checked against each other here, and
//! against the region that they lie in where that is mapped.

use super::config::CONFIG_BYTES;
use crate::bytes::word;

/// The status register, and its bit for a list of capabilities.
const STATUS: usize = 6;
const HAS_LIST: u8 = 1 << 4;

/// Offset of the first capability's offset.
const LIST: usize = 0x34;

/// The first byte of a capability of the vendor's own.
const VENDOR: u8 = 9;

/// As many capabilities of four bytes as there is room for: a list that is longer runs in a circle.
const MOST: usize = (CONFIG_BYTES - 0x40) / 4;

/// Base address registers of a function.
const BARS: u8 = 6;

/// Bytes of `struct virtio_pci_cap`, and of the one that has a multiplier behind it.
const CAP_BYTES: u8 = 16;
const NOTIFY_CAP_BYTES: u8 = 20;

/// Kinds of structures: `VIRTIO_PCI_CAP_*`.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// Bytes of the common structure, up to where a queue's addresses end, and of the interrupt status.
const COMMON_BYTES: u32 = 56;
const ISR_BYTES: u32 = 1;

/// Up to the capacity of a disk, which every device has.
const DEVICE_BYTES: u32 = 8;

/// Where a structure lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of the base address register.
    pub bar: u8,
    /// From the region's start.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// Where all of a device's structures lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Features, status and queues.
    pub common: Place,
    /// Where the device is notified.
    pub notify: Place,
    /// Bytes from the place of one queue's notification offset to that of the next.
    pub multiplier: u32,
    /// Why there was an interrupt.
    pub isr: Place,
    /// The disk's configuration.
    pub device: Place,
}

/// Why a device's structures cannot be found in its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum CapabilityError {
    /// There is no structure of this kind: a legacy device has none of them.
    #[error("it has no {0} of a virtio 1 device, as one from before virtio 1 (disable-modern=on)")]
    Missing(&'static str),
    /// The list is longer than the space, or runs in a circle.
    #[error("its list of capabilities does not end")]
    Endless,
    /// The list leads beyond the configuration space.
    #[error("its list of capabilities leads to byte {0}, where none can be")]
    Beyond(usize),
    /// A structure cannot be what it is said to be.
    #[error("the capability of its {0} makes no sense: {1}")]
    Senseless(&'static str, &'static str),
}

impl Capabilities {
    /// Reads them out of the configuration space. Of several structures of a kind the device
    /// prefers the first.
    pub fn parse(config: &[u8; CONFIG_BYTES]) -> Result<Self, CapabilityError> {
        let mut found = [None; 5];
        let mut multiplier = 0;
        let mut at = if config[STATUS] & HAS_LIST == 0 { 0 } else { pointer(config[LIST]) };
        let mut seen = 0;
        while at != 0 {
            seen += 1;
            if seen > MOST {
                return Err(CapabilityError::Endless);
            }
            let cap = config.get(at..).filter(|cap| at >= 0x40 && cap.len() >= 4);
            let cap = cap.ok_or(CapabilityError::Beyond(at))?;
            at = pointer(cap[1]);
            let (kind, len) = (usize::from(cap[3]), cap[2]);
            let wanted = cap[0] == VENDOR && found.get(kind).is_some_and(Option::is_none);
            let room = cap.len() >= usize::from(len.max(CAP_BYTES));
            // Registers that do not exist yet: such structures are to be ignored (4.1.4.1).
            if !wanted || len < CAP_BYTES || !room || cap[4] >= BARS {
                continue;
            }
            if kind == usize::from(NOTIFY) {
                if len < NOTIFY_CAP_BYTES {
                    continue;
                }
                multiplier = word(cap, 16);
            }
            found[kind] = Some(Place { bar: cap[4], offset: word(cap, 8), length: word(cap, 12) });
        }
        let take =
            |kind: u8, name, align, least| check(found[usize::from(kind)], name, align, least);
        let caps = Self {
            common: take(COMMON, "common configuration", 4, COMMON_BYTES)?,
            notify: take(NOTIFY, "notification area", 2, 2)?,
            multiplier,
            isr: take(ISR, "interrupt status", 1, ISR_BYTES)?,
            device: take(DEVICE, "device configuration", 4, DEVICE_BYTES)?,
        };
        if multiplier != 0 && (!multiplier.is_power_of_two() || multiplier == 1) {
            return Err(CapabilityError::Senseless("notification area", "an odd multiplier"));
        }
        Ok(caps)
    }

    /// Where a queue with this offset is notified, within the notification area.
    pub fn notify_at(&self, queue: u16) -> Result<u32, CapabilityError> {
        let at = u64::from(queue) * u64::from(self.multiplier);
        let within = at + 2 <= u64::from(self.notify.length);
        let at = u32::try_from(at).ok().filter(|_| within);
        at.ok_or(CapabilityError::Senseless("notification area", "it is too short for the queue"))
    }
}

/// The lowest two bits are reserved.
fn pointer(byte: u8) -> usize {
    usize::from(byte & !3)
}

fn check(
    place: Option<Place>,
    name: &'static str,
    align: u32,
    least: u32,
) -> Result<Place, CapabilityError> {
    let place = place.ok_or(CapabilityError::Missing(name))?;
    if !place.offset.is_multiple_of(align) {
        return Err(CapabilityError::Senseless(name, "its offset is not aligned"));
    }
    if place.length < least {
        return Err(CapabilityError::Senseless(name, "it is too short"));
    }
    if place.offset.checked_add(place.length).is_none() {
        return Err(CapabilityError::Senseless(name, "it ends beyond 4 GiB"));
    }
    Ok(place)
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// A capability at `at` that leads to `next`.
    fn put(config: &mut [u8; CONFIG_BYTES], at: usize, next: u8, kind: u8, place: Place) {
        config[at..at + 5].copy_from_slice(&[VENDOR, next, NOTIFY_CAP_BYTES, kind, place.bar]);
        config[at + 8..at + 12].copy_from_slice(&place.offset.to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&place.length.to_le_bytes());
        config[at + 16] = 4;
    }

    fn place(offset: u32) -> Place {
        Place { bar: 4, offset, length: 0x1000 }
    }

    /// As QEMU lays it out, with a capability of somebody else in front.
    pub fn honest() -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        config[STATUS] = HAS_LIST;
        config[LIST] = 0x98;
        config[0x98..0x9b].copy_from_slice(&[0x11, 0x84, 0xff]);
        put(&mut config, 0x84, 0x70, NOTIFY, place(0x3000));
        put(&mut config, 0x70, 0x5c, DEVICE, place(0x2000));
        put(&mut config, 0x5c, 0x48, ISR, place(0x1000));
        put(&mut config, 0x48, 0, COMMON, place(0));
        config
    }

    #[test]
    fn a_device_s_structures_are_found() {
        let caps = Capabilities::parse(&honest()).unwrap();
        let [common, isr, device, notify] = [0, 0x1000, 0x2000, 0x3000].map(place);
        assert_eq!(caps, Capabilities { common, notify, multiplier: 4, isr, device });
        assert_eq!(caps.notify_at(3), Ok(12));
        assert_eq!(caps.notify_at(0x3ff), Ok(0xffc));
        assert!(caps.notify_at(0x400).is_err());
    }

    #[test]
    fn the_first_of_a_kind_counts_and_registers_that_do_not_exist_are_passed_over() {
        let mut config = honest();
        put(&mut config, 0xb0, 0xc8, COMMON, Place { bar: 6, ..place(0x40) });
        put(&mut config, 0xc8, 0x98, COMMON, Place { bar: 2, ..place(0x80) });
        config[LIST] = 0xb3;
        let caps = Capabilities::parse(&config).unwrap();
        assert_eq!(caps.common, Place { bar: 2, ..place(0x80) });
    }

    #[test]
    fn a_device_from_before_virtio_1_is_refused_by_that_name() {
        let mut config = honest();
        config[STATUS] = 0;
        let refused = Capabilities::parse(&config).unwrap_err();
        assert_eq!(refused, CapabilityError::Missing("common configuration"));
        assert!(refused.to_string().contains("disable-modern=on"));
        config = honest();
        config[0x71] = 0;
        assert!(matches!(Capabilities::parse(&config), Err(CapabilityError::Missing(_))));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_words() {
        let damaged = |damage: fn(&mut [u8; CONFIG_BYTES])| {
            let mut config = honest();
            damage(&mut config);
            Capabilities::parse(&config).unwrap_err().to_string()
        };
        let words = [
            (damaged(|config| config[0x49] = 0x98), "does not end"),
            (damaged(|config| config[0x49] = 0x10), "byte 16"),
            (damaged(|config| config[0x48 + 8] = 2), "not aligned"),
            (damaged(|config| config[0x48 + 13] = 0), "too short"),
            (damaged(|config| config[0x84 + 8..0x84 + 16].fill(0xfe)), "beyond 4 GiB"),
            (damaged(|config| config[0x84 + 16] = 6), "multiplier"),
            (damaged(|config| config[0x84 + 2] = 16), "no notification area"),
        ];
        for (said, wanted) in words {
            assert!(said.contains(wanted), "{said}, and not {wanted}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_what_is_found_is_within_reach(
            bytes in prop::collection::vec(any::<u8>(), CONFIG_BYTES),
            damage in prop::collection::vec((0..CONFIG_BYTES, any::<u8>()), 0..6),
            honestly in any::<bool>(),
        ) {
            let mut config = honest();
            if !honestly {
                config.copy_from_slice(&bytes);
            }
            for (at, byte) in damage {
                config[at] = byte;
            }
            if let Ok(caps) = Capabilities::parse(&config) {
                for place in [caps.common, caps.notify, caps.isr, caps.device] {
                    prop_assert!(place.bar < BARS && place.offset.checked_add(place.length).is_some());
                }
                prop_assert!(caps.common.length >= COMMON_BYTES && caps.common.offset % 4 == 0);
                for queue in [0, 1, u16::MAX] {
                    if let Ok(at) = caps.notify_at(queue) {
                        prop_assert!(at + 2 <= caps.notify.length && at % 2 == 0);
                    }
                }
            }
        }
    }
}
