//! `top`: on a terminal of tmux, with keys sent to it; and as text and JSON.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use crate::common::terminal::Terminal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_test_support::process::{eventually, eventually_or, signal, state, status_of};
use ring_test_support::{assert_fails, assert_ok};
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

/// The screen of the view, and that of a shell.
const VIEW: &str = "1 0";
const SHELL: &str = "0 1";

fn pid_of_view(scene: &Scene) -> Pid {
    Pid::from_raw(scene.lines("pid")[0].parse().unwrap())
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
        lines[2].starts_with("bad.out                damaged     producer sector: flag"),
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
        let reason = "gone        cannot open";
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
    let endings: [(&str, Ending); 5] = [
        ("q", |terminal, _| terminal.press("q")),
        ("Ctrl-C", |terminal, _| terminal.press("C-c")),
        ("SIGTERM", |_, pid| kill(pid, Signal::SIGTERM).unwrap()),
        ("SIGHUP", |_, pid| kill(pid, Signal::SIGHUP).unwrap()),
        ("SIGQUIT", |_, pid| kill(pid, Signal::SIGQUIT).unwrap()),
    ];
    for (name, end) in endings {
        let _ = std::fs::remove_file(scene.path("ended"));
        let script = format!("echo what was there before\n{BETWEEN_MODES}");
        let terminal = Terminal::new(&scene, ["80", "24"], &script);
        terminal.until_shown("no consumer");
        assert_eq!(terminal.screen(), VIEW);
        end(&terminal, pid_of_view(&scene));
        scene.wait_for_lines("ended", 1);
        assert_eq!(scene.lines("ended"), ["ended with 0"], "{name}");
        let lines = terminal.until_shown("ended with 0");
        assert_eq!(lines[..2], ["what was there before", "ended with 0"], "{name}");
        assert_eq!(terminal.screen(), SHELL, "{name}");
        assert!(!scene.read("before").is_empty());
        assert_eq!(scene.lines("before"), scene.lines("after"), "{name}");
    }
}

/// Runs the view as a job of a shell that takes the terminal back when the view is stopped, and
/// gives it away again after a line of input.
const AS_A_JOB: &str = "echo what was there before
modes=$(stty -g)
stty -a > before
set -m
sh -c 'echo $$ > pid; exec \"$RING\" top --interval 0.1 \"*.out\"'
stty $modes
printf '\\033[?1049l\\033[?25h'
echo stopped > stopped
read answer
fg
code=$?
stty -a > after
echo ended with $code > ended
echo ended with $code\n";

#[test]
fn top_takes_the_terminal_again_after_a_stop() {
    let scene = three_rings();
    let terminal = Terminal::new(&scene, ["80", "24"], AS_A_JOB);
    let is_whole = |lines: &[String]| {
        let seen = lines.len() == 24 && lines[23].starts_with("q quit");
        seen && lines[1].starts_with("RING") && lines[4].contains("no consumer")
    };
    terminal.until(is_whole);
    kill(pid_of_view(&scene), Signal::SIGSTOP).unwrap();
    scene.wait_for_lines("stopped", 1);
    eventually_or(|| terminal.screen() == SHELL, || terminal.lines().join("\n"));
    assert_eq!(terminal.lines()[0], "what was there before");
    terminal.press("Enter");
    terminal.until(is_whole);
    assert_eq!(terminal.screen(), VIEW);
    // A key, without the end of a line behind it.
    terminal.press("u");
    terminal.until_shown("by used;");
    terminal.press("q");
    scene.wait_for_lines("ended", 1);
    assert_eq!(scene.lines("ended"), ["ended with 0"]);
    assert_eq!(scene.lines("before"), scene.lines("after"));
    assert_eq!(terminal.until_shown("ended with 0")[0], "what was there before");
    assert_eq!(terminal.screen(), SHELL);
}

#[test]
fn top_in_the_background_ends_and_leaves_the_terminal_to_the_shell() {
    let scene = three_rings();
    let terminal = Terminal::new(&scene, ["80", "24"], AS_A_JOB);
    terminal.until_shown("no consumer");
    let pid = pid_of_view(&scene);
    kill(pid, Signal::SIGSTOP).unwrap();
    scene.wait_for_lines("stopped", 1);
    eventually_or(|| terminal.screen() == SHELL, || terminal.lines().join("\n"));
    let before = terminal.lines();
    // What `kill` of a shell sends to a job that is stopped. The shell reads a line meanwhile, and
    // does not wait for the job.
    kill(pid, Signal::SIGCONT).unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    eventually("the view ends", || state(pid.as_raw().cast_unsigned()) == 'Z');
    assert_eq!(terminal.lines(), before);
    assert_eq!(terminal.screen(), SHELL);
    terminal.press("Enter");
    scene.wait_for_lines("ended", 1);
    assert_eq!(scene.lines("before"), scene.lines("after"));
}

#[test]
fn top_refuses_a_terminal_without_a_size() {
    let scene = three_rings();
    let script = "stty cols 0 rows 0; $RING top '*.out' 2> errors; echo $? > ended";
    let _terminal = Terminal::new(&scene, ["80", "24"], script);
    scene.wait_for_lines("ended", 1);
    assert_eq!(scene.lines("ended"), ["1"]);
    let errors = scene.lines("errors");
    assert!(errors[0].contains("does not tell its size (stty cols 80 rows 24"), "{errors:?}");
}

/// Needs root, for a mount namespace.
#[test]
fn top_works_without_proc() {
    let scene = three_rings();
    let children = traffic(&scene, "empty.out");
    let script = "unshare --mount --propagation private sh -c '
        umount -l /proc
        exec \"$RING\" top --interval 0.1 empty.out'\n";
    let terminal = Terminal::new(&scene, ["80", "24"], script);
    terminal.until_shown("flowing");
    terminal.press("Enter");
    // That there is one shows without /proc, and not which.
    for role in ["producer", "consumer"] {
        terminal.until_shown(&format!("{role}   a process; at "));
    }
    end(children);
    terminal.until_shown("consumer   no process; at ");
}

#[test]
fn top_shows_a_long_list_of_rings() {
    let scene = Scene::with_ring("64K");
    for number in 0..3000 {
        symlink("ring", scene.path(&format!("{number:04}.out"))).unwrap();
    }
    let script = "ulimit -n 128; $RING top --once --interval 0.01 '*.out'";
    let text = scene.succeed(script);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3001);
    for (number, line) in lines[1..].iter().enumerate() {
        assert!(
            line.starts_with(&format!("{number:04}.out ")) && line.contains(" idle "),
            "{line}"
        );
    }
    let script = "ulimit -n 128; exec $RING top --interval 0.1 '*.out'";
    let terminal = Terminal::new(&scene, ["80", "24"], script);
    terminal.until(|lines| lines[0].contains(" 3000 rings, 0 ") && lines[22].contains(" idle "));
    for key in ["/", "2", "9", "9", "9", "Enter", "Enter"] {
        terminal.press(key);
    }
    terminal.until(|lines| lines[0] == "2999.out" && lines[1] == "state      idle");
    terminal.press("q");
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
    assert!(lines[4].starts_with("missing                gone        cannot open"), "{text}");
    let text = scene.succeed("$RING top --once --interval 0.01 'nothing*.out'");
    assert_eq!(text.lines().nth(1), Some("no rings: no file or socket matches"), "{text}");
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
