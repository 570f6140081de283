//! Metrics and health of a daemon of many rings: one exposition for all of them, which follows the
//! rings that come and go, and outlives the data process.
#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "samples are whole numbers")]

use crate::common::daemon::{Daemon, Scene};
use crate::common::rings::{self, data_process};
use crate::common::service::Service;
use crate::common::user::USER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use ring_metrics::Program;
use ring_test_support::assert_fails;
use ring_test_support::front_end::FrontEnd;
use ring_test_support::metrics::{Samples, get, scrape};
use ring_test_support::process::eventually;
use serde_json::{Value, json};
use shared_block_ring::Consumer;
use shared_block_ring::handover::Role;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const ARGUMENTS: [&str; 8] =
    ["--config", "rings.d", "--control", "unix:control", "--workers", "2", "--metrics", "unix:m"];

/// Writes the configuration of a ring. That of the ring `one` has the paths of the scene's ring.
fn configure(scene: &Scene, name: &str) {
    let end = if name == "one" { String::new() } else { format!(".{name}") };
    let text = format!(
        "socket-path = \"s{end}\"\nblk-file = \"ring{end}\"\nsize = \"64K\"\n\
         consumer-socket = \"c{end}\"\n"
    );
    std::fs::write(scene.path(&format!("rings.d/{name}.toml")), text).unwrap();
}

/// A scene with a folder of rings.
fn scene(names: &[&str]) -> Scene {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("rings.d")).unwrap();
    for name in names {
        configure(&scene, name);
    }
    scene
}

/// Starts the daemon of a scene, and waits until it serves its rings.
fn start(scene: &Scene, arguments: &[&str]) -> Daemon {
    let log = File::options().create(true).append(true).open(scene.path("log")).unwrap();
    let daemon = Daemon(scene.command(arguments).stderr(log).spawn().unwrap());
    eventually("the daemon serves its rings", || scene.logged(" rings by 2 threads") == 1);
    daemon
}

/// Calls a method by the control socket, and returns its parameters.
fn call(scene: &Scene, method: &str, parameters: &Value) -> Value {
    let answer = rings::call(&scene.path("control"), method, parameters);
    assert!(answer.get("error").is_none(), "{answer}");
    answer["parameters"].clone()
}

fn samples(scene: &Scene) -> Samples {
    scrape(&scene.path("m"))
}

/// Returns whether a scrape has the samples of a ring. They say that it can be read.
fn has(samples: &Samples, ring: &str) -> bool {
    assert!(samples.get("blockring_rings").is_some(), "{}", samples.text);
    let up = samples.get(&format!("blockring_ring_up{{ring=\"{ring}\"}}"));
    assert!(up.is_none_or(|up| up == 1.0), "{}", samples.text);
    up.is_some()
}

fn health(scene: &Scene) -> String {
    get(&scene.path("m"), "/healthz", "").unwrap()
}

/// Has the ring of this file lose its end.
fn truncate(scene: &Scene, file: &str) {
    let file = File::options().write(true).open(scene.path(file)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
}

#[test]
fn scrape_has_the_samples_of_all_rings_with_their_names() {
    let scene = scene(&["one", "three", "two"]);
    let _daemon = start(&scene, &ARGUMENTS);
    let mut front_end = FrontEnd::new(&scene);
    front_end.publish("item");
    front_end.write(0, &[7; 512]);
    let mut consumer = Consumer::attach(scene.connect(Role::Consumer).unwrap(), "q", "c").unwrap();
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
    let samples = samples(&scene);
    samples.assert_complete(Program::BackendOfMany);
    samples.assert_lints();
    assert_eq!(samples.text.matches("\nblockring_build_info{program=\"backend\"").count(), 1);
    assert_eq!(samples.get("blockring_rings"), Some(3.0));
    assert_eq!(samples.get("blockring_queue_threads"), Some(2.0));
    for (ring, count) in [("one", 1.0), ("two", 0.0), ("three", 0.0)] {
        for (metric, expected) in [
            ("blockring_ring_up", 1.0),
            ("blockring_publications_total", count),
            ("blockring_front_end_connected", count),
            ("blockring_producer_attached", 1.0),
            ("blockring_consumer_attached", count),
            ("blockring_failed", 0.0),
        ] {
            assert_eq!(samples.of_ring(metric, ring), expected, "{ring}: {metric}");
        }
        let refused = format!("blockring_refusals_total{{ring=\"{ring}\",reason=\"signature\"}}");
        assert_eq!(samples.get(&refused), Some(count));
    }
    // A ring without an item does not tell of items.
    for metric in ["blockring_produced_items_total", "blockring_consumed_items_total"] {
        assert_eq!(samples.of_ring(metric, "one"), 1.0, "{metric}");
    }
    let answer = health(&scene);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"));
}

#[test]
fn rings_that_come_and_go_appear_and_disappear_while_scrapes_run() {
    let scene = scene(&["one", "two"]);
    let _daemon = start(&scene, &ARGUMENTS);
    configure(&scene, "three");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert!(has(&samples(&scene), "one"));
            }
        });
        for _ in 0..20 {
            call(&scene, "Remove", &json!({ "name": "two" }));
            assert!(!has(&samples(&scene), "two"), "it is read no more once that is answered");
            call(&scene, "Add", &json!({ "name": "three" }));
            assert!(has(&samples(&scene), "three"));
            call(&scene, "Add", &json!({ "name": "two" }));
            call(&scene, "Remove", &json!({ "name": "three" }));
            let samples = samples(&scene);
            assert!(has(&samples, "two") && !has(&samples, "three"));
            assert_eq!(samples.get("blockring_rings"), Some(2.0));
        }
        over.store(true, Ordering::Relaxed);
        scraper.join().unwrap();
    });
}

