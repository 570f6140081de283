//! Counts and rate on standard error, a line that rewrites itself; nothing where that is no terminal, but for the last word.

use super::consume::Counts;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Redrawn at most this often, also while nothing arrives.
const TICK: Duration = Duration::from_millis(200);

/// What the user sees of a long run.
pub struct Progress {
    bar: Option<ProgressBar>,
    wanted: bool,
    start: Instant,
}

impl Progress {
    pub fn new(wanted: bool) -> Self {
        let bar = (wanted && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner()
                .with_style(style)
                .with_message("waiting for the first item");
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar, wanted, start: Instant::now() }
    }

    pub fn show(&mut self, counts: &Counts) {
        if counts.items > 0
            && let Some(bar) = &self.bar
        {
            bar.set_message(self.words(counts));
        }
    }

    pub fn finish(&self, counts: &Counts) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.wanted {
            eprintln!("blockring: {}", self.words(counts));
        }
    }

    fn words(&self, counts: &Counts) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = counts.items as f64 / seconds;
        format!(
            "{} items, {}, {rate:.0} items/s",
            HumanCount(counts.items),
            HumanBytes(counts.bytes)
        )
    }
}
