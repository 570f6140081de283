//! What can be an item: bytes by default, any type by choice.

use std::borrow::Cow;

/// A value that can be pushed.
pub trait Encode {
    /// The item's payload.
    fn encode(&self) -> Cow<'_, [u8]>;
}

/// A value that can be made of an item's payload.
pub trait Decode<'a>: Sized {
    /// Why it could not.
    type Error: std::fmt::Display;

    /// Reads the whole payload.
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
