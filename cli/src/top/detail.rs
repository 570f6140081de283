//! The page of one ring: its figures, its history, its last refusals, and who has its roles.

use super::super::failure::without_name;
use super::super::sample::Sample;
use super::draw::{Line, View};
use super::model::{Model, Rates, Ring};
use super::state;
use super::words::{bar, oldest, short, short_age};
use indicatif::{HumanBytes, HumanCount};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::widgets::{Sparkline, Widget};
use shared_block_ring::device::shown;
use std::path::Path;
use std::time::SystemTime;

/// Width of a sparkline's name in front of it.
const NAME: u16 = 16;

/// Draws the page of the ring at `address`.
pub fn page(model: &Model, address: &Path, view: &View, area: Rect, buffer: &mut Buffer) {
    let mut line = Line { area, buffer, y: area.y };
    let name = shown(address);
    line.put(&name, Style::new().add_modifier(Modifier::BOLD));
    let Some(ring) = model.get(address) else { return };
    let (word, alarm) = state::of(ring);
    line.put(&format!("state      {word}"), view.palette.of(alarm));
    if let Some(trouble) = &ring.trouble {
        let since = SystemTime::now().duration_since(trouble.since).unwrap_or_default();
        let reason = without_name(&trouble.reason, &name);
        line.put_all("reason", reason, view.palette.of(alarm));
        line.put(&format!("           for {}; it is tried again", short_age(since)), Style::new());
    }
    if let Some(fault) = ring.fault() {
        line.put_all("fault", &shown(fault), view.palette.of(alarm));
    }
    for text in figures(ring) {
        line.put(&text, Style::new());
    }
    line.put("", Style::new());
    // The refusals below have their room first.
    let below = u16::try_from(ring.refusals.len()).unwrap_or(0) + 4;
    let room = area.bottom().saturating_sub(line.y + below);
    let each = (room / 4).clamp(1, 4);
    for (name, figure) in HISTORIES {
        history(&mut line, ring, each, name, figure);
    }
    line.put("", Style::new());
    let counts = ring.sample.iter().flat_map(Sample::refusals);
    let counts: Vec<_> = counts.map(|(reason, count)| format!("{reason} {count}")).collect();
    let all = match ring.refused() {
        None => "no backend tells".to_owned(),
        Some(0) => "none".to_owned(),
        Some(_) => counts.join(", "),
    };
    line.put_all("refusals", &all, Style::new());
    for refused in &ring.refusals {
        let ago = SystemTime::now().duration_since(refused.at).unwrap_or_default();
        let text =
            format!("           {} ago: {} x {}", short_age(ago), refused.count, refused.reason);
        line.put(&text, Style::new());
    }
    line.last("q quit  Esc all rings  arrows next ring");
}

/// Name of a figure in a ring's history, and the figure.
type History = (&'static str, fn(&Rates) -> f64);

const HISTORIES: [History; 4] = [
    ("in, B/s", |rates| rates.bytes_in),
    ("out, B/s", |rates| rates.bytes_out),
    ("used, %", |rates| rates.share * 100.0),
    ("oldest, ms", |rates| rates.oldest * 1000.0),
];

fn figures(ring: &Ring) -> Vec<String> {
    let Some(sample) = &ring.sample else { return Vec::new() };
    let rates = ring.rates();
    let count = |items: Option<u64>| {
        items.map_or("unknown".to_owned(), |items| HumanCount(items).to_string())
    };
    let items =
        |rate: Option<f64>| rate.map_or(String::new(), |rate| format!(", {} items/s", short(rate)));
    let holder =
        |index: usize, held: Option<bool>| match (ring.holders.and_then(|all| all[index]), held) {
            (Some(pid), _) => format!("process {pid}"),
            (None, Some(true)) => "a process".to_owned(),
            (None, Some(false)) => "no process".to_owned(),
            (None, None) => "unknown".to_owned(),
        };
    let since = |time: Option<u64>| {
        time.map_or("unknown".to_owned(), |time| format!("{} ago", short_age(sample.since(time))))
    };
    vec![
        format!("uuid       {}", sample.uuid.as_deref().unwrap_or("none (a plain ring)")),
        format!(
            "used       {} {} of {}",
            bar(sample.share(), 22),
            HumanBytes(sample.used()),
            HumanBytes(sample.capacity),
        ),
        format!("items      {}, the oldest {}", count(sample.items()), oldest(ring)),
        format!(
            "producer   {}; at {}, moved {}; {} B/s{}",
            holder(0, sample.has_producer),
            sample.producer,
            since(sample.producer_ns),
            short(rates.bytes_in),
            items(rates.items_in)
        ),
        format!(
            "consumer   {}; at {}, moved {}; {} B/s{}",
            holder(1, sample.has_consumer),
            sample.consumer,
            since(sample.consumer_ns),
            short(rates.bytes_out),
            items(rates.items_out)
        ),
    ]
}

/// Draws the history of one figure: the newest value is at the right.
fn history(line: &mut Line<'_>, ring: &Ring, height: u16, name: &str, figure: fn(&Rates) -> f64) {
    let Line { area, buffer, y } = line;
    if *y + height >= area.bottom() || area.width <= NAME {
        return;
    }
    let room = usize::from(area.width - NAME);
    let values: Vec<f64> = ring.history.iter().map(figure).collect();
    let shown = &values[values.len().saturating_sub(room)..];
    let most = shown.iter().copied().fold(0.0, f64::max);
    let label = usize::from(NAME) - 1;
    buffer.set_stringn(area.x, *y, name, label, Style::new());
    if height > 1 {
        buffer.set_stringn(area.x, *y + 1, format!("most {}", short(most)), label, Style::new());
    }
    // A value of less than 1 is seen, too.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a height")]
    let data = shown.iter().map(|value| (value * 1000.0) as u64);
    let at = Rect { x: area.x + NAME, y: *y, width: area.width - NAME, height };
    Sparkline::default().data(data.collect::<Vec<_>>()).render(at, buffer);
    *y += height;
}
