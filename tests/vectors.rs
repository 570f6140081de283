//! The images in `tests/vectors` were written by the OCaml library. This library must read them
//! as that one does, and write the same bytes after the same operations.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use ring_test_support::RingFile;
use serde_json::Value;
use shared_block_ring::{
    Consumer, CreateOptions, Error, FileDevice, Position, Producer, State, create,
};
use std::fs;
use std::path::Path;

struct Vector {
    name: String,
    json: Value,
    image: Vec<u8>,
}

impl Vector {
    fn number(&self, key: &str) -> u64 {
        self.json[key].as_u64().unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    fn text(&self, key: &str) -> &str {
        self.json[key].as_str().unwrap()
    }

    /// A copy that a test may change.
    fn file(&self) -> RingFile {
        let file = RingFile::blank(0, self.number("sector_size") as u32);
        fs::write(&file.path, &self.image).unwrap();
        file
    }

    /// Positions and payloads that a consumer must find.
    fn items(&self) -> Vec<(u64, Vec<u8>)> {
        let ends = self.json["item_end_positions"].as_array().unwrap();
        let items = self.json["items_hex"].as_array().unwrap();
        ends.iter()
            .zip(items)
            .map(|(end, hex)| (end.as_u64().unwrap(), unhex(hex.as_str().unwrap())))
            .collect()
    }
}

fn vectors() -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut vectors: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| Vector {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            json: serde_json::from_slice(&fs::read(&path).unwrap()).unwrap(),
            image: fs::read(path.with_extension("img")).unwrap(),
        })
        .collect();
    vectors.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(vectors.len(), 12);
    vectors
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The sidecars' formula for an item's bytes.
fn payload(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|k| ((seed * 31 + k * 7 + (k >> 8) * 13) & 0xff) as u8).collect()
}

#[test]
fn images_of_the_ocaml_program_read_as_recorded() {
    for vector in vectors() {
        let file = vector.file();
        let mut consumer = file.consumer().unwrap();
        let info = consumer.debug_info().unwrap();
        let name = &vector.name;
        assert_eq!(u64::from(info.sector_size), vector.number("sector_size"), "{name}");
        assert_eq!(info.total_sectors, vector.number("total_sectors"), "{name}");
        assert_eq!(info.capacity, vector.number("data_bytes"), "{name}");
        assert_eq!(info.producer.get(), vector.number("producer_offset"), "{name}");
        assert_eq!(info.consumer.get(), vector.number("consumer_offset"), "{name}");
        assert_eq!(info.used, vector.number("used_bytes"), "{name}");
        assert_eq!(info.suspend, vector.json["suspend"], "{name}");
        assert_eq!(info.suspend_ack, vector.json["suspend_ack"], "{name}");
        assert_eq!(info.producer_text, vector.text("producer_debug_text"), "{name}");
        assert_eq!(info.consumer_text, vector.text("consumer_debug_text"), "{name}");
        assert_eq!(info.uuid, None, "{name}");
        let start = consumer.position();
        let (_, found) = consumer
            .fold(start, Vec::new(), |mut all, item| {
                all.push((item.next.get(), item.bytes.to_vec()));
                all
            })
            .unwrap();
        assert_eq!(found, vector.items(), "{name}");
        assert_eq!(file.bytes(), vector.image, "{name}: reading changed the image");
    }
}

#[test]
fn producer_continues_images_of_the_ocaml_program() {
    for vector in vectors() {
        let file = vector.file();
        let mut producer = file.producer().unwrap();
        assert_eq!(producer.position().get(), vector.number("producer_offset"), "{}", vector.name);
        let suspended = vector.json["suspend"] == true;
        assert_eq!(
            producer.state().unwrap(),
            if suspended { State::Suspended } else { State::Running }
        );
        let mut consumer = file.consumer().unwrap();
        assert_eq!(consumer.state().unwrap(), producer.state().unwrap(), "{}", vector.name);
        if suspended {
            consumer.resume().unwrap();
        }
        let start = consumer.position();
        let (end, ()) = consumer.fold(start, (), |(), _| ()).unwrap();
        consumer.advance(end).unwrap();
        let end = producer.push("more").unwrap();
        producer.advance(end).unwrap();
        assert_eq!(consumer.pop(consumer.position()).unwrap().bytes, b"more", "{}", vector.name);
    }
}

/// The two handles that a sidecar's operations go through.
struct Replay<'a> {
    vector: &'a Vector,
    file: RingFile,
    producer: Option<Producer<FileDevice>>,
    consumer: Option<Consumer<FileDevice>>,
}

