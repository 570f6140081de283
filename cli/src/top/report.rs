//! The view as text, for what is no terminal: a frame, or JSON lines.

use super::super::sample::Sample;
use super::draw::Columns;
use super::model::{Model, Ring};
use super::state;
use serde::Serialize;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Columns of a frame where nothing says how many there are.
const WIDTH: usize = 100;

/// Returns the columns that a frame has.
pub fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.map_or(WIDTH, |columns: usize| columns.clamp(80, 1000))
}

/// Returns one frame.
pub fn frame(model: &Model, width: usize) -> String {
    let columns = Columns::new(width);
    let rows = model.rows();
    let lines = rows.iter().map(|(address, ring)| columns.row(address, ring));
    let none = rows.is_empty().then(|| "no rings: no file or socket matches".to_owned());
    let lines: Vec<_> = std::iter::once(columns.head()).chain(none).chain(lines).collect();
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// A ring, as a line of JSON shows it.
#[derive(Serialize)]
struct RingLine<'a> {
    /// Seconds since 1970.
    time: f64,
    ring: String,
    state: &'static str,
    /// Why the ring cannot be seen; null if it can.
    error: Option<&'a str>,
    capacity: Option<u64>,
    used: Option<u64>,
    items: Option<u64>,
    bytes_in_per_second: Option<f64>,
    bytes_out_per_second: Option<f64>,
    items_in_per_second: Option<f64>,
    items_out_per_second: Option<f64>,
    /// The age of the oldest item; null without one.
    oldest_item_age_seconds: Option<f64>,
    /// Whether the item was there before the view, and can be older.
    oldest_item_may_be_older: bool,
    has_producer: Option<bool>,
    has_consumer: Option<bool>,
    refused: Option<u64>,
}

/// Returns a line of JSON for each ring.
pub fn lines(model: &Model) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let rows = model.rows().into_iter();
    let lines = rows.map(|(address, ring)| {
        // Serialization fails only for map keys that are no text, and there are none.
        serde_json::to_string(&line(now, address, ring)).unwrap_or_default()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn line<'a>(time: f64, address: &Path, ring: &'a Ring) -> RingLine<'a> {
    // What was seen before a ring failed is not its state.
    let sample = ring.sample.as_ref().filter(|_| ring.trouble.is_none());
    // The first look knows no rates.
    let rates = sample.and_then(|_| ring.history.back().filter(|_| ring.history.len() > 1));
    RingLine {
        time,
        ring: shared_block_ring::device::shown(address),
        state: state::of(ring).0,
        error: ring.trouble.as_ref().map(|trouble| &*trouble.reason).or(ring.fault()),
        capacity: sample.map(|sample| sample.capacity),
        used: sample.map(Sample::used),
        items: sample.and_then(Sample::items),
        bytes_in_per_second: rates.map(|rates| rates.bytes_in),
        bytes_out_per_second: rates.map(|rates| rates.bytes_out),
        items_in_per_second: rates.and_then(|rates| rates.items_in),
        items_out_per_second: rates.and_then(|rates| rates.items_out),
        oldest_item_age_seconds: sample.and(ring.oldest).map(|(age, _)| age.as_secs_f64()),
        oldest_item_may_be_older: sample.and(ring.oldest).is_some_and(|(_, older)| older),
        has_producer: sample.and_then(|sample| sample.has_producer),
        has_consumer: sample.and_then(|sample| sample.has_consumer),
        refused: sample.and(ring.refused()),
    }
}
