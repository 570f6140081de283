//! The metrics of `blockring forward` and `blockring export`: complete, documented, and in
//! agreement with `diagnostics` and with what was done.
#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "samples are whole numbers")]

use crate::common::scene::Scene;
use nix::sys::signal::Signal;
use nix::sys::socket::{SockType, accept};
use ring_metrics::Program;
use ring_test_support::metrics::{Samples, get, scrape};
use ring_test_support::process::{Guarded, ended, eventually, signal};
use ring_test_support::service::{as_service, pass};
use ring_test_support::{assert_fails, assert_ok};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

/// Starts the program, and waits until it answers at the socket `m`.
fn start(scene: &Scene, arguments: &[&str]) -> Guarded {
    let words: Vec<_> = arguments.iter().copied().chain(["--metrics", "unix:m"]).collect();
    let mut command = scene.without_input(&words);
    let program = Guarded::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("metrics are answered", || get(&scene.path("m"), "/healthz", "").is_ok());
    program
}

fn samples(scene: &Scene) -> Samples {
    scrape(&scene.path("m"))
}

fn state(samples: &Samples, ring: &str, state: &str) -> bool {
    let series = format!("blockring_forward_state{{ring=\"{ring}\",state=\"{state}\"}}");
    samples.get(&series) == Some(1.0)
}

/// Compares the samples of a ring with `diagnostics --json`.
fn assert_agrees(scene: &Scene, samples: &Samples, ring: &str) {
    let facts = scene.facts(ring);
    for (metric, fact) in [
        ("blockring_capacity_bytes", "capacity"),
        ("blockring_used_bytes", "used"),
        ("blockring_produced_bytes_total", "producer"),
        ("blockring_consumed_bytes_total", "consumer"),
        ("blockring_produced_items_total", "producer_items"),
        ("blockring_consumed_items_total", "consumer_items"),
    ] {
        assert_eq!(Some(samples.of_ring(metric, ring)), facts[fact].as_f64(), "{metric}: {facts}");
    }
    let used = facts["used"].as_f64().unwrap();
    let free = facts["capacity"].as_f64().unwrap() - used;
    assert_eq!(samples.of_ring("blockring_free_bytes", ring), free);
}

#[test]
fn export_prints_one_scrape_that_agrees_with_diagnostics() {
    let scene = Scene::with_lines(100);
    scene.succeed("$RING consume --count 10 ring > /dev/null");
    let output = scene.run(&["export", "ring"], b"");
    assert_ok(&output);
    let samples = Samples::of(String::from_utf8(output.stdout).unwrap());
    samples.assert_complete(Program::Export);
    samples.assert_lints();
    assert_agrees(&scene, &samples, "ring");
    assert_eq!(samples.of_ring("blockring_produced_items_total", "ring"), 100.0);
    assert_eq!(samples.of_ring("blockring_consumed_items_total", "ring"), 10.0);
    assert_eq!(samples.of_ring("blockring_producer_attached", "ring"), 0.0);
    let age = samples.of_ring("blockring_oldest_item_age_seconds", "ring");
    assert!(age > 0.0 && age < 600.0, "{age}");
}

