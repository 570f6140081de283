//! `blockring forward` into JetStream, beside a program that publishes the same batches from
//! memory, without a ring: the same server, in turns.

use crate::error::{Error, Result, doing, print};
use crate::machine::median;
use crate::table::count;
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_ID, NATS_BATCH_SEQUENCE, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{Context, publish::PublishAck};
use async_nats::{Client, HeaderMap, Request};
use qemu_tests::Daemon;
use shared_block_ring::{CreateOptions, Durability, OpenOptions, Producer, create, make_file};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Bytes of an item, and items of a round.
const LOADS: [(usize, usize); 3] = [(100, 200_000), (1 << 10, 100_000), (64 << 10, 4_000)];

/// Rings, and so subjects: their batches overlap.
const RINGS: usize = 4;

/// Limits of a batch, as the forwarder has them.
const BATCH_MESSAGES: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;

/// Bound on the time of a round, and of the server's start.
const PATIENCE: Duration = Duration::from_secs(120);

const STREAM: &str = "BENCH";

/// Measures every load, and prints a line for each.
pub fn all(forwarder: &Path, dir: &Path, rounds: u32, quick: bool) -> Result<()> {
    let bench = Bench::start(forwarder, dir)?;
    print("forward into JetStream, 4 rings; items a second, medians of rounds in turns\n")?;
    print(&format!("{:<10} {:>12} {:>12} {:>7}\n", "item", "from memory", "forward", "of it"))?;
    for (bytes, items) in LOADS {
        let items = if quick { items / 100 } else { items };
        let (mut memory, mut forward) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            memory.push(bench.round(|| bench.publish(bytes, items))?);
            forward.push(bench.round(|| bench.forward(bytes, items))?);
        }
        let (memory, forward) = (median(&mut memory), median(&mut forward));
        let name = if bytes < 1024 { format!("{bytes} B") } else { format!("{} KiB", bytes >> 10) };
        let (of_memory, of_rings, part) = (count(memory), count(forward), forward / memory * 100.0);
        print(&format!("{name:<10} {of_memory:>12} {of_rings:>12} {part:>6.0}%\n"))?;
    }
    Ok(())
}

/// A server, and where rings are made.
struct Bench {
    forwarder: PathBuf,
    dir: tempfile::TempDir,
    port: u16,
    runtime: Runtime,
    client: Client,
    /// Killed when this is dropped.
    _server: Daemon,
}

impl Bench {
    fn start(forwarder: &Path, dir: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ring-bench-").tempdir_in(dir);
        let dir = dir.map_err(doing("making a folder"))?;
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr());
        let port = free.map_err(doing("finding a port"))?.port();
        let text = format!(
            "listen: 127.0.0.1:{port}\njetstream {{ store_dir: '{}', sync_interval: always }}\n",
            dir.path().join("jetstream").display()
        );
        let file = dir.path().join("nats.conf");
        std::fs::write(&file, text).map_err(doing("writing the server's configuration"))?;
        let mut command = Command::new(nats_server(forwarder)?);
        command.arg("-c").arg(file);
        let mut server = Daemon::spawn("nats-server", command, dir.path())?;
        server
            .wait_for("serving", PATIENCE, |_| TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(doing("starting a runtime"))?;
        let client = runtime.block_on(async_nats::connect(format!("nats://127.0.0.1:{port}")));
        let client = client.map_err(|error| failed("connecting", &error))?;
        let forwarder = forwarder.to_owned();
        Ok(Self { forwarder, dir, port, runtime, client, _server: server })
    }

    /// Runs a round into an empty stream. Returns the rate, by the server's times of the messages.
    fn round(&self, round: impl FnOnce() -> Result<()>) -> Result<f64> {
        let context = self.runtime.block_on(self.empty_stream()).map_err(Error::Usage)?;
        round()?;
        self.runtime.block_on(rate(&context)).map_err(Error::Usage)
    }

    /// Makes the stream.
    async fn empty_stream(&self) -> std::result::Result<Context, String> {
        let context = async_nats::jetstream::new(self.client.clone());
        let config = Config {
            name: STREAM.to_owned(),
            subjects: vec!["bench.>".to_owned()],
            allow_atomic_publish: true,
            ..Config::default()
        };
        context.create_stream(config).await.map_err(|error| error.to_string())?;
        Ok(context)
    }

    /// Publishes items from memory.
    fn publish(&self, bytes: usize, items: usize) -> Result<()> {
        let payload = bytes::Bytes::from(vec![7u8; bytes]);
        self.runtime.block_on(async {
            let subjects = (0..RINGS).map(|ring| {
                tokio::spawn(one_subject(self.client.clone(), ring, payload.clone(), items / RINGS))
            });
            for subject in subjects.collect::<Vec<_>>() {
                subject
                    .await
                    .map_err(|e| e.to_string())
                    .and_then(|done| done)
                    .map_err(Error::Usage)?;
            }
            Ok(())
        })
    }

