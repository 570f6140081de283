//! The scripted scenario in C, with kills of both ends: `scenario.c`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{C, CPP, Linked, compile, here, link, run};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

const ITEMS: &str = "10000";

/// A ring in a folder, and the program that uses it.
struct Scenario {
    folder: TempDir,
    program: PathBuf,
}

impl Scenario {
    fn new(compiler: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        link(folder.path());
        let source = here("tests/scenario.c");
        let program = compile(&source, compiler, Linked::Static, folder.path());
        let scenario = Self { folder, program };
        let ring = scenario.path("ring");
        assert_eq!(run(scenario.command().arg("create").arg(ring).arg("65536")), "");
        scenario
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        Command::new(&self.program)
    }

    fn produce(&self) -> Child {
        let mut command = self.command();
        command.arg("produce").arg(self.path("ring")).arg(ITEMS);
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    fn consume(&self) -> Child {
        let mut command = self.command();
        command.arg("consume").arg(self.path("ring")).arg(ITEMS).arg(self.path("state"));
        command.arg("5000").stdout(Stdio::piped()).spawn().unwrap()
    }
}

fn end(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the checksum of all items, in the words of the scenario.
fn checksum() -> u64 {
    let items: u64 = ITEMS.parse().unwrap();
    let mut checksum: u64 = 0xcbf2_9ce4_8422_2325;
    for n in 0..items {
        let letter = char::from(b'a' + u8::try_from(n % 26).unwrap());
        let letters = String::from(letter).repeat(usize::try_from(n * 7 % 101).unwrap());
        let item = format!("{n}:{letters}");
        let length = u32::try_from(item.len()).unwrap().to_le_bytes();
        for byte in length.iter().chain(item.as_bytes()) {
            checksum = (checksum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    checksum
}

#[test]
fn items_arrive_once_each_though_the_ring_is_small_and_is_suspended() {
    let scenario = Scenario::new(&C);
    let (producer, consumer) = (scenario.produce(), scenario.consume());
    assert_eq!(end(producer), format!("produced {ITEMS}\n"));
    assert_eq!(end(consumer), format!("consumed {ITEMS} {:016x}\n", checksum()));
}

#[test]
fn items_arrive_once_each_though_both_ends_are_killed_again_and_again() {
    let scenario = Scenario::new(&CPP);
    let mut ends = [scenario.produce(), scenario.consume()];
    for kill in 0..40 {
        sleep(Duration::from_millis(1 + kill % 7));
        let which = usize::try_from(kill % 2).unwrap();
        ends[which].kill().unwrap();
        ends[which].wait().unwrap();
        ends[which] = if which == 0 { scenario.produce() } else { scenario.consume() };
    }
    let [producer, consumer] = ends;
    assert_eq!(end(producer), format!("produced {ITEMS}\n"));
    assert_eq!(end(consumer), format!("consumed {ITEMS} {:016x}\n", checksum()));
}

#[test]
fn producer_of_an_older_ring_is_superseded_and_goes_on() {
    let scenario = Scenario::new(&C);
    let ring: &Path = &scenario.path("ring");
    assert_eq!(run(scenario.command().arg("superseded").arg(ring)), "superseded\n");
}

#[test]
fn failure_is_a_name_and_a_text() {
    let scenario = Scenario::new(&C);
    let output = scenario.command().args(["produce", "/no/such/ring", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("device: /no/such/ring: "), "{text}");
}