#[test]
fn export_serves_rings_that_come_and_go() {
    let scene = Scene::with_lines(100);
    let mut export = start(&scene, &["export", "*ring"]);
    assert_eq!(samples(&scene).of_ring("blockring_ring_up", "ring"), 1.0);
    scene.succeed("$RING create --size 64K another-ring");
    let has_another =
        || samples(&scene).get("blockring_ring_up{ring=\"another-ring\"}") == Some(1.0);
    eventually("the new ring is there", has_another);
    let mut consume = scene.without_input(&["consume", "--follow", "ring"]);
    let consumer = Guarded::start(consume.stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("the consumer has taken everything", || {
        let samples = samples(&scene);
        samples.of_ring("blockring_used_bytes", "ring") == 0.0
            && samples.of_ring("blockring_consumer_attached", "ring") == 1.0
            && samples.of_ring("blockring_oldest_item_age_seconds", "ring") == 0.0
    });
    drop(consumer);
    std::fs::remove_file(scene.path("ring")).unwrap();
    eventually("the removed ring is not there", || {
        samples(&scene).get("blockring_ring_up{ring=\"ring\"}") != Some(1.0)
    });
    signal(&export, Signal::SIGTERM);
    assert!(export.wait().unwrap().success());
    assert!(!scene.path("m").exists());
}

#[test]
fn export_says_what_it_cannot_observe() {
    let scene = Scene::with_ring("64K");
    assert_fails(&scene.run(&["export", "vhost-user:s"], b""), 1, "only one process can use it");
    assert_fails(&scene.run(&["export", "ring", "--metrics", "0.0.0.0:1"], b""), 2, "this machine");
    let output = scene.run(&["export", "missing"], b"");
    assert_ok(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("blockring_ring_up{ring=\"missing\"} 0\n"), "{text}");
    assert!(!text.contains("blockring_used_bytes"), "{text}");
}

#[test]
fn export_says_which_rings_it_leaves_out_and_why_one_is_not_up() {
    let scene = Scene::with_ring("64K");
    scene.succeed(
        "mkdir d; cp ring d/a.ring; cp ring d/a.img; cp ring \"$(printf 'd/b\\nc.ring')\"; printf X > d/e.ring",
    );
    let output = scene.run(&["export", "d/*"], b"");
    assert_ok(&output);
    let errors = String::from_utf8(output.stderr).unwrap();
    for words in [
        "d/a.ring and d/a.img both have the name a (name a symbolic link",
        "\"d/b\\nc.ring\": a ring's name",
    ] {
        let is_said = |line: &str| line.contains("a ring is left out: ") && line.contains(words);
        assert_eq!(errors.lines().filter(|line| is_said(line)).count(), 1, "{words}: {errors}");
    }
    assert!(errors.contains("e: the ring's state cannot be read: d/e.ring: "), "{errors}");
    assert!(!errors.contains("[[ring]]") && !errors.contains("configure"), "{errors}");
    let output = scene.run(&["export", "ring", "d/../ring"], b"");
    assert_fails(&output, 1, "both have the name ring (name a symbolic link");
    // What the words advise works.
    scene.succeed("ln -s d/a.img other.img");
    let text = String::from_utf8(scene.run(&["export", "ring", "other.img"], b"").stdout).unwrap();
    assert!(text.contains("blockring_ring_up{ring=\"other\"} 1\n"), "{text}");
}

#[test]
fn export_says_once_as_long_as_it_lasts_that_a_ring_cannot_be_read() {
    let scene = Scene::with_ring("64K");
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let mut command = scene.without_input(&["export", "ring", "--metrics", "unix:m"]);
    let _export = Guarded::start(command.stdout(Stdio::null()).stderr(errors));
    eventually("metrics are answered", || get(&scene.path("m"), "/healthz", "").is_ok());
    let is_up = || samples(&scene).of_ring("blockring_ring_up", "ring") == 1.0;
    assert!(is_up());
    scene.succeed("mv ring away");
    for _ in 0..10 {
        assert!(!is_up());
    }
    scene.succeed("mv away ring");
    eventually("the ring is read again", is_up);
    let count =
        |words: &str| scene.lines("errors").iter().filter(|line| line.contains(words)).count();
    // A thread of its own writes the log.
    let again = "ring: the ring's state can be read again";
    eventually("the end of it is logged", || count(again) > 0);
    assert_eq!(count(again), 1);
    assert!((1..=2).contains(&count("cannot be read: ")));
}

#[test]
fn signal_ends_export_that_waits_for_silent_backends() {
    let scene = Scene::new();
    let listening = scene.silent_socket(SockType::SeqPacket);
    scene.succeed("for n in $(seq 200); do ln -s socket $n.out; done");
    let mut command = scene.without_input(&["export", "unix:*.out"]);
    let export = Guarded::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let _first = accept(listening.as_raw_fd()).unwrap();
    signal(&export, Signal::SIGTERM);
    assert_eq!(ended(export, "export").status.signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn export_observes_as_many_rings_as_open_files_allow() {
    const RINGS: usize = 20;
    let scene = Scene::new();
    scene.succeed(&format!("for n in $(seq {RINGS}); do $RING create --size 64K $n.img; done"));
    // It raises a soft limit by itself.
    for (limit, wanted) in [("-S -n 52", RINGS), ("-n 52", 10)] {
        let output = scene.shell(&format!("ulimit {limit}; exec $RING export '*.img'"));
        assert_ok(&output);
        let text = String::from_utf8(output.stdout).unwrap();
        let up = text.lines().filter(|line| line.starts_with("blockring_ring_up{"));
        let up: Vec<_> = up.map(|line| line.ends_with(" 1")).collect();
        assert_eq!((up.len(), up.iter().filter(|up| **up).count()), (RINGS, wanted), "{limit}");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(errors.matches("LimitNOFILE=").count(), RINGS - wanted, "{errors}");
    }
}

#[test]
fn forwarder_tells_what_has_arrived_and_what_has_not() {
    let scene = Scene::with_lines(1000);
    let _forwarder = start(&scene, &["forward", "ring", "--to", "file:out"]);
    eventually("everything has arrived", || {
        samples(&scene).of_ring("blockring_forward_acknowledged_items_total", "ring") == 1000.0
    });
    let found = samples(&scene);
    found.assert_complete(Program::Forward);
    found.assert_lints();
    let of = |name: &str| found.of_ring(name, "ring");
    // 9 numbers of one digit, 90 of two, 900 of three, one of four.
    assert_eq!(of("blockring_forward_acknowledged_bytes_total"), 2893.0);
    for name in [
        "blockring_forward_lag_bytes",
        "blockring_forward_lag_seconds",
        "blockring_forward_in_flight_bytes",
    ] {
        assert_eq!(of(name), 0.0, "{name}");
    }
    assert!(state(&found, "ring", "ready"));
    assert_eq!(found.get("blockring_forward_memory_limit_bytes"), Some(f64::from(64 << 20)));
    let is_freed = || samples(&scene).of_ring("blockring_used_bytes", "ring") == 0.0;
    eventually("the ring is freed", is_freed);
    assert_agrees(&scene, &samples(&scene), "ring");
}

#[test]
fn forwarder_whose_sink_does_not_acknowledge_lags() {
    let scene = Scene::with_lines(100);
    scene.write("config", "to = \"exec:sleep 1000\"\nrings = [\"ring\"]\nmetrics = [\"unix:m\"]\n");
    let mut command = scene.without_input(&["forward", "--config", "config"]);
    let _forwarder = Guarded::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("metrics are answered", || get(&scene.path("m"), "/healthz", "").is_ok());
    eventually("items are in flight", || {
        samples(&scene).of_ring("blockring_forward_in_flight_bytes", "ring") > 0.0
    });
    let first = samples(&scene);
    let of = |name: &str| first.of_ring(name, "ring");
    assert_eq!(of("blockring_forward_lag_bytes"), of("blockring_used_bytes"));
    assert_eq!(of("blockring_forward_acknowledged_items_total"), 0.0);
    assert!(first.get("blockring_forward_memory_bytes").unwrap() > 0.0);
    eventually("the lag grows", || {
        let now = samples(&scene).of_ring("blockring_forward_lag_seconds", "ring");
        now > of("blockring_forward_lag_seconds") + 0.05
    });
}

#[test]
fn messages_and_log_are_json_objects_where_that_is_asked_for() {
    let scene = Scene::with_lines(10);
    let script = "$RING forward ring --to 'exec:sleep 1000' --log-format json --warn-after 0.1 --drain --drain-timeout 0.5 --grace 0";
    let output = scene.shell(script);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.lines().count() >= 2, "{text}");
    for line in text.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(object["program"], "blockring", "{line}");
        assert!(object["message"].is_string(), "{line}");
    }
    assert!(text.contains("\"level\":\"warn\"") && text.contains("\"level\":\"notice\""), "{text}");
}

#[test]
fn forwarder_says_that_a_ring_is_there_again_only_if_it_is() {
    let scene = Scene::with_lines(100);
    scene.succeed("printf '\\377\\377\\377\\377' | dd of=ring bs=1 seek=1600 conv=notrunc 2> dd");
    let errors = std::fs::File::create(scene.path("errors")).unwrap();
    let words = ["forward", "ring", "missing", "--to", "file:{ring}.out", "--metrics", "unix:m"];
    let mut command = scene.without_input(&words);
    let _forwarder = Guarded::start(command.stdout(Stdio::null()).stderr(errors));
    eventually("metrics are answered", || get(&scene.path("m"), "/healthz", "").is_ok());
    eventually("both rings have failed again and again", || {
        let samples = samples(&scene);
        ["ring", "missing"]
            .iter()
            .all(|ring| samples.of_ring("blockring_forward_ring_failures_total", ring) > 3.0)
    });
    scene.succeed("$RING create --size 64K missing");
    let is_said = |words: &str| scene.lines("errors").iter().any(|line| line.contains(words));
    eventually("the other ring is there", || is_said("missing: the ring is there again"));
    let before = samples(&scene).of_ring("blockring_forward_ring_failures_total", "ring");
    eventually("the damaged ring has failed once more", || {
        samples(&scene).of_ring("blockring_forward_ring_failures_total", "ring") > before
    });
    assert!(is_said("ring: ring: ") && !is_said(" ring: the ring is there again"));
}

#[test]
fn forwarder_counts_failures_of_ring_and_sink() {
    let scene = Scene::with_lines(100);
    scene.write("bad", [7; 4096]);
    let _forwarder = start(&scene, &["forward", "ring", "bad", "--to", "exec:exit 1"]);
    eventually("both have failed more than once", || {
        let samples = samples(&scene);
        samples.of_ring("blockring_forward_sink_failures_total", "ring") > 1.0
            && samples.of_ring("blockring_forward_ring_failures_total", "bad") > 1.0
            && samples.of_ring("blockring_ring_up", "bad") == 0.0
    });
}

#[test]
fn metrics_are_offered_on_a_socket_that_a_service_manager_passes_and_keeps() {
    let scene = Scene::with_ring("64K");
    let socket = std::os::unix::net::UnixListener::bind(scene.path("m")).unwrap();
    let words = ["forward", "ring", "--to", "file:out"];
    let command = |name: &str| {
        let mut command = as_service(&scene.command(&words));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        pass(&mut command, &[(name, socket.try_clone().unwrap().into())]);
        command
    };
    for _ in 0..2 {
        let forwarder = Guarded::start(&mut command("metrics"));
        eventually("the ring is open", || state(&samples(&scene), "ring", "ready"));
        signal(&forwarder, Signal::SIGTERM);
        assert_ok(&ended(forwarder, "forward"));
    }
    let output = ended(Guarded::start(&mut command("log")), "forward");
    assert_fails(&output, 2, "socket `log` (descriptor 3): FileDescriptorName= in its socket unit");
}
