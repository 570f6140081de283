//! Tables for people, and the report that is kept with the sources.

use crate::error::{Result, doing};
use crate::figures::{Beside, Carried, Cost, Distribution, Durable, Items, Load, Ring};
use crate::fleet::{self, Fleet};
use crate::plot;
use crate::reference::Against;
use crate::requests::Outcome;
use crate::rings::Rings;
use crate::table::{count, part, ratio, time};
use std::fmt::Write;
use std::path::Path;

/// A table: its head, and its lines.
struct Table {
    head: Vec<&'static str>,
    lines: Vec<Vec<String>>,
}

impl Table {
    fn markdown(&self) -> String {
        let row = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
        let mut text = row(self.head.clone());
        text += &row(self.head.iter().map(|_| "---").collect());
        for line in &self.lines {
            text += &row(line.iter().map(String::as_str).collect());
        }
        text
    }

    /// Returns the table as text in columns.
    fn plain(&self) -> String {
        let head: Vec<String> = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.lines).collect();
        let width =
            |column: usize| all.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let mut text = String::new();
        for line in all {
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "{cell:<width$}  ");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// Returns all tables of a ring, for a terminal.
pub fn text(ring: &Ring) -> String {
    let tables = [
        reference(ring),
        items(ring),
        durable(ring),
        costs(ring),
        guest(ring),
        rings(ring),
        needs(ring),
        failures(ring),
    ];
    let filled = tables.iter().filter(|table| !table.lines.is_empty());
    filled.fold(String::new(), |text, table| text + "\n" + &table.plain())
}

/// Writes the figures into `performance.md` and `scaling.md`, and plots beside them. What was not
/// measured stays as it is.
pub fn write(folder: &Path, outcomes: &[Outcome], ring: &Ring) -> Result<()> {
    let mut parts = Vec::new();
    if !outcomes.is_empty() {
        parts.push(("requests", requests(outcomes)));
    }
    if !ring.reference.is_empty() {
        parts.push(("reference", reference(ring)));
    }
    if !ring.items.is_empty() {
        plot::latency(folder, &ring.items)?;
        plot::throughput(folder, &ring.items)?;
        parts.push(("items", items(ring)));
    }
    if !ring.durable.is_empty() {
        parts.push(("durable", durable(ring)));
    }
    if !ring.costs.is_empty() {
        plot::costs(folder, &ring.costs)?;
        parts.push(("size", costs(ring)));
    }
    if !ring.guest.is_empty() {
        parts.push(("guest", guest(ring)));
    }
    if let Some(many) = &ring.rings {
        plot::rings(folder, &many.rates)?;
        parts.push(("rings", rings(ring)));
    }
    fill_page(&folder.join("performance.md"), &parts)?;
    if ring.fleet.is_some() {
        fill_page(
            &folder.join("scaling.md"),
            &[("needs", needs(ring)), ("fleet", failures(ring))],
        )?;
    }
    Ok(())
}

/// Writes tables between their markers in a page.
fn fill_page(path: &Path, parts: &[(&str, Table)]) -> Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    let text = std::fs::read_to_string(path);
    let mut text = text.map_err(doing(format!("reading {}", path.display())))?;
    for (name, table) in parts {
        let filled = format!("{}\n{}", provenance(), table.markdown());
        text = fill(&text, name, &filled).ok_or_else(|| {
            let what = format!("filling {}", path.display());
            doing(what)(std::io::Error::other(format!("it has no markers for {name}")))
        })?;
    }
    std::fs::write(path, text).map_err(doing(format!("writing {}", path.display())))
}

/// Replaces the text between the markers of that name.
fn fill(text: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{table}{end}{after}"))
}

/// Returns a description of the machine and the command.
fn provenance() -> String {
    let file = |path| std::fs::read_to_string(path).unwrap_or_default();
    let line = |path, name: &str| {
        let text = file(path);
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        value.unwrap_or("unknown").to_owned()
    };
    // All processors, not those that this thread may run on.
    let cpuinfo = file("/proc/cpuinfo");
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let command = format!("scripts/bench.sh {}", arguments.join(" "));
    format!(
        "{}, {processors} processors, {} of memory, Linux {}. `{}`\n",
        line("/proc/cpuinfo", "model name"),
        line("/proc/meminfo", "MemTotal"),
        file("/proc/sys/kernel/osrelease").trim(),
        command.trim(),
    )
}

fn requests(outcomes: &[Outcome]) -> Table {
    let line = |outcome: &Outcome| {
        let found = outcome.found();
        vec![
            outcome.name.clone(),
            count(outcome.ours.requests),
            count(outcome.peer.requests),
            format!("{:.2}", outcome.times_peer),
            part(found.of_peer_time),
            outcome.ours.p50.map(time).unwrap_or_default(),
            ratio(found.lines),
            nanoseconds(outcome.line, outcome.near),
            outcome.wake.map(time).unwrap_or_default(),
            part(found.of_copy),
            part(found.of_unguarded),
            outcome.wanted(),
        ]
    };
    Table {
        head: vec![
            "requests",
            "a second",
            "qsd",
            "x qsd",
            "time of qsd's",
            "p50",
            "in L",
            "L",
            "bare wake",
            "of copy",
            "of unguarded",
            "wanted",
        ],
        lines: outcomes.iter().map(line).collect(),
    }
}

