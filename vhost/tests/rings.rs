//! A daemon of many rings: each has its own guest and its own host, and none is in another one's
//! way.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::{Daemon, Scene};
use crate::common::fuse::FuseFile;
use crate::confinement::cannot_truncate;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use ring_test_support::front_end::{FrontEnd, MEMORY};
use ring_test_support::process::eventually;
use serde_json::{Value, json};
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, UnixDevice};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

/// Longer than any answer takes, on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// A folder with a daemon of many rings, each of which has a folder of its own for its file and
/// sockets.
struct Rings {
    scene: Scene,
}

impl Rings {
    fn new(names: &[&str]) -> Self {
        let rings = Self { scene: Scene::new() };
        fs::create_dir(rings.scene.path("rings.d")).unwrap();
        for name in names {
            rings.configure(name, "");
        }
        rings
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.scene.path(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scene.path("rings.d").join(format!("{name}.toml"))
    }

    /// Returns the text of a ring's file, with more lines.
    fn text(&self, name: &str, more: &str) -> String {
        let folder = self.folder(name);
        fs::create_dir_all(&folder).unwrap();
        let path = |file: &str| folder.join(file).display().to_string();
        format!(
            "socket-path = {:?}\nblk-file = {:?}\nconsumer-socket = {:?}\nsize = \"64K\"\n{more}",
            path("s"),
            path("ring"),
            path("c")
        )
    }

    fn configure(&self, name: &str, more: &str) {
        fs::write(self.file(name), self.text(name, more)).unwrap();
    }

    fn spawn(&self, more: &[&str]) -> Daemon {
        let control = format!("unix:{}", self.scene.path("control").display());
        let usual = ["--config", "rings.d", "--control", &control];
        let log = File::options().create(true).append(true).open(self.scene.path("log")).unwrap();
        Daemon(self.scene.command(&usual).args(more).stderr(log).spawn().unwrap())
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let before = self.scene.path("log").exists().then(|| self.scene.logged("threads; the"));
        let daemon = self.spawn(more);
        eventually("the rings are served", || {
            self.scene.logged("threads; the") > before.unwrap_or(0)
        });
        daemon
    }

    fn call(&self, method: &str, parameters: &Value) -> Value {
        let mut stream = UnixStream::connect(self.scene.path("control")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let method = format!("io.blockring.Rings.{method}");
        let call = json!({ "method": method, "parameters": parameters }).to_string();
        stream.write_all(format!("{call}\0").as_bytes()).unwrap();
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while stream.read(&mut byte).unwrap() == 1 && byte[0] != 0 {
            answer.push(byte[0]);
        }
        serde_json::from_slice(&answer).unwrap()
    }

    /// Makes a call that must be answered without an error.
    fn done(&self, method: &str, parameters: &Value) -> Value {
        let mut answer = self.call(method, parameters);
        assert!(answer.get("error").is_none(), "{method} {parameters}: {answer}");
        answer["parameters"].take()
    }

    fn refused(&self, method: &str, parameters: &Value) -> String {
        let answer = self.call(method, parameters);
        assert!(answer.get("error").is_some(), "{method} {parameters}: {answer}");
        answer.to_string()
    }

    /// The states of all rings, by their names.
    fn states(&self) -> Vec<(String, String)> {
        let rings = self.done("List", &json!({}))["rings"].take();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let states = rings
            .as_array()
            .unwrap()
            .iter()
            .map(|ring| (text(&ring["name"]), text(&ring["state"])));
        states.collect()
    }

    fn guest(&self, name: &str) -> FrontEnd {
        FrontEnd::new(&self.folder(name))
    }

    /// Has the ring's guest publish an item, and a process on the host take it.
    fn carries(&self, name: &str, guest: &mut FrontEnd, item: &str) {
        guest.publish(item);
        assert_eq!(self.take(name), [item]);
    }

    /// Takes all items as the process on the host.
    fn take(&self, name: &str) -> Vec<String> {
        let device = UnixDevice::connect(self.folder(name).join("c"), Role::Consumer).unwrap();
        let mut consumer = Consumer::attach(device, "test", "test").unwrap();
        let mut items = Vec::new();
        let mut position = consumer.position();
        while let Ok(item) = consumer.pop(position) {
            items.push(String::from_utf8(item.bytes.to_vec()).unwrap());
            position = item.next;
        }
        consumer.advance(position).unwrap();
        items
    }
}

/// The process that does the work: the daemon's only child.
fn data_process(daemon: &Daemon) -> i32 {
    let children = format!("/proc/{0}/task/{0}/children", daemon.0.id());
    let children = fs::read_to_string(children).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

fn ends_well(mut daemon: Daemon) {
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
}

fn leaves_nothing(rings: &Rings, name: &str) {
    for socket in ["s", "c"] {
        assert!(!rings.folder(name).join(socket).exists(), "{name}: {socket}");
    }
}

#[test]
fn each_ring_carries_its_own_items() {
    let names: Vec<_> = (0..20).map(|number| format!("vm{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let rings = Rings::new(&names);
    let daemon = rings.start(&["--workers", "2"]);
    let mut guests: Vec<_> = names.iter().map(|name| rings.guest(name)).collect();
    for round in 0..3 {
        for (name, guest) in names.iter().zip(&mut guests) {
            rings.carries(name, guest, &format!("item {round} of {name}"));
        }
    }
    // One thread for each connection, two for the queues, and a few for all.
    let count = threads(data_process(&daemon));
    assert!(count <= names.len() + 2 + 6, "{count} threads for {} rings", names.len());
    drop(guests);
    ends_well(daemon);
    for name in names {
        leaves_nothing(&rings, name);
    }
}

#[test]
fn rings_come_and_go_while_others_are_served() {
    let rings = Rings::new(&["one", "two"]);
    let daemon = rings.start(&["--workers", "1"]);
    let (mut one, mut two) = (rings.guest("one"), rings.guest("two"));
    rings.carries("one", &mut one, "before");
    rings.done("Remove", &json!({ "name": "two" }));
    leaves_nothing(&rings, "two");
    assert_eq!(two.completion_within(Duration::from_millis(10)), None);
    drop(two);
    assert!(rings.refused("Remove", &json!({ "name": "two" })).contains("NoSuchRing"));
    rings.carries("one", &mut one, "meanwhile");
    rings.done("Add", &json!({ "name": "two" }));
    assert!(rings.refused("Add", &json!({ "name": "two" })).contains("there already"));
    rings.carries("two", &mut rings.guest("two"), "after");
    let text = rings.text("three", "");
    rings.done("Add", &json!({ "name": "three", "configuration": text }));
    rings.carries("three", &mut rings.guest("three"), "of a text");
    rings.carries("one", &mut one, "in the end");
    ends_well(daemon);
}

#[test]
fn folder_is_read_again() {
    let rings = Rings::new(&["kept", "gone", "changed", "broken"]);
    let daemon = rings.start(&[]);
    let mut kept = rings.guest("kept");
    fs::remove_file(rings.file("gone")).unwrap();
    rings.configure("changed", "read-only = true\n");
    rings.configure("broken", "poll-us = \"often\"\n");
    rings.configure("new", "");
    let answer = rings.done("Reload", &json!({}));
    assert_eq!(answer["added"], json!(["new"]));
    assert_eq!(answer["removed"], json!(["gone"]));
    assert_eq!(answer["changed"], json!(["changed"]));
    assert_eq!(answer["failed"][0]["name"], "broken");
    let shown = |name: &str| rings.done("Show", &json!({ "name": name }))["ring"].take();
    assert_eq!(shown("broken")["state"], "serving", "as it was");
    let served = |name: &str| (name.to_owned(), "serving".to_owned());
    assert_eq!(rings.states(), ["broken", "changed", "kept", "new"].map(served));
    assert_ne!(rings.guest("changed").write(100, &[1; 512]), 0, "it is read-only now");
    rings.carries("kept", &mut kept, "all the time");
    // By a signal, too.
    fs::remove_file(rings.file("new")).unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("the ring is gone", || rings.states().len() == 3);
    ends_well(daemon);
}

#[test]
fn ring_that_cannot_be_served_keeps_no_other_from_it() {
    let rings = Rings::new(&["good", "bad"]);
    rings.configure("unreadable", "poll-us = \"often\"\n");
    nix::unistd::mkfifo(&rings.file("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::write(rings.file("-odd name"), "").unwrap();
    fs::write(rings.folder("bad").join("ring"), vec![7; 65536]).unwrap();
    let daemon = rings.start(&[]);
    let state = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    let states =
        [("bad", "failed"), ("good", "serving"), ("pipe", "failed"), ("unreadable", "failed")];
    assert_eq!(rings.states(), states.map(|(name, is)| state(name, is)));
    let shown = rings.done("Show", &json!({ "name": "unreadable" }));
    assert!(shown["ring"]["reason"].as_str().unwrap().contains("poll-us"), "{shown}");
    assert_eq!(rings.scene.logged("not read: a ring's name begins with"), 1);
    leaves_nothing(&rings, "bad");
    let shown = rings.done("Show", &json!({ "name": "bad" }));
    let reason = shown["ring"]["reason"].as_str().unwrap();
    assert!(reason.contains("bad/ring"), "{reason}");
    fs::remove_file(rings.folder("bad").join("ring")).unwrap();
    rings.done("Add", &json!({ "name": "bad" }));
    rings.carries("bad", &mut rings.guest("bad"), "mended");
    rings.carries("good", &mut rings.guest("good"), "good");
    ends_well(daemon);
}

#[test]
fn ring_whose_file_is_truncated_is_lost_and_no_other() {
    let rings = Rings::new(&["lost", "sound"]);
    let mut daemon = rings.start(&["--workers", "1"]);
    let (mut lost, mut sound) = (rings.guest("lost"), rings.guest("sound"));
    rings.carries("lost", &mut lost, "before");
    File::options()
        .write(true)
        .open(rings.folder("lost").join("ring"))
        .unwrap()
        .set_len(512)
        .unwrap();
    assert_ne!(lost.write(100, &[1; 512]), 0);
    for round in 0..10 {
        rings.carries("sound", &mut sound, &format!("item {round}"));
    }
    let shown = rings.done("Show", &json!({ "name": "lost" }));
    assert!(shown["ring"]["fault"].as_str().unwrap().contains("truncated"));
    eventually("the log names the ring", || rings.scene.logged("lost: ") > 0);
    assert!(rings.refused("Drain", &json!({ "name": "lost" })).contains("truncated"));
    let removed = rings.refused("Remove", &json!({ "name": "lost" }));
    assert!(removed.contains("truncated"), "{removed}");
    rings.carries("sound", &mut sound, "in the end");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
}

#[test]
fn data_process_that_is_killed_is_replaced_and_every_ring_goes_on() {
    let names = ["one", "two", "three"];
    let rings = Rings::new(&names);
    let daemon = rings.start(&[]);
    for round in 0..3 {
        let mut guests: Vec<_> = names.iter().map(|name| rings.guest(name)).collect();
        for (name, guest) in names.iter().zip(&mut guests) {
            guest.publish(&format!("item {round} of {name}"));
        }
        let before = data_process(&daemon);
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        eventually("another process serves all rings", || {
            rings.states().iter().all(|(_, state)| state == "serving")
                && data_process(&daemon) != before
        });
        for name in names {
            assert_eq!(rings.take(name), [format!("item {round} of {name}")], "{name}");
        }
    }
    ends_well(daemon);
}

#[test]
fn stop_that_reaches_both_processes_is_the_control_processs_matter() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    let mut guest = rings.guest("vm");
    let data = data_process(&daemon);
    // As a service manager, or a terminal, sends it.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(Pid::from_raw(data), signal).unwrap();
        rings.carries("vm", &mut guest, "goes on");
    }
    assert_eq!(data_process(&daemon), data);
    guest.publish("the last item");
    kill(Pid::from_raw(data), Signal::SIGTERM).unwrap();
    ends_well(daemon);
    assert_eq!(rings.scene.logged("has died"), 0);
}

#[test]
fn stop_ends_a_daemon_whose_data_process_stands_still() {
    let rings = Rings::new(&["vm"]);
    let mut daemon = rings.start(&[]);
    kill(Pid::from_raw(data_process(&daemon)), Signal::SIGSTOP).unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(1));
    assert_eq!(rings.scene.logged("the data process does not end: it is killed"), 1);
    leaves_nothing(&rings, "vm");
}

#[test]
fn daemon_that_is_killed_is_followed_by_another_at_once() {
    let names = ["one", "two", "three"];
    let rings = Rings::new(&names);
    let metrics = format!("unix:{}", rings.scene.path("metrics").display());
    let options = ["--metrics", &metrics];
    let mut daemon = rings.start(&options);
    for round in 0..5 {
        let mut guests: Vec<_> = names.iter().map(|name| rings.guest(name)).collect();
        for (name, guest) in names.iter().zip(&mut guests) {
            guest.publish(&format!("item {round} of {name}"));
        }
        // The data process lets the guests go before it ends.
        daemon.0.kill().unwrap();
        daemon.0.wait().unwrap();
        daemon = rings.start(&options);
        assert!(rings.states().iter().all(|(_, state)| state == "serving"));
        for name in names {
            assert_eq!(rings.take(name), [format!("item {round} of {name}")], "{name}");
        }
    }
    ends_well(daemon);
}

#[test]
fn daemon_is_upgraded_and_every_ring_goes_on() {
    let names = ["one", "two", "three"];
    let rings = Rings::new(&names);
    let daemon = rings.start(&[]);
    for round in 0..3 {
        let mut guests: Vec<_> = names.iter().map(|name| rings.guest(name)).collect();
        for (name, guest) in names.iter().zip(&mut guests) {
            guest.publish(&format!("item {round} of {name}"));
        }
        let before = data_process(&daemon);
        rings.done("Upgrade", &json!({}));
        assert_ne!(data_process(&daemon), before);
        assert!(rings.states().iter().all(|(_, state)| state == "serving"));
        for name in names {
            assert_eq!(rings.take(name), [format!("item {round} of {name}")], "{name}");
        }
    }
    ends_well(daemon);
}

#[test]
fn ring_in_whose_turn_a_thread_hangs_is_given_up_and_the_others_go_on() {
    let rings = Rings::new(&["sound"]);
    rings.configure("stuck", "migratable = true\n");
    let mut fuse = FuseFile::mount(&rings.scene.path("log-on-fuse"));
    let daemon = rings.start(&["--workers", "1"]);
    let mut stuck = rings.guest("stuck");
    let region = VhostUserDirtyLogRegion {
        mmap_size: MEMORY / 4096 / 8,
        mmap_offset: 0,
        mmap_handle: fuse.open(),
    };
    stuck.wire.set_log_base(0, Some(region)).unwrap();
    fuse.stall();
    stuck.offer(0);
    stuck.kick();
    // The only thread waits for the log's first page.
    eventually("the ring is given up", || {
        rings.states().contains(&("stuck".to_owned(), "failed".to_owned()))
    });
    eventually("the other one is served", || {
        rings.states().contains(&("sound".to_owned(), "serving".to_owned()))
    });
    rings.carries("sound", &mut rings.guest("sound"), "after all");
    rings.done("Add", &json!({ "name": "stuck" }));
    rings.carries("stuck", &mut rings.guest("stuck"), "again");
    ends_well(daemon);
}

#[test]
fn client_with_the_region_cannot_truncate_it() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    cannot_truncate(&rings.folder("vm"));
    ends_well(daemon);
}

#[test]
fn drain_waits_for_the_consumer() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    let mut guest = rings.guest("vm");
    rings.done("Drain", &json!({ "name": "vm" }));
    guest.publish("an item");
    let timeout = json!({ "name": "vm", "timeout_ms": 50 });
    assert!(rings.refused("Drain", &timeout).contains("TimedOut"));
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| rings.done("Drain", &json!({ "name": "vm" })));
        assert_eq!(rings.take("vm"), ["an item"]);
        drained.join().unwrap();
    });
    rings.done("Suspend", &json!({ "name": "vm" }));
    assert_eq!(rings.done("Show", &json!({ "name": "vm" }))["ring"]["suspended"], true);
    rings.done("Resume", &json!({ "name": "vm" }));
    assert_eq!(rings.done("Show", &json!({ "name": "vm" }))["ring"]["suspended"], false);
    let counters = rings.done("Stats", &json!({}))["rings"][0]["counters"].take();
    assert_eq!(counters["published"], 1);
    ends_well(daemon);
}

