//! `blockring forward --to exec:`: a command has each item at least once, in order, and what it has
//! not acknowledged again.
#![allow(clippy::unwrap_used)]

use crate::common::scene::{Scene, counts};
use nix::sys::signal::Signal;
use ring_test_support::metrics::scrape;
use ring_test_support::process::{Guarded, ended, eventually, is_alive, signal};
use ring_test_support::{assert_fails, assert_ok};
use std::collections::BTreeMap;
use std::time::Instant;

/// A command that notes each item, and acknowledges it.
const NOTE: &str = r#"t=$(printf '\t'); while IFS= read -r line; do echo "${line#*"$t"}" >> done; echo "${line%%"$t"*}"; done"#;

fn forward(scene: &Scene, command: &str, more: &[&str]) -> std::process::Output {
    let to = format!("exec:{command}");
    let arguments = [&["forward", "--drain", "--json", "ring", "--to", &to], more].concat();
    scene.run(&arguments, b"")
}

fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

#[test]
fn command_has_each_item_once_if_nothing_fails() {
    let scene = Scene::with_lines(3000);
    let output = forward(&scene, NOTE, &[]);
    assert_ok(&output);
    assert_eq!(scene.lines("done"), numbers(3000));
    assert_eq!(counts(&output)["items"], 3000);
    assert!(scene.rest().is_empty());
}

#[test]
fn commands_that_die_repeat_only_what_they_did_not_acknowledge() {
    let scene = Scene::with_lines(400);
    // Each child dies after some items; every other time with an item noted, and not acknowledged.
    scene.write(
        "dying",
        r#"
        echo x >> starts
        life=$((1 + $(wc -l < starts) * 7 % 19))
        while IFS="$(printf '\t')" read -r position item; do
            life=$((life - 1))
            [ $life = 0 ] && [ $((position % 8)) = 0 ] && kill -9 $$
            echo "$item" >> done
            [ $life = 0 ] && kill -9 $$
            echo "$position" | tee -a acknowledged
        done"#,
    );
    let forwarder =
        Guarded::start(&mut scene.without_input(&["forward", "ring", "--to", "exec:. ./dying"]));
    scene.wait_for("done", |bytes| bytes.ends_with(b"\n400\n"));
    scene.wait_for_facts("ring", |facts| facts["used"] == 0);
    signal(&forwarder, Signal::SIGTERM);
    assert_ok(&ended(forwarder, "forward"));
    let mut found: Vec<usize> =
        scene.lines("done").iter().map(|line| line.parse().unwrap()).collect();
    let starts = scene.lines("starts").len();
    assert!(starts > 10, "{starts} children");
    // What comes again is the one item that its child had noted before it died.
    assert!(found.len() < 400 + starts, "{} items by {starts} children", found.len());
    found.dedup();
    assert!(found.into_iter().eq(1..=400));
    // Nothing that was acknowledged was given again.
    let mut acknowledged = scene.lines("acknowledged");
    let all = acknowledged.len();
    acknowledged.dedup();
    assert_eq!((all, acknowledged.len()), (400, 400));
}

#[test]
fn exit_code_acknowledges_a_batch() {
    let scene = Scene::with_lines(2500);
    let output = forward(&scene, "cat >> done; echo x >> starts", &["--ack", "exit"]);
    assert_ok(&output);
    assert_eq!(scene.lines("done"), numbers(2500));
    assert!(scene.lines("starts").len() > 1);
    let scene = Scene::with_lines(10);
    assert_fails(&forward(&scene, "cat; exit 3", &["--ack", "exit"]), 1, "exit status: 3");
    assert_eq!(scene.rest().lines().count(), 10);
    assert_fails(&forward(&Scene::with_lines(1), "no-such", &["--ack", "exit"]), 1, "not found");
}

