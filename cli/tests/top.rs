//! `top`: on a terminal of tmux, with keys sent to it; and as text and JSON.
#![allow(clippy::unwrap_used)]

mod common;

use common::scene::Scene;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_test_support::process::{eventually_or, signal, status_of};
use ring_test_support::{assert_fails, assert_ok};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A terminal: a tmux server of its own, which ends with this.
struct Terminal<'a> {
    scene: &'a Scene,
    /// The server's socket: one that ends may still have its own.
    socket: String,
}

impl<'a> Terminal<'a> {
    /// Runs a shell script in a terminal of that size; `$RING` is the program.
    fn new(scene: &'a Scene, size: [&str; 2], script: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket = format!("tmux-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let terminal = Self { scene, socket };
        scene.write("script", script);
        let [columns, lines] = size;
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            columns,
            "-y",
            lines,
            "sh script; exec cat",
        ]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-u", "-S", &self.socket])
            .args(arguments)
            .current_dir(self.scene.path("."))
            .env("RING", env!("CARGO_BIN_EXE_blockring"))
            .env("TERM", "xterm-256color")
            .env_remove("TMUX")
            .env_remove("NO_COLOR")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .expect("tmux (scripts/setup.sh installs it)");
        assert_ok(&output);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the lines that the terminal shows.
    fn lines(&self) -> Vec<String> {
        self.tmux(&["capture-pane", "-p"]).lines().map(|line| line.trim_end().to_owned()).collect()
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Waits until the terminal shows what the condition asks for, and returns its lines.
    fn until(&self, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        eventually_or(|| is_so(&self.lines()), || self.lines().join("\n"));
        self.lines()
    }

    fn until_shown(&self, words: &str) -> Vec<String> {
        self.until(|lines| lines.iter().any(|line| line.contains(words)))
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let mut command = Command::new("tmux");
        command.args(["-S", &self.socket, "kill-server"]).current_dir(self.scene.path("."));
        let _ = command.stderr(Stdio::null()).status();
    }
}

/// A half full ring without a consumer, an empty one, and a damaged one.
fn three_rings() -> Scene {
    let scene = Scene::new();
    for name in ["half.out", "empty.out", "bad.out"] {
        assert_ok(&scene.run(&["create", "--size", "64K", name], b""));
    }
    scene.succeed(
        "head -c 31996 /dev/zero | $RING produce --framing whole half.out
        printf X | dd of=bad.out bs=1 seek=520 conv=notrunc status=none",
    );
    scene
}

/// Runs the view between two reports of the terminal's modes.
const BETWEEN_MODES: &str = "stty -a > before
sh -c 'echo $$ > pid; exec \"$RING\" top --interval 0.1 \"*.out\"'
code=$?
stty -a > after
echo ended with $code > ended
echo ended with $code\n";

#[test]
fn top_shows_rings_in_eighty_columns_and_follows_keys() {
    let scene = three_rings();
    let terminal = Terminal::new(&scene, ["80", "24"], BETWEEN_MODES);
    let states = ["damaged", "idle", "no consumer"];
    let lines = terminal.until(|lines| {
        let seen = states.iter().zip(&lines[2..]).all(|(state, line)| line.contains(state));
        seen && lines[23].starts_with("q quit")
    });
    assert_eq!(lines[0], "blockring top: 3 rings, 2 with warnings; by name; every 0.1 s");
    assert_eq!(
        lines[1],
        "RING                   STATE       IN B/s    OUT USED             OLDEST REFUSED"
    );
    assert!(
        lines[2].starts_with("bad.out                damaged     bad.out: producer sector: flag"),
        "{lines:?}"
    );
    assert_eq!(
        lines[3],
        "empty.out              idle             0      0 [........]   0%       -       -"
    );
    assert!(
        lines[4].starts_with("half.out               no consumer      0      0 [####....]  50%"),
        "{lines:?}"
    );
    assert_eq!(
        lines[23],
        "q quit  Enter details  / filter  nsiouar sort  R reverse  arrows select"
    );
    terminal.press("u");
    terminal.until(|lines| lines[0].contains("by used;") && lines[2].starts_with("half.out"));
    terminal.press("R");
    terminal
        .until(|lines| lines[0].contains("by used, reversed") && lines[4].starts_with("half.out"));
    for key in ["/", "h", "a", "l", "Enter"] {
        terminal.press(key);
    }
    terminal.until_shown("1 of 3 rings");
    terminal.press("Enter");
    // What is drawn last: the line with the keys, and before it the refusals.
    let lines = terminal.until(|lines| lines[23].starts_with("q quit  Esc all rings"));
    assert!(lines.iter().any(|line| line.starts_with("producer   no process; at 32000, moved")));
    assert_eq!((&*lines[0], &*lines[1]), ("half.out", "state      no consumer"));
    assert!(
        lines[3].starts_with("used       [##########..........] 31.25 KiB of 62.50 KiB"),
        "{lines:?}"
    );
    for words in [
        "consumer   no process; at 0",
        "in, B/s",
        "out, B/s",
        "used, %",
        "oldest, ms",
        "items      1, the oldest >",
        "refusals   no backend tells",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(words)), "{words}: {lines:?}");
    }
    terminal.press("Escape");
    terminal.until_shown("1 of 3 rings");
    terminal.press("Escape");
    terminal.until_shown(": 3 rings");
    terminal.press("q");
    terminal.until_shown("ended with 0");
}

