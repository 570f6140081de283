//! Instructions of a request and of an item, counted by valgrind's callgrind: the same at every
//! run, whatever else the machine does, and so fit for a bound.
//!
//! `cargo test -p ring-bench --test instructions -- --nocapture` prints the figures that stand in
//! `docs/performance.md`.
#![allow(clippy::unwrap_used)]

use qemu_tests::{Daemon, binaries};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Bound on the time of a count.
const PATIENCE: Duration = Duration::from_secs(60);

/// Repetitions of each case.
const TIMES: u64 = 100;

/// The function whose instructions are counted.
const COUNTED: &str = "--toggle-collect=*counted_here*";

/// Copies by SSE2 alone, whatever the processor has: the count is then nearly the same everywhere.
const SAME_EVERYWHERE: &str =
    "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-AVX512F,-AVX512VL,-ERMS,-FSRM";

/// Bound on the instructions of a case.
struct Bound {
    case: &'static str,
    /// Number of operations in a case.
    parts: u64,
    /// Bound for each operation: about 40 % above the figure of a release, which also varies with
    /// the compiler. Without optimisation at link time, as `scripts/test.sh` builds, the figure is
    /// 10 to 25 % higher.
    most: u64,
}

/// Bounds of the worker: a request alone in its turn, and one of sixteen; a pointer write over that
/// many new items of 64 bytes. Bounds of the library: items of 64 bytes in a mapped ring, popped
/// from a span of 64 whose checksum is counted in.
const BOUNDS: [Bound; 10] = [
    Bound { case: "write-512", parts: 1, most: 2_160 },
    Bound { case: "write-512-beside-63", parts: 1, most: 2_160 },
    Bound { case: "write-512-of-16", parts: 16, most: 950 },
    Bound { case: "write-4K", parts: 1, most: 3_100 },
    Bound { case: "write-4K-of-16", parts: 16, most: 1_900 },
    Bound { case: "publish-1", parts: 1, most: 6_600 },
    Bound { case: "publish-64", parts: 1, most: 12_300 },
    Bound { case: "push", parts: 64, most: 370 },
    Bound { case: "pop", parts: 64, most: 430 },
    Bound { case: "fold", parts: 64, most: 150 },
];

#[test]
fn request_and_item_stay_within_their_instruction_bounds() {
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
fn idle_queues_cost_a_request_nothing() {
    let program = program();
    let [alone, beside] = ["write-512", "write-512-beside-63"].map(|case| count(&program, case));
    println!("{alone} instructions alone, {beside} beside 63 idle queues");
    assert!(beside * 100 <= alone * 103);
}

#[test]
fn instruction_count_is_the_same_each_time() {
    let program = program();
    assert_eq!(count(&program, "write-4K"), count(&program, "write-4K"));
}

/// Returns the program that is counted, as cargo names it.
fn program() -> PathBuf {
    let output = binaries::build()
        .args(["--bench", "instructions", "--message-format=json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
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
