//! Collects the items of several rings on one thread, and prints each as a line behind its ring's
//! address.
//!
//! A ring is told that its items were dealt with once they are written, a batch at a time: after a
//! crash the last batch is printed again, and nothing is missing.
//!
//! ```text
//! $ cargo run --example async_collector -- unix:/run/blockring/web.out unix:/run/blockring/db.out
//! ```

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use ring_address::{Address, Options};
use shared_block_ring::stream::ItemStream;
use shared_block_ring::wait::Limits;
use shared_block_ring::{Consumer, Role};
use std::io::Write;
use std::time::Duration;

/// The most items that are printed before their ring is told.
const BATCH: usize = 256;

async fn collect(ring: &str) -> Result<(), Box<dyn std::error::Error>> {
    let limits = Limits::within(Duration::from_secs(5));
    let device = Address::from(ring).open(Options::new(Role::Consumer), &limits)?;
    let items = ItemStream::new(Consumer::attach(device, "items", "async_collector")?)?;
    let mut batches = items.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let (mut lines, mut end) = (Vec::new(), None);
        for item in batch {
            let item = item?;
            write!(lines, "{ring}\t")?;
            lines.extend(&item.bytes);
            lines.push(b'\n');
            end = Some(item.next);
        }
        std::io::stdout().write_all(&lines)?;
        if let Some(end) = end {
            batches.get_mut().advance(end).await?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rings: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(try_join_all(rings.iter().map(|ring| collect(ring))))?;
    Ok(())
}
