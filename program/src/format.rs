//! The form of messages and log lines: text for people, or one JSON object a line.

use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// Whether lines are JSON objects.
static JSON: AtomicBool = AtomicBool::new(false);

/// The form of messages and log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object a line: `time`, `level`, `program`, `message`, and for records of the log
    /// `target`, the part of the program.
    Json,
}

impl LogFormat {
    /// Has all later lines written in this form.
    pub fn choose(self) {
        JSON.store(self == Self::Json, Ordering::Relaxed);
    }
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("it takes text or json"),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    level: &'a str,
    program: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    message: &'a str,
}

/// Returns a line as a JSON object, without a line feed, if that is its form.
pub(crate) fn object(level: &str, target: Option<&str>, message: &str) -> Option<String> {
    if !JSON.load(Ordering::Relaxed) {
        return None;
    }
    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let object = Object { time, level, program: crate::name(), target, message };
    // Serialization fails only for map keys that are no text, and there are none.
    serde_json::to_string(&object).ok()
}
