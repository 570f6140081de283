//! Figures in few characters.

use super::model::Ring;
use ratatui::text::Span;
use std::time::Duration;

/// Returns a number in at most five characters: `0`, `950`, `12.3k`, `4.0M`.
pub fn short(number: f64) -> String {
    if number < 0.05 {
        return "0".to_owned();
    }
    if number < 10.0 {
        return format!("{number:.1}");
    }
    let units = ["", "k", "M", "G", "T"];
    let mut scaled = number;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if scaled < 99.95 && unit > 0 {
        format!("{scaled:.1}{}", units[unit])
    } else {
        format!("{scaled:.0}{}", units[unit])
    }
}

/// Returns a time in at most five characters: `85ms`, `3.2s`, `4m10s`, `2h05m`, `3d`.
pub fn short_age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0 => format!("{}ms", age.as_millis()),
        1..10 => format!("{:.1}s", age.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        600..3600 => format!("{}m", seconds / 60),
        3600..36000 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        36000..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Returns the age of a ring's oldest item; with `>` in front if it can be older.
pub fn oldest(ring: &Ring) -> String {
    match ring.oldest {
        None => "-".to_owned(),
        Some((age, false)) => short_age(age),
        Some((age, true)) => format!(">{}", short_age(age)),
    }
}

/// Returns a name in `width` columns of a terminal, some of whose characters take two: its end,
/// which tells rings apart, if all of it is wider.
pub fn end_of(name: &str, width: usize) -> String {
    let columns = |text: &str| Span::raw(text).width();
    let mut shown = name.to_owned();
    if columns(name) > width {
        let mut left = width.saturating_sub(1);
        let fits = |(_, c): &(usize, char)| {
            let fit = left.checked_sub(columns(c.encode_utf8(&mut [0; 4])));
            fit.inspect(|fit| left = *fit).is_some()
        };
        let start = name.char_indices().rev().take_while(fits).last();
        shown = format!("…{}", start.map_or("", |(start, _)| &name[start..]));
    }
    let padding = width.saturating_sub(columns(&shown));
    shown + &" ".repeat(padding)
}

/// Returns a bar of `width` characters, brackets included.
pub fn bar(share: f64, width: usize) -> String {
    let inside = width.saturating_sub(2);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a count of characters"
    )]
    let full = ((share.clamp(0.0, 1.0) * inside as f64).round() as usize).min(inside);
    format!("[{}{}]", "#".repeat(full), ".".repeat(inside - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_short() {
        let numbers = [0.0, 1.25, 950.0, 12_345.0, 999_499.0, 999_600.0, 4e6, 123e9];
        assert_eq!(
            numbers.map(short),
            ["0", "1.2", "950", "12.3k", "999k", "1.0M", "4.0M", "123G"]
        );
        let times = [0.085, 3.21, 42.0, 250.0, 3000.0, 7500.0, 50_000.0, 300_000.0];
        assert_eq!(
            times.map(|seconds| short_age(Duration::from_secs_f64(seconds))),
            ["85ms", "3.2s", "42s", "4m10s", "50m", "2h05m", "13h", "3d"]
        );
    }

    #[test]
    fn bars_and_names_have_their_width() {
        assert_eq!(bar(0.0, 12), "[..........]");
        assert_eq!(bar(0.55, 12), "[######....]");
        assert_eq!(bar(7.0, 12), "[##########]");
        assert_eq!(end_of("unix:/run/a.out", 7), "…/a.out");
        assert_eq!(end_of("ring", 8), "ring    ");
        assert_eq!(end_of("環.out", 6), "環.out");
        assert_eq!(end_of("環環環.out", 8), "…環.out ");
    }
}
