//! The backend's metrics: complete, documented, in agreement with `diagnostics` and with what a
//! front end has done, and beside a data path that never waits for them.
#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "samples are whole numbers")]

use crate::common::daemon::{Daemon, Scene};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ring_metrics::{Format, Program};
use ring_test_support::documents::documented;
use ring_test_support::front_end::FrontEnd;
use ring_test_support::metrics::{Samples, connect, get, scrape};
use ring_test_support::process::{Guarded, eventually};
use shared_block_ring::handover::Role;
use shared_block_ring::{BlockDevice, Consumer, Control, RingDevice};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use virtio_blk_driver::VirtioDevice;

const UNIX: [&str; 2] = ["--metrics", "unix:m"];

/// The name of the ring in `Scene`.
const RING: &str = "ring";

fn samples(scene: &Scene) -> Samples {
    scrape(&scene.path("m"))
}

fn value(scene: &Scene, name: &str) -> f64 {
    samples(scene).of_ring(name, RING)
}

/// The port that the kernel has chosen for `--metrics 127.0.0.1:0`.
fn port(scene: &Scene) -> PathBuf {
    let mut address = None;
    eventually("the log tells the port", || {
        let log = scene.log();
        let found = log.split("metrics at http://").nth(1).and_then(|rest| rest.split('/').next());
        address = found.map(PathBuf::from);
        address.is_some()
    });
    address.unwrap()
}

/// Publishes items and has the consumer take one; with refusals of two kinds.
fn load(scene: &Scene) -> Consumer<impl RingDevice> {
    let mut front_end = FrontEnd::new(scene);
    front_end.publish("one");
    front_end.publish("two");
    front_end.write(0, &[7; 512]);
    front_end.write(1 << 40, &[7; 512]);
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
    consumer
}

#[test]
fn scrape_is_complete_and_promtool_has_no_objection() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    let _consumer = load(&scene);
    let samples = samples(&scene);
    samples.assert_complete(Program::Backend);
    samples.assert_lints();
}

#[test]
fn scrape_agrees_with_diagnostics_and_with_what_was_done() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    let mut consumer = load(&scene);
    let info = Control::open(scene.connect(Role::Control).unwrap()).unwrap().debug_info().unwrap();
    let counters = scene.connect(Role::Control).unwrap().counters();
    let samples = samples(&scene);
    let of = |name: &str| samples.of_ring(name, RING);
    #[allow(clippy::cast_precision_loss, reason = "the numbers are small")]
    let number = |value: &serde_json::Value| value.as_u64().unwrap() as f64;
    for (metric, counter) in [
        ("blockring_reads_total", "reads"),
        ("blockring_writes_total", "writes"),
        ("blockring_flushes_total", "flushed"),
        ("blockring_failed_requests_total", "failed"),
        ("blockring_read_bytes_total", "read_bytes"),
        ("blockring_written_bytes_total", "written_bytes"),
        ("blockring_publications_total", "published"),
        ("blockring_held_reads_total", "held"),
        ("blockring_wakeups_total", "wakeups"),
        ("blockring_rests_total", "rests"),
        ("blockring_broken_queues_total", "broken"),
        ("blockring_front_end_connections_total", "connections"),
        ("blockring_clients_turned_away_total", "turned_away"),
        ("blockring_suspends_total", "suspends"),
    ] {
        assert_eq!(of(metric), number(&counters[counter]), "{metric}");
    }
    for (metric, value) in [
        ("blockring_capacity_bytes", info.capacity),
        ("blockring_used_bytes", info.used),
        ("blockring_free_bytes", info.capacity - info.used),
        ("blockring_produced_bytes_total", info.producer.get()),
        ("blockring_consumed_bytes_total", info.consumer.get()),
        ("blockring_produced_items_total", 2),
        ("blockring_consumed_items_total", 1),
        ("blockring_publications_total", 2),
        ("blockring_ring_up", 1),
        ("blockring_producer_attached", 1),
        ("blockring_consumer_attached", 1),
        ("blockring_failed", 0),
    ] {
        assert_eq!(of(metric), number(&value.into()), "{metric}");
    }
    for (reason, count) in [("signature", 1.0), ("out_of_range", 1.0), ("malformed", 0.0)] {
        let series = format!("blockring_refusals_total{{ring=\"ring\",reason=\"{reason}\"}}");
        assert_eq!(samples.get(&series), Some(count), "{series}");
    }
    assert!(of("blockring_producer_idle_seconds") < 600.0);
    let age = of("blockring_oldest_item_age_seconds");
    assert!(age > 0.0 && age <= of("blockring_producer_idle_seconds"), "{age}");
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
    assert_eq!(value(&scene, "blockring_oldest_item_age_seconds"), 0.0);
    consumer.detach();
    assert_eq!(value(&scene, "blockring_consumer_attached"), 0.0);
}

