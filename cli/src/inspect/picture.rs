//! The picture of a ring, as an SVG: the device to scale, then the published items to scale.

use super::found::Found;
use super::groups::Part;
use super::map::State;
use super::svg::{Anchor, Svg};
use indicatif::{HumanBytes, HumanCount};
use ring_program::text;
use shared_block_ring::format::Side;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 462.0;

/// Left and right edge of what is drawn.
const EDGES: [f64; 2] = [20.0, 880.0];

/// Left edge of the data area; the three sectors in front of it lie to its left, not to scale.
const DATA_LEFT: f64 = 170.0;

/// Top of the device's bar, and of that of the items.
const DEVICE_TOP: f64 = 150.0;
const ITEMS_TOP: f64 = 296.0;
const BAR: f64 = 44.0;

/// Size of most texts.
const SIZE: f64 = 12.0;

/// Colours for light and dark pages. The picture has a background of its own, so that it can be
/// read on any page. No state differs from another by colour alone: damaged and pending bytes are
/// hatched, free ones are an outline.
const STYLE: &str = include_str!("style.svg.inc");

/// Draws the picture.
pub fn draw(found: &Found) -> String {
    let shows = format!("Layout of the ring {}", found.name);
    let mut svg = Svg::new(WIDTH, HEIGHT, &shows, STYLE);
    svg.rect("back", [0.5, 0.5, WIDTH - 1.0, HEIGHT - 1.0], "");
    head(&mut svg, found);
    device(&mut svg, found);
    items(&mut svg, found);
    legend(&mut svg, found);
    svg.finish()
}

fn start(svg: &mut Svg, class: &str, y: f64, text: &str) {
    svg.text(class, SIZE, [EDGES[0], y], Anchor::Start, text);
}

/// Draws the ring's name, its size and its state.
fn head(svg: &mut Svg, found: &Found) {
    svg.text("strong", 16.0, [EDGES[0], 28.0], Anchor::Start, &found.name);
    let geometry = found.geometry;
    start(
        svg,
        "soft",
        48.0,
        &format!(
            "{} of data area; {} sectors of {} bytes; {}",
            HumanBytes(geometry.capacity().get()),
            HumanCount(geometry.sectors()),
            geometry.sector_size().get(),
            found.uuid.as_ref().map_or("a plain ring".to_owned(), |uuid| format!("uuid {uuid}")),
        ),
    );
    match found.damage.first() {
        Some(damage) => {
            svg.lines("bad", SIZE, [EDGES[0], 66.0], 2, &format!("Damaged: {damage}"));
        }
        None => svg.lines("soft", SIZE, [EDGES[0], 66.0], 2, &found.summary()),
    }
}