/// A producer and a consumer at work on a ring.
fn traffic(scene: &Scene, ring: &str) -> [Child; 3] {
    let source = "while echo 1234567; do sleep 0.01; done";
    let mut source =
        Command::new("sh").args(["-c", source]).stdout(Stdio::piped()).spawn().unwrap();
    let mut producer = scene.command(&["produce", "--no-flush", ring]);
    let producer = producer.stdin(source.stdout.take().unwrap()).spawn().unwrap();
    let mut consumer = scene.without_input(&["consume", "--follow", "--no-flush", ring]);
    let consumer = consumer.stdout(Stdio::null()).spawn().unwrap();
    [source, producer, consumer]
}

fn end(children: [Child; 3]) {
    for mut child in children {
        signal(&child, Signal::SIGTERM);
        status_of(&mut child, "after SIGTERM");
    }
}

#[test]
fn top_fills_a_large_terminal_and_follows_its_size_and_its_rings() {
    let scene = three_rings();
    let children = traffic(&scene, "empty.out");
    let terminal = Terminal::new(&scene, ["200", "50"], BETWEEN_MODES);
    let lines = terminal.until(|lines| {
        lines[3].contains("flowing")
            && lines[4].contains("no consumer")
            && lines[49].starts_with("q quit")
    });
    assert_eq!(lines[1].len(), 200);
    assert!(lines[4].contains("[###############...............]  50%"), "{lines:?}");
    assert!(lines[49].starts_with("q quit"));
    // The page of a ring with both of its holders.
    terminal.press("Down");
    terminal.press("Enter");
    for (role, child) in [("producer", &children[1]), ("consumer", &children[2])] {
        terminal.until_shown(&format!("{role}   process {}; at ", child.id()));
    }
    terminal.until_shown("▁");
    terminal.press("Escape");
    terminal.until_shown("3 rings");
    end(children);
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    terminal.until(|lines| {
        lines.len() == 30 && lines[1].len() == 100 && lines[29].starts_with("q quit")
    });
    for (key, sort) in [("u", "; by used"), ("n", "; by name")] {
        terminal.press(key);
        terminal.until_shown(sort);
    }
    // A ring that appears, and one that goes.
    scene.succeed("$RING create --size 64K new.out; rm half.out");
    terminal.until(|lines| {
        let reason = "gone        half.out: cannot open";
        lines[4].starts_with("half.out") && lines[4].contains(reason)
    });
    terminal.until_shown("new.out");
    scene.succeed("mv new.out half.out");
    terminal.until(|lines| lines[4].starts_with("half.out") && lines[4].contains("idle"));
}

