//! `examples/async_shipper.rs` and `examples/async_collector.rs`: datagrams become lines.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use ring_test_support::process::{PATIENCE, example};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn datagrams_of_two_sockets_become_lines_of_two_rings_in_order() {
    const EACH: usize = 2000;
    let (shipper, collector) = (example("async_shipper"), example("async_collector"));
    let dir = tempfile::tempdir().unwrap();
    let rings = [RingFile::new(64 << 10, 512), RingFile::new(64 << 10, 512)];
    let sockets = ["one", "two"].map(|name| dir.path().join(name));
    let mut collecting = Command::new(collector)
        .args(rings.iter().map(|ring| &ring.path))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = collecting.stdout.take().unwrap();
    let _collecting = Running(collecting);
    let (line, lines) = mpsc::channel();
    thread::spawn(move || {
        for read in BufReader::new(output).lines() {
            if line.send(read.unwrap()).is_err() {
                break;
            }
        }
    });
    let _shipping = rings.each_ref().map(|ring| {
        let socket = &sockets[usize::from(ring.path == rings[1].path)];
        let command = Command::new(&shipper).arg(socket).arg(&ring.path).spawn();
        Running(command.unwrap())
    });
    thread::scope(|scope| {
        for socket in &sockets {
            scope.spawn(move || {
                let sender = UnixDatagram::unbound().unwrap();
                let end = Instant::now() + PATIENCE;
                while let Err(e) = sender.connect(socket) {
                    assert!(Instant::now() < end, "{e}");
                    thread::sleep(Duration::from_millis(5));
                }
                for number in 0..EACH {
                    sender.send(number.to_string().as_bytes()).unwrap();
                }
            });
        }
        let mut next = BTreeMap::new();
        for _ in 0..2 * EACH {
            let line = lines.recv_timeout(PATIENCE).unwrap();
            let (ring, number) = line.split_once('\t').unwrap();
            let expected = next.entry(ring.to_owned()).or_insert(0);
            assert_eq!(number, expected.to_string());
            *expected += 1;
        }
        assert!(next.values().all(|&count| count == EACH), "{next:?}");
    });
}