    /// Forwards items from rings that hold them all.
    fn forward(&self, bytes: usize, items: usize) -> Result<()> {
        let payload = vec![7u8; bytes];
        let mut rings = Vec::new();
        for number in 0..RINGS {
            let path = self.dir.path().join(format!("r{number}.ring"));
            let size = (items / RINGS * (bytes + 16)) as u64 + (1 << 20);
            make_file(&path, size.next_multiple_of(4096)).map_err(doing("making a ring"))?;
            let device = OpenOptions::default().open(&path)?;
            create(&device, CreateOptions::default())?;
            let mut producer = Producer::attach(device, "bench", "producer")?;
            producer.set_durability(Durability::PageCache);
            let mut left = items / RINGS;
            while left > 0 {
                let number = left.min(BATCH_MESSAGES);
                let end = producer.push_batch(&vec![&payload[..]; number])?;
                producer.advance(end)?;
                left -= number;
            }
            rings.push(path);
        }
        let mut command = Command::new(&self.forwarder);
        command.args(["forward", "--drain", "--to", &format!("nats://127.0.0.1:{}", self.port)]);
        command.args(["--stream", STREAM, "--subject", "bench.{ring}"]).args(&rings);
        let mut forwarder = Daemon::spawn("forwarder", command, self.dir.path())?;
        forwarder.wait(PATIENCE)?;
        for path in rings {
            std::fs::remove_file(path).map_err(doing("removing a ring"))?;
        }
        Ok(())
    }
}

/// Returns the server that scripts/setup.sh has fetched.
fn nats_server(program: &Path) -> Result<PathBuf> {
    let fetched = || {
        let mut places = program.ancestors().map(|folder| folder.join("nats-server/nats-server"));
        places.find(|path| path.is_file())
    };
    let named = std::env::var_os("BLOCKRING_NATS").map(|dir| Path::new(&dir).join("nats-server"));
    named.or_else(fetched).ok_or_else(|| {
        Error::Usage("nats-server is missing: run scripts/fetch-nats.sh first".to_owned())
    })
}

/// Publishes the items of one subject, batch after batch.
async fn one_subject(
    client: Client,
    ring: usize,
    payload: bytes::Bytes,
    items: usize,
) -> std::result::Result<(), String> {
    let subject = format!("bench.m{ring}");
    let size = BATCH_MESSAGES.min(BATCH_BYTES / payload.len());
    let (mut fence, mut position) = (0, 0);
    while position < items {
        let batch = client.new_inbox();
        let number = size.min(items - position);
        for index in 0..number {
            let mut headers = HeaderMap::new();
            headers.insert("Blockring-Ring", "7d444840-9dc0-11d1-b245-5ffdce74fad2");
            headers.insert("Blockring-Position", position.to_string());
            headers.insert("Blockring-Next", (position + 1).to_string());
            headers.insert("Blockring-Time", "2026-01-01T00:00:00.000000000Z");
            headers.insert(NATS_BATCH_ID, batch.as_str());
            headers.insert(NATS_BATCH_SEQUENCE, (index + 1).to_string());
            if index == 0 {
                headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, fence.to_string());
            }
            position += 1;
            if index + 1 < number {
                let sent = client.publish_with_headers(subject.clone(), headers, payload.clone());
                sent.await.map_err(|error| error.to_string())?;
                continue;
            }
            headers.insert(NATS_BATCH_COMMIT, "1");
            let request = Request::new().headers(headers).payload(payload.clone());
            let answer = client.send_request(subject.clone(), request).await;
            let answer = answer.map_err(|error| error.to_string())?;
            match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
                Ok(Response::Ok(acknowledgement)) => fence = acknowledgement.sequence,
                other => return Err(format!("a batch was not taken: {other:?}")),
            }
        }
    }
    Ok(())
}

/// Returns the items that the stream took in a second, and deletes it.
async fn rate(context: &Context) -> std::result::Result<f64, String> {
    let failed = |error: &dyn std::error::Error| error.to_string();
    let stream = context.get_stream(STREAM).await.map_err(|error| failed(&error))?;
    let state = stream.cached_info().state.clone();
    let time = state.last_timestamp - state.first_timestamp;
    context.delete_stream(STREAM).await.map_err(|error| failed(&error))?;
    Ok(state.messages as f64 / time.as_seconds_f64())
}

fn failed(what: &str, error: &dyn std::error::Error) -> Error {
    Error::Usage(format!("{what}: {error}"))
}
