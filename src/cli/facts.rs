//! `blockring diagnostics`.

use super::address::Address;
use super::failure::Outcome;
use serde::Serialize;
use shared_block_ring::device::holder;
use shared_block_ring::format::Side;
use shared_block_ring::{Control, DebugInfo};

/// Show a ring's facts
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  blockring diagnostics ring.img\n  blockring diagnostics --json serial:logs | jq .used"
)]
pub struct Diagnostics {
    #[command(flatten)]
    address: Address,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Facts {
    #[serde(flatten)]
    ring: DebugInfo,
    holders: Holders,
}

/// Processes that are attached, as far as this user may see.
#[derive(Serialize)]
struct Holders {
    producer: Option<i32>,
    consumer: Option<i32>,
}

impl Diagnostics {
    pub fn run(self) -> Outcome {
        let device = self.address.open_read_only()?;
        let holders = Holders {
            producer: holder(&device, Side::Producer),
            consumer: holder(&device, Side::Consumer),
        };
        let facts = Facts { ring: Control::open(device)?.debug_info()?, holders };
        if self.json {
            println!("{}", serde_json::to_string(&facts).unwrap_or_default());
        } else {
            print(&facts);
        }
        Ok(())
    }
}

fn print(facts: &Facts) {
    let ring = &facts.ring;
    let pid =
        |pid: Option<i32>| pid.map_or_else(|| "none".to_owned(), |pid| format!("process {pid}"));
    println!("device     {} sectors of {} bytes", ring.total_sectors, ring.sector_size);
    println!("uuid       {}", ring.uuid.as_deref().unwrap_or("none (a plain ring)"));
    println!("capacity   {} bytes, {} used", ring.capacity, ring.used);
    println!("producer   {} ({})", ring.producer, pid(facts.holders.producer));
    println!("consumer   {} ({})", ring.consumer, pid(facts.holders.consumer));
    println!("suspend    {}, acknowledged: {}", ring.suspend, ring.suspend_ack);
    println!("sector 1   {}", ring.producer_text);
    println!("sector 2   {}", ring.consumer_text);
}
