//! The bench measures and reports. Its figures are not tested.
#![allow(clippy::unwrap_used)]

use qemu_tests::{Daemon, binaries};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Bound on a measurement.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs the bench. Returns its output, and whether it ended with 0.
fn bench(dir: &Path, arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ring-bench"));
    command.args(arguments).arg("--dir").arg(dir);
    command.arg("--daemon").arg(binaries::programs().unwrap().vhost_device_blockring());
    let logs = tempfile::tempdir().unwrap();
    let mut run = Daemon::spawn("ring-bench", command, logs.path()).unwrap();
    let status = run.wait(PATIENCE).unwrap();
    (String::from_utf8(run.stdout()).unwrap() + &run.stderr(), status.success())
}

/// Returns a folder with the page that figures are written into.
fn report() -> tempfile::TempDir {
    let report = tempfile::tempdir().unwrap();
    let page = binaries::workspace().join("docs/performance.md");
    std::fs::copy(page, report.path().join("performance.md")).unwrap();
    report
}

/// Returns this run's figures, which must be between the markers.
fn assert_filled(report: &Path, part: &str) -> String {
    let page = std::fs::read_to_string(report.join("performance.md")).unwrap();
    let (_, table) = page.split_once(&format!("<!-- {part} -->\n")).unwrap();
    let (table, _) = table.split_once(&format!("<!-- end of {part} -->")).unwrap();
    assert!(table.contains("scripts/bench.sh --quick"), "{table}");
    assert!(table.lines().filter(|line| line.starts_with("| ")).count() > 3, "{table}");
    table.to_owned()
}

#[test]
fn every_row_is_measured_beside_a_bare_loop() {
    let (dir, report) = (tempfile::tempdir().unwrap(), report());
    let folder = report.path().to_str().unwrap();
    let (text, ended_well) = bench(dir.path(), &["--quick", "--reference", "--report", folder]);
    assert!(ended_well, "{text}");
    let table = assert_filled(report.path(), "reference");
    let (rows, _) = bench(dir.path(), &["--reference", "--list"]);
    for row in rows.lines() {
        assert!(text.contains(row) && table.contains(row), "{row}: {text}");
    }
}

/// As docs/scaling.md has it, which calls scripts/bench.sh.
#[test]
fn fleets_are_modelled_with_the_documented_options() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("fleet.json");
    let other = "--measure fleet --hosts 500 --host-rings 40 --flush-us 3000 --streams 20";
    let long = "--measure fleet --hosts 100 --outage-s 3600 --json";
    for (options, file) in [(other, None), (long, json.to_str())] {
        let options: Vec<_> = options.split(' ').chain(file).collect();
        let (text, ended_well) = bench(dir.path(), &options);
        assert!(ended_well, "{text}");
        for line in ["items of the fleet", "one server is lost", "all servers are lost"] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert!(figures.to_string().contains("all servers are lost"), "{figures}");
}

#[test]
fn every_row_of_requests_has_figures() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures.json");
    let (text, ended_well) = bench(dir.path(), &["--quick", "--json", json.to_str().unwrap()]);
    assert!(ended_well, "{text}");
    let (rows, _) = bench(dir.path(), &["--list"]);
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let figures = figures["requests"].as_array().unwrap();
    assert_eq!(figures.len(), rows.lines().count());
    for (row, name) in figures.iter().zip(rows.lines()) {
        assert_eq!(row["name"], name);
        assert!(text.contains(name));
        for side in ["ours", "peer"] {
            assert!(row[side]["requests"].as_f64().unwrap() > 0.0, "{row}");
        }
    }
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "rings and sockets are gone, the figures are there");
}

#[test]
fn rings_from_end_to_end_have_figures_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let report = report();
    let scratch = dir.path().to_str().unwrap();
    let (text, ended_well) = bench(
        dir.path(),
        &[
            "--quick",
            "--measure",
            "items,durable,size",
            "--disk-dir",
            scratch,
            "--report",
            report.path().to_str().unwrap(),
        ],
    );
    assert!(ended_well, "{text}");
    for part in ["items", "durable", "size"] {
        let table = assert_filled(report.path(), part);
        assert!(table.contains("| wanted |"), "{table}");
        assert!(table.contains(": yes |") || table.contains(": NO |"), "{table}");
    }
    for plot in ["latency", "throughput", "size"] {
        let svg = std::fs::read_to_string(report.path().join(format!("{plot}.svg"))).unwrap();
        assert!(svg.contains("<polyline") && svg.ends_with("</svg>\n"), "{plot}");
    }
}

#[test]
fn ways_out_of_a_guest_have_figures() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures.json");
    let arguments = ["--quick", "--measure", "guest", "--json", json.to_str().unwrap()];
    let report = report();
    let scratch = dir.path().to_str().unwrap();
    let folders = ["--disk-dir", scratch, "--report", report.path().to_str().unwrap()];
    let (text, ended_well) = bench(dir.path(), &[&arguments[..], &folders].concat());
    assert!(ended_well, "{text}");
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let rows = figures["ring"]["guest"].as_array().unwrap();
    for (way, count) in
        [("ring", 15), ("virtio-serial", 6), ("plain disk", 12), ("ring, userspace", 15)]
    {
        let of_it: Vec<_> = rows.iter().filter(|row| row["way"] == way).collect();
        assert_eq!(of_it.len(), count, "{text}");
        assert!(of_it.iter().all(|row| row["rate"].as_f64().unwrap() > 0.0), "{text}");
    }
    assert_filled(report.path(), "guest");
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "disks and sockets are gone, the figures are there");
}

#[test]
fn scrapes_of_metrics_have_figures() {
    let dir = tempfile::tempdir().unwrap();
    let (text, ended_well) = bench(dir.path(), &["--quick", "--measure", "scrape"]);
    assert!(ended_well, "{text}");
    assert!(text.contains("of a processor in the backend"), "{text}");
    for load in ["512-write-qd32", "4K-write-qd1", "producer, 64 B"] {
        assert!(text.lines().any(|line| line.starts_with(load) && line.contains("98%")), "{text}");
    }
}

#[test]
fn bench_names_what_it_cannot_measure() {
    let dir = tempfile::tempdir().unwrap();
    let (text, ended_well) = bench(dir.path(), &["--rows", "nothing"]);
    assert!(!ended_well && text.contains("--list"), "{text}");
    let arguments = ["--rows", "512-write-qd1", "--daemon-args", "--no-such-option"];
    let (text, ended_well) = bench(dir.path(), &arguments);
    assert!(!ended_well && text.contains("--no-such-option"), "{text}");
}

#[test]
fn languages_are_measured_beside_rust_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("language");
    let told = dir.path().join("told");
    // It takes the place of a program that moves items.
    let text = format!("#!/bin/sh\necho $2 >>{}\ntest -e $1 && echo 1000\n", told.display());
    std::fs::write(&program, text).unwrap();
    let language = format!("Shell:0.95=sh {}", program.display());
    let arguments = ["--quick", "--measure", "languages", "--language", &language];
    let (text, ended_well) = bench(dir.path(), &arguments);
    assert!(ended_well, "{text}");
    assert_eq!(std::fs::read_to_string(told).unwrap(), "20\n");
    assert!(text.lines().any(|line| line.starts_with("Rust ")), "{text}");
    let line = text.lines().find(|line| line.starts_with("Shell ")).unwrap();
    assert!(line.contains(" 1.0 k ") && line.ends_with("95%: NO"), "{text}");
}