#[test]
fn age_of_the_oldest_item_grows_while_newer_ones_come() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    let mut front_end = FrontEnd::new(&scene);
    front_end.publish("old");
    let first = value(&scene, "blockring_oldest_item_age_seconds");
    let mut newest = first;
    eventually("the age has grown beyond that of the last item", || {
        front_end.publish("new");
        let samples = samples(&scene);
        newest = samples.of_ring("blockring_producer_idle_seconds", RING);
        samples.of_ring("blockring_oldest_item_age_seconds", RING) > first + 2.0 * newest
    });
}

#[test]
fn front_end_and_suspend_show() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    assert_eq!(value(&scene, "blockring_front_end_connected"), 0.0);
    let front_end = FrontEnd::new(&scene);
    assert_eq!(value(&scene, "blockring_front_end_connected"), 1.0);
    drop(front_end);
    eventually("the front end has left", || value(&scene, "blockring_front_end_connected") == 0.0);
    assert_eq!(value(&scene, "blockring_front_end_connections_total"), 1.0);
    let mut control = Control::open(scene.connect(Role::Control).unwrap()).unwrap();
    control.suspend().unwrap();
    let samples = samples(&scene);
    for (name, expected) in [
        ("blockring_suspends_total", 1.0),
        ("blockring_suspend_requested", 1.0),
        ("blockring_suspend_acknowledged", 0.0),
    ] {
        assert_eq!(samples.of_ring(name, RING), expected, "{name}");
    }
}

#[test]
fn times_of_requests_and_flushes_are_counted() {
    let scene = Scene::new();
    let daemon = scene.start(&UNIX);
    let mut front_end = FrontEnd::new(&scene);
    // Each kick ends a sleep, so that the begin of a busy stretch is known.
    for round in 0..10 {
        daemon.queue_sleeps();
        front_end.publish(&format!("item {round}"));
    }
    eventually("the last stretch has ended", || {
        value(&scene, "blockring_request_service_seconds_count") > 0.0
    });
    let samples = samples(&scene);
    let of = |name: &str| samples.of_ring(name, RING);
    assert!(of("blockring_request_service_seconds_sum") > 0.0);
    let requests = of("blockring_reads_total") + of("blockring_writes_total");
    assert!(
        of("blockring_request_service_seconds_count") <= requests + of("blockring_flushes_total")
    );
    drop(front_end);
    let device = VirtioDevice::connect(scene.path("s"), None);
    device.unwrap().flush().unwrap();
    let samples = scrape(&scene.path("m"));
    assert!(samples.of_ring("blockring_flush_seconds_count", RING) >= 1.0);
    assert!(samples.of_ring("blockring_flushes_total", RING) >= 1.0);
}