impl Replay<'_> {
    fn run(&mut self, operation: &Value) {
        let name = operation["op"].as_str().unwrap();
        let number = |key: &str| operation[key].as_u64().unwrap();
        let expected = operation["result"].as_str().unwrap_or("ok");
        let owner = |key: &str| operation[key].as_str().unwrap().to_owned();
        match name {
            "truncate" => fs::write(&self.file.path, vec![0; number("bytes") as usize]).unwrap(),
            "create" => {
                create(&self.file.open(), CreateOptions::new().plain(true)).unwrap();
            }
            "producer_attach" => {
                let device = self.file.open();
                self.producer =
                    Some(Producer::attach(device, &owner("queue"), &owner("client")).unwrap());
            }
            "consumer_attach" => {
                let device = self.file.open();
                self.consumer =
                    Some(Consumer::attach(device, &owner("queue"), &owner("client")).unwrap());
            }
            "push" => {
                let item = payload(number("seed"), number("len"));
                let producer = self.producer.as_mut().unwrap();
                match producer.push(&item) {
                    Ok(position) => {
                        producer.flush().unwrap();
                        assert_eq!(expected, "ok");
                        assert_eq!(position.get(), number("position"));
                    }
                    Err(Error::TooLarge { needed, .. }) => {
                        let text = format!(
                            "Msg: The ring is too small for a message of size {needed} bytes"
                        );
                        assert_eq!(expected, text);
                    }
                    Err(e) => assert_eq!(word(&e), expected, "{}: {operation}", self.vector.name),
                }
            }
            "producer_advance" => {
                let to = Position::new(number("position")).unwrap();
                self.producer.as_mut().unwrap().advance(to).unwrap();
            }
            "pop_and_consumer_advance" => {
                let consumer = self.consumer.as_mut().unwrap();
                let item = consumer.pop(consumer.position()).unwrap();
                assert_eq!(item.bytes.len() as u64, number("len"));
                assert_eq!(item.next.get(), number("position"));
                let next = item.next;
                consumer.advance(next).unwrap();
            }
            "consumer_suspend" => same(self.consumer.as_mut().unwrap().suspend(), expected),
            "consumer_resume" => same(self.consumer.as_mut().unwrap().resume(), expected),
            "consumer_state" => {
                assert_eq!(
                    format!("{:?}", self.consumer.as_mut().unwrap().state().unwrap()),
                    expected
                );
            }
            "producer_state" => {
                assert_eq!(
                    format!("{:?}", self.producer.as_mut().unwrap().state().unwrap()),
                    expected
                );
            }
            other => panic!("{}: unknown operation {other}", self.vector.name),
        }
    }
}

fn word(e: &Error) -> &'static str {
    match e {
        Error::Retry => "Retry",
        Error::Suspended => "Suspended",
        _ => "other",
    }
}

fn same(result: Result<(), Error>, expected: &str) {
    match result {
        Ok(()) => assert_eq!(expected, "ok"),
        Err(e) => assert_eq!(word(&e), expected),
    }
}

/// Sectors 0 to 2, and every byte that some item's header or payload covers.
fn compared(vector: &Vector, image: &[u8]) -> Vec<u8> {
    let size = vector.number("sector_size");
    let capacity = vector.number("data_bytes");
    let mut bytes = image[..3 * size as usize].to_vec();
    let mut at = vector.number("consumer_offset");
    for (end, item) in vector.items() {
        bytes.extend(
            (at..at + 4 + item.len() as u64).map(|o| image[(3 * size + o % capacity) as usize]),
        );
        at = end;
    }
    for hex in vector.json["pushed_not_advanced_hex"].as_array().unwrap() {
        let len = hex.as_str().unwrap().len() as u64 / 2;
        bytes.extend((at..at + 4 + len).map(|o| image[(3 * size + o % capacity) as usize]));
        at += (len + 7) & !3;
    }
    bytes
}

/// The images made by the journal and by the original's command line, as the operations they come
/// down to.
fn operations(vector: &Vector) -> Vec<Value> {
    let mut replaced = Vec::new();
    let (queue, client) = match vector.name.as_str() {
        "l-journal-crashed" => ("golden-journal", "golden-l"),
        "o-cli" => ("unknown", "unknown"),
        _ => return vector.json["operations"].as_array().unwrap().clone(),
    };
    replaced.push(serde_json::json!({"op": "truncate", "bytes": vector.number("total_bytes")}));
    replaced.push(serde_json::json!({"op": "create"}));
    replaced.push(serde_json::json!({"op": "producer_attach", "queue": queue, "client": client}));
    replaced
}

#[test]
fn operations_write_the_bytes_that_the_ocaml_program_writes() {
    for vector in vectors() {
        let file = RingFile::blank(0, vector.number("sector_size") as u32);
        let mut replay = Replay { vector: &vector, file, producer: None, consumer: None };
        for operation in operations(&vector) {
            replay.run(&operation);
        }
        if matches!(vector.name.as_str(), "l-journal-crashed" | "o-cli") {
            let producer = replay.producer.as_mut().unwrap();
            for (end, item) in vector.items() {
                let position = producer.push(&item).unwrap();
                assert_eq!(position.get(), end);
                producer.advance(position).unwrap();
            }
        }
        let (ours, theirs) = (replay.file.bytes(), &vector.image);
        assert!(compared(&vector, &ours) == compared(&vector, theirs), "{} differs", vector.name);
    }
}
