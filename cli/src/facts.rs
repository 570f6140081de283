//! `blockring diagnostics`.

use super::address::{Address, Device};
use super::failure::{Failure, Outcome};
use super::output::{print, require_output};
use serde::Serialize;
use shared_block_ring::device::holder;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::{Control, DebugInfo};

/// Show the state of a ring: size, positions, items, who is attached
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  blockring diagnostics ring.img\n  blockring diagnostics --json serial:logs | jq .used"
)]
pub struct Diagnostics {
    #[command(flatten)]
    address: Address,
    /// Print one JSON object instead of text, also if the command fails
    #[arg(long)]
    pub json: bool,
}

/// The state of a ring, of its holders and of its backend.
#[derive(Serialize)]
pub struct Facts {
    #[serde(flatten)]
    ring: DebugInfo,
    holders: Holders,
    /// The counters of the backend, if a backend serves the ring.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<serde_json::Value>,
}

/// The processes that are attached to the ring, as far as this user may see them.
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
    pub fn run(self, report: &mut Option<Facts>) -> Outcome {
        require_output()?;
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
        let about = Failure::about(self.address.name());
        let ring = Control::open(device).and_then(|ring| ring.debug_info()).map_err(about)?;
        let facts = report.insert(Facts { ring, holders, backend });
        if self.json { Ok(()) } else { print(&table(facts), None) }
    }
}

fn table(facts: &Facts) -> String {
    let ring = &facts.ring;
    let pid = |pid: Option<i32>| {
        pid.map_or_else(|| "no process".to_owned(), |pid| format!("process {pid}"))
    };
    let items = |items: Option<u64>| items.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    let mut lines = vec![
        format!("device     {} sectors of {} bytes", ring.total_sectors, ring.sector_size),
        format!("uuid       {}", ring.uuid.as_deref().unwrap_or("none (a plain ring)")),
        format!("capacity   {} bytes, {} used", ring.capacity, ring.used),
        format!("producer   {} ({})", ring.producer, pid(facts.holders.producer)),
        format!("consumer   {} ({})", ring.consumer, pid(facts.holders.consumer)),
        format!(
            "items      {} produced, {} consumed",
            items(ring.producer_items),
            items(ring.consumer_items)
        ),
        format!("suspend    {}, acknowledged: {}", ring.suspend, ring.suspend_ack),
        format!("sector 1   {}", ring.producer_text),
        format!("sector 2   {}", ring.consumer_text),
    ];
    lines.extend(facts.backend.as_ref().map(|counters| format!("backend    {counters}")));
    lines.join("\n")
}