#[test]
fn health_is_told_on_both_kinds_of_socket_and_fails_with_the_ring() {
    let scene = Scene::new();
    let daemon = scene.start(&["--metrics", "unix:m", "--metrics", "127.0.0.1:0"]);
    for address in [scene.path("m"), port(&scene)] {
        let answer = get(&address, "/healthz", "").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"));
        let open = get(&address, "/metrics", "Accept: application/openmetrics-text\r\n").unwrap();
        assert!(open.contains(Format::OpenMetrics.content_type()), "{open}");
        assert!(open.ends_with("# EOF\n"), "{open}");
        assert!(get(&address, "/", "").unwrap().starts_with("HTTP/1.1 404 "));
    }
    let mut front_end = FrontEnd::new(&scene);
    std::fs::File::options().write(true).open(scene.path("ring")).unwrap().set_len(0).unwrap();
    front_end.read(1, &mut [0; 512]);
    let answer = get(&scene.path("m"), "/healthz", "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("truncated"), "{answer}");
    assert_eq!(value(&scene, "blockring_failed"), 1.0);
    assert_eq!(value(&scene, "blockring_ring_up"), 0.0);
    drop(daemon);
}

#[test]
fn health_fails_with_a_file_truncated_that_no_request_has_met() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    let _front_end = FrontEnd::new(&scene);
    let file = std::fs::File::options().write(true).open(scene.path("ring")).unwrap();
    let bytes = file.metadata().unwrap().len();
    file.set_len(bytes - 4096).unwrap();
    let answer = get(&scene.path("m"), "/healthz", "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("truncated"), "{answer}");
    assert_eq!(value(&scene, "blockring_failed"), 1.0);
    assert_eq!(value(&scene, "blockring_ring_up"), 0.0);
}

#[test]
fn health_fails_while_the_rings_file_is_not_at_its_path() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    let health = || get(&scene.path("m"), "/healthz", "").unwrap();
    let fault = || scene.connect(Role::Control).unwrap().counters()["fault"].clone();
    assert!(fault().is_null() && health().starts_with("HTTP/1.1 200 "));
    std::fs::rename(scene.path("ring"), scene.path("elsewhere")).unwrap();
    eventually("the file is missed", || value(&scene, "blockring_displaced") == 1.0);
    let answer = health();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("was moved"), "{answer}");
    assert!(fault().as_str().unwrap().contains("was moved"), "clients are told, too");
    assert_eq!(value(&scene, "blockring_failed"), 0.0, "it is written all the same");
    std::fs::rename(scene.path("elsewhere"), scene.path("ring")).unwrap();
    eventually("the file is found", || value(&scene, "blockring_displaced") == 0.0);
    assert!(fault().is_null() && health().starts_with("HTTP/1.1 200 "));
}

#[test]
fn clients_that_say_nothing_or_too_much_keep_no_scrape_out() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    let address = scene.path("m");
    let silent: Vec<_> = (0..20).map(|_| connect(&address).unwrap()).collect();
    let mut long = connect(&address).unwrap();
    let mut reader = connect(&address).unwrap();
    reader.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    assert_eq!(value(&scene, "blockring_ring_up"), 1.0);
    // More than a socket holds: the server answers before all of it has come, and closes.
    let _ = long.write_all(&vec![b'a'; 1 << 20]);
    let mut answer = Vec::new();
    let _ = long.read_to_end(&mut answer);
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 4"), "{answer:?}");
    assert_eq!(value(&scene, "blockring_ring_up"), 1.0);
    drop(silent);
}

#[test]
fn connection_serves_one_scrape_after_the_other() {
    let scene = Scene::new();
    let _daemon = scene.start(&UNIX);
    let address = scene.path("m");
    let mut kept = UnixStream::connect(&address).unwrap();
    let mut reader = BufReader::new(kept.try_clone().unwrap());
    for _ in 0..3 {
        // In two pieces, as a network delivers it.
        kept.write_all(b"GET /healthz HTTP").unwrap();
        kept.write_all(b"/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line| line != "ok\n") {
            let mut line = String::new();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "{lines:?}");
            lines.push(line);
        }
        assert_eq!(lines[0], "HTTP/1.1 200 OK\r\n");
        assert!(lines.iter().all(|line| !line.starts_with("Connection")), "{lines:?}");
    }
    // Those who keep connections open keep nobody out, and connect again.
    let silent: Vec<_> = (0..20).map(|_| connect(&address).unwrap()).collect();
    assert_eq!(value(&scene, "blockring_ring_up"), 1.0);
    assert_eq!(reader.read_line(&mut String::new()).unwrap(), 0);
    drop(silent);
}

#[test]
fn log_has_a_line_at_the_start_and_one_at_the_end_in_either_form() {
    for format in ["text", "json"] {
        let scene = Scene::new();
        let arguments = ["--metrics", "unix:m", "--metrics", "127.0.0.1:0", "--log-format", format];
        let mut daemon = scene.start(&arguments);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.code(), Some(0));
        let log = scene.log();
        let lines: Vec<_> = log.lines().collect();
        let [start, end] = lines[..] else { panic!("{log}") };
        assert!(start.contains("serving ring") && start.contains("metrics at unix:m"), "{log}");
        assert!(start.contains("the file system is "), "{log}");
        assert!(end.contains("stopped"), "{log}");
        for line in lines.into_iter().filter(|_| format == "json") {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(object["level"], "info", "{line}");
            assert_eq!(object["program"], "vhost-device-blockring", "{line}");
            assert_eq!(object["target"], "vhost_device_blockring::daemon::server", "{line}");
            assert!(object["time"].as_str().unwrap().ends_with('Z'), "{line}");
        }
    }
}

