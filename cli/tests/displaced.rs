//! A ring that is replaced, removed, moved or resized under a running program, which must notice.
#![allow(clippy::unwrap_used)]

use ring_test_support::backend::{Backend, Word};
use ring_test_support::process::{PATIENCE, ended, eventually};
use ring_test_support::{RingFile, assert_fails};
use shared_block_ring::device::{DeviceError, Displaced, Sleep};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{
    Journal, JournalError, JournalOptions, OpenOptions, RingDevice, UnixDevice,
};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn displaced(device: &impl RingDevice) -> Option<Displaced> {
    let error = device.check_presence().err()?;
    assert!(error.to_string().contains("cannot go on with the ring"), "{error}");
    Displaced::of(&error).cloned()
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{arguments:?}");
}

#[test]
fn untouched_ring_is_check_presence() {
    let ring = RingFile::new(16384, 512);
    let device = ring.open();
    assert_eq!(displaced(&device), None);
    // Changes beside the ring are not noticed.
    fs::hard_link(&ring.path, ring.path.with_extension("other")).unwrap();
    fs::remove_file(ring.path.with_extension("other")).unwrap();
    assert_eq!(displaced(&device), None);
}

#[test]
fn removed_ring_is_noticed() {
    let ring = RingFile::new(16384, 512);
    let device = ring.open();
    fs::remove_file(&ring.path).unwrap();
    assert_eq!(displaced(&device), Some(Displaced::Removed));
}

#[test]
fn moved_ring_is_noticed_with_its_new_path() {
    let ring = RingFile::new(16384, 512);
    let (device, new) = (ring.open(), ring.path.with_extension("moved"));
    fs::rename(&ring.path, &new).unwrap();
    assert_eq!(displaced(&device), Some(Displaced::Moved { now: Some(new.clone()) }));
    fs::copy(&new, &ring.path).unwrap();
    assert_eq!(displaced(&device), Some(Displaced::Replaced { now: Some(new.clone()) }));
    fs::rename(&new, &ring.path).unwrap();
    assert_eq!(displaced(&device), None, "it is back");
    // A hard link is a path, too.
    fs::hard_link(&ring.path, &new).unwrap();
    fs::remove_file(&ring.path).unwrap();
    assert!(matches!(displaced(&device), Some(Displaced::Moved { .. })));
}

#[test]
fn moved_folder_is_noticed() {
    let ring = RingFile::blank(0, 512);
    let folder = ring.path.parent().unwrap().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("ring"), vec![0; 16384]).unwrap();
    let device = OpenOptions::default().open(folder.join("ring")).unwrap();
    fs::rename(&folder, folder.with_extension("moved")).unwrap();
    assert!(matches!(displaced(&device), Some(Displaced::Moved { .. })));
}

#[test]
fn retargeted_link_is_noticed() {
    let ring = RingFile::new(16384, 512);
    let (other, link) = (ring.path.with_extension("other"), ring.path.with_extension("link"));
    fs::copy(&ring.path, &other).unwrap();
    std::os::unix::fs::symlink(&ring.path, &link).unwrap();
    let device = OpenOptions::default().open(&link).unwrap();
    assert_eq!(displaced(&device), None);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    assert_eq!(displaced(&device), Some(Displaced::Replaced { now: Some(ring.path.clone()) }));
}

#[test]
fn grown_or_truncated_ring_is_noticed() {
    let ring = RingFile::new(16384, 512);
    let device = ring.open();
    let file = fs::OpenOptions::new().write(true).open(&ring.path).unwrap();
    for to in [32768, 16385, 512, 0] {
        file.set_len(to).unwrap();
        assert_eq!(displaced(&device), Some(Displaced::Resized { from: 16384, to }));
    }
}

#[test]
fn ring_that_never_had_a_name_is_check_presence() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(16384).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let device = OpenOptions::default().open(Path::new(&path)).unwrap();
    assert_eq!(displaced(&device), None);
}

#[test]
fn wait_ends_when_the_ring_is_removed() {
    let ring = RingFile::new(16384, 512);
    let consumer = ring.consumer().unwrap();
    fs::remove_file(&ring.path).unwrap();
    for spin in [Duration::ZERO, PATIENCE] {
        let mut wait = Wait::new(Side::Producer, Some(PATIENCE)).spin(spin);
        let ended: DeviceError = loop {
            match wait.pause(consumer.device(), &[]) {
                Ok(woken) => assert_eq!(woken, Woken::Elapsed),
                Err(e) => break e,
            }
        };
        assert_eq!(Displaced::of(&ended), Some(&Displaced::Removed));
    }
}

#[test]
fn journal_fails_when_its_ring_is_removed() {
    let ring = RingFile::new(65536, 512);
    let options = JournalOptions::new(|_| Ok(()));
    let perform = |_: &[String]| Ok::<(), String>(());
    let journal = Journal::start(ring.open(), options, perform).unwrap();
    journal.push(&"entry".to_owned()).unwrap();
    journal.check_presence().unwrap();
    fs::remove_file(&ring.path).unwrap();
    let start = Instant::now();
    let error = loop {
        assert!(start.elapsed() < PATIENCE, "no push has noticed");
        if let Err(e) = journal.push(&"entry".to_owned()) {
            break e;
        }
    };
    assert!(matches!(error, JournalError::Failed(_)), "{error}");
    assert!(error.to_string().contains("removed"), "{error}");
    assert!(matches!(journal.check_presence(), Err(JournalError::Failed(_))));
}

