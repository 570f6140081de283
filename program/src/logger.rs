//! The log: `env_logger`'s filter and layout, each record one line that is quoted, cut and paced,
//! on its way to [`stderr`].

use crate::pace::Paces;
use crate::{format, scope, stderr, text};
use env_logger::{Builder, Env, Target};
use log::{Level, Log, Metadata, Record};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

/// Largest number of bytes of a record's message.
const MAX_WORDS: usize = 1000;

/// The logger of the program and of its libraries.
struct Logger {
    lines: env_logger::Logger,
    paces: Mutex<Paces>,
}

/// Installs the logger: it logs the records of `filter`, unless `RUST_LOG` is set.
pub fn install(filter: &str) {
    let lines = Builder::from_env(Env::default().default_filter_or(filter))
        .format(layout)
        .target(Target::Pipe(Box::new(Lines)))
        .build();
    let level = lines.filter();
    if log::set_boxed_logger(Box::new(Logger { lines, paces: Mutex::default() })).is_ok() {
        log::set_max_level(level);
    }
}

fn layout(line: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> io::Result<()> {
    let (level, target) = (record.level(), record.target());
    let words = scope::about(text::one_line(*record.args(), MAX_WORDS));
    let name = level.as_str().to_ascii_lowercase();
    if let Some(object) = format::object(&name, Some(target), &words) {
        return writeln!(line, "{object}");
    }
    let time = humantime::format_rfc3339_seconds(SystemTime::now());
    writeln!(line, "[{time} {level:<5} {target}] {words}")
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.lines.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.lines.matches(record) {
            return;
        }
        // Finer levels are on only where RUST_LOG asks for them, for debugging.
        if record.level() > Level::Info {
            return self.lines.log(record);
        }
        let place = match (record.file(), record.line()) {
            (Some(file), Some(line)) => (file, line),
            _ => (record.target(), 0),
        };
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let before = paces.take(place, Instant::now());
        drop(paces);
        match before {
            None => {}
            Some(0) => self.lines.log(record),
            Some(held_back) => {
                let words = text::one_line(*record.args(), MAX_WORDS);
                let mut again = Record::builder();
                again.metadata(record.metadata().clone());
                self.lines.log(
                    &again
                        .args(format_args!("{words} (and {held_back} lines like this before it)"))
                        .build(),
                );
            }
        }
    }

    fn flush(&self) {}
}

/// The output of `env_logger`: a whole record at a time.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr::push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