#[test]
fn error_is_one_json_object_where_the_log_is() {
    let scene = Scene::new();
    let arguments = ["--socket-path", "s", "--blk-file", "no\nring", "--log-format", "json"];
    let output = scene.run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let object: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(object["level"], "notice");
    assert!(object["message"].as_str().unwrap().contains("cannot open"), "{object}");
}

#[test]
fn socket_of_the_metrics_is_replaced_when_stale_and_removed_at_the_end() {
    let scene = Scene::new();
    let mut first = scene.start(&UNIX);
    let mode = std::fs::metadata(scene.path("m")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "for the program's own user");
    let arguments =
        ["--socket-path", "t", "--blk-file", "u", "--size", "64K", "--metrics", "unix:m"];
    ring_test_support::assert_fails(&scene.run(&arguments), 1, "--metrics unix:m: in use");
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(scene.path("m").exists(), "SIGKILL leaves it behind");
    let mut second: Daemon = scene.start(&UNIX);
    assert_eq!(value(&scene, "blockring_ring_up"), 1.0);
    second.signal(Signal::SIGTERM);
    assert_eq!(second.code(), Some(0));
    assert!(!scene.path("m").exists());
}

/// Names of the documented probes.
const PROBES: [&str; 7] =
    ["request_begin", "request_end", "refusal", "publish", "wake", "flush_begin", "flush_end"];

#[test]
fn program_has_the_probes_that_are_documented() {
    let output = Command::new("readelf")
        .args(["-n", "--wide", env!("CARGO_BIN_EXE_vhost-device-blockring")])
        .output()
        .unwrap();
    assert!(output.status.success());
    let notes = String::from_utf8_lossy(&output.stdout);
    let of_ours = notes.split("Provider: blockring").skip(1);
    let names = of_ours.filter_map(|note| note.split("Name: ").nth(1)?.split_whitespace().next());
    let found: BTreeSet<_> = names.collect();
    assert_eq!(found, BTreeSet::from(PROBES), "{notes}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
    let page = std::fs::read_to_string(page).unwrap();
    for name in PROBES {
        assert!(page.contains(&format!("`{name}`")), "{name} is not documented");
    }
}

/// The documented lines of bpftrace, for a process and with its program in the place of that of a
/// package.
fn documented_tracers(process: u32) -> Vec<Command> {
    let program = env!("CARGO_BIN_EXE_vhost-device-blockring");
    documented("docs/observability.md", "bpftrace -p PID")
        .lines()
        .map(|line| {
            let script = line.strip_prefix("bpftrace -p PID -e '").unwrap();
            let script = script.strip_suffix('\'').unwrap();
            let script = script.replace("/usr/bin/vhost-device-blockring", program);
            let tick = |name| format!("interval:ms:20 {{ printf(\"{name}\\n\"); }}");
            let script = format!("{} {script} {}", tick("first"), tick("last"));
            let mut command = Command::new("bpftrace");
            command.args(["-B", "line", "-p", &process.to_string(), "-e", &script]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        })
        .collect()
}

#[test]
fn documented_lines_of_bpftrace_trace_requests_where_the_kernel_allows_that() {
    let trial = Command::new("bpftrace").args(["-e", "BEGIN { exit(); }"]).output();
    let trial = trial.expect("bpftrace, which scripts/setup.sh installs");
    if !trial.status.success() {
        let words = String::from_utf8_lossy(&trial.stderr);
        println!("this kernel allows no tracing, so the lines are not tried: {words}");
        return;
    }
    let scene = Scene::new();
    let daemon = scene.start(&UNIX);
    let mut front_end = FrontEnd::new(&scene);
    let tracers = documented_tracers(daemon.0.id());
    assert_eq!(tracers.len(), 2);
    for (mut tracer, wanted) in
        tracers.into_iter().zip(["@ns:", "refuses for reason 0 at sector 0"])
    {
        let mut child = Guarded::start(&mut tracer);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Both are in place, and so is what stands between them.
        for tick in ["first", "last"] {
            let mut ticks = lines.by_ref().map(Result::unwrap);
            assert!(ticks.any(|line| line == tick), "the tracer has ended");
        }
        for _ in 0..100 {
            front_end.write(0, &[7; 512]);
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let rest: Vec<_> = lines.map(Result::unwrap).collect();
        assert!(rest.iter().any(|line| line.contains(wanted)), "{rest:?}");
    }
}