#[test]
fn exit_code_of_a_command_that_has_not_read_its_input_acknowledges_nothing() {
    for (lines, command) in [(3, "exit 0"), (3, "read -r first"), (50_000, "exit 0")] {
        let scene = Scene::with_lines(lines);
        let output = forward(&scene, command, &["--ack", "exit"]);
        assert_fails(&output, 1, "it has not read all of its input");
        assert_fails(&output, 1, "cat > /dev/null");
        assert_eq!(scene.rest().lines().count(), lines);
    }
    let scene = Scene::with_lines(3000);
    assert_ok(&forward(&scene, "cat > /dev/null", &["--ack", "exit"]));
    assert!(scene.rest().is_empty());
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    let scene = Scene::with_lines(3);
    // The child ends by itself, its own child would not.
    let command = "cat > done; sleep 1000 > /dev/null & echo $! > left";
    assert_ok(&forward(&scene, command, &["--ack", "exit"]));
    assert_eq!(scene.lines("done"), numbers(3));
    let left: u32 = scene.lines("left")[0].parse().unwrap();
    assert!(!is_alive(left), "it is still there");
}

#[test]
fn child_ends_with_a_forwarder_that_is_killed() {
    let scene = Scene::with_lines(3);
    // It ignores the end of its input.
    let to = "exec:trap '' TERM PIPE; echo $$ > child; while :; do sleep 0.1; done";
    let forwarder = Guarded::start(&mut scene.without_input(&["forward", "ring", "--to", to]));
    scene.wait_for_lines("child", 1);
    let child: u32 = scene.lines("child")[0].parse().unwrap();
    assert!(is_alive(child));
    signal(&forwarder, Signal::SIGKILL);
    eventually("the child ends, too", || !is_alive(child));
}

#[test]
fn children_have_the_limit_of_open_files_that_the_forwarder_was_given() {
    let scene = Scene::with_lines(1);
    scene.succeed(
        "ulimit -S -n 100; $RING forward --drain ring --to 'exec:cat; ulimit -S -n > limit' --ack exit",
    );
    assert_eq!(scene.lines("limit"), ["100"]);
}

#[test]
fn command_for_each_batch_acknowledges_by_lines_and_gets_the_end_of_its_input() {
    let scene = Scene::with_lines(2500);
    let output = forward(&scene, &format!("{NOTE}; echo x >> starts"), &["--per-batch"]);
    assert_ok(&output);
    assert_eq!(scene.lines("done"), numbers(2500));
    assert!(scene.lines("starts").len() > 1);
}

#[test]
fn command_knows_its_ring_and_gets_any_bytes_by_length() {
    let scene = Scene::with_ring("1M");
    assert_ok(&scene.run(&["produce", "--framing", "nul", "ring"], b"a\nb\0\0"));
    let command = "cat > done; echo $BLOCKRING_RING $BLOCKRING_UUID > name";
    let output = forward(&scene, command, &["--ack", "exit", "--framing", "length"]);
    assert_ok(&output);
    assert_eq!(scene.read("done"), b"\x03\0\0\0a\nb\0\0\0\0");
    let uuid = scene.facts("ring")["uuid"].as_str().unwrap().to_owned();
    assert_eq!(scene.lines("name"), [format!("ring {uuid}")]);
    // With positions: the one behind the first item is its length with header and padding.
    let scene = Scene::with_lines(1);
    let command = "head -c 8 > position; cat > item; od -An -tu8 position";
    assert_ok(&forward(&scene, command, &["--per-batch", "--framing", "length"]));
    assert_eq!(scene.read("item"), b"\x01\0\0\x001");
}

#[test]
fn command_that_prints_no_position_of_its_own_is_refused() {
    for (command, words) in [
        ("echo hello; cat > /dev/null", "which is no position"),
        ("echo 4000; cat > /dev/null", "that it was given"),
        ("exec < /dev/null; exit 0", "were not acknowledged"),
        ("yes no | tr -d '\\n'; cat > /dev/null", "no position"),
    ] {
        let scene = Scene::with_lines(3);
        assert_fails(&forward(&scene, command, &[]), 1, words);
        assert_eq!(scene.rest().lines().count(), 3, "{command}");
    }
    let scene = Scene::with_lines(3);
    assert_fails(&forward(&scene, "if", &[]), 1, "sh does not understand");
    assert_fails(&forward(&scene, "cat", &["--framing", "whole"]), 2, "--ack exit");
}

