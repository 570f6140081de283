//! What a request and an item cost in instructions, counted by valgrind's callgrind: the same at every run, whatever else
//! the machine does, and so fit for a bound.
//!
//! `cargo test -p ring-bench --test instructions -- --nocapture` prints the figures that stand in `docs/performance.md`.
#![allow(clippy::unwrap_used)]

use qemu_tests::{Daemon, binaries};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Many times what a count takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often each is done.
const TIMES: u64 = 100;

/// What is counted is what happens within this function.
const COUNTED: &str = "--toggle-collect=*counted_here*";

/// Copies by SSE2 alone, whatever the processor has: the count is then nearly the same everywhere.
const SAME_EVERYWHERE: &str =
    "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-ERMS,-FSRM";

/// Instructions that something may take at most.
struct Bound {
    case: &'static str,
    /// Of what is counted at once.
    parts: u64,
    /// For each: about 40 % above the figure, which also varies with the compiler.
    most: u64,
}

/// Of the worker: a request alone in its turn, and one of sixteen; a pointer write over so many new items of 64 bytes.
/// Of the library: items of 64 bytes in a mapped ring, popped from a span of 64 whose checksum is counted in.
const BOUNDS: [Bound; 9] = [
    Bound { case: "write-512", parts: 1, most: 3_100 },
    Bound { case: "write-512-of-16", parts: 16, most: 2_050 },
    Bound { case: "write-4K", parts: 1, most: 4_050 },
    Bound { case: "write-4K-of-16", parts: 16, most: 2_950 },
    Bound { case: "publish-1", parts: 1, most: 6_600 },
    Bound { case: "publish-64", parts: 1, most: 12_300 },
    Bound { case: "push", parts: 64, most: 370 },
    Bound { case: "pop", parts: 64, most: 450 },
    Bound { case: "fold", parts: 64, most: 150 },
];

#[test]
fn a_request_and_an_item_take_no_more_instructions_than_they_may() {
    let program = program();
    let figures = BOUNDS.map(|bound| (count(&program, bound.case) / TIMES / bound.parts, bound));
    for (figure, Bound { case, most, .. }) in &figures {
        println!("{case:<16} {figure:>6} instructions, at most {most}");
    }
    for (figure, Bound { case, most, .. }) in figures {
        assert!(figure > 0, "{case}: nothing was counted");
        assert!(figure <= most, "{case}: {figure} instructions, at most {most}");
    }
}

#[test]
fn a_count_is_the_same_each_time() {
    let program = program();
    assert_eq!(count(&program, "write-4K"), count(&program, "write-4K"));
}

/// The release build of the program that is counted, as cargo names it.
fn program() -> PathBuf {
    let package = ["-p", "vhost-device-blockring", "--bench", "instructions"];
    let output = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--release", "--message-format=json"])
        .args(package)
        .current_dir(binaries::workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let mut messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let built = messages.find(|message| message["target"]["name"] == "instructions").unwrap();
    built["executable"].as_str().unwrap().into()
}

fn count(program: &Path, case: &str) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", COUNTED, "--callgrind-out-file=/dev/null"]);
    command.arg(program).args([case, &TIMES.to_string()]);
    command.env("GLIBC_TUNABLES", SAME_EVERYWHERE);
    let mut run = Daemon::spawn("valgrind", command, dir.path())
        .expect("valgrind, which scripts/setup.sh installs");
    let status = run.wait(PATIENCE).unwrap();
    let said = run.stderr();
    assert!(status.success(), "{said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    collected.and_then(|(_, count)| count.trim().parse().ok()).expect(&said)
}
