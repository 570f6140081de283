//! The lines that an inspection prints, as it finds them.

use super::super::failure::{Failure, Outcome};
use super::super::output::Sink;
use super::found::{Found, Sector};
use super::map::Extent;
use ring_program::standard::Standard;
use ring_program::text::one_line;
use serde::Serialize;
use shared_block_ring::format::{Geometry, Header};
use shared_block_ring::survey::PREVIEW_BYTES;
use std::fmt::Write;
use std::os::fd::BorrowedFd;

/// Bytes that are gathered before they are written.
const GATHERED: usize = 64 * 1024;

/// Bytes of a payload that a line shows in hexadecimal.
const HEX_BYTES: usize = 16;

/// Bytes of a preview as text at most: every byte of a payload can become an escape.
const TEXT_BYTES: usize = PREVIEW_BYTES * 10;

/// An item, as a line shows it.
#[derive(Debug, Serialize)]
pub struct ItemLine {
    pub position: u64,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes of payload.
    pub length: u32,
    /// The position of the next item.
    pub next: u64,
    /// Whether the item lies on both sides of the wrap point.
    pub wraps: bool,
    /// The first bytes of the payload.
    pub preview_hex: String,
    /// The same as text: what is not UTF-8 is replaced, and control characters are escaped.
    pub preview: String,
    /// Whether the payload has more bytes than the preview.
    pub more: bool,
}

impl ItemLine {
    pub fn new(geometry: Geometry, header: Header, preview: &[u8]) -> Self {
        let (at, next) = (header.at.get(), header.next.get());
        let [run, behind] = geometry.extents(at, next - at);
        let mut preview_hex = String::new();
        for byte in preview {
            // Writing to a string cannot fail.
            let _ = write!(preview_hex, "{byte:02x}");
        }
        let text = String::from_utf8_lossy(preview);
        Self {
            position: at,
            offset: run.offset,
            length: header.length,
            next,
            wraps: behind.len > 0,
            preview_hex,
            preview: one_line(format_args!("{text}"), TEXT_BYTES),
            more: header.length as usize > preview.len(),
        }
    }
}

/// A line of JSON, with its kind.
#[derive(Serialize)]
struct Tagged<'a, T> {
    kind: &'static str,
    #[serde(flatten)]
    fields: &'a T,
}

/// Standard output, line by line.
pub struct Lines {
    sink: Sink<BorrowedFd<'static>>,
    gathered: Vec<u8>,
    json: bool,
    /// Whether a line with the names of the items' columns was printed.
    named: bool,
}

impl Lines {
    pub fn new(json: bool) -> Result<Self, Failure> {
        let sink = Sink::new(Standard::Output.fd()).map_err(failed())?;
        Ok(Self { sink, gathered: Vec::new(), json, named: false })
    }

    /// Prints the sectors in front of the data area.
    pub fn sectors(&mut self, found: &Found) -> Outcome {
        if !self.json {
            self.line(&columns("OFFSET", "BYTES", "HOLDS"))?;
        }
        for sector in &found.sectors {
            if self.json {
                self.object("sector", sector)?;
            } else {
                self.line(&sector_line(sector))?;
            }
        }
        Ok(())
    }

    /// Prints an item.
    pub fn item(&mut self, item: &ItemLine) -> Outcome {
        if self.json {
            return self.object("item", item);
        }
        if !std::mem::replace(&mut self.named, true) {
            self.line("")?;
            let line = format!("{:>20} {:>14} {:>10}  PAYLOAD", "POSITION", "OFFSET", "LENGTH");
            self.line(&line)?;
        }
        let hex = item.preview_hex.get(..HEX_BYTES * 2).unwrap_or(&item.preview_hex);
        let (dots, wraps) =
            (if item.more { "…" } else { "" }, if item.wraps { " (wraps)" } else { "" });
        let ItemLine { position, offset, length, preview, .. } = item;
        let line =
            format!("{position:>20} {offset:>14} {length:>10}  {hex:<32}  {preview}{dots}{wraps}");
        self.line(line.trim_end())
    }

    /// Prints the extents of the data area, the summary, and all damage.
    pub fn extents(&mut self, found: &Found) -> Outcome {
        if self.json {
            return found.extents.iter().try_for_each(|extent| self.object("extent", extent));
        }
        if self.named {
            self.line("")?;
            self.line(&columns("OFFSET", "BYTES", "HOLDS"))?;
        }
        for extent in &found.extents {
            self.line(&extent_line(extent))?;
        }
        self.line("")?;
        self.line(&found.summary())?;
        found.notices.iter().try_for_each(|notice| self.line(&format!("note: {notice}")))?;
        found.damage.iter().try_for_each(|damage| self.line(&format!("damaged: {damage}")))
    }

    /// Prints a text that has its line feeds.
    pub fn text(&mut self, text: &str) {
        self.gathered.extend_from_slice(text.as_bytes());
    }

    /// Writes what is gathered.
    pub fn finish(&mut self) -> Outcome {
        let bytes = std::mem::take(&mut self.gathered);
        let last =
            |at: usize| bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let (accepted, outcome) = self.sink.write(&bytes, &last, None, None);
        let Err(halt) = outcome else { return Ok(()) };
        // The next report must not follow a part of a line.
        let _ = self.sink.cut(accepted - last(accepted));
        Err(failed()(halt.into_error()))
    }

    fn object(&mut self, kind: &'static str, fields: &impl Serialize) -> Outcome {
        // Serialization fails only for map keys that are no text, and there are none.
        let text = serde_json::to_string(&Tagged { kind, fields }).unwrap_or_default();
        self.line(&text)
    }

    fn line(&mut self, text: &str) -> Outcome {
        self.gathered.extend_from_slice(text.as_bytes());
        self.gathered.push(b'\n');
        if self.gathered.len() < GATHERED { Ok(()) } else { self.finish() }
    }
}

fn failed() -> impl FnOnce(std::io::Error) -> Failure {
    Failure::io("cannot write the report to standard output")
}

fn columns(offset: &str, bytes: &str, holds: &str) -> String {
    format!("{offset:>14} {bytes:>14}  {holds}")
}

fn sector_line(sector: &Sector) -> String {
    let holds = match &sector.damage {
        None => sector.holds.clone(),
        Some(damage) => format!("{} (damaged: {damage})", sector.holds),
    };
    columns(&sector.offset.to_string(), &sector.bytes.to_string(), &holds)
}

fn extent_line(extent: &Extent) -> String {
    let holds = match extent.position {
        Some(position) => {
            let end = position.saturating_add(extent.bytes);
            format!("{}: positions {position} to {end}", extent.state.name())
        }
        None => extent.state.name().to_owned(),
    };
    columns(&extent.offset.to_string(), &extent.bytes.to_string(), &holds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::format::{Position, SectorSize};

    #[test]
    fn preview_has_no_control_characters() {
        let geometry = Geometry::new(SectorSize::DEFAULT, 100).unwrap();
        let at = Position::new(8).unwrap();
        let next = at.checked_add(20).unwrap();
        let header = Header { at, length: 16, next };
        let bytes = b"\x1b[2J\x00\xff\nb\xe2\x80\xaee\r\x07\x9b";
        let line = ItemLine::new(geometry, header, bytes);
        assert!(!line.preview.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        assert!(line.preview.starts_with(r"\u{1b}[2J\u{0}"), "{line:?}");
        assert!(line.preview_hex.starts_with("1b5b324a00ff0a62"), "{line:?}");
        assert_eq!((line.offset, line.wraps, line.more), (1544, false, true));
    }
}