#[test]
fn termination_frees_what_was_acknowledged_and_ends_children_within_the_grace() {
    let scene = Scene::with_lines(100);
    // It acknowledges 40 items, and then ignores the end of its input and SIGTERM.
    let command = r#"trap '' TERM; echo $$ > child
        while IFS="$(printf '\t')" read -r position item; do
            [ "$item" = 41 ] && break
            echo $position
        done
        echo x > stuck; while :; do sleep 1; done"#;
    let to = format!("exec:{command}");
    let arguments = ["forward", "--json", "--grace", "4", "ring", "--to", &to];
    let forwarder = Guarded::start(&mut scene.without_input(&arguments));
    scene.wait_for_lines("stuck", 1);
    let begin = Instant::now();
    signal(&forwarder, Signal::SIGTERM);
    let output = ended(forwarder, "forward");
    assert_ok(&output);
    assert!(begin.elapsed().as_secs() < 60);
    assert_eq!(counts(&output)["items"], 40);
    let rest: Vec<_> = scene.rest().lines().map(str::to_owned).collect();
    assert_eq!(rest, numbers(100)[40..]);
    let child: i32 = scene.lines("child")[0].parse().unwrap();
    let is_gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), None).is_err();
    assert!(is_gone, "the child outlives the forwarder");
}

#[test]
fn command_that_acknowledges_nothing_is_reported_until_it_does() {
    let scene = Scene::with_lines(5);
    let command = format!("exec:until [ -e go ]; do sleep 0.05; done; {NOTE}");
    let arguments = ["forward", "--json", "--warn-after", "0.2", "ring", "--to", &command];
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let forwarder = Guarded::start(scene.without_input(&arguments).stderr(errors));
    let has =
        |words: &'static str| move |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(words);
    // An item of one byte has 8 bytes in the ring.
    scene.wait_for(
        "errors",
        has("ring: waiting for acknowledgement of position 8 for 0 s, with 5 items"),
    );
    scene.write("go", "");
    scene.wait_for("errors", has("items arrive again"));
    signal(&forwarder, Signal::SIGTERM);
    assert_ok(&ended(forwarder, "forward"));
    assert_eq!(scene.lines("done"), numbers(5));
}

#[test]
fn item_that_is_waited_for_at_the_end_is_in_the_report() {
    let scene = Scene::with_lines(5);
    let command = r#"exec:read -r line; echo "${line%%[!0-9]*}"; echo > read; exec sleep 1000"#;
    let arguments = ["forward", "--json", "--grace", "1", "ring", "--to", command];
    let forwarder = Guarded::start(&mut scene.without_input(&arguments));
    scene.wait_for("read", |bytes| !bytes.is_empty());
    scene.wait_for_facts("ring", |facts| facts["used"] == 32);
    signal(&forwarder, Signal::SIGTERM);
    let output = ended(forwarder, "forward");
    assert_ok(&output);
    let ring = &counts(&output)["rings"]["ring"];
    assert_eq!((&ring["items"], &ring["waiting"]["position"]), (&1.into(), &16.into()));
    assert_eq!(ring["waiting"]["items"], 4);
}

#[test]
fn metrics_tell_what_arrives_during_the_grace() {
    let scene = Scene::with_lines(2);
    let to = r#"exec:read -r line; echo > read; until [ -e go ]; do sleep 0.05; done; echo "${line%%[!0-9]*}"; exec sleep 1000"#;
    let arguments = ["forward", "--grace", "1000", "--metrics", "unix:m", "ring", "--to", to];
    let forwarder = Guarded::start(&mut scene.without_input(&arguments));
    scene.wait_for("read", |bytes| !bytes.is_empty());
    signal(&forwarder, Signal::SIGTERM);
    scene.write("go", "");
    let series = "blockring_forward_acknowledged_items_total{ring=\"ring\"}";
    eventually("the first item has arrived", || scrape(&scene.path("m")).get(series) == Some(1.0));
    signal(&forwarder, Signal::SIGTERM);
    assert_ok(&ended(forwarder, "forward"));
}

