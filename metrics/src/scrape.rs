//! The samples of one scrape, and their text.

use crate::catalogue::{Kind, Metric};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;

/// Labels of a sample: names and values.
type Labels = Vec<(&'static str, String)>;

/// The form of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `OpenMetrics` 1.0, for a client that asks for it.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Prometheus,
}

impl Format {
    /// Returns the text's `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// A sample's value.
#[derive(Debug)]
enum Value {
    Whole(u64),
    Fraction(f64),
    Buckets { sum: f64, buckets: Vec<(f64, u64)> },
}

/// The samples of one scrape, by metric.
#[derive(Debug, Default)]
pub struct Scrape {
    families: Vec<(&'static Metric, Vec<(Labels, Value)>)>,
}

impl Scrape {
    /// Adds a sample with a whole number.
    pub fn whole(&mut self, metric: &'static Metric, labels: &[&str], value: u64) {
        self.add(metric, labels, Value::Whole(value));
    }

    /// Adds a sample that is 1 or 0.
    pub fn flag(&mut self, metric: &'static Metric, labels: &[&str], value: bool) {
        self.whole(metric, labels, u64::from(value));
    }

    /// Adds a sample with a fraction.
    pub fn fraction(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.add(metric, labels, Value::Fraction(value));
    }

    /// Adds a histogram.
    pub fn histogram(
        &mut self,
        metric: &'static Metric,
        labels: &[&str],
        histogram: &crate::Histogram,
    ) {
        let value = Value::Buckets { sum: histogram.sum(), buckets: histogram.buckets() };
        self.add(metric, labels, value);
    }

    /// Adds a sample. `labels` are the values of the metric's labels, in the order of their names.
    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let values = labels.iter().map(|value| (*value).to_owned());
        let sample = (metric.labels.iter().copied().zip(values).collect(), value);
        match self.families.iter_mut().find(|(known, _)| std::ptr::eq(*known, metric)) {
            Some((_, samples)) => samples.push(sample),
            None => self.families.push((metric, vec![sample])),
        }
    }

    /// Returns the text of the scrape.
    ///
    /// # Errors
    /// A sample does not fit its metric's kind.
    pub fn encode(self, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        match format {
            Format::OpenMetrics => text::encode(&mut text, &registry)?,
            Format::Prometheus => prometheus_text::encode(&mut text, &registry)?,
        }
        Ok(text)
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, samples) in &self.families {
            let kind = metric.kind.metric_type();
            let unit = metric.unit.as_ref();
            let mut family = encoder.encode_descriptor(metric.name, metric.help, unit, kind)?;
            for (labels, value) in samples {
                let sample = Sample { kind, labels, value };
                // The information's labels are not those of a family.
                if metric.kind == Kind::Info || labels.is_empty() {
                    sample.encode_into(&mut family)?;
                } else {
                    sample.encode(family.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// One sample, as the encoder takes it.
struct Sample<'a> {
    kind: MetricType,
    labels: &'a Labels,
    value: &'a Value,
}

impl Sample<'_> {
    fn encode_into(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match (self.kind, self.value) {
            (MetricType::Counter, Value::Whole(value)) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(value, None)
            }
            (MetricType::Gauge, Value::Whole(value)) => encoder.encode_gauge(value),
            (MetricType::Gauge, Value::Fraction(value)) => encoder.encode_gauge(value),
            (MetricType::Info, _) => encoder.encode_info(self.labels),
            (MetricType::Histogram, Value::Buckets { sum, buckets }) => {
                let count = buckets.iter().map(|(_, count)| count).sum();
                encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
            }
            _ => Err(fmt::Error),
        }
    }
}

impl EncodeMetric for Sample<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.encode_into(&mut encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Histogram;
    use crate::catalogue::{BUILD, CONSUMED_BYTES, FLUSHES, OLDEST_ITEM_AGE, REFUSALS};
    use std::time::Duration;

    fn scrape() -> Scrape {
        let mut scrape = Scrape::default();
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1));
        scrape.whole(&CONSUMED_BYTES, &["a\"b"], 7);
        scrape.whole(&REFUSALS, &["a", "signature"], 1);
        scrape.fraction(&OLDEST_ITEM_AGE, &["a"], 0.5);
        scrape.whole(&CONSUMED_BYTES, &["c"], 8);
        scrape.histogram(&FLUSHES, &["a"], &histogram);
        scrape.whole(&BUILD, &["export", "1.2.3"], 1);
        scrape
    }

    #[test]
    fn counters_end_in_total_and_each_family_has_one_head_in_both_formats() {
        for (format, head) in [
            (Format::OpenMetrics, "# TYPE blockring_consumed_bytes counter\n"),
            (Format::Prometheus, "# TYPE blockring_consumed_bytes_total counter\n"),
        ] {
            let text = scrape().encode(format).unwrap();
            let (_, rest) = text.split_once(head).unwrap();
            assert_eq!(rest.matches("# TYPE blockring_consumed_bytes").count(), 0);
            for line in [
                "blockring_consumed_bytes_total{ring=\"a\\\"b\"} 7\n",
                "blockring_consumed_bytes_total{ring=\"c\"} 8\n",
                "blockring_refusals_total{ring=\"a\",reason=\"signature\"} 1\n",
                "blockring_oldest_item_age_seconds{ring=\"a\"} 0.5\n",
                "blockring_flush_seconds_count{ring=\"a\"} 1\n",
                "blockring_build_info{program=\"export\",version=\"1.2.3\"} 1\n",
            ] {
                assert!(text.contains(line), "{text} lacks {line}");
            }
        }
    }

    #[test]
    fn open_metrics_have_units_and_an_end() {
        let text = scrape().encode(Format::OpenMetrics).unwrap();
        assert!(text.contains("# UNIT blockring_consumed_bytes bytes\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