type Ending = fn(&Terminal<'_>, Pid);

#[test]
fn top_leaves_the_terminal_as_it_was_however_it_is_ended() {
    let scene = three_rings();
    let endings: [(&str, Ending); 4] = [
        ("q", |terminal, _| terminal.press("q")),
        ("Ctrl-C", |terminal, _| terminal.press("C-c")),
        ("SIGTERM", |_, pid| kill(pid, Signal::SIGTERM).unwrap()),
        ("SIGHUP", |_, pid| kill(pid, Signal::SIGHUP).unwrap()),
    ];
    for (name, end) in endings {
        let _ = std::fs::remove_file(scene.path("ended"));
        let script = format!("echo what was there before\n{BETWEEN_MODES}");
        let terminal = Terminal::new(&scene, ["80", "24"], &script);
        terminal.until_shown("no consumer");
        let modes = "#{alternate_on} #{cursor_flag}";
        assert_eq!(terminal.tmux(&["display-message", "-p", modes]).trim(), "1 0");
        let pid = scene.lines("pid")[0].parse().unwrap();
        end(&terminal, Pid::from_raw(pid));
        scene.wait_for_lines("ended", 1);
        assert_eq!(scene.lines("ended"), ["ended with 0"], "{name}");
        let lines = terminal.until_shown("ended with 0");
        assert_eq!(lines[..2], ["what was there before", "ended with 0"], "{name}");
        assert_eq!(terminal.tmux(&["display-message", "-p", modes]).trim(), "0 1", "{name}");
        assert!(!scene.read("before").is_empty());
        assert_eq!(scene.lines("before"), scene.lines("after"), "{name}");
    }
}

/// A terminal that is closed, in front of a view that ignores the signal of that (as under nohup)
/// and has read half of a key's sequence.
#[test]
fn top_ends_with_its_terminal() {
    let scene = three_rings();
    let script =
        "trap '' HUP\necho $$ > pid\n\"$RING\" top --interval 0.1 '*.out'\necho $? > ended\n";
    for key in ["n", "-l \u{1b}["] {
        let _ = std::fs::remove_file(scene.path("ended"));
        let terminal = Terminal::new(&scene, ["80", "24"], script);
        terminal.until_shown("no consumer");
        let mut keys = vec!["send-keys"];
        keys.extend(key.split(' '));
        terminal.tmux(&keys);
        terminal.tmux(&["kill-server"]);
        scene.wait_for_lines("ended", 1);
        assert_eq!(scene.lines("ended"), ["0"]);
    }
}

#[test]
fn top_has_colours_unless_they_are_unwanted() {
    let scene = three_rings();
    for (setting, coloured) in [("", true), ("export NO_COLOR=1\n", false)] {
        let terminal = Terminal::new(&scene, ["80", "24"], &format!("{setting}{BETWEEN_MODES}"));
        terminal.until_shown("no consumer");
        let escapes = terminal.tmux(&["capture-pane", "-p", "-e"]);
        let warning = escapes.lines().find(|line| line.contains("no consumer")).unwrap();
        assert_eq!(warning.contains("\u{1b}[38;5;3m"), coloured, "{warning:?}");
        assert_eq!(warning.contains("\u{1b}[1m"), !coloured, "{warning:?}");
    }
}

#[test]
fn top_prints_a_frame_or_json_lines_without_a_terminal() {
    let scene = three_rings();
    let before = scene.read("half.out");
    let text = scene.succeed("COLUMNS=80 $RING top --once --interval 0.01 '*.out' missing");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert_eq!(
        lines[0],
        "RING                   STATE       IN B/s    OUT USED             OLDEST REFUSED"
    );
    assert!(
        lines[3].starts_with("half.out               no consumer      0      0 [####....]  50%")
    );
    assert!(
        lines[4].starts_with("missing                gone        missing: cannot open"),
        "{text}"
    );
    let text = scene.succeed("$RING top --once --json --interval 0.01 '*.out' missing");
    let rings: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rings.len(), 4);
    let states: Vec<_> = rings.iter().map(|ring| ring["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["damaged", "idle", "no consumer", "gone"]);
    assert_eq!((&rings[2]["used"], &rings[2]["items"]), (&32000.into(), &1.into()));
    assert!(rings[3]["error"].as_str().unwrap().contains("No such file"));
    assert!(rings[3]["used"].is_null() && rings[1]["oldest_item_age_seconds"].is_null());
    assert_eq!(rings[1]["bytes_in_per_second"], 0.0);
    assert_eq!(scene.read("half.out"), before);
    // Until a signal.
    let mut child = scene
        .without_input(&["top", "--json", "--interval", "0.01", "half.out"])
        .stdout(std::fs::File::create(scene.path("out")).unwrap())
        .spawn()
        .unwrap();
    scene.wait_for_lines("out", 5);
    signal(&child, Signal::SIGTERM);
    assert!(status_of(&mut child, "after SIGTERM").success());
    assert!(scene.lines("out").iter().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn top_refuses_what_it_cannot_show() {
    let scene = Scene::with_ring("64K");
    let output = scene.run(&["top", "ring"], b"");
    assert_fails(&output, 1, "standard input and output have to be a terminal");
    let output = scene.run(&["top", "--once", "vhost-user:socket"], b"");
    assert_fails(&output, 1, "only one process can use it");
    assert_fails(&scene.run(&["top", "--interval", "0", "ring"], b""), 2, "larger than 0");
    assert_fails(&scene.run(&["top", "a[", "ring"], b""), 2, "not a pattern");
}
