#![allow(clippy::unwrap_used)]
use super::super::scene::{TestLane, ring};
use super::*;
use serde_json::Value;
use shared_block_ring::Position;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// A folder for journal files; the sink's programs are the real ones.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn sink(&self, remote: Option<PathBuf>) -> Files {
        let gather = Some(Duration::ZERO);
        let options = JournaldOptions { journal_socket: None, journal_remote: remote, gather };
        Files::new(self.0.path(), &options).unwrap()
    }

    /// Returns what journalctl shows of all files.
    fn records(&self) -> Vec<Value> {
        let shown = Command::new("journalctl")
            .args(["--directory", self.0.path().to_str().unwrap(), "--output=json", "--all"])
            .args(["--no-pager", "--quiet"])
            .output()
            .unwrap();
        assert!(shown.status.success(), "{shown:?}");
        let text = String::from_utf8(shown.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the messages of all records.
    fn messages(&self) -> Vec<String> {
        self.records().iter().map(|record| record["MESSAGE"].as_str().unwrap().to_owned()).collect()
    }

    /// Makes a program that runs the script, in which `remote` is the real program.
    fn script(&self, script: &str) -> PathBuf {
        let path = self.0.path().join("remote.sh");
        let real = find_remote().unwrap();
        let text = format!("#!/bin/bash\nremote={}\n{script}\n", real.display());
        // Written by another process: a descriptor of this one, copied by a child that another test
        // starts meanwhile, would make the file busy.
        let written = Command::new("sh")
            .args(["-c", "printf %s \"$1\" > \"$2\"", "sh", &text, path.to_str().unwrap()])
            .status();
        assert!(written.unwrap().success());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| format!("item {number}")).collect()
}

fn position(items: u64) -> Position {
    Position::new(items * 64).unwrap()
}

#[test]
fn names_of_files_are_plain_and_distinct() {
    assert_eq!(stem("vm1"), "remote-vm1");
    assert_eq!(stem("a b@c*%é"), "remote-a%20b%40c%2A%25%C3%A9");
}

#[test]
fn items_are_in_the_ring_s_journal_once_and_in_order() {
    let folder = Folder::new();
    let mut sink = folder.sink(None);
    let vm = ring("vm 1*");
    let (mut lane, arrived) = TestLane::ready(&mut sink, &vm);
    assert_eq!(arrived, None);
    for part in 0..5 {
        let end = lane.send(&numbers(part * 100..part * 100 + 100));
        if part % 2 == 0 {
            lane.await_arrival(end);
        }
    }
    drop((lane, sink));
    let (mut lane, arrived) = TestLane::ready(&mut folder.sink(None), &vm);
    assert_eq!(arrived, Some(position(500)));
    assert!(folder.0.path().join("remote-vm%201%2A.journal").exists());
    assert_eq!(folder.messages(), numbers(0..500));
    for record in folder.records() {
        assert_eq!(
            (&record["_HOSTNAME"], &record["BLOCKRING_RING"]),
            (&"vm 1*".into(), &"vm 1*".into())
        );
        assert_eq!(record["__REALTIME_TIMESTAMP"], "1700000000000000");
    }
    // The sink has ended: a lane that is left does nothing, and does not fail.
    lane.send(&["late"]);
}

#[test]
fn rings_have_files_and_positions_of_their_own() {
    let folder = Folder::new();
    let mut sink = folder.sink(None);
    let mut other = ring("b");
    other.uuid = uuid::Uuid::from_u128(8);
    let (mut a, _) = TestLane::ready(&mut sink, &ring("a"));
    let (mut b, _) = TestLane::ready(&mut sink, &other);
    let (end_a, end_b) = (a.send(&numbers(0..3)), b.send(&numbers(3..10)));
    a.await_arrival(end_a);
    b.await_arrival(end_b);
    drop((a, b));
    assert_eq!(TestLane::ready(&mut sink, &ring("a")).1, Some(end_a));
    // Another ring of the same name begins anew in the same file.
    other.name = "a".to_owned();
    let (mut lane, arrived) = TestLane::ready(&mut sink, &other);
    assert_eq!(arrived, None);
    let end = lane.send(&["new"]);
    lane.await_arrival(end);
    assert_eq!(folder.records().len(), 11);
}

#[test]
fn entries_keep_their_fields_and_bytes() {
    let folder = Folder::new();
    let mut sink = folder.sink(None);
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    let entry =
        b"MESSAGE=from the guest\nPRIORITY=3\n_PID=42\n_HOSTNAME=forged\nBLOCKRING_RING=forged\n\
                  BYTES\n\x05\0\0\0\0\0\0\0a\n\0\xffb\n\n";
    let end = lane.send(&[&entry[..], b"", b"a\0\n\xff", &vec![b'x'; 300_000]]);
    lane.await_arrival(end);
    let records = folder.records();
    let first = &records[0];
    for (name, value) in [
        ("MESSAGE", "from the guest"),
        ("PRIORITY", "3"),
        ("_PID", "42"),
        ("_HOSTNAME", "vm1"),
        ("GUEST_HOSTNAME", "forged"),
        ("BLOCKRING_RING", "vm1"),
        ("GUEST_BLOCKRING_RING", "forged"),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    assert_eq!(first["BYTES"], serde_json::json!([97, 10, 0, 255, 98]));
    assert_eq!(records[1]["MESSAGE"], "");
    assert_eq!(records[2]["MESSAGE"], serde_json::json!([97, 0, 10, 255]));
    assert_eq!(records[3]["MESSAGE"].as_str().unwrap().len(), 300_000);
}

#[test]
fn killed_program_leaves_a_part_that_is_not_repeated() {
    let folder = Folder::new();
    // The program is killed behind some part of its input, which it has read by then but for what a
    // pipe holds, until there is a file `end`.
    let script = folder.script(
        "[ -e end ] && exec $remote \"$@\"\nmkfifo feed; $remote \"$@\" <feed & child=$!\n\
         exec 3>feed; rm feed; head -c $((200000 + RANDOM * 40)) >&3\n\
         kill -KILL $child; wait $child",
    );
    let total = 20_000;
    let (mut parts, mut lanes) = (0, 0);
    loop {
        lanes += 1;
        let mut sink = folder.sink(Some(script.clone()));
        let (mut lane, arrived) = TestLane::ready(&mut sink, &ring("vm1"));
        let done = arrived.map_or(0, |position| position.get() / 64);
        parts += u64::from(done > 0 && done < total);
        if done == total {
            break;
        }
        if lanes == 15 {
            std::fs::write(folder.0.path().join("end"), "").unwrap();
        }
        let end = lane.send(&numbers(done..total));
        loop {
            match lane.event() {
                Event::Acknowledged(position) if position == end => break,
                Event::Acknowledged(_) => {}
                Event::Failed(error) => {
                    assert_eq!(error.kind, SinkErrorKind::Retry, "{error}");
                    assert!(
                        error.message.contains("signal: 9")
                            || error.message.contains("status: 137"),
                        "{error}"
                    );
                    break;
                }
                Event::Ready { .. } | Event::Trouble { .. } => panic!("{done} of {total}"),
            }
        }
    }
    assert!(parts > 0, "no kill came in the middle");
    let messages = folder.messages();
    let odd = messages.iter().zip(numbers(0..total)).find(|(there, expected)| *there != expected);
    assert_eq!((odd, messages.len() as u64), (None, total));
}

#[test]
fn program_that_outlives_its_forwarder_is_waited_for() {
    let folder = Folder::new();
    let script =
        folder.script("touch started; while [ ! -e go ]; do sleep 0.01; done\nexec $remote \"$@\"");
    let mut sink = folder.sink(Some(script));
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    lane.send(&numbers(0..10));
    while !folder.0.path().join("started").exists() {
        std::thread::yield_now();
    }
    // The lane's own lock is gone with it, as after a kill; the program has it still.
    drop((lane, sink));
    let mut sink = folder.sink(None);
    let lane = TestLane::open(&mut sink, &ring("vm1"));
    assert!(lane.is_silent());
    std::fs::write(folder.0.path().join("go"), "").unwrap();
    let Event::Ready { arrived } = lane.event() else { panic!("not ready") };
    assert_eq!(arrived.map(|arrived| arrived.position), Some(position(10)));
    assert_eq!(folder.messages(), numbers(0..10));
}

#[test]
fn success_without_all_records_acknowledges_what_is_there() {
    let folder = Folder::new();
    let script = folder.script("head -c 2000 | $remote \"$@\"");
    let mut sink = folder.sink(Some(script));
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    lane.send(&numbers(0..100));
    let Event::Acknowledged(part) = lane.event() else { panic!("nothing acknowledged") };
    assert!(part > position(0) && part < position(100));
    let Event::Failed(error) = lane.event() else { panic!("not failed") };
    assert!(error.message.contains("disk full"), "{error}");
    assert_eq!(folder.messages(), numbers(0..part.get() / 64));
}

#[test]
fn file_left_open_before_a_boot_of_the_host_proves_nothing() {
    let folder = Folder::new();
    let mut sink = folder.sink(None);
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    let end = lane.send(&numbers(0..10));
    lane.await_arrival(end);
    drop((lane, sink));
    let path = folder.0.path().join("remote-vm1.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[16], 0, "the program closes its file");
    let archive = |boot: &str| Archive {
        folder: folder.0.path().to_owned(),
        journalctl: Program::new(find_in_path(JOURNALCTL).unwrap()),
        host_boot: boot.to_owned(),
    };
    let this = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let this = this.trim().replace('-', "");
    let arrived = |boot: &str| archive(boot).durable("remote-vm1", ring("vm1").uuid).unwrap();
    assert_eq!((arrived(&this), arrived("another")), (Some(end), Some(end)));
    bytes[16] = 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!((arrived(&this), arrived("another")), (Some(end), None));
}

#[test]
fn what_is_missing_is_named() {
    let folder = Folder::new();
    let missing = folder.0.path().join("none");
    let options = JournaldOptions::default();
    let refused = Files::new(&missing, &options).err().unwrap().to_string();
    assert!(refused.contains("make it first"), "{refused}");
    let mut sink = folder.sink(Some(missing));
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    lane.send(&["x"]);
    let Event::Failed(error) = lane.event() else { panic!("not failed") };
    assert!(error.message.contains("cannot be started"), "{error}");
    let lane = TestLane::open(&mut sink, &ring(&"n".repeat(200)));
    let Event::Failed(error) = lane.event() else { panic!("not failed") };
    assert!(error.kind == SinkErrorKind::Stop && error.message.contains("too long"), "{error}");
}
