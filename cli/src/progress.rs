//! Counts and rate on standard error: on a terminal, one line that is redrawn; elsewhere, one line
//! at the end.

use super::consume::Counts;
use super::output::{message, say};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use ring_program::text::items;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Time between two redraws, also while no item arrives.
const TICK: Duration = Duration::from_millis(200);

/// The display of counts and rate.
pub struct Progress {
    bar: Option<ProgressBar>,
    wanted: bool,
    start: Instant,
}

impl Progress {
    pub fn new(wanted: bool) -> Self {
        let bar = (wanted && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let target = ProgressDrawTarget::term_like(Box::new(Line));
            let bar = ProgressBar::with_draw_target(None, target)
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
            say(self.words(counts));
        }
    }

    fn words(&self, counts: &Counts) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = counts.items as f64 / seconds;
        format!(
            "{} {}, {}, {rate:.0} items/s",
            HumanCount(counts.items),
            items(counts.items),
            HumanBytes(counts.bytes)
        )
    }
}

/// The current line of the terminal. Drawing does not wait for a terminal that is stopped (Ctrl-S).
#[derive(Debug)]
struct Line;

impl TermLike for Line {
    /// Every terminal has that many columns, and the line is shorter.
    fn width(&self) -> u16 {
        80
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        moved(lines, 'A');
        Ok(())
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        moved(lines, 'B');
        Ok(())
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        moved(columns, 'C');
        Ok(())
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        moved(columns, 'D');
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(&format!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        message(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write_str("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Moves the cursor by `count` in the direction that the final byte names (ECMA-48).
fn moved(count: usize, direction: char) {
    if count > 0 {
        message(&format!("\x1b[{count}{direction}"));
    }
}