#[test]
fn drain_ends_after_its_limit_while_its_producer_is_busy() {
    let scene = Scene::with_ring("4M");
    // A shell takes lines more slowly than they are produced.
    let command = r#"while read -r line; do echo "${line%%[!0-9]*}"; done"#;
    let script = format!(
        "yes | $RING produce --no-flush ring &
        while $RING health --max-used 50 ring > health; do :; done
        $RING forward --drain --drain-timeout 1 ring --to 'exec:{command}'
        code=$?
        kill $!
        exit $code"
    );
    assert_fails(&scene.shell(&script), 3, "not everything has arrived of 1 ring");
}

#[test]
fn memory_stays_under_its_limit_while_nothing_is_acknowledged() {
    let scene = Scene::with_ring("8M");
    scene.succeed("$RING create --size 8M other; head -c 6000000 /dev/zero | tr '\\0' x | fold -w 999 > lines; echo >> lines");
    scene.succeed("for ring in ring other; do $RING produce --no-flush $ring < lines; done");
    let command = "echo x >> started; exec sleep 1000";
    let to = format!("exec:{command}");
    let arguments =
        ["forward", "--json", "--grace", "1", "--max-memory", "1M", "ring", "other", "--to", &to];
    let forwarder = Guarded::start(&mut scene.without_input(&arguments));
    // Both rings have their share.
    scene.wait_for_lines("started", 2);
    signal(&forwarder, Signal::SIGTERM);
    let output = ended(forwarder, "forward");
    assert_ok(&output);
    let report = counts(&output);
    let peak = report["peak_memory"].as_u64().unwrap();
    assert!((400_000..=1 << 20).contains(&peak), "{report}");
    for ring in ["ring", "other"] {
        let left = scene.succeed(&format!("$RING consume {ring} | cmp - lines && echo same"));
        assert_eq!(left, "same\n");
    }
}

#[test]
fn acknowledgements_at_the_end_of_input_count_when_forward_is_stopped() {
    let scene = Scene::with_lines(5);
    let command = r#"exec:echo > started; p=$(cut -f1); echo "$p""#;
    let arguments = ["forward", "ring", "--to", command];
    let forwarder = Guarded::start(&mut scene.without_input(&arguments));
    // It is started for the batch that has all of the lines.
    scene.wait_for("started", |bytes| !bytes.is_empty());
    signal(&forwarder, Signal::SIGTERM);
    assert_ok(&ended(forwarder, "SIGTERM"));
    scene.wait_for_facts("ring", |facts| facts["used"] == 0);
}

/// By the script of the package for guests.
#[test]
fn commands_are_carried_out_and_answered_over_kills() {
    let scene = Scene::with_ring("64K");
    scene.succeed(
        r#"$RING create --size 64K answers
        for n in $(seq 60); do echo "echo this is $n; sleep 0.01; exit $((n % 3))"; done | $RING produce ring"#,
    );
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_blockring"));
    let path =
        format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/guest/exec-commands");
    let to = format!("exec:exec {script} answers");
    let command = |more: &[&str]| {
        let mut command = scene.without_input(&[&["forward", "ring", "--to", &to], more].concat());
        command.env("PATH", &path);
        command
    };
    for kill in 0..8 {
        let mut forwarder = Guarded::start(command(&[]).stderr(std::process::Stdio::null()));
        // Any moment is as good as another.
        std::thread::sleep(std::time::Duration::from_millis(20 + kill * 37 % 150));
        forwarder.kill().unwrap();
        forwarder.wait().unwrap();
    }
    assert_ok(&command(&["--drain"]).output().unwrap());
    let answers = scene.succeed("$RING consume --framing nul answers");
    let mut found = BTreeMap::new();
    for answer in answers.split_terminator('\0') {
        let (head, output) = answer.split_once('\n').unwrap();
        let (position, status) = head.split_once(" status=").unwrap();
        let position: u64 = position.strip_prefix("position=").unwrap().parse().unwrap();
        let answer = (output.trim_end().to_owned(), status.parse().unwrap());
        // One that comes again has the same position.
        assert!(found.insert(position, answer.clone()).is_none_or(|before| before == answer));
    }
    let expected = (1..=60).map(|number| (format!("this is {number}"), number % 3));
    assert!(found.values().cloned().eq(expected), "{found:?}");
}
