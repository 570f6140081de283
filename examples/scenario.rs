//! One program of the scenario that is the same in each language that has the library: the tests
//! run it in turns with the others on one ring.
//!
//! ```text
//! scenario create FILE BYTES
//! scenario produce ADDRESS TO
//! scenario consume ADDRESS TO STATE [SUSPEND_AT]
//! scenario superseded FILE
//! ```

use ring_address::{Address, AnyDevice, Options};
use shared_block_ring::wait::{Limits, Wait};
use shared_block_ring::{
    Consumer, CreateOptions, Error, OpenOptions, Position, Producer, Role, State, create, make_file,
};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Items between two advances of the producer.
const BATCH: u64 = 64;

/// Longest wait for a backend.
const PATIENCE: Duration = Duration::from_secs(5);

/// Item `number`: its number in text, a colon, and some letters.
fn item(number: u64) -> Vec<u8> {
    let letter = b'a' + u8::try_from(number % 26).unwrap_or_default();
    let mut item = format!("{number}:").into_bytes();
    item.extend(std::iter::repeat_n(letter, usize::try_from(number * 7 % 101).unwrap_or_default()));
    item
}

/// The checksum of a stream of items: FNV-1a over each length and payload.
#[derive(Clone, Copy)]
struct Checksum(u64);

impl Checksum {
    const START: Self = Self(0xcbf2_9ce4_8422_2325);

    fn add(&mut self, item: &[u8]) {
        let length = u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes();
        for byte in length.iter().chain(item) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

fn open(address: &str, role: Role) -> Outcome<AnyDevice> {
    Ok(Address::from(address).open(Options::new(role), &Limits::within(PATIENCE))?)
}

fn produce(address: &str, to: u64) -> Outcome {
    let mut producer = Producer::attach(open(address, Role::Producer)?, "scenario", "rust")?;
    // A ring in which nothing was published yet has no count.
    let mut number = producer.debug_info()?.producer_items.unwrap_or(0);
    while number < to {
        let batch: Vec<_> = (number..to.min(number + BATCH)).map(item).collect();
        let end = patiently(&mut producer, |producer| producer.push_batch(&batch))?;
        patiently(&mut producer, |producer| producer.advance(end))?;
        number += batch.len() as u64;
    }
    println!("produced {to}");
    Ok(())
}

/// Repeats a call until the ring has room, and is not suspended.
fn patiently<T>(
    producer: &mut Producer<AnyDevice>,
    mut call: impl FnMut(&mut Producer<AnyDevice>) -> Result<T, Error>,
) -> Outcome<T> {
    let mut wait = Wait::for_space(None);
    loop {
        match call(producer) {
            Err(e) if e.is_transient() => wait.pause(producer.device(), &[])?,
            done => return Ok(done?),
        };
    }
}

/// What a consumer has dealt with: it is stored before the ring is told.
#[derive(Clone, Copy)]
struct Progress {
    number: u64,
    position: Position,
    checksum: Checksum,
}

impl Progress {
    fn load(path: &Path) -> Outcome<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let (number, position) = (0, Position::ZERO);
                return Ok(Self { number, position, checksum: Checksum::START });
            }
            text => text?,
        };
        let mut lines = text.lines();
        let mut line = || lines.next().ok_or("the state is cut short");
        let (number, position) = (line()?.parse()?, line()?.parse()?);
        Ok(Self { number, position, checksum: Checksum(u64::from_str_radix(line()?, 16)?) })
    }

    fn store(&self, path: &Path) -> Outcome {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{}\n{}\n{:016x}", self.number, self.position, self.checksum.0)?;
        file.sync_all()?;
        Ok(std::fs::rename(new, path)?)
    }
}

fn consume(address: &str, to: u64, state: &Path, suspend_at: Option<u64>) -> Outcome {
    let mut consumer = Consumer::attach(open(address, Role::Consumer)?, "scenario", "rust")?;
    let mut progress = Progress::load(state)?;
    if consumer.position() < progress.position {
        consumer.advance(progress.position)?;
    }
    let mut wait = Wait::for_items(None);
    while progress.number < to {
        // Again, if one that was killed has suspended the ring: the producer waits for the resume.
        if suspend_at == Some(progress.number) {
            suspend_and_resume(&mut consumer)?;
        }
        let until = suspend_at.filter(|at| progress.number < *at).map_or(to, |at| at.min(to));
        let start = (progress, None);
        let (_, (next, wrong)) =
            consumer.fold(progress.position, start, |(mut next, wrong), found| {
                if next.number == until {
                    return (next, wrong);
                }
                let wrong =
                    wrong.or_else(|| (found.bytes != item(next.number)).then_some(next.number));
                next.checksum.add(found.bytes);
                next = Progress { number: next.number + 1, position: found.next, ..next };
                (next, wrong)
            })?;
        if let Some(number) = wrong {
            return Err(format!("item {number} is not what it must be").into());
        }
        if next.number == progress.number {
            wait.pause(consumer.device(), &[])?;
            continue;
        }
        wait = Wait::for_items(None);
        progress = next;
        progress.store(state)?;
        consumer.advance(progress.position)?;
    }
    println!("consumed {to} {:016x}", progress.checksum.0);
    Ok(())
}

/// Suspends the ring, waits until the producer has acknowledged that, and lets it go on.
fn suspend_and_resume(consumer: &mut Consumer<AnyDevice>) -> Outcome {
    let mut wait = Wait::for_items(None);
    while let Err(e) = consumer.suspend() {
        if !e.is_transient() {
            return Err(e.into());
        }
        wait.pause(consumer.device(), &[])?;
    }
    // It looks at the ring at the latest when it has filled what it knows to be free.
    while consumer.state()? == State::Running {
        wait.pause(consumer.device(), &[])?;
    }
    Ok(consumer.resume()?)
}

fn superseded(path: &str) -> Outcome {
    let mut producer = Producer::attach(open(path, Role::Producer)?, "scenario", "rust")?;
    let remembered = std::fs::read(path)?;
    let end = producer.push("one")?;
    producer.advance(end)?;
    File::options().write(true).open(path)?.write_all_at(&remembered, 0)?;
    // A pointer that was read a moment ago counts as known.
    std::thread::sleep(Duration::from_millis(50));
    let refused = producer.push("two").and_then(|end| producer.advance(end));
    match refused {
        Err(e @ Error::Superseded { .. }) => println!("{}", e.name()),
        other => return Err(format!("not superseded: {other:?}").into()),
    }
    let end = producer.push("three")?;
    Ok(producer.advance(end)?)
}

fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["create", path, bytes] => {
            make_file(path, bytes.parse()?)?;
            create(&OpenOptions::default().open(path)?, CreateOptions::default())?;
            Ok(())
        }
        ["produce", address, to] => produce(address, to.parse()?),
        ["consume", address, to, state] => consume(address, to.parse()?, state.as_ref(), None),
        ["consume", address, to, state, suspend_at] => {
            consume(address, to.parse()?, state.as_ref(), Some(suspend_at.parse()?))
        }
        ["superseded", path] => superseded(path),
        _ => Err("usage: scenario create|produce|consume|superseded ...".into()),
    }
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            let name = e.downcast_ref::<Error>().map_or("error", Error::name);
            eprintln!("{name}: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
