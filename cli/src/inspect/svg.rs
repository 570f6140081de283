//! A writer of SVG: elements and text with numbers of two decimals.

use std::fmt::{Display, Write};

/// Width of a character in relation to the font's size, at most: of the widest of the fonts that
/// the picture names, for text of letters and digits.
pub const CHARACTER: f64 = 0.64;

/// The side of its place that a text begins at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The text begins there.
    Start,
    /// The text ends there.
    End,
}

/// An SVG document under construction.
#[derive(Debug)]
pub struct Svg {
    text: String,
    width: f64,
}

impl Svg {
    /// Begins a document. `shows` describes it for readers that do not see it.
    pub fn new(width: f64, height: f64, shows: &str, style: &str) -> Self {
        let mut svg = Self { text: String::new(), width };
        let shows = escaped(shows);
        svg.line(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">"#
        ));
        svg.line(format_args!("<title>{shows}</title>"));
        svg.line(format_args!("{style}"));
        svg
    }

    fn line(&mut self, text: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{text}");
    }

    /// Adds a rectangle of a class, with more attributes.
    pub fn rect(&mut self, class: &str, [x, y, width, height]: [f64; 4], more: &str) {
        self.line(format_args!(
            r#"<rect class="{class}" x="{x:.2}" y="{y:.2}" width="{width:.2}" height="{height:.2}"{more}/>"#
        ));
    }

    /// Adds a vertical line of a class.
    pub fn vertical(&mut self, class: &str, x: f64, [top, bottom]: [f64; 2]) {
        self.line(format_args!(
            r#"<line class="{class}" x1="{x:.2}" y1="{top:.2}" x2="{x:.2}" y2="{bottom:.2}"/>"#
        ));
    }

    /// Adds a triangle that points down, or up, to a place.
    pub fn pointer(&mut self, x: f64, y: f64, down: bool) {
        let base = if down { y - 9.0 } else { y + 9.0 };
        let (left, right) = (x - 5.0, x + 5.0);
        self.line(format_args!(
            r#"<path class="ink" d="M{left:.2} {base:.2} L{right:.2} {base:.2} L{x:.2} {y:.2} Z"/>"#
        ));
    }

    /// Adds text, cut where it would not fit between its place and the picture's edge.
    pub fn text(&mut self, class: &str, size: f64, [x, y]: [f64; 2], anchor: Anchor, text: &str) {
        let room = if anchor == Anchor::Start { self.width - x } else { x };
        let text = escaped(&fitting(text, size, room - 10.0));
        let anchor = if anchor == Anchor::Start { "start" } else { "end" };
        self.line(format_args!(
            r#"<text class="{class}" x="{x:.2}" y="{y:.2}" font-size="{size}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// Adds text beside a place, on the side where there is more room.
    pub fn label(&mut self, class: &str, size: f64, [x, y]: [f64; 2], text: &str) {
        let (anchor, gap) =
            if x < self.width / 2.0 { (Anchor::Start, 8.0) } else { (Anchor::End, -8.0) };
        self.text(class, size, [x + gap, y], anchor, text);
    }

    /// Adds text in lines of the picture's width, `most` at most.
    pub fn lines(&mut self, class: &str, size: f64, [x, y]: [f64; 2], most: usize, text: &str) {
        let mut lines = vec![String::new()];
        for word in text.split(' ') {
            let line = lines.last_mut().filter(|line| {
                x + width_of(line, size) + width_of(word, size) + size < self.width - 10.0
            });
            match line {
                Some(line) if line.is_empty() => line.push_str(word),
                Some(line) => line.extend([" ", word]),
                None => lines.push(word.to_owned()),
            }
        }
        // All lines behind the first ones are joined to the last one, which `text` cuts.
        let rest = lines.split_off(most.min(lines.len()) - 1).join(" ");
        let mut baseline = y;
        for line in lines.iter().chain([&rest]) {
            self.text(class, size, [x, baseline], Anchor::Start, line);
            baseline += size + 3.0;
        }
    }

    /// Returns the document.
    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// Returns the width of a text, at most.
#[expect(clippy::cast_precision_loss, reason = "texts are short")]
pub fn width_of(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * CHARACTER
}

/// Returns the text, with its middle left out if it is wider than `room`.
fn fitting(text: &str, size: f64, room: f64) -> String {
    if width_of(text, size) <= room {
        return text.to_owned();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    let most = (room / (size * CHARACTER)).max(1.0) as usize;
    let characters: Vec<char> = text.chars().collect();
    let head = most / 2;
    let tail = most.saturating_sub(head + 1);
    let (front, back) = (&characters[..head], &characters[characters.len() - tail..]);
    front.iter().chain(['…'].iter()).chain(back).collect()
}

/// Returns the text without characters that XML does not allow, and with the others escaped.
fn escaped(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_does_not_fit_loses_its_middle() {
        assert_eq!(fitting("short", 10.0, 100.0), "short");
        let cut = fitting("a very long name of a ring", 10.0, 64.0);
        assert_eq!(cut, "a ver…ring");
        assert!(width_of(&cut, 10.0) <= 64.0);
    }

    #[test]
    fn text_is_escaped_for_xml() {
        assert_eq!(escaped("<a & \"b\">\u{1b}"), "&lt;a &amp; &quot;b&quot;&gt;\u{fffd}");
    }
}
