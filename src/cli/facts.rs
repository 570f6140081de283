//! `blockring diagnostics`.

use super::address::{Address, Device};
use super::failure::Outcome;
use serde::Serialize;
use shared_block_ring::device::holder;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
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
    /// The backend's counters, of a ring that one serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<serde_json::Value>,
}

/// Processes that are attached, as far as this user may see.
#[derive(Serialize)]
struct Holders {
    producer: Option<i32>,
    consumer: Option<i32>,
}

impl Holders {
    fn by(find: impl Fn(Side) -> Option<i32>) -> Self {
        Self { producer: find(Side::Producer), consumer: find(Side::Consumer) }
    }
}

impl Diagnostics {
    pub fn run(self) -> Outcome {
        let (device, holders, backend): (Device, _, _) = if self.address.socket().is_some() {
            let device = self.address.connect(Role::Control)?;
            let holders = Holders::by(|side| device.holder(side));
            let counters = device.counters();
            (Box::new(device), holders, Some(counters))
        } else {
            let device = self.address.open_read_only()?;
            let holders = Holders::by(|side| holder(&device, side));
            (device, holders, None)
        };
        let facts = Facts { ring: Control::open(device)?.debug_info()?, holders, backend };
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
    let items = |items: Option<u64>| items.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    println!(
        "items      {} produced, {} consumed",
        items(ring.producer_items),
        items(ring.consumer_items)
    );
    println!("suspend    {}, acknowledged: {}", ring.suspend, ring.suspend_ack);
    println!("sector 1   {}", ring.producer_text);
    println!("sector 2   {}", ring.consumer_text);
    if let Some(counters) = &facts.backend {
        println!("backend    {counters}");
    }
}