#[test]
fn scrapes_go_on_when_the_data_process_is_replaced() {
    let scene = scene(&["one", "two"]);
    let arguments = [&ARGUMENTS[..], &["--metrics", "127.0.0.1:0"]].concat();
    let mut daemon = start(&scene, &arguments);
    let mode = std::fs::metadata(scene.path("m")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "for the program's own user");
    let log = scene.log();
    let port = log.split("metrics at http://").nth(1).unwrap().split('/').next().unwrap();
    for _ in 0..2 {
        let dead = data_process(&daemon);
        kill(dead, Signal::SIGKILL).unwrap();
        eventually("another data process serves the rings", || {
            // A client that was in the middle of its request has lost its connection.
            let answer = get(&scene.path("m"), "/metrics", "");
            let text = answer.unwrap_or_default();
            ["one", "two"]
                .iter()
                .all(|ring| text.contains(&format!("blockring_ring_up{{ring=\"{ring}\"}} 1\n")))
        });
        assert_ne!(data_process(&daemon), dead);
        assert_eq!(scrape(port.as_ref()).get("blockring_rings"), Some(2.0));
    }
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.code(), Some(0));
    assert!(!scene.path("m").exists());
}

#[test]
fn no_scrape_finds_a_part_of_the_rings_while_one_data_process_follows_another() {
    let scene = scene(&["one", "three", "two"]);
    let _daemon = start(&scene, &ARGUMENTS);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                // The process that goes cuts off the scrapes that it has begun.
                let text = get(&scene.path("m"), "/metrics", "").unwrap_or_default();
                if text.contains("\nblockring_queue_threads 2\n") {
                    assert!(text.contains("\nblockring_rings 3\n"), "{text}");
                    answered += 1;
                }
            }
            answered
        });
        for _ in 0..5 {
            call(&scene, "Upgrade", &json!({}));
        }
        over.store(true, Ordering::Relaxed);
        assert!(scraper.join().unwrap() > 0);
    });
}

#[test]
fn truncated_ring_fails_the_health_and_leaves_the_samples_of_the_others() {
    let scene = scene(&["one", "three", "two"]);
    let _daemon = start(&scene, &ARGUMENTS);
    truncate(&scene, "ring.two");
    let answer = health(&scene);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\n\r\ntwo: ") && answer.contains("was truncated"), "{answer}");
    let samples = samples(&scene);
    for (ring, failed) in [("one", 0.0), ("two", 1.0), ("three", 0.0)] {
        assert_eq!(samples.of_ring("blockring_failed", ring), failed, "{ring}");
        assert_eq!(samples.of_ring("blockring_ring_up", ring), 1.0 - failed, "{ring}");
    }
    assert!(samples.get("blockring_used_bytes{ring=\"two\"}").is_none());
    assert_eq!(samples.of_ring("blockring_used_bytes", "three"), 0.0);
    call(&scene, "Remove", &json!({ "name": "three" }));
    assert!(health(&scene).contains("two: "), "the rest is as it was");
}

#[test]
fn health_names_the_first_rings_and_counts_the_others() {
    let names: Vec<_> = (10..22).map(|number| format!("ring{number}")).collect();
    let scene = scene(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let _daemon = start(&scene, &ARGUMENTS);
    for name in &names {
        truncate(&scene, &format!("ring.{name}"));
    }
    let answer = health(&scene);
    let (_, words) = answer.split_once("\r\n\r\n").unwrap();
    assert!(words.contains("ring10: ") && words.contains("ring17: "), "{words}");
    assert!(!words.contains("ring18") && words.ends_with("; and 4 more\n"), "{words}");
}

#[test]
fn address_in_use_is_refused_before_a_ring_is_opened() {
    let scene = scene(&["one"]);
    let _used = UnixListener::bind(scene.path("m")).unwrap();
    assert_fails(&scene.run(&ARGUMENTS), 1, "--metrics unix:m: in use");
    assert!(!scene.path("ring").exists());
}

#[test]
fn socket_is_the_users_that_the_data_process_becomes() {
    if !geteuid().is_root() {
        return;
    }
    let scene = scene(&["one"]);
    let user = USER.to_string();
    let _daemon = start(&scene, &[&ARGUMENTS[..], &["--user", &user, "--group", &user]].concat());
    assert_eq!(std::fs::metadata(scene.path("m")).unwrap().uid(), USER);
    assert!(has(&samples(&scene), "one"));
}

#[test]
fn service_manager_can_pass_sockets_for_metrics_and_no_others() {
    let scene = scene(&["one"]);
    let listener = |name: &str| UnixListener::bind(scene.path(name)).unwrap().into();
    let output = Service::new(&scene, &ARGUMENTS).pass(&[("guest", listener("g"))]).run();
    assert_fails(&output, 2, "socket `guest` (descriptor 3) is for one ring");
    let daemon = Service::new(&scene, &ARGUMENTS[..6]).pass(&[("metrics", listener("m"))]);
    let _daemon = daemon.start();
    eventually("the ring is served", || has(&samples(&scene), "one"));
}