/// Returns the round trip of a cache line as text, and whether that is too far.
fn nanoseconds(line: f64, near: bool) -> String {
    format!("{line:.0} ns{}", if near { "" } else { " (far)" })
}

fn items(ring: &Ring) -> Table {
    let line = |items: &Items| {
        let Load { bytes, batch, checksums } = items.load;
        let latency = |part: fn(&Distribution) -> f64| {
            items.latency.as_ref().map(|times| time(part(times))).unwrap_or_default()
        };
        let found = items.found();
        let beside = |said: fn(&Beside) -> String| items.beside.as_ref().map(said);
        vec![
            items.way.to_owned(),
            if checksums { "yes" } else { "no" }.to_owned(),
            bytes.to_string(),
            batch.to_string(),
            count(items.rate),
            megabytes(items.rate * bytes as f64),
            items.beside.as_ref().and_then(|beside| beside.visible).map(time).unwrap_or_default(),
            ratio(found.lines),
            latency(Distribution::p50),
            latency(Distribution::p99),
            beside(|beside| nanoseconds(beside.line, beside.near)).unwrap_or_default(),
            beside(|beside| count(beside.peer)).unwrap_or_default(),
            ratio(found.times_peer),
            beside(|beside| megabytes(beside.copy)).unwrap_or_default(),
            part(found.of_copy),
            items.wanted(),
        ]
    };
    Table {
        head: vec![
            "ends",
            "checksums",
            "bytes",
            "batch",
            "items/s",
            "MB/s",
            "visible",
            "in L",
            "popped",
            "p99",
            "L",
            "qsd",
            "x qsd",
            "copy, MB/s",
            "of copy",
            "wanted",
        ],
        lines: ring.items.iter().map(line).collect(),
    }
}

fn megabytes(bytes: f64) -> String {
    format!("{:.0}", bytes / 1e6)
}

fn durable(ring: &Ring) -> Table {
    let line = |durable: &Durable| {
        vec![
            durable.bytes.to_string(),
            durable.batch.to_string(),
            durable.pointer.to_owned(),
            time(durable.push.p50()),
            time(durable.push.p99()),
            time(durable.raw.p50()),
            time(durable.raw.p99()),
            part(Some(durable.of_raw())),
            durable.wanted(),
        ]
    };
    Table {
        head: vec![
            "bytes",
            "batch",
            "pointer durable",
            "push p50",
            "push p99",
            "raw p50",
            "raw p99",
            "of raw",
            "wanted",
        ],
        lines: ring.durable.iter().map(line).collect(),
    }
}

fn costs(ring: &Ring) -> Table {
    let line = |cost: &Cost| {
        vec![
            format!("{} MiB", cost.size >> 20),
            cost.items.to_string(),
            time(cost.push),
            time(cost.pop),
            format!("{:.2}", cost.times_least),
            cost.wanted(),
        ]
    };
    Table {
        head: vec!["ring", "items in it", "push, advance", "pop, advance", "x least", "wanted"],
        lines: ring.costs.iter().map(line).collect(),
    }
}

fn reference(ring: &Ring) -> Table {
    let line = |row: &Against| {
        vec![
            row.name.clone(),
            count(row.reference.requests),
            count(row.ours.requests),
            part(Some(row.of_loop)),
            part(Some(row.of_loop_time)),
            format!("{:.0} ns", row.line),
            row.wanted(),
        ]
    };
    Table {
        head: vec![
            "requests",
            "bare loop",
            "this backend",
            "of the loop",
            "time of the loop's",
            "L",
            "wanted",
        ],
        lines: ring.reference.iter().map(line).collect(),
    }
}

fn guest(ring: &Ring) -> Table {
    let line = |carried: &Carried| {
        vec![
            carried.way.to_owned(),
            carried.bytes.to_string(),
            carried.batch.to_string(),
            carried.until.name().to_owned(),
            count(carried.rate),
            format!("{:.1}", carried.rate * carried.bytes as f64 / 1e6),
            carried.machine.to_owned(),
            carried.wanted(&ring.guest),
        ]
    };
    Table {
        head: vec![
            "way",
            "bytes",
            "batch",
            "each batch is",
            "messages/s",
            "MB/s",
            "guest",
            "wanted",
        ],
        lines: ring.guest.iter().map(line).collect(),
    }
}

fn rings(ring: &Ring) -> Table {
    let lines = ring.rings.iter().flat_map(Rings::lines).map(Vec::from).collect();
    Table { head: vec!["many rings", "figure", "beside", "wanted"], lines }
}

fn needs(ring: &Ring) -> Table {
    let lines = ring.fleet.iter().flat_map(Fleet::needs).collect();
    Table { head: vec!["a fleet", "figure"], lines }
}

fn failures(ring: &Ring) -> Table {
    let lines = ring.fleet.iter().flat_map(Fleet::lines).collect();
    Table { head: fleet::HEAD.to_vec(), lines }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn report_replaces_only_the_text_between_its_markers() {
        let text =
            "a\n<!-- one -->\nold\n<!-- end of one -->\nb\n<!-- two -->\n<!-- end of two -->\n";
        let filled = fill(text, "one", "new\n").unwrap();
        assert_eq!(filled, text.replace("old", "new"));
        assert_eq!(fill(&filled, "three", "new\n"), None);
    }
}
