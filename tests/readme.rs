//! The lines of code in README.md, which a test of the documents compares with these
//! (`qemu-tests/tests/docs`).

use shared_block_ring::{Consumer, CreateOptions, OpenOptions, Producer, create, make_file};

#[test]
fn lines_of_the_readme_push_and_pop() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = &folder.path().join("ring");

    make_file(path, 8 << 20)?;
    create(&OpenOptions::default().open(path)?, CreateOptions::default())?;

    let mut producer = Producer::attach(OpenOptions::default().open(path)?, "logs", "web-1")?;
    let position = producer.push("hello")?;
    producer.advance(position)?;

    let mut consumer = Consumer::attach(OpenOptions::default().open(path)?, "logs", "collector")?;
    let item = consumer.pop(consumer.position())?;
    let next = item.next;
    assert_eq!(item.bytes, b"hello");
    consumer.advance(next)?;
    Ok(())
}
