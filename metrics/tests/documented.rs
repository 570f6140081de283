//! The table of `docs/observability.md` against the catalogue of metrics.
#![allow(clippy::unwrap_used)]

use ring_metrics::{Kind, Metric, catalogue};
use std::path::Path;

fn row(metric: &Metric) -> String {
    let kind = match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
        Kind::Info => "info",
    };
    let programs: Vec<_> = metric.programs.iter().map(|program| program.name()).collect();
    let (name, labels) = (metric.full_name(), metric.labels.join(", "));
    format!("| `{name}` | {kind} | {labels} | {} | {} |", programs.join(", "), metric.help)
}

#[test]
fn table_of_metrics_is_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
    let page = std::fs::read_to_string(path).unwrap();
    let found: Vec<_> = page.lines().filter(|line| line.starts_with("| `blockring_")).collect();
    let expected: Vec<_> = catalogue::ALL.iter().map(|metric| row(metric)).collect();
    assert!(found == expected, "the table has to be:\n{}", expected.join("\n"));
}
