//! Answers of a backend in words. What a backend sends is made printable.

use super::varlink::Parameters;
use crate::top::words::short;
use ratatui::text::Span;
use ring_program::text::one_line;
use serde::Deserialize;
use serde_json::Value;
use shared_block_ring::device::shown;
use std::iter::once;

/// Bytes of the longest text of a backend that is shown.
const MOST_TEXT: usize = 4096;

/// A ring, as a backend describes it.
#[derive(Deserialize)]
struct Ring {
    name: String,
    state: String,
    /// Why it has failed.
    reason: Option<String>,
    path: Option<String>,
    socket: Option<String>,
    consumer_socket: Option<String>,
    /// The role of the guest.
    guest: Option<String>,
    /// Bytes of the ring.
    bytes: Option<u64>,
    max_bytes_per_second: Option<u64>,
    max_requests_per_second: Option<u64>,
    used: Option<u64>,
    front_end: Option<bool>,
    /// Whether the guest is asked to suspend.
    suspended: Option<bool>,
    /// The fault of a ring that is served, such as a truncated file.
    fault: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    rings: Vec<Ring>,
}

#[derive(Deserialize)]
struct Shown {
    ring: Ring,
    counters: Value,
}

#[derive(Deserialize)]
struct Counted {
    rings: Vec<Counters>,
}

#[derive(Deserialize)]
struct Counters {
    name: String,
    /// Null where the ring is not served.
    counters: Value,
}

#[derive(Deserialize)]
struct Reloaded {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<String>,
    failed: Vec<Failed>,
}

#[derive(Deserialize)]
struct Failed {
    name: String,
    reason: String,
}

/// Returns the text as one printable line of bounded length.
pub fn clean(text: &str) -> String {
    one_line(format_args!("{text}"), MOST_TEXT)
}

/// Reads an answer. Its error is what is wrong with the answer, in words.
fn read<T: for<'a> Deserialize<'a>>(answer: &Parameters) -> Result<T, String> {
    T::deserialize(answer).map_err(|e| clean(&e.to_string()))
}

/// Returns the rings as a table.
pub fn list(answer: &Parameters) -> Result<String, String> {
    let Listed { rings } = read(answer)?;
    if rings.is_empty() {
        return Ok("no rings: blockring ctl add makes the backend serve one".to_owned());
    }
    let head = ["NAME", "STATE", "GUEST", "USED", "FRONT END", "PATH", "REMARKS"];
    let rows = once(head.map(str::to_owned)).chain(rings.iter().map(Ring::row));
    Ok(table(&rows.collect::<Vec<_>>()))
}

/// Returns the lines of one ring.
pub fn show(answer: &Parameters) -> Result<String, String> {
    let Shown { ring, counters } = read(answer)?;
    let mut lines = ring.lines();
    lines.extend(counter_lines("counters", &counters));
    Ok(lines.join("\n"))
}

