//! Addresses of PCI devices.

use std::fmt;
use std::str::FromStr;

/// Devices on a bus.
const DEVICES: u8 = 32;
/// Functions of a device.
const FUNCTIONS: u8 = 8;

/// Domain, bus, device and function of a PCI device: `0000:00:04.0`, or without the domain
/// `00:04.0`.
///
/// ```
/// use virtio_blk_driver::pci::PciAddress;
///
/// let address: PciAddress = "00:04.0".parse()?;
/// assert_eq!(address.to_string(), "0000:00:04.0");
/// # Ok::<(), virtio_blk_driver::pci::ParsePciAddressError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Beyond 16 bits only behind some host bridges (Intel's VMD).
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// Error of parsing a [`PciAddress`]: the text is not one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{0:?} is not the address of a PCI device, as in 0000:00:04.0 or 00:04.0")]
pub struct ParsePciAddressError(String);

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, ParsePciAddressError> {
        parse(text).ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.split_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
    let byte = |text, digits, end: u8| {
        let number = hex(text, digits..=digits)?;
        u8::try_from(number).ok().filter(|&number| number <= end)
    };
    Some(PciAddress {
        domain: hex(domain, 4..=8)?,
        bus: byte(bus, 2, u8::MAX)?,
        device: byte(device, 2, DEVICES - 1)?,
        function: byte(function, 1, FUNCTIONS - 1)?,
    })
}

/// As many digits as the kernel writes: a name below `/sys` is made of them.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (digits.contains(&text.len()) && is_hex).then(|| u32::from_str_radix(text, 16).ok())?
}

impl fmt::Display for PciAddress {
    /// With the domain, as the kernel names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_is_shown_as_the_kernel_names_it() {
        for (text, shown) in [
            ("0000:00:04.0", "0000:00:04.0"),
            ("00:1F.7", "0000:00:1f.7"),
            ("abcd:ff:00.1", "abcd:ff:00.1"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example_of_one() {
        for text in [
            "",
            "00:04",
            "04.0",
            "0:04.0",
            "00:20.0",
            "00:04.8",
            "000:00:04.0",
            "00:+4.0",
            "/00:04.0",
            "0000:00:04.00",
            "123456789:00:04.0",
            "vda",
            "00:04.0 ",
            "..:..:...0",
        ] {
            let refused = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(refused.contains(text) && refused.contains("0000:00:04.0"), "{refused}");
        }
    }
}
