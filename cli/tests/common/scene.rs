//! The program `blockring` in a folder of its own, as a user runs it: by itself, or in a shell.

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use ring_test_support::assert_ok;
use ring_test_support::process::{Guarded, ended, eventually_or, finish, words};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

/// The program that is tested.
const PROGRAM: &str = env!("CARGO_BIN_EXE_blockring");

/// A folder in which the program and its shells run.
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Makes a folder with an empty ring of that size in `ring`.
    pub fn with_ring(size: &str) -> Self {
        let scene = Self::new();
        assert_ok(&scene.run(&["create", "--size", size, "ring"], b""));
        scene
    }

    /// Makes a folder with a ring that holds the lines `1` to `count`.
    pub fn with_lines(count: usize) -> Self {
        let scene = Self::with_ring("4M");
        scene.succeed(&format!("seq {count} | $RING produce --no-flush ring"));
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the bytes of a file; none if there is no such file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_default()
    }

    /// Returns the lines of a file.
    pub fn lines(&self, name: &str) -> Vec<String> {
        String::from_utf8(self.read(name)).unwrap().lines().map(str::to_owned).collect()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Returns the program in a process group of its own, with pipes for its standard streams.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments);
        self.piped(command)
    }

    /// Returns the same command without input.
    pub fn without_input(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null());
        command
    }

    fn piped(&self, mut command: Command) -> Command {
        command.current_dir(self.dir.path()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    /// Runs the program to its end, with that input.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        finish(self.spawn(arguments), input)
    }

    /// Runs a shell script, in which `$RING` is the program, to its end.
    pub fn shell(&self, script: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("RING", PROGRAM);
        ended(Guarded::start(self.piped(command).stdin(Stdio::null())), script)
    }

    /// Runs a script that must end with 0, and returns what it printed.
    pub fn succeed(&self, script: &str) -> String {
        let output = self.shell(script);
        assert!(output.status.success(), "{script}: {}: {}", output.status, words(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Takes the lines that are still in the ring.
    pub fn rest(&self) -> String {
        self.succeed("$RING consume ring")
    }

    /// Returns a socket at `socket` whose process is stopped: the kernel accepts connections, no
    /// process answers.
    pub fn silent_socket(&self, kind: SockType) -> OwnedFd {
        let listening = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listening.as_raw_fd(), &UnixAddr::new(&self.path("socket")).unwrap()).unwrap();
        listen(&listening, Backlog::new(8).unwrap()).unwrap();
        listening
    }

    /// Takes the items that are still in the ring, whatever bytes they have.
    pub fn items(&self) -> Vec<Vec<u8>> {
        let output = self.run(&["consume", "--framing", "length", "ring"], b"");
        assert_ok(&output);
        let (mut items, mut rest) = (Vec::new(), &output.stdout[..]);
        while let Some((head, behind)) = rest.split_first_chunk::<4>() {
            let (item, behind) = behind.split_at(u32::from_le_bytes(*head) as usize);
            items.push(item.to_vec());
            rest = behind;
        }
        items
    }

    /// Returns what `diagnostics` reports of a ring; null while there is none.
    pub fn facts(&self, ring: &str) -> Value {
        let output = self.run(&["diagnostics", "--json", ring], b"");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until `diagnostics` reports what the condition asks for.
    pub fn wait_for_facts(&self, ring: &str, are_so: impl Fn(&Value) -> bool) {
        eventually_or(|| are_so(&self.facts(ring)), || self.facts(ring).to_string());
    }

    /// Waits until the process has the role, and so has its signals set up.
    pub fn wait_for_role(&self, ring: &str, role: &str, child: &Child) {
        self.wait_for_facts(ring, |facts| facts["holders"][role] == child.id());
    }

    /// Waits until a file holds what the condition asks for.
    pub fn wait_for(&self, name: &str, is_so: impl Fn(&[u8]) -> bool) {
        let found = || format!("{name}: {}", String::from_utf8_lossy(&self.read(name)));
        eventually_or(|| is_so(&self.read(name)), found);
    }

    /// Waits until a file has that many lines.
    pub fn wait_for_lines(&self, name: &str, count: usize) {
        self.wait_for(name, |bytes| bytes.split(|byte| *byte == b'\n').count() > count);
    }
}

/// Returns the report of `--json` in the last line of standard error.
pub fn counts(output: &Output) -> Value {
    serde_json::from_str(words(output).lines().last().unwrap()).unwrap()
}

/// Reads standard error up to a line with these words.
pub fn wait_for_words(errors: ChildStderr, wanted: &str) -> BufReader<ChildStderr> {
    let (mut errors, mut line) = (BufReader::new(errors), String::new());
    while !line.contains(wanted) {
        line.clear();
        assert!(errors.read_line(&mut line).unwrap() > 0, "it ended without {wanted:?}");
    }
    errors
}

/// Reads the rest of standard error.
pub fn rest(mut errors: BufReader<ChildStderr>) -> String {
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    text
}
