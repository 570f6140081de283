//! Loads that outlive their guest. Their output tells the instance of the guest that they run in,
//! and what they learned about another one.

use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::time::Duration;

use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Error, Producer};

use super::{Device, Failure, PATIENCE};

/// Pause of a load without work.
const LOOK: Duration = Duration::from_millis(50);

/// Publishes items "LIFE NUMBER xxx…", numbered from 1 on, until the file `life` says `end`; LIFE
/// is its content. Prints a line each time that the producer was superseded.
pub fn feed(producer: &mut Producer<Device>, life: &Path) -> Result<(), Failure> {
    let mut number = 0u64;
    while let Some(life) = alive(life)? {
        let items: Vec<String> = (0..4)
            .map(|_| {
                number += 1;
                let pad = usize::try_from(number * 37 % 600).unwrap_or(0);
                format!("{life} {number} {}", "x".repeat(pad))
            })
            .collect();
        let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
        loop {
            let pushed = producer.push_batch(&items);
            match pushed.and_then(|end| producer.advance(end)) {
                Ok(()) => break,
                Err(Error::Retry) => {
                    if wait.pause(producer.device(), &[])? == Woken::TimedOut {
                        return Err(Failure::Stuck);
                    }
                }
                // The items of this round are among those that cannot be accounted for, or were not
                // pushed.
                Err(e) => break tell(e.into())?,
            }
        }
    }
    Ok(())
}

/// Prints the first two words of each item, until the file `life` says `end`, and a line each time
/// that the consumer was superseded. Frees items one by one.
pub fn drain(consumer: &mut Consumer<Device>, life: &Path) -> Result<(), Failure> {
    while alive(life)?.is_some() {
        let taken = consumer.pop(consumer.position()).map(|item| {
            let text = String::from_utf8_lossy(item.bytes);
            let words: Vec<_> = text.split(' ').take(2).collect();
            (item.next, words.join(" "))
        });
        let freed = taken.and_then(|(next, words)| consumer.advance(next).map(|()| words));
        match freed {
            Ok(words) => say(&words)?,
            Err(Error::Retry) => {
                Wait::new(Side::Producer, Some(LOOK)).pause(consumer.device(), &[])?;
            }
            Err(e) => tell(e.into())?,
        }
    }
    Ok(())
}

fn alive(life: &Path) -> Result<Option<String>, Failure> {
    let life = std::fs::read_to_string(life)?;
    let life = life.trim();
    Ok((life != "end").then(|| life.to_owned()))
}

fn tell(failure: Failure) -> Result<(), Failure> {
    match failure {
        Failure::Ring(Error::Superseded { ring, from, to, items, .. }) => {
            let mut line = format!("superseded {ring} {from} {to}");
            if let Some(items) = items {
                // Writing to a string cannot fail.
                let _ = write!(line, " {items}");
            }
            say(&line)
        }
        other => Err(other),
    }
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
