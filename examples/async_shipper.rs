//! Ships datagrams into a ring: each one that a program sends to a socket becomes an item.
//!
//! What has arrived together is published together, by one write and one flush.
//!
//! ```text
//! $ blockring create --size 1M ring
//! $ cargo run --example async_shipper -- /run/ship.socket ring &
//! $ echo hello | socat - UNIX-SENDTO:/run/ship.socket
//! ```

use futures_util::SinkExt;
use ring_address::{Address, Options};
use shared_block_ring::stream::ItemSink;
use shared_block_ring::wait::Limits;
use shared_block_ring::{Producer, Role};
use std::io::ErrorKind;
use std::time::Duration;
use tokio::net::UnixDatagram;

/// The largest datagram that is taken whole.
const LONGEST: usize = 64 << 10;

/// The most datagrams that are published together.
const MOST: usize = 256;

async fn ship(socket: &str, ring: &str) -> Result<(), Box<dyn std::error::Error>> {
    let limits = Limits::within(Duration::from_secs(5));
    let device = Address::from(ring).open(Options::new(Role::Producer), &limits)?;
    let mut sink = ItemSink::new(Producer::attach(device, "datagrams", "async_shipper")?)?;
    let socket = UnixDatagram::bind(socket)?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        sink.feed(&buffer[..length]).await?;
        for _ in 1..MOST {
            match socket.try_recv(&mut buffer) {
                Ok(length) => sink.feed(&buffer[..length]).await?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        sink.flush().await?;
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, ring] = &arguments[..] else {
        return Err("usage: async_shipper SOCKET RING".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ship(socket, ring))
}
