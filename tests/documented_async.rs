//! The lines of code in `docs/async-rust.md`, and what it adds to a manifest: a test of the
//! documents compares them with these (`qemu-tests/tests/docs`).
#![allow(clippy::unwrap_used)]

use futures_util::{SinkExt, TryStreamExt};
use ring_test_support::documents::documented;
use shared_block_ring::device::find_by_serial;
use shared_block_ring::stream::{ItemSink, ItemStream};
use shared_block_ring::{Consumer, OpenOptions, Producer, Role, UnixDevice};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn handle(_bytes: &[u8]) -> std::future::Ready<()> {
    std::future::ready(())
}

async fn collect() -> Outcome {
    let device = UnixDevice::connect("/run/blockring/web.out", Role::Consumer)?;
    let mut items = ItemStream::new(Consumer::attach(device, "logs", "collector")?)?;
    while let Some(item) = items.try_next().await? {
        handle(&item.bytes).await;
        items.advance(item.next).await?; // the item was dealt with: its space is free
    }
    Ok(())
}

async fn ship() -> Outcome {
    let device = OpenOptions::new().open(find_by_serial("logs")?)?;
    let mut sink = ItemSink::new(Producer::attach(device, "logs", "web-1")?)?;
    sink.feed("debit 7").await?;
    sink.feed("credit 7").await?;
    sink.flush().await?; // both at once: from here on they survive any crash
    Ok(())
}

#[test]
fn lines_of_the_page_compile_and_its_crates_are_those_of_the_library() {
    // They are for a backend and a disk that are not here: nobody polls these.
    drop((collect(), ship()));
    let manifest = std::fs::read_to_string("Cargo.toml").unwrap();
    let added = documented("docs/async-rust.md", "[dependencies]");
    for line in added.lines().filter(|line| line.contains(" = ")) {
        let (name, rest) = line.split_once(" = { version = \"").unwrap();
        let (version, _) = rest.split_once('"').unwrap();
        let known = match name {
            "shared-block-ring" => format!("path = \".\", version = \"{version}."),
            name => format!("\n{name} = {{ version = \"{version}\""),
        };
        assert!(manifest.contains(&known), "{line}: no {known}");
    }
}