/// Returns the counters of rings, each below its ring's name.
pub fn stats(answer: &Parameters) -> Result<String, String> {
    let Counted { rings } = read(answer)?;
    if rings.is_empty() {
        return Ok("no rings".to_owned());
    }
    let lines = rings.iter().flat_map(|ring| counter_lines(&shown(&ring.name), &ring.counters));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Returns what a reload has changed, and how many rings have failed.
pub fn reload(answer: &Parameters) -> Result<(String, usize), String> {
    let Reloaded { added, removed, changed, failed } = read(answer)?;
    let mut lines = Vec::new();
    for (verb, names) in [("added", &added), ("removed", &removed), ("changed", &changed)] {
        lines.extend(names.iter().map(|name| format!("{verb}: {}", shown(name))));
    }
    let failures = failed.iter();
    lines.extend(
        failures.map(|ring| format!("failed: {}: {}", shown(&ring.name), clean(&ring.reason))),
    );
    if lines.is_empty() {
        lines.push("nothing has changed".to_owned());
    }
    Ok((lines.join("\n"), failed.len()))
}

impl Ring {
    fn row(&self) -> [String; 7] {
        let used = match (self.used, self.bytes) {
            (None, None) => "-".to_owned(),
            (used, bytes) => [used, bytes].map(figure).join("/"),
        };
        let front_end = match self.front_end {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        let suspended = self.suspended.unwrap_or(false).then_some("asked to suspend");
        let remarks = [self.reason.as_deref(), self.fault.as_deref(), suspended];
        let remarks: Vec<_> = remarks.into_iter().flatten().map(clean).collect();
        [
            shown(&self.name),
            clean(&self.state),
            known(self.guest.as_deref(), clean),
            used,
            front_end.to_owned(),
            known(self.path.as_deref(), shown),
            remarks.join("; "),
        ]
    }

    fn lines(&self) -> Vec<String> {
        let bytes =
            |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |n| format!("{n} bytes"));
        let front_end = match self.front_end {
            Some(true) => "connected",
            Some(false) => "not connected",
            None => "unknown",
        };
        let suspended = match self.suspended {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let limits = [
            self.max_bytes_per_second.map(|bytes| format!("{bytes} bytes a second")),
            self.max_requests_per_second.map(|count| format!("{count} requests a second")),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        let limits = if limits.is_empty() { "none".to_owned() } else { limits.join(", ") };
        let consumers = self.consumer_socket.as_deref().map_or("none".to_owned(), shown);
        let optional = |key: &str, text: &Option<String>| {
            text.as_ref().map(|text| format!("{key}: {}", clean(text)))
        };
        let lines =
            [format!("name: {}", shown(&self.name)), format!("state: {}", clean(&self.state))];
        let trouble = [optional("reason", &self.reason), optional("fault", &self.fault)];
        let others = [
            format!("path: {}", known(self.path.as_deref(), shown)),
            format!("socket: {}", known(self.socket.as_deref(), shown)),
            format!("consumer socket: {consumers}"),
            format!("guest: {}", known(self.guest.as_deref(), clean)),
            format!("size: {}", bytes(self.bytes)),
            format!("used: {}", bytes(self.used)),
            format!("limits: {limits}"),
            format!("front end: {front_end}"),
            format!("asked to suspend: {suspended}"),
        ];
        lines.into_iter().chain(trouble.into_iter().flatten()).chain(others).collect()
    }
}

/// Returns a text by `words`, unless the backend does not know it.
fn known(text: Option<&str>, words: impl Fn(&str) -> String) -> String {
    text.map_or("-".to_owned(), words)
}

/// Returns a number of bytes in few characters.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn figure(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| short(bytes as f64))
}

/// Returns a head and the counters below it.
fn counter_lines(head: &str, counters: &Value) -> Vec<String> {
    if counters.is_null() {
        return vec![format!("{head}: none (the ring is not served)")];
    }
    let mut lines = vec![format!("{head}:")];
    flatten("", counters, &mut lines);
    lines
}

/// Adds a line for each number or text; those of an object in an object have both names.
fn flatten(name: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                let key = clean(key);
                let name = if name.is_empty() { key } else { format!("{name}.{key}") };
                flatten(&name, value, lines);
            }
        }
        Value::Object(_) => lines.push(format!("  {name}: none")),
        Value::String(text) => lines.push(format!("  {name}: {}", clean(text))),
        other => lines.push(format!("  {name}: {}", clean(&other.to_string()))),
    }
}

/// Returns rows as lines whose columns begin one below the other.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let columns = |text: &str| Span::raw(text).width();
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| columns(&row[at])).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(cell, width)| {
            format!("{cell}{}", " ".repeat(width.saturating_sub(columns(cell))))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn parameters(value: &Value) -> Parameters {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn columns_of_a_table_begin_one_below_the_other() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["A", "BC", "D"]), row(["環環", "x", ""]), row(["a", "", "d"])];
        assert_eq!(table(&rows), "A     BC  D\n環環  x\na         d");
    }

    #[test]
    fn counters_of_a_backend_are_lines() {
        let counters =
            json!({ "reads": 3, "refused": { "a": 1, "b\n": 2 }, "no": {}, "text": "a\u{1b}b" });
        assert_eq!(
            counter_lines("web", &counters),
            [
                "web:",
                "  no: none",
                "  reads: 3",
                "  refused.a: 1",
                "  refused.b\\n: 2",
                "  text: a\\u{1b}b"
            ]
        );
        assert_eq!(counter_lines("web", &Value::Null), ["web: none (the ring is not served)"]);
    }

    #[test]
    fn answer_that_lacks_something_is_refused_with_its_name() {
        let wrong = list(&parameters(&json!({ "rings": [{ "name": "web" }] }))).unwrap_err();
        assert!(wrong.contains("missing field `state`"), "{wrong}");
        for empty in [list, show, stats] {
            assert!(empty(&Parameters::new()).unwrap_err().contains("missing field"));
        }
        assert!(reload(&Parameters::new()).unwrap_err().contains("missing field"));
    }

    #[test]
    fn reload_tells_each_ring() {
        let nothing = json!({ "added": [], "removed": [], "changed": [], "failed": [] });
        assert_eq!(reload(&parameters(&nothing)).unwrap(), ("nothing has changed".to_owned(), 0));
        let all = json!({
            "added": ["a", "b"], "removed": ["c"], "changed": ["d"],
            "failed": [{ "name": "e", "reason": "no such file\n" }],
        });
        let lines = "added: a\nadded: b\nremoved: c\nchanged: d\nfailed: e: no such file\\n";
        assert_eq!(reload(&parameters(&all)).unwrap(), (lines.to_owned(), 1));
    }
}
