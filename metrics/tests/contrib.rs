//! The alert rules and the dashboard of `contrib/`: they fire and clear, and ask for what there is.
#![allow(clippy::unwrap_used)]

use ring_metrics::catalogue;
use ring_test_support::metrics::promtool;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(contrib(name)).unwrap()
}

fn succeed(arguments: &[&str], file: &Path) {
    let output = Command::new(promtool()).args(arguments).arg(file).output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&words));
}

/// Returns what follows `key` in the lines that begin with it.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)).map(str::trim).collect()
}

/// Checks that a query names series of the catalogue, each with labels that it has.
fn assert_known(query: &str) {
    let known: BTreeMap<String, &[&str]> = catalogue::ALL
        .iter()
        .flat_map(|metric| metric.series().into_iter().map(|name| (name, metric.labels)))
        .collect();
    let mut found = 0;
    for (at, _) in query.match_indices("blockring_") {
        let rest = &query[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let labels = known.get(name).unwrap_or_else(|| panic!("no metric {name}: {query}"));
        if let Some(selector) = rest.strip_prefix('{') {
            let (selector, _) = selector.split_once('}').unwrap();
            for pair in selector.split(',') {
                let label = pair.split(['=', '!']).next().unwrap().trim();
                assert!(labels.contains(&label), "{name} has no label {label}: {query}");
            }
        }
        found += 1;
    }
    assert!(found > 0, "{query}");
}

#[test]
fn alert_rules_fire_and_clear() {
    succeed(&["check", "rules"], &contrib("prometheus/alerts.yml"));
    succeed(&["test", "rules"], &contrib("prometheus/alerts_test.yml"));
}

#[test]
fn each_alert_has_a_test_in_which_it_is_quiet_fires_and_clears() {
    let (rules, tests) = (text("prometheus/alerts.yml"), text("prometheus/alerts_test.yml"));
    let alerts = values(&rules, "alert:");
    assert!(alerts.len() >= 6, "{alerts:?}");
    let page = text("../docs/observability.md");
    for alert in alerts {
        assert!(page.contains(&format!("\n| `{alert}` |")), "{alert} is not in the documentation");
        let test = tests.split("  - name: ").find(|test| test.starts_with(&format!("{alert}\n")));
        let test = test.unwrap_or_else(|| panic!("no test of {alert}"));
        let (mut fires, mut last) = (Vec::new(), 0);
        for check in test.split("- eval_time: ").skip(1) {
            let minute: u32 = check.split('m').next().unwrap().parse().unwrap();
            assert!(minute > last, "{alert}: in the order of time");
            last = minute;
            assert!(check.contains(&format!("alertname: {alert}\n")), "{check}");
            fires.push(check.contains("exp_labels"));
        }
        fires.dedup();
        assert_eq!(fires, [false, true, false], "{alert}");
    }
}

#[test]
fn alert_rules_and_their_tests_name_metrics_that_exist() {
    let (rules, tests) = (text("prometheus/alerts.yml"), text("prometheus/alerts_test.yml"));
    values(&rules, "expr:").into_iter().for_each(assert_known);
    values(&tests, "series:").into_iter().for_each(assert_known);
}

/// Returns the queries of a dashboard, wherever they stand in it.
fn queries(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                match member {
                    Value::String(query) if key == "expr" || query.contains("blockring_") => {
                        found.insert(query.clone());
                    }
                    other => queries(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[test]
fn dashboard_asks_for_metrics_that_exist_in_queries_that_parse() {
    let dashboard: Value = serde_json::from_str(&text("grafana/blockring.json")).unwrap();
    let mut found = BTreeSet::new();
    queries(&dashboard, &mut found);
    assert!(found.len() >= 30, "{found:?}");
    let mut rules = vec!["groups:\n  - name: dashboard\n    rules:".to_owned()];
    for query in &found {
        assert_known(query);
        // That of a variable is Grafana's, not Prometheus's.
        if !query.starts_with("label_values(") {
            let query = query.replace("$__rate_interval", "5m").replace("$ring", ".*");
            assert!(!query.contains('$'), "{query}");
            let number = rules.len();
            rules.push(format!("      - record: query:{number}\n        expr: '{query}'"));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yml");
    std::fs::write(&file, rules.join("\n")).unwrap();
    succeed(&["check", "rules"], &file);
}

#[test]
fn panels_of_the_dashboard_have_places_of_their_own() {
    let dashboard: Value = serde_json::from_str(&text("grafana/blockring.json")).unwrap();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()));
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
    }
}
