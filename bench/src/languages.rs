//! The library from other languages, beside Rust: rounds of each, in turns.
//!
//! A program moves items of 64 bytes in batches of 64 through a ring in a file: push, advance, fold,
//! advance. It is started with the ring's path and a time in milliseconds, and prints items a
//! second. `bench/languages/` has the programs.

use crate::ends::Ends;
use crate::error::{Error, Result, doing, print};
use crate::machine::median;
use crate::rounds::Rounds;
use crate::table::count;
use shared_block_ring::Durability;
use std::io;
use std::path::Path;
use std::process::Command;

/// Bytes of the ring.
const RING: u64 = 1 << 20;

const BATCH: usize = 64;
const ITEM: [u8; 64] = [7; 64];

/// A program in another language.
#[derive(Debug, Clone)]
pub struct Language {
    /// The language, as the table has it.
    name: String,
    /// The program and its first arguments.
    command: Vec<String>,
    /// The least rate, relative to that of Rust.
    wanted: Option<f64>,
}

/// Reads `NAME=COMMAND`, or `NAME:PART=COMMAND` where the language is to reach that part of Rust's
/// rate.
pub fn parse(text: &str) -> std::result::Result<Language, String> {
    let (name, command) = text.split_once('=').ok_or("it takes NAME=COMMAND")?;
    let (name, wanted) = match name.split_once(':') {
        Some((name, part)) => (name, Some(part.parse().map_err(|_| "a part is such as 0.95")?)),
        None => (name, None),
    };
    let command: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
    if command.is_empty() {
        return Err("the command is empty".to_owned());
    }
    Ok(Language { name: name.to_owned(), command, wanted })
}

/// Measures Rust and each language, and prints a line for each.
pub fn all(languages: &[Language], dir: &Path, rounds: Rounds) -> Result<()> {
    let path = dir.join("language.ring");
    let mut found = vec![(Vec::new(), Vec::new()); languages.len()];
    let mut own = Vec::new();
    for _ in 0..rounds.count {
        // Rust before and after the others: what changes with time cancels out.
        let before = one(&path, rounds)?;
        let mut rates = Vec::new();
        for language in languages {
            rates.push(language.round(&path, rounds)?);
        }
        let rust = f64::midpoint(before, one(&path, rounds)?);
        own.push(rust);
        for (rate, (all, parts)) in rates.into_iter().zip(&mut found) {
            all.push(rate);
            parts.push(rate / rust);
        }
    }
    std::fs::remove_file(&path).map_err(doing("removing a ring"))?;
    print("items of 64 B in batches of 64, both ends in one thread; medians of rounds in turns\n")?;
    print(&format!("{:<10} {:>10} {:>8}  wanted\n", "language", "items/s", "of Rust"))?;
    print(&format!("{:<10} {:>10}\n", "Rust", count(median(&mut own))))?;
    for (language, (mut rates, mut parts)) in languages.iter().zip(found) {
        let part = median(&mut parts);
        let verdict = language.wanted.map(|wanted| {
            format!("{:.0}%: {}", wanted * 100.0, if part >= wanted { "yes" } else { "NO" })
        });
        print(&format!(
            "{:<10} {:>10} {:>7.1}%  {}\n",
            language.name,
            count(median(&mut rates)),
            part * 100.0,
            verdict.unwrap_or_default()
        ))?;
    }
    Ok(())
}

/// Runs one round in Rust, in a new ring, which stays.
fn one(path: &Path, rounds: Rounds) -> Result<f64> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(doing("removing a ring")(e)),
        _ => {}
    }
    let mut ends = Ends::in_file(path, RING, Durability::PageCache)?;
    let items = vec![&ITEM[..]; BATCH];
    rounds.one(|| {
        let end = ends.push(&items)?;
        ends.pop_to(end)?;
        ends.consumer.advance(end)?;
        Ok(BATCH)
    })
}

impl Language {
    fn round(&self, path: &Path, rounds: Rounds) -> Result<f64> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg(path).arg(rounds.time.as_millis().to_string());
        let output = command.output().map_err(doing(format!("starting {}", self.name)))?;
        let said = String::from_utf8_lossy(&output.stdout);
        match said.trim().parse() {
            Ok(rate) if output.status.success() => Ok(rate),
            _ => {
                let text = String::from_utf8_lossy(&output.stderr);
                Err(Error::Usage(format!("{}: {said}{text}", self.name)))
            }
        }
    }
}
