//! `blockring forward` into files and commands that run while forwarders and commands are killed,
//! under load: no item is lost, and files have each once.
//!
//! With `BLOCKRING_LONG` set, 400,000 items instead of 20,000.
#![allow(clippy::unwrap_used)]

use crate::common::load::{RINGS, item, items, produce, rings, wait_for};
use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use ring_test_support::assert_ok;
use ring_test_support::process::{Guarded, ended, eventually_or, signal, status_of};
use std::cell::Cell;
use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Times that the forwarder is killed.
const KILLS: usize = 50;

/// Times that files cannot grow any more, as on a full disk.
const FULL_DISKS: usize = 10;

/// Returns the command of a forwarder of all rings, with limits that a shell sets first.
fn forwarder(scene: &Scene, limits: &str, words: &str) -> Command {
    let rings = RINGS.map(|ring| format!("{ring}.img")).join(" ");
    let program = env!("CARGO_BIN_EXE_blockring");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limits} exec {program} forward {rings} {words}")]);
    shell.current_dir(scene.path(".")).stdin(Stdio::null()).stdout(Stdio::null());
    // What it says of failures is not looked at, and must not fill a pipe.
    shell.stderr(Stdio::null());
    shell
}

fn kill(mut forwarder: Guarded) {
    forwarder.kill().unwrap();
    status_of(&mut forwarder, "the forwarder");
}

/// Kills forwarders while producers push, and forwards the rest.
fn survive(
    scene: &Scene,
    words: &str,
    make: fn(&str, usize) -> Vec<u8>,
    between: impl Fn(usize, &AtomicUsize),
) {
    let (items, fed) = (items(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let producers = RINGS.map(|ring| {
            let fed = &fed;
            scope.spawn(move || produce(scene, ring, items / RINGS.len(), fed, make))
        });
        let mut running = Guarded::start(&mut forwarder(scene, "", words));
        for number in 0..KILLS {
            wait_for(&fed, items * (number + 1) / (KILLS + 1));
            kill(running);
            between(number, &fed);
            running = Guarded::start(&mut forwarder(scene, "", words));
        }
        for producer in producers {
            producer.join().unwrap();
        }
        for ring in RINGS {
            scene.wait_for_facts(&format!("{ring}.img"), |facts| facts["used"] == 0);
        }
        signal(&running, Signal::SIGTERM);
        assert_ok(&ended(running, "the forwarder"));
    });
}

/// Returns the items of a ring's files, in their order.
fn filed(scene: &Scene, ring: &str) -> Vec<u8> {
    let name = format!("{ring}.log");
    let kept = (1..).map(|number| format!("{name}.{number}"));
    let kept = kept.take_while(|name| scene.path(name).exists());
    kept.chain([name.clone()]).flat_map(|name| scene.read(&name)).collect()
}

#[test]
fn files_have_each_item_once_whatever_ends_the_forwarder() {
    let scene = rings();
    let words = "--to 'file:{ring}.log' --framing length --rotate-size 2M";
    let length = |ring| scene.path(&format!("{ring}.log")).metadata().map_or(0, |file| file.len());
    let full_disks = Cell::new(0);
    survive(&scene, words, item, |number, fed| {
        if !number.is_multiple_of(KILLS / FULL_DISKS) {
            return;
        }
        // In blocks of 512 bytes. Each file reaches it in the middle of a write.
        let limit = RINGS.map(length).into_iter().min().unwrap() / 512 + 20;
        let mut command = forwarder(&scene, &format!("ulimit -f {limit};"), words);
        let full = Guarded::start(command.stderr(File::create(scene.path("errors")).unwrap()));
        let is_full = || String::from_utf8_lossy(&scene.read("errors")).contains("cannot write");
        let all_fed = || fed.load(Ordering::Relaxed) == items();
        eventually_or(|| is_full() || all_fed(), || "the files grow on".to_owned());
        full_disks.set(full_disks.get() + usize::from(is_full()));
        kill(full);
    });
    assert!(full_disks.get() > 0, "no file reached its limit");
    for ring in RINGS {
        let bytes = filed(&scene, ring);
        let mut rest = &bytes[..];
        for number in 0..items() / RINGS.len() {
            let (head, behind) = rest.split_first_chunk::<4>().unwrap();
            let (found, behind) = behind.split_at(u32::from_le_bytes(*head) as usize);
            let start = String::from_utf8_lossy(&found[..found.len().min(20)]);
            let is_next = found == item(ring, number);
            assert!(is_next, "item {number} of {ring} is not the next one, but {start:?}");
            rest = behind;
        }
        assert!(rest.is_empty(), "{ring} has {} bytes more", rest.len());
    }
}

/// Returns an item that is a line.
fn line(ring: &str, number: usize) -> Vec<u8> {
    let printable = |byte: u8| if (32..127).contains(&byte) { byte } else { b'x' };
    item(ring, number).into_iter().map(printable).collect()
}

/// A command that notes each item and each acknowledgement, and dies after some of them, every
/// other time with an item noted and not acknowledged.
const DYING: &str = r#"
    open(LOG, ">>", "$ENV{BLOCKRING_RING}.log") or exit 2;
    select((select(LOG), $| = 1)[0]);
    $| = 1;
    print LOG "start " . getppid() . "\n";
    my $life = 1 + $$ % 120;
    while (<STDIN>) {
        # The forwarder was killed in the middle of an item.
        last unless chomp;
        my ($position, $item) = split(/\t/, $_, 2);
        my ($ring, $number) = split(/ /, $item);
        print LOG "item $ring $number " . length($item) . "\n";
        $life--;
        kill(9, $$) if $life == 0 && $$ % 2;
        print LOG "ack $number\n";
        print "$position\n";
        kill(9, $$) if $life == 0;
    }
"#;

#[test]
fn commands_have_each_item_and_what_they_acknowledged_again_only_after_a_forwarder_was_killed() {
    let scene = rings();
    scene.write("dying", DYING);
    survive(&scene, "--to 'exec:exec perl dying'", line, |_, _| {});
    let (mut repeats, mut kills, mut deaths) = (0, 0, 0);
    for ring in RINGS {
        // The number of the next item, and of the one that was acknowledged last.
        let (mut next, mut acknowledged, mut all) = (0, 0, 0);
        let mut parent = String::new();
        for line in scene.lines(&format!("{ring}.log")) {
            let words: Vec<_> = line.split(' ').collect();
            let number = || words[words.len().min(3) - 1].parse::<usize>().unwrap();
            match words[0] {
                "start" if words[1] == parent => {
                    deaths += 1;
                    next = acknowledged;
                }
                "start" => {
                    parent = words[1].to_owned();
                    kills += 1;
                    // What was acknowledged and not freed comes again.
                    next = usize::MAX;
                }
                "item" => {
                    let size = self::line(ring, number()).len().to_string();
                    assert_eq!((words[1], words[3]), (ring, &*size), "{line}");
                    let is_next =
                        number() == next || next == usize::MAX && number() <= acknowledged;
                    assert!(is_next, "{ring}: {line:?}, and not item {next}");
                    repeats += usize::from(number() < all);
                    next = number() + 1;
                    all = all.max(next);
                }
                "ack" => acknowledged = number() + 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!((all, acknowledged), (items() / RINGS.len(), items() / RINGS.len()), "{ring}");
    }
    println!("{kills} first children, {deaths} that followed on dead ones, {repeats} repeats");
    assert!(deaths > 20, "{deaths} deaths");
}
