//! The page with all rings: a line a ring.

use super::super::failure::without_name;
use super::model::{Model, Ring, Sort};
use super::state::{self, Alarm};
use super::words::{bar, end_of, oldest, short};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use shared_block_ring::device::shown;
use std::path::{Path, PathBuf};

/// Width of the columns that do not grow, with the space in front of each.
const STATE: usize = 12;
const RATE: usize = 7;
const OLDEST: usize = 8;
const REFUSED: usize = 8;

/// Width of a name in front of a text, on the page of a ring.
const NAME: usize = 11;

/// Styles; without colours what stands out is bold or underlined. Every state is told in words.
#[derive(Debug, Clone, Copy)]
pub struct Palette {
    pub colours: bool,
}

impl Palette {
    pub fn of(self, alarm: Alarm) -> Style {
        let (colour, plain) = match alarm {
            Alarm::Quiet => return Style::new(),
            Alarm::Good => (Color::Green, Modifier::empty()),
            Alarm::Warning => (Color::Yellow, Modifier::BOLD),
            Alarm::Trouble => (Color::Red, Modifier::BOLD | Modifier::UNDERLINED),
        };
        if self.colours { Style::new().fg(colour) } else { Style::new().add_modifier(plain) }
    }
}

/// State of the view: what is shown of the model, and how.
#[derive(Debug)]
pub struct View {
    pub palette: Palette,
    /// The ring that is selected.
    pub selected: Option<PathBuf>,
    /// Whether the selected ring's page is shown.
    pub detail: bool,
    /// Whether keys are for the filter.
    pub filtering: bool,
    /// The first row that is shown.
    pub offset: usize,
    /// The seconds between two looks.
    pub interval: f64,
}

/// The line of a ring.
pub struct Columns {
    name: usize,
    bar: usize,
}

impl Columns {
    pub fn new(width: usize) -> Self {
        let bar = (10 + width.saturating_sub(80) / 4).min(32);
        // The bar has a space in front, and the percentage behind it.
        let fixed = STATE + 2 * RATE + 1 + bar + 5 + OLDEST + REFUSED;
        Self { name: width.saturating_sub(fixed).max(8), bar }
    }

    pub fn head(&self) -> String {
        let used = self.bar + 5;
        format!(
            "{:<name$} {:<state$}{:>RATE$}{:>RATE$} {:<used$}{:>OLDEST$}{:>REFUSED$}",
            "RING",
            "STATE",
            "IN B/s",
            "OUT",
            "USED",
            "OLDEST",
            "REFUSED",
            name = self.name,
            state = STATE - 1,
        )
    }

    /// Returns the text of a ring's line.
    pub fn row(&self, address: &Path, ring: &Ring) -> String {
        let name = end_of(&shown(address), self.name);
        let ((word, _), state) = (state::of(ring), STATE - 1);
        if let Some(trouble) = &ring.trouble {
            let reason = without_name(&trouble.reason, &shown(address));
            return format!("{name} {word:<state$} {reason}");
        }
        let rates = ring.rates();
        let refused = ring.refused().map_or("-".to_owned(), |count| count.to_string());
        format!(
            "{name} {word:<state$}{:>RATE$}{:>RATE$} {}{:>4}%{:>OLDEST$}{refused:>REFUSED$}",
            short(rates.bytes_in),
            short(rates.bytes_out),
            bar(rates.share, self.bar),
            percent(rates.share),
            oldest(ring),
        )
    }
}

/// Returns a share in whole percent. Only an empty ring has 0, and only a full one 100.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
fn percent(share: f64) -> u8 {
    if share <= 0.0 {
        return 0;
    }
    if share >= 1.0 {
        return 100;
    }
    ((share * 100.0).round() as u8).clamp(1, 99)
}

/// Draws the page with all rings.
pub fn list(model: &Model, view: &mut View, area: Rect, buffer: &mut Buffer) {
    let rows = model.rows();
    let (width, room) = (usize::from(area.width), usize::from(area.height.saturating_sub(3)));
    let chosen = rows.iter().position(|(address, _)| Some(*address) == view.selected.as_deref());
    let chosen = chosen.unwrap_or(0);
    view.selected = rows.get(chosen).map(|(address, _)| address.to_path_buf());
    // The selected row is always in sight.
    let last = rows.len().saturating_sub(room);
    view.offset = view.offset.min(chosen).max((chosen + 1).saturating_sub(room)).min(last);
    let mut line = Line { area, buffer, y: area.y };
    line.put(&title(model, view, rows.len()), Style::new().add_modifier(Modifier::BOLD));
    let columns = Columns::new(width);
    line.put(&format!("{:<width$}", columns.head()), Style::new().add_modifier(Modifier::REVERSED));
    for (index, (address, ring)) in rows.iter().enumerate().skip(view.offset).take(room) {
        let mut style = view.palette.of(state::of(ring).1);
        if index == chosen {
            style = style.add_modifier(Modifier::REVERSED);
        }
        line.put(&format!("{:<width$}", columns.row(address, ring)), style);
    }
    if rows.is_empty() {
        let none =
            if model.count() == 0 { "no ring is there yet" } else { "no ring matches the filter" };
        line.put(none, Style::new());
    }
    line.last(&keys(model, view));
}

fn title(model: &Model, view: &View, shown: usize) -> String {
    let (all, alarms) = (model.count(), model.alarms());
    let rings = if all == 1 { "ring" } else { "rings" };
    let count =
        if shown == all { format!("{all} {rings}") } else { format!("{shown} of {all} {rings}") };
    let (sort, _) = model.sort.name();
    let order = if model.reversed { ", reversed" } else { "" };
    let filter =
        if model.filter.is_empty() { String::new() } else { format!(", filter {}", model.filter) };
    format!(
        "blockring top: {count}, {alarms} with warnings; by {sort}{order}{filter}; every {} s",
        view.interval
    )
}

fn keys(model: &Model, view: &View) -> String {
    if view.filtering {
        return format!("filter: {}_   Enter keeps it, Esc drops it", model.filter);
    }
    let sorts: String = Sort::ALL.iter().map(|sort| sort.name().1).collect();
    format!("q quit  Enter details  / filter  {sorts} sort  R reverse  arrows select")
}

/// Lines of a page, from its top.
pub struct Line<'a> {
    pub area: Rect,
    pub buffer: &'a mut Buffer,
    pub y: u16,
}

impl Line<'_> {
    /// Adds a line, if there is room above the last one of the page.
    pub fn put(&mut self, text: &str, style: Style) {
        if self.y + 1 < self.area.bottom() {
            let width = usize::from(self.area.width);
            self.buffer.set_stringn(self.area.x, self.y, text, width, style);
            self.y += 1;
        }
    }

    /// Adds a name and a text, in as many lines as the text needs.
    pub fn put_all(&mut self, name: &str, text: &str, style: Style) {
        let room = usize::from(self.area.width).saturating_sub(NAME);
        let characters: Vec<char> = text.chars().collect();
        for (index, part) in characters.chunks(room.max(1)).enumerate() {
            let name = if index == 0 { name } else { "" };
            self.put(&format!("{name:<NAME$}{}", String::from_iter(part)), style);
        }
    }

    /// Writes the last line of the page.
    pub fn last(&mut self, text: &str) {
        let (width, y) = (usize::from(self.area.width), self.area.bottom().saturating_sub(1));
        if self.area.height > 0 {
            self.buffer.set_stringn(self.area.x, y, text, width, Style::new());
        }
    }
}

#[cfg(test)]
mod tests;