fn spawn(ring: &RingFile, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockring"));
    command.args(arguments).current_dir(ring.path.parent().unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for the end of a program whose ring was removed.
fn assert_noticed(child: Child, words: &[&str]) -> Output {
    let output = ended(child, "a program without its ring");
    for words in words {
        assert_fails(&output, 1, words);
    }
    output
}

/// Waits until the ring has a producer or consumer.
fn wait_for_role(ring: &RingFile, side: Side) {
    let device = ring.open();
    eventually("the role is held", || shared_block_ring::device::holder(&device, side).is_some());
}

#[test]
fn idle_consume_ends_when_its_ring_is_replaced() {
    let ring = RingFile::new(65536, 512);
    let child = spawn(&ring, &["consume", "--follow", "ring.img"]);
    wait_for_role(&ring, Side::Consumer);
    let new = ring.path.with_extension("new");
    fs::copy(&ring.path, &new).unwrap();
    fs::rename(&new, &ring.path).unwrap();
    assert_noticed(child, &["ring.img", "removed"]);
}

#[test]
fn idle_produce_ends_when_its_ring_is_removed_and_names_items_in_doubt() {
    let ring = RingFile::new(65536, 512);
    let mut child = spawn(&ring, &["produce", "ring.img"]);
    let input = child.stdin.take();
    wait_for_role(&ring, Side::Producer);
    fs::remove_file(&ring.path).unwrap();
    assert_noticed(child, &["removed", "item 1 of the input (from byte 0)"]);
    drop(input);
}

#[test]
fn busy_programs_end_when_their_ring_is_removed() {
    let ring = RingFile::new(1 << 20, 512);
    let mut producer = spawn(&ring, &["produce", "--no-flush", "ring.img"]);
    let mut consumer = spawn(&ring, &["consume", "--follow", "--no-flush", "ring.img"]);
    let mut input = producer.stdin.take().unwrap();
    let writer = std::thread::spawn(move || while input.write_all(&[b'\n'; 4096]).is_ok() {});
    let mut lines = BufReader::new(consumer.stdout.take().unwrap());
    lines.read_until(b'\n', &mut Vec::new()).unwrap();
    fs::remove_file(&ring.path).unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    assert_noticed(producer, &["removed"]);
    assert_noticed(consumer, &["removed"]);
    writer.join().unwrap();
    reader.join().unwrap().unwrap();
}

#[test]
fn produce_into_a_removed_ring_fails() {
    let ring = RingFile::new(65536, 512);
    let mut child = spawn(&ring, &["produce", "ring.img"]);
    wait_for_role(&ring, Side::Producer);
    fs::remove_file(&ring.path).unwrap();
    // At once, before the program looks by itself.
    child.stdin.take().unwrap().write_all(b"one\n").unwrap();
    assert_noticed(child, &["removed", "item 1 of the input (from byte 0)"]);
}

#[test]
fn waiting_journal_ends_when_its_ring_is_removed() {
    let ring = RingFile::new(65536, 512);
    let mut child = spawn(&ring, &["journal", "--exec", "cat >&2", "ring.img"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    wait_for_role(&ring, Side::Producer);
    fs::remove_file(&ring.path).unwrap();
    assert_noticed(child, &["removed"]);
}

#[test]
fn full_ring_that_is_truncated_ends_produce() {
    let ring = RingFile::new(16384, 512);
    let mut child = spawn(&ring, &["produce", "ring.img"]);
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || while input.write_all(&[b'\n'; 4096]).is_ok() {});
    eventually("something is published", || ring.bytes()[512..520] != [0; 8]);
    fs::File::options().write(true).open(&ring.path).unwrap().set_len(1024).unwrap();
    let output = assert_noticed(child, &["ring.img"]);
    assert!(output.stdout.is_empty());
    writer.join().unwrap();
}

#[test]
fn mount_over_a_ring_is_noticed() {
    // As root.
    let ring = RingFile::new(65536, 512);
    let other = ring.path.with_extension("other");
    fs::copy(&ring.path, &other).unwrap();
    let device = ring.open();
    run("mount", &["--bind", other.to_str().unwrap(), ring.path.to_str().unwrap()]);
    let found = displaced(&device);
    run("umount", &[ring.path.to_str().unwrap()]);
    assert!(matches!(found, Some(Displaced::Replaced { .. })), "{found:?}");
    assert_eq!(displaced(&device), None);
}

/// Has `device`, whose backend is gone, find the backend of `ring` in its place.
fn find_again(device: &UnixDevice, ring: &RingFile, socket: &Path) -> Result<Woken, DeviceError> {
    let backend = Backend::new(ring, Word::Guarded);
    fs::rename(ring.path.with_extension("socket"), socket).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| backend.serve());
        Sleep::sleep(device, &[], Some(Instant::now() + PATIENCE))
    })
}

#[test]
fn backend_that_comes_back_with_another_ring_is_refused() {
    let (ring, other) = (RingFile::new(65536, 512), RingFile::new(65536, 512));
    let backend = Backend::new(&ring, Word::Guarded);
    let device = backend.connect(Role::Consumer);
    drop(backend);
    let error = find_again(&device, &other, &ring.path.with_extension("socket")).unwrap_err();
    assert_eq!(Displaced::of(&error), Some(&Displaced::AnotherRing));
}

#[test]
fn backend_that_comes_back_with_a_copy_of_the_ring_is_the_same() {
    let (ring, other) = (RingFile::new(65536, 512), RingFile::new(65536, 512));
    fs::copy(&ring.path, &other.path).unwrap();
    let backend = Backend::new(&ring, Word::Guarded);
    let device = backend.connect(Role::Consumer);
    assert_eq!(displaced(&device), None);
    drop(backend);
    let socket = ring.path.with_extension("socket");
    assert_eq!(find_again(&device, &other, &socket).unwrap(), Woken::Elapsed);
    // From now on the device checks the file of the new backend.
    fs::remove_file(&other.path).unwrap();
    assert_eq!(displaced(&device), Some(Displaced::Removed));
}
