//! A folder with a daemon of many rings.

use super::daemon::{Daemon, Scene};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use ring_test_support::front_end::FrontEnd;
use ring_test_support::process::eventually;
use serde_json::{Value, json};
use shared_block_ring::handover::Role;
use shared_block_ring::{Consumer, UnixDevice};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longer than any answer takes, on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// A folder with a daemon of many rings, each of which has a folder of its own for its file and
/// sockets.
pub struct Rings {
    pub scene: Scene,
}

impl Rings {
    pub fn new(names: &[&str]) -> Self {
        let rings = Self { scene: Scene::new() };
        fs::create_dir(rings.scene.path("rings.d")).unwrap();
        for name in names {
            rings.configure(name, "");
        }
        rings
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.scene.path(name)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.scene.path("rings.d").join(format!("{name}.toml"))
    }

    /// Returns the text of a ring's file, with more lines.
    pub fn text(&self, name: &str, more: &str) -> String {
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

    pub fn configure(&self, name: &str, more: &str) {
        fs::write(self.file(name), self.text(name, more)).unwrap();
    }

    pub fn spawn(&self, more: &[&str]) -> Daemon {
        Daemon(self.command(more).spawn().unwrap())
    }

    /// The start of a daemon, with its log.
    pub fn command(&self, more: &[&str]) -> Command {
        let control = format!("unix:{}", self.scene.path("control").display());
        let usual = ["--config", "rings.d", "--control", &control];
        let log = File::options().create(true).append(true).open(self.scene.path("log")).unwrap();
        let mut command = self.scene.command(&usual);
        command.args(more).stderr(log);
        command
    }

    pub fn start(&self, more: &[&str]) -> Daemon {
        self.served_by(|| self.spawn(more))
    }

    /// Starts a daemon, and waits until it serves the rings.
    pub fn served_by(&self, spawn: impl FnOnce() -> Daemon) -> Daemon {
        let before = self.scene.path("log").exists().then(|| self.scene.logged("threads; the"));
        let daemon = spawn();
        eventually("the rings are served", || {
            self.scene.logged("threads; the") > before.unwrap_or(0)
        });
        daemon
    }

    pub fn call(&self, method: &str, parameters: &Value) -> Value {
        call(&self.scene.path("control"), method, parameters)
    }

    /// Makes a call that must be answered without an error.
    pub fn done(&self, method: &str, parameters: &Value) -> Value {
        let mut answer = self.call(method, parameters);
        assert!(answer.get("error").is_none(), "{method} {parameters}: {answer}");
        answer["parameters"].take()
    }

    pub fn refused(&self, method: &str, parameters: &Value) -> String {
        let answer = self.call(method, parameters);
        assert!(answer.get("error").is_some(), "{method} {parameters}: {answer}");
        answer.to_string()
    }

    /// The states of all rings, by their names.
    pub fn states(&self) -> Vec<(String, String)> {
        let rings = self.done("List", &json!({}))["rings"].take();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let states = rings
            .as_array()
            .unwrap()
            .iter()
            .map(|ring| (text(&ring["name"]), text(&ring["state"])));
        states.collect()
    }

    pub fn guest(&self, name: &str) -> FrontEnd {
        FrontEnd::new(&self.folder(name))
    }

    /// Has the ring's guest publish an item, and a process on the host take it.
    pub fn carries(&self, name: &str, guest: &mut FrontEnd, item: &str) {
        guest.publish(item);
        assert_eq!(self.take(name), [item]);
    }

    /// Has a guest of each ring publish an item, has `interrupt` interrupt the service, and takes
    /// the items on the host, three times: each item is there once.
    pub fn carry_over(&self, names: &[&str], mut interrupt: impl FnMut()) {
        for round in 0..3 {
            let mut guests: Vec<_> = names.iter().map(|name| self.guest(name)).collect();
            for (name, guest) in names.iter().zip(&mut guests) {
                guest.publish(&format!("item {round} of {name}"));
            }
            interrupt();
            assert!(self.states().iter().all(|(_, state)| state == "serving"));
            for name in names {
                assert_eq!(self.take(name), [format!("item {round} of {name}")], "{name}");
            }
        }
    }

    /// Takes all items as the process on the host.
    pub fn take(&self, name: &str) -> Vec<String> {
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

/// Makes a call at a control socket, and returns the answer.
pub fn call(control: &Path, method: &str, parameters: &Value) -> Value {
    answer(send(control, method, parameters))
}

/// Sends a call to a control socket.
pub fn send(control: &Path, method: &str, parameters: &Value) -> UnixStream {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let method = format!("io.blockring.Rings.{method}");
    let call = json!({ "method": method, "parameters": parameters });
    stream.write_all(format!("{call}\0").as_bytes()).unwrap();
    stream
}

/// Waits for the answer to a call.
pub fn answer(stream: UnixStream) -> Value {
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(0, &mut answer).unwrap();
    assert_eq!(answer.pop(), Some(0));
    serde_json::from_slice(&answer).unwrap()
}

/// The process that does the work: the daemon's only child.
pub fn data_process(daemon: &Daemon) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", daemon.0.id());
    let mut found = None;
    eventually("there is a data process", || {
        let children = fs::read_to_string(&children).unwrap();
        found = children.split_whitespace().next().map(|child| child.parse().unwrap());
        found.is_some()
    });
    Pid::from_raw(found.unwrap())
}

pub fn ends_well(mut daemon: Daemon) {
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
}

pub fn leaves_nothing(rings: &Rings, name: &str) {
    for socket in ["s", "c"] {
        assert!(!rings.folder(name).join(socket).exists(), "{name}: {socket}");
    }
}
