#![allow(clippy::unwrap_used)]

use super::figures::Samples;
use super::model::{Failure, Model};
use super::plan::{FAILURE, Plan, SECOND, connect_pause, resend_pause};
use super::ring::Ring;
use super::{FAILURES, all};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Line {
    #[command(flatten)]
    plan: Plan,
}

/// Returns a plan of some hosts, with these options.
fn plan(options: &[&str]) -> Plan {
    let small = ["plan", "--hosts", "40", "--nodes", "3", "--streams", "6", "--outage-s", "60"];
    Line::try_parse_from([&small, options].concat()).unwrap().plan
}

fn run(plan: &Plan, failure: Failure) -> Samples {
    Model::new(plan, failure).run()
}

#[test]
fn model_has_one_outcome_for_one_seed() {
    let (one, other) = (plan(&["--seed", "7"]), plan(&["--seed", "8"]));
    for (failure, _) in FAILURES {
        assert_eq!(run(&one, failure), run(&one, failure), "{failure:?}");
    }
    assert_ne!(run(&one, Failure::Cluster).seconds, run(&other, Failure::Cluster).seconds);
}

/// The model itself stops where a ring frees what its stream does not have, or has twice.
#[test]
fn model_neither_loses_nor_doubles_an_item() {
    for options in [&[][..], &["--lazy-sync"], &["--ring-kib", "8"], &["--streams", "1"]] {
        let plan = plan(options);
        for (failure, _) in FAILURES {
            let due = |second: u64| {
                let mut all = 0;
                for ring in Model::new(&plan, failure).rings() {
                    all += ring.due(&plan, second * SECOND);
                }
                all
            };
            for sample in run(&plan, failure).seconds.iter().step_by(50) {
                let there = sample.delivered + sample.in_rings + sample.waiting;
                assert_eq!(there, due(sample.second), "{failure:?} {options:?}: {sample:?}");
            }
        }
    }
}

#[test]
fn ring_of_the_model_never_has_more_than_fits() {
    let plan = plan(&["--ring-kib", "8", "--outage-s", "300"]);
    let rings = plan.capacity() * u64::from(plan.hosts * plan.host_rings);
    let samples = run(&plan, Failure::Cluster);
    assert!(samples.seconds.iter().all(|sample| sample.in_rings <= rings && sample.max <= 1.0));
    let peak = samples.peak();
    assert_eq!((peak.in_rings, peak.p50.total_cmp(&1.0)), (rings, std::cmp::Ordering::Equal));
    assert!(peak.waiting > 0 && samples.first_full.is_some());
}

#[test]
fn backlog_of_an_outage_is_rate_times_time_until_the_ring_is_full() {
    // Without bursts, so that each second counts the same.
    let plan = plan(&["--burst", "1", "--milli-rate", "10000", "--outage-s", "120"]);
    let samples = run(&plan, Failure::Cluster);
    let rings = u64::from(plan.hosts * plan.host_rings);
    let first = FAILURE / SECOND;
    for sample in samples.seconds.iter().filter(|at| (first..first + 120).contains(&at.second)) {
        let wanted = (10 * (sample.second - first)).min(plan.capacity()) * rings;
        // Items of a second, at most, were in the rings already when the failure began.
        let before = 10 * rings;
        let found = sample.in_rings;
        assert!((wanted..=wanted + before).contains(&found) || found == plan.capacity() * rings);
    }
    let full = samples.first_full.unwrap() / SECOND - first;
    assert!((plan.capacity() / 10 - 1..=plan.capacity() / 10).contains(&full), "{full}");
}

#[test]
fn rings_are_drained_after_a_failure_that_the_cluster_can_catch_up_with() {
    let plan = plan(&[]);
    for (failure, name) in FAILURES {
        let samples = run(&plan, failure);
        let last = samples.seconds.last().unwrap();
        assert_eq!(last.connected, plan.hosts as usize, "{name}");
        assert!(samples.drained(&plan).is_some(), "{name}: {last:?}");
    }
    let samples = run(&plan, Failure::HalfOfTheHosts);
    let cut_off = samples.seconds.iter().map(|sample| sample.connected).min();
    assert_eq!(cut_off, Some(plan.hosts as usize / 2));
}

#[test]
fn stream_that_every_ring_shares_breaks_first() {
    let wide = ["--hosts", "2000", "--outage-s", "1", "--after-s", "60", "--flush-us", "1000"];
    let many = run(&plan(&[&wide[..], &["--streams", "200"]].concat()), Failure::Nothing);
    let one = run(&plan(&[&wide[..], &["--streams", "1"]].concat()), Failure::Nothing);
    let left = |samples: &Samples| samples.seconds.last().unwrap().in_rings;
    assert!(left(&one) > 20 * left(&many), "{} {}", left(&one), left(&many));
}

#[test]
fn message_alone_is_no_batch_and_costs_one_flush() {
    let plan = plan(&["--flush-us", "1000"]);
    assert_eq!(plan.load(3, 3).store, 3000 + 32);
    assert!(plan.load(3, 1).store > 6000);
    assert!(!plan.load(3, 1).is_long && plan.load(1000, 1).is_long);
    let lazy = Plan { lazy_sync: true, ..plan };
    assert_eq!(lazy.load(3, 3).store, 32);
}

#[test]
fn pauses_double_up_to_two_and_five_seconds() {
    assert_eq!([1, 2, 3, 10, 99].map(connect_pause), [0, 10_000, 20_000, 2 * SECOND, 2 * SECOND]);
    assert_eq!([0, 1, 8, 99].map(resend_pause), [20_000, 40_000, 5 * SECOND, 5 * SECOND]);
}

#[test]
fn bursts_have_the_average_rate() {
    let plan = plan(&["--milli-rate", "2500", "--burst", "4"]);
    let ring = Ring::new(&plan, 0);
    assert_eq!(ring.due(&plan, 10 * SECOND), 100);
    assert_eq!(ring.due(&plan, 40 * SECOND), 100);
    assert_eq!(ring.due(&plan, 4000 * SECOND), 10_000);
}

#[test]
fn item_that_fits_into_no_ring_is_refused() {
    let error = all(&plan(&["--item-bytes", "5000", "--ring-kib", "4"])).unwrap_err();
    assert!(error.to_string().contains("--ring-kib"), "{error}");
}
