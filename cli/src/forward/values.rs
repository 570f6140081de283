//! Values of a configuration file, each verified where it is read, so that an error has its place.

use super::super::address::{positive_seconds, seconds, sector_size};
use super::settings::{Destination, RingSource, memory, verify_name};
use clap::ValueEnum;
use ring_program::parse_size;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::ffi::OsStr;
use std::time::Duration;

/// A value that a text stands for.
pub struct Text<T>(pub T);

/// What can be read from a text.
pub trait FromText: Sized {
    fn from_text(text: &str) -> Result<Self, String>;
}

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::from_text(&text).map(Self).map_err(Error::custom)
    }
}

impl FromText for Destination {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl FromText for ring_metrics::Address {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl FromText for RingSource {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::new(OsStr::new(text))
    }
}

/// A ring's name.
pub struct Name(pub String);

impl FromText for Name {
    fn from_text(text: &str) -> Result<Self, String> {
        verify_name(text).map(|()| Self(text.to_owned()))
    }
}

/// One of the values of an option.
pub struct Choice<T>(pub T);

impl<'de, T: ValueEnum> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::from_str(&text, false).map(Self).map_err(|_| {
            let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let values: Vec<_> = values.map(|value| value.get_name().to_owned()).collect();
            Error::custom(format!("it takes one of {}", values.join(", ")))
        })
    }
}

/// A number, or a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Whole(i64),
    Fraction(f64),
    Text(String),
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

fn scalar<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    read(&Scalar::deserialize(deserializer)?.text()).map_err(Error::custom)
}

/// A limit of memory in bytes.
pub struct Memory(pub u64);

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, |text| parse_size(text).and_then(memory)).map(Self)
    }
}

/// A time in seconds.
pub struct Seconds(pub Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, seconds).map(Self)
    }
}

/// A time in seconds that is not 0.
pub struct PositiveSeconds(pub Duration);

impl<'de> Deserialize<'de> for PositiveSeconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, positive_seconds).map(Self)
    }
}

/// A sector size in bytes.
pub struct Sectors(pub u32);

impl<'de> Deserialize<'de> for Sectors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, |text| sector_size(text).map(|size| Self(size.get())))
    }
}

/// Reads an optional number of bytes.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    scalar(deserializer, |text| parse_size(text).and_then(positive)).map(Some)
}

/// Reads an optional time.
pub fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    scalar(deserializer, positive_seconds).map(Some)
}

/// Reads an option that has one of several values.
pub fn choice<'de, T: ValueEnum, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Choice::deserialize(deserializer).map(|choice| choice.0)
}

/// Refuses a size of 0.
pub fn positive(bytes: u64) -> Result<u64, String> {
    if bytes == 0 { Err("it takes a size larger than 0".to_owned()) } else { Ok(bytes) }
}
