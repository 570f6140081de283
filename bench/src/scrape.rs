//! Cost of scrapes of the backend's metrics to the load beside them: rounds with and without
//! scrapes, in turns.

use crate::backend::{Backend, consumer_socket};
use crate::error::{Result, doing, print};
use crate::front::{REGION, START};
use crate::machine::{finished, median, nanoseconds, pin};
use crate::requests::{Plan, WARM_UP};
use crate::rounds::Rounds;
use crate::rows::{ROWS, Row};
use crate::table::{count, time};
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, Durability, Producer, UnixDevice};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use virtio_blk_driver::VirtioDevice;

/// The time between two scrapes: 100 a second.
const PERIOD: Duration = Duration::from_millis(10);

/// Pairs of rounds for each round of other measurements: rounds differ by more than a scrape costs.
const PAIRS: u32 = 3;

/// Names of the rows that are measured: many requests at once, and one.
const LOADS: [&str; 2] = ["512-write-qd32", "4K-write-qd1"];

/// Items of a batch and their bytes, for the load that is a producer.
const BATCH: usize = 64;
const ITEM: [u8; 64] = [7; 64];

/// Scrapes in a row, for the processor time of one.
const IN_A_ROW: u32 = 1000;

/// A scrape, and one for which the backend makes a text in any case.
const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n";
const FRESH: &str = "GET /metrics HTTP/1.1\r\nHost: bench\r\nCache-Control: no-cache\r\n\r\n";

/// The least rate with scrapes, relative to that without.
const WANTED: f64 = 0.98;

/// Measures every load, and prints a line for each.
pub fn all(plan: &Plan, dir: &Path) -> Result<()> {
    let socket = dir.join("metrics");
    let metrics = ["--metrics".to_owned(), format!("unix:{}", socket.display())];
    let arguments = [plan.arguments.clone(), metrics.into()].concat();
    let bytes = START + REGION;
    let backend = Backend::ours("scraped", &plan.program, &arguments, bytes, dir, plan.processors)?;
    let target = (socket.as_path(), plan.processors.back);
    let rounds = Rounds { count: plan.rounds.count * PAIRS, ..plan.rounds };
    let own = processor_time(&backend, &socket)?;
    print(&format!("a scrape takes {} of a processor in the backend\n", time(own)))?;
    print("100 scrapes a second; medians of pairs of rounds in turns\n")?;
    print(&format!(
        "{:<16} {:>10} {:>10} {:>8} {:>9} {:>16}  wanted\n",
        "load", "quiet", "scraped", "of it", "scrapes/s", "time of a scrape"
    ))?;
    let chosen = |row: &&Row| LOADS.contains(&row.name().as_str());
    for row in ROWS.iter().filter(chosen) {
        backend.resume()?;
        let mut front = backend.front(row.bytes, row.depth)?;
        front.round(row, WARM_UP)?;
        let rate = |time| {
            let round = front.round(row, time)?;
            Ok(round.requests as f64 / round.time.as_secs_f64())
        };
        load(&row.name(), rounds, target, rate)?;
        backend.halt()?;
    }
    backend.resume()?;
    produce(&backend, dir, rounds, target)?;
    backend.halt()
}

/// Returns the processor time that a scrape takes in a backend with nothing else to do, in
/// nanoseconds. Unlike rates it depends little on what else runs on the machine.
fn processor_time(backend: &Backend, socket: &Path) -> Result<f64> {
    backend.resume()?;
    let before = backend.cpu_time()?;
    let mut scraper = Scraper::connect(socket).map_err(doing("connecting"))?;
    for _ in 0..IN_A_ROW {
        scraper.scrape(FRESH).map_err(doing("scraping"))?;
    }
    let spent = backend.cpu_time()?.saturating_sub(before);
    backend.halt()?;
    Ok(nanoseconds(spent) / f64::from(IN_A_ROW))
}

