//! The types that can be items: bytes and text, and any other by two traits.

use std::borrow::Cow;

/// A value that can be pushed as an item.
///
/// ```
/// use shared_block_ring::{Decode, Encode};
/// use std::borrow::Cow;
///
/// struct Reading(u32);
///
/// impl Encode for Reading {
///     fn encode(&self) -> Cow<'_, [u8]> {
///         self.0.to_le_bytes().to_vec().into()
///     }
/// }
///
/// impl Decode<'_> for Reading {
///     type Error = std::array::TryFromSliceError;
///
///     fn decode(payload: &[u8]) -> Result<Self, Self::Error> {
///         payload.try_into().map(u32::from_le_bytes).map(Self)
///     }
/// }
///
/// assert_eq!(Reading::decode(&Reading(7).encode())?.0, 7);
/// # Ok::<(), std::array::TryFromSliceError>(())
/// ```
pub trait Encode {
    /// Returns the item's payload.
    fn encode(&self) -> Cow<'_, [u8]>;
}

/// A value that can be decoded from an item's payload: see [`Encode`].
pub trait Decode<'a>: Sized {
    /// The error of a payload that is no such value.
    type Error: std::fmt::Display;

    /// Decodes the whole payload.
    ///
    /// # Errors
    /// The payload is not a value of this type.
    fn decode(payload: &'a [u8]) -> Result<Self, Self::Error>;
}

macro_rules! encode_as_bytes {
    ($($type:ty),*) => {$(
        impl Encode for $type {
            fn encode(&self) -> Cow<'_, [u8]> {
                Cow::Borrowed(self.as_ref())
            }
        }
    )*};
}

encode_as_bytes!([u8], Vec<u8>, str, String);

impl<const N: usize> Encode for [u8; N] {
    fn encode(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self)
    }
}

impl<T: Encode + ?Sized> Encode for &T {
    fn encode(&self) -> Cow<'_, [u8]> {
        (**self).encode()
    }
}

impl<'a> Decode<'a> for &'a str {
    type Error = std::str::Utf8Error;

    fn decode(payload: &'a [u8]) -> Result<Self, Self::Error> {
        std::str::from_utf8(payload)
    }
}

impl Decode<'_> for String {
    type Error = std::str::Utf8Error;

    fn decode(payload: &[u8]) -> Result<Self, Self::Error> {
        std::str::from_utf8(payload).map(str::to_owned)
    }
}

impl Decode<'_> for Vec<u8> {
    type Error = std::convert::Infallible;

    fn decode(payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(payload.to_vec())
    }
}
