//! Collects the items of a ring in a file, each exactly once, whatever dies and when.
//!
//! A consumer that dies between writing an item and freeing it gets the item again. So each line of
//! the file begins with the position behind its item: what an item did, and how far the collector
//! has come, are one write. After a restart the collector cuts off a line that was not finished,
//! reads the last position, and frees everything before it: those items do not come again.
//!
//! Positions belong to one ring, so the first line names it.
//!
//! ```text
//! $ blockring create --size 1M ring
//! $ seq 1000 | blockring produce ring
//! $ cargo run --example collector -- ring collected 1    # ends after 1 second without an item
//! $ tail -n 1 collected
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Error, FileDevice, OpenOptions, Position};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Cuts off a line that was not finished. Returns the first line, and the position of the last one.
fn resume(file: &mut File) -> Result<Option<(String, Position)>> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    file.set_len(whole as u64)?;
    file.seek(SeekFrom::Start(whole as u64))?;
    let mut lines = std::str::from_utf8(&text[..whole])?.lines();
    let Some(first) = lines.next() else { return Ok(None) };
    let Some(last) = lines.next_back() else { return Ok(Some((first.to_owned(), Position::ZERO))) };
    let number = last.split('\t').next().and_then(|number| number.parse().ok());
    let position = number.and_then(Position::new).ok_or("the last line has no position")?;
    Ok(Some((first.to_owned(), position)))
}

/// Brings the ring to where the file is.
fn reconcile(consumer: &mut Consumer<FileDevice>, file: &mut File) -> Result<()> {
    let ring = format!("ring {}", consumer.debug_info()?.uuid.unwrap_or_default());
    match resume(file)? {
        None if consumer.position() == Position::ZERO => writeln!(file, "{ring}")?,
        Some((first, last)) if first == ring && last >= consumer.position() => {
            consumer.advance(last)?;
        }
        _ => return Err("the file is not of this ring, or lacks items that it had".into()),
    }
    Ok(())
}

fn run(ring: &str, output: &str, patience: Duration) -> Result<()> {
    let mut consumer = Consumer::attach(OpenOptions::new().open(ring)?, "items", "collector")?;
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(output)?;
    if !file.metadata()?.is_file() {
        // A pipe or a device does not say after a restart what it has got.
        return Err(format!("{output} is no regular file").into());
    }
    reconcile(&mut consumer, &mut file)?;
    loop {
        let (end, text) = consumer.fold(consumer.position(), String::new(), |text, item| {
            // An item with a line's end in it would look like two.
            let item_text = String::from_utf8_lossy(item.bytes).replace('\n', " ");
            text + &format!("{}\t{item_text}\n", item.next)
        })?;
        if !text.is_empty() {
            file.write_all(text.as_bytes())?;
            // Freed items cannot be had again, so the file must survive a power cut first.
            file.sync_data()?;
            consumer.advance(end)?;
            continue;
        }
        let mut wait = Wait::for_items(Some(patience));
        while matches!(consumer.pop(end), Err(Error::Retry)) {
            if wait.pause(consumer.device(), &[])? == Woken::TimedOut {
                return Ok(());
            }
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &words[..] {
        [ring, output, seconds] => match seconds.parse() {
            Ok(seconds) => run(ring, output, Duration::from_secs(seconds)),
            Err(_) => Err(format!("{seconds:?} is no number of seconds").into()),
        },
        _ => Err("usage: collector RING FILE SECONDS".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "collector: {e}");
            ExitCode::FAILURE
        }
    }
}