/// Measures a producer whose items are taken by a consumer on the same thread.
fn produce(backend: &Backend, dir: &Path, rounds: Rounds, target: (&Path, usize)) -> Result<()> {
    let device = VirtioDevice::connect(backend.socket(), None)?;
    let mut producer = Producer::attach(device, "bench", "producer")?;
    producer.set_durability(Durability::PageCache);
    let device = UnixDevice::connect(consumer_socket(dir, "scraped"), Role::Consumer)?;
    let mut consumer = Consumer::attach(device, "bench", "consumer")?;
    consumer.set_durability(Durability::PageCache);
    let items = vec![&ITEM[..]; BATCH];
    load("producer, 64 B", rounds, target, |time| {
        Rounds { count: 1, time }.one(|| {
            let end = producer.push_batch(&items)?;
            producer.advance(end)?;
            consumer.advance(end)?;
            Ok(BATCH)
        })
    })
}

/// Measures one load in pairs of rounds. `target` is the socket to scrape, and the processor that
/// its client runs on.
fn load(
    name: &str,
    rounds: Rounds,
    target: (&Path, usize),
    mut rate: impl FnMut(Duration) -> Result<f64>,
) -> Result<()> {
    let (mut alone, mut beside, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    let (mut scrapes, mut times) = (Vec::new(), Vec::new());
    for pair in 0..rounds.count {
        // Which of both comes first changes, so that what changes with time cancels out.
        let first = (pair % 2 == 1).then(|| rate(rounds.time)).transpose()?;
        let (with, mut found) = beside_scrapes(target, || rate(rounds.time))?;
        scrapes.push(found.len() as f64 / rounds.time.as_secs_f64());
        times.append(&mut found);
        let without = first.map_or_else(|| rate(rounds.time), Ok)?;
        alone.push(without);
        beside.push(with);
        parts.push(with / without);
    }
    let part = median(&mut parts);
    let verdict = if part >= WANTED { "yes" } else { "NO" };
    print(&format!(
        "{name:<16} {:>10} {:>10} {:>7.1}% {:>9.0} {:>16}  {:.0}%: {verdict}\n",
        count(median(&mut alone)),
        count(median(&mut beside)),
        part * 100.0,
        median(&mut scrapes),
        time(median(&mut times)),
        WANTED * 100.0,
    ))
}

/// Scrapes while `action` runs. Returns also the time of each scrape, in nanoseconds.
fn beside_scrapes<T: Send>(
    (socket, processor): (&Path, usize),
    action: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<f64>)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scraping = scope.spawn(|| {
            // Not in the front end's way: while that is off its processor, a backend goes to sleep.
            pin(processor)?;
            let mut scraper = Scraper::connect(socket).map_err(doing("connecting"))?;
            let (mut times, mut next) = (Vec::new(), Instant::now());
            while !over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                scraper.scrape(SCRAPE).map_err(doing("scraping"))?;
                times.push(nanoseconds(begin.elapsed()));
                next += PERIOD;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(times)
        });
        let outcome = action();
        over.store(true, Ordering::Relaxed);
        let times = finished(scraping)?;
        Ok((outcome?, times))
    })
}

/// A collector, which keeps its connection from scrape to scrape, as Prometheus does.
struct Scraper {
    connection: UnixStream,
    answer: Vec<u8>,
}

impl Scraper {
    fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self { connection: UnixStream::connect(socket)?, answer: vec![0; 256 << 10] })
    }

    fn scrape(&mut self, request: &str) -> io::Result<()> {
        self.connection.write_all(request.as_bytes())?;
        let (mut had, mut whole) = (0, None);
        while whole.is_none_or(|whole| had < whole) {
            let count = self.connection.read(&mut self.answer[had..])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            had += count;
            if whole.is_none() {
                whole = length(&self.answer[..had])?;
            }
        }
        Ok(())
    }
}

/// Returns the length of an answer with its head, once that is there.
fn length(answer: &[u8]) -> io::Result<Option<usize>> {
    let end = b"\r\n\r\n";
    let Some(head) = answer.windows(end.len()).position(|bytes| bytes == end) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&answer[..head]);
    let body = text.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
    match body.filter(|_: &usize| text.starts_with("HTTP/1.1 200 ")) {
        Some(body) => Ok(Some(head + end.len() + body)),
        None => Err(io::Error::other(text.into_owned())),
    }
}