#[test]
fn control_socket_takes_no_nonsense() {
    let rings = Rings::new(&["vm"]);
    let daemon = rings.start(&[]);
    let endless = vec![b'x'; 2 << 20];
    for nonsense in [&b"\0"[..], b"hello\0", b"{}\0", b"[1,2]\0", &endless] {
        let mut stream = UnixStream::connect(rings.scene.path("control")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // It may be closed before all of that is sent.
        let _ = stream.write_all(nonsense);
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "nothing is answered");
    }
    for (method, parameters) in [
        ("Nothing", json!({})),
        ("Remove", json!({})),
        ("Add", json!({ "name": "../vm" })),
        ("Add", json!({ "name": "a", "configuration": "socket-path = 1.5" })),
        ("Drain", json!({ "name": "vm", "timeout_ms": "long" })),
    ] {
        rings.refused(method, &parameters);
    }
    // Silent clients take nobody's place.
    let _silent: Vec<_> =
        (0..200).map(|_| UnixStream::connect(rings.scene.path("control")).unwrap()).collect();
    assert_eq!(rings.states().len(), 1);
    ends_well(daemon);
}

#[test]
fn wrong_command_line_is_refused() {
    let rings = Rings::new(&["vm"]);
    let words = |arguments: &[&str]| {
        let output = rings.scene.run(arguments);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = words(&["--config", "rings.d", "--blk-file", "ring"]);
    assert!(code == Some(2) && text.contains("--blk-file is about one ring"), "{text}");
    let (code, text) = words(&["--socket-path", "s", "--blk-file", "r", "--workers", "2"]);
    assert!(code == Some(2) && text.contains("--config has to name a folder"), "{text}");
    let (code, text) = words(&["--config", "rings.d", "--control", "/run/control"]);
    assert!(code == Some(2) && text.contains("unix:PATH"), "{text}");
    let checked = rings.scene.run(&["--config", "rings.d", "--check-config"]);
    assert_eq!(checked.stdout, b"the configuration is sound; rings: 1\n");
    rings.configure("wrong", "sise = 1\n");
    let (code, text) = words(&["--config", "rings.d", "--check-config"]);
    assert!(code == Some(1) && text.contains("wrong.toml") && text.contains("sise"), "{text}");
    assert!(!Path::new(&rings.folder("vm").join("s")).exists());
}