/// Draws the sectors in front of the data area, and the data area to scale.
fn device(svg: &mut Svg, found: &Found) {
    start(svg, "strong", 102.0, "The device");
    for (index, sector) in (0u8..).zip(&found.sectors) {
        let x = EDGES[0] + f64::from(index) * 46.0;
        let class = if sector.damage.is_some() { "head bad" } else { "head" };
        let mark = format!(r#" data-kind="sector" data-sector="{index}""#);
        svg.rect(class, [x, DEVICE_TOP, 40.0, BAR], &mark);
        svg.text(
            "soft",
            SIZE,
            [x + 16.0, DEVICE_TOP + BAR + 16.0],
            Anchor::Start,
            &index.to_string(),
        );
    }
    start(svg, "soft", DEVICE_TOP - 8.0, "sectors 0 to 2");
    let (geometry, width) = (found.geometry, EDGES[1] - DATA_LEFT);
    let capacity = geometry.capacity().get();
    let x_of = |offset: u64| DATA_LEFT + width * ratio(offset, capacity);
    for extent in &found.extents {
        let from = extent.offset - geometry.data_start();
        let (left, right) = (x_of(from), x_of(from + extent.bytes));
        let mark = format!(r#" data-kind="extent" data-bytes="{}""#, extent.bytes);
        svg.rect(extent.state.name(), [left, DEVICE_TOP, right - left, BAR], &mark);
    }
    for edge in [DATA_LEFT, EDGES[1]] {
        svg.vertical("wrap", edge, [DEVICE_TOP - 4.0, DEVICE_TOP + BAR + 4.0]);
    }
    let wrap = "wrap point: behind the last byte comes the first";
    svg.text("wrap", SIZE, [EDGES[1], DEVICE_TOP + BAR + 52.0], Anchor::End, wrap);
    if let Some(marks) = found.marks {
        let place = |side: Side, position: u64| {
            let at = geometry.data_offset(position);
            let text = format!("{side} {} (byte {at} of the data area)", HumanCount(position));
            (x_of(at), text)
        };
        let (x, text) = place(Side::Producer, marks.producer);
        svg.pointer(x, DEVICE_TOP - 1.0, true);
        svg.label("ink", SIZE, [x, DEVICE_TOP - 22.0], &text);
        let (x, text) = place(Side::Consumer, marks.consumer);
        svg.pointer(x, DEVICE_TOP + BAR + 1.0, false);
        svg.label("ink", SIZE, [x, DEVICE_TOP + BAR + 32.0], &text);
    }
}

/// Draws the published bytes in the stream's order, item by item or in groups.
fn items(svg: &mut Svg, found: &Found) {
    start(svg, "strong", ITEMS_TOP - 30.0, "What is published, from the oldest to the newest");
    let Some(marks) = found.marks.filter(|marks| marks.producer > marks.consumer) else {
        let text = if found.marks.is_some() { "Nothing: the ring is empty." } else { "Unknown." };
        return start(svg, "soft", ITEMS_TOP - 10.0, text);
    };
    let parts = found.items.parts();
    let words = if found.items.are_single() {
        let count = found.items.count();
        format!("{} {} to scale", HumanCount(count), text::items(count))
    } else {
        let strips = parts.len().max(1) as u64;
        let each = (found.items.count() + strips / 2) / strips;
        format!(
            "{} items, about {} in each of {} strips; the stronger a strip, the more items begin in it",
            HumanCount(found.items.count()),
            HumanCount(each),
            parts.len(),
        )
    };
    start(svg, "soft", ITEMS_TOP - 10.0, &words);
    let mut bar = Bar { svg, found, length: found.published(), at: 0 };
    bar.part("free", Part { bytes: found.items.freed(), items: 0 }, 1.0);
    let most = parts.iter().map(|part| part.items).max().unwrap_or(1).max(1);
    let good = marks.damaged_from >= marks.producer;
    for (index, part) in parts.iter().enumerate() {
        if found.items.are_single() {
            let class = if good { ["published", "other"][index % 2] } else { "damaged" };
            bar.part(class, *part, 1.0);
        } else {
            let class = if good { "published" } else { "damaged" };
            bar.part(class, *part, 0.3 + 0.7 * ratio(part.items, most));
        }
    }
    bar.part("damaged", Part { bytes: found.items.broken(), items: 0 }, 1.0);
    let wrap = found.geometry.extents(found.start(), found.published());
    if wrap[1].len > 0 {
        let x = bar.x(wrap[0].len);
        bar.svg.vertical("wrap", x, [ITEMS_TOP - 4.0, ITEMS_TOP + BAR + 4.0]);
        bar.svg.label("wrap", SIZE, [x, ITEMS_TOP + BAR + 34.0], "wrap point");
    }
    let y = ITEMS_TOP + BAR + 16.0;
    let oldest = format!("position {}", HumanCount(found.start()));
    start(svg, "soft", y, &oldest);
    let newest = format!("position {}", HumanCount(marks.producer));
    svg.text("soft", SIZE, [EDGES[1], y], Anchor::End, &newest);
}

/// The bar of the items.
struct Bar<'a> {
    svg: &'a mut Svg,
    found: &'a Found,
    length: u64,
    /// Bytes that are drawn.
    at: u64,
}

impl Bar<'_> {
    fn x(&self, bytes: u64) -> f64 {
        EDGES[0] + (EDGES[1] - EDGES[0]) * ratio(bytes, self.length)
    }

    fn part(&mut self, class: &str, part: Part, strength: f64) {
        if part.bytes == 0 {
            return;
        }
        let (left, right) = (self.x(self.at), self.x(self.at + part.bytes));
        let kind = if self.found.items.are_single() { "item" } else { "group" };
        let mark = format!(
            r#" fill-opacity="{strength:.2}" data-kind="{kind}" data-bytes="{}" data-items="{}""#,
            part.bytes, part.items
        );
        self.svg.rect(class, [left, ITEMS_TOP, right - left, BAR], &mark);
        self.at += part.bytes;
    }
}

/// Draws the legend of patterns and colours, with bytes and shares.
fn legend(svg: &mut Svg, found: &Found) {
    let capacity = found.geometry.capacity().get();
    let mut place = 0u8;
    for state in State::ALL {
        let bytes = found.bytes_of(state);
        if state == State::Unknown && bytes == 0 {
            continue;
        }
        let (column, row) = (f64::from(place % 3), f64::from(place / 3));
        let (x, y) = (EDGES[0] + column * 290.0, 402.0 + row * 26.0);
        svg.rect(state.name(), [x, y, 16.0, 16.0], r#" data-kind="legend""#);
        let share = 100.0 * ratio(bytes, capacity);
        let text = format!("{}: {} ({share:.1} %)", state.name(), HumanBytes(bytes));
        svg.text("ink", SIZE, [x + 24.0, y + 12.5], Anchor::Start, &text);
        place += 1;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of a picture")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
