//! `examples/transfer.rs` under kill -9 at any moment: every accepted order is applied, and applied
//! once.
#![allow(clippy::unwrap_used)]

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ring_test_support::process::example;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The longest wait for output that is on its way.
const SOON: Duration = Duration::from_secs(30);

/// The longest life of a program that is to end by itself, on a machine with much else to do.
const WHOLE_LIFE: Duration = Duration::from_secs(600);

const ORDERS: usize = 1000;
const ACCOUNTS: [&str; 4] = ["alice", "bob", "carol", "dave"];

fn program() -> PathBuf {
    example("transfer")
}

fn start(program: &Path, folder: &Path) -> Child {
    let mut command = Command::new(program);
    command.arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Orders with small amounts between random accounts, and what they should come to.
fn orders(random: &mut SmallRng) -> (Vec<String>, BTreeMap<&'static str, i64>) {
    let mut balances = BTreeMap::from(ACCOUNTS.map(|name| (name, 0)));
    let lines = (1..=ORDERS).map(|number| {
        let from = random.random_range(0..ACCOUNTS.len());
        let to = (from + random.random_range(1..ACCOUNTS.len())) % ACCOUNTS.len();
        let amount = random.random_range(1..100);
        *balances.get_mut(ACCOUNTS[from]).unwrap() -= amount;
        *balances.get_mut(ACCOUNTS[to]).unwrap() += amount;
        format!("{number} {} {} {amount}", ACCOUNTS[from], ACCOUNTS[to])
    });
    (lines.collect(), balances)
}

/// Feeds orders from the first one on that was not accepted, kills after `life`, and answers how
/// many are accepted then.
fn feed(mut child: Child, orders: &[String], mut accepted: usize, life: Duration) -> usize {
    let mut stdin = child.stdin.take().unwrap();
    let rest: String = orders[accepted..].iter().map(|order| order.clone() + "\n").collect();
    // It may be killed before it has read all of it.
    let feeding = std::thread::spawn(move || drop(stdin.write_all(rest.as_bytes())));
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (say, hear) = channel();
    let reading = std::thread::spawn(move || {
        stdout.lines().map_while(Result::ok).all(|line| say.send(line).is_ok())
    });
    let deadline = Instant::now() + life;
    let mut hear_until = |deadline: Instant| loop {
        match hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => {
                accepted += 1;
                assert_eq!(answer, format!("accepted {accepted}"));
            }
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => return true,
        }
    };
    let ended = hear_until(deadline);
    if !ended {
        child.kill().unwrap();
        // What it has said before it died counts.
        assert!(hear_until(Instant::now() + SOON));
    }
    let status = child.wait().unwrap();
    assert!(!ended || status.success(), "{status}");
    feeding.join().unwrap();
    reading.join().unwrap();
    accepted
}

#[test]
fn transfer_applies_every_accepted_order_exactly_once_in_effect() {
    let program = program();
    let seed =
        std::env::var("BLOCKRING_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("BLOCKRING_SEED={seed} again");
    let mut random = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let (orders, balances) = orders(&mut random);
    let mut accepted = 0;
    for _ in 0..25 {
        let life = Duration::from_micros(random.random_range(1_000..40_000));
        accepted = feed(start(&program, dir.path()), &orders, accepted, life);
    }
    println!("{accepted} of {ORDERS} accepted under fire");
    accepted = feed(start(&program, dir.path()), &orders, accepted, WHOLE_LIFE);
    assert_eq!(accepted, ORDERS);
    for (name, balance) in balances {
        let text = std::fs::read_to_string(dir.path().join("accounts").join(name)).unwrap();
        assert_eq!(text.lines().next(), Some(balance.to_string().as_str()), "{name}");
    }
    assert!(!dir.path().join("refused").exists());
}

#[test]
fn transfer_accepts_no_order_whose_answer_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo 1 alice bob 5 | \"$PROGRAM\" bank >&-";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).env("PROGRAM", program()).current_dir(dir.path());
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output: closed"));
    assert!(!dir.path().join("bank").exists());
}
