//! A configuration file: options under their long names, in TOML.
//!
//! The file becomes words of a command line, so that values are read and checked in one place
//! ([`Arguments`]). What the command line says itself, it says last.

use crate::daemon::config::Arguments;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};
use ring_program::text::about_line;
use std::ffi::OsString;
use std::path::Path;
use std::sync::LazyLock;
use toml::de::{DeTable, DeValue};

/// Options that have no meaning in a file.
const ELSEWHERE: [&str; 6] =
    ["config", "check_config", "print_capabilities", "data_process", "help", "version"];

/// Returns the arguments of a command line, `words`, and of the file that it names.
///
/// # Errors
///
/// The file cannot be read, or is wrong. The error names the file, and the line.
pub fn add(path: &Path, words: &[OsString]) -> Result<Arguments, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("{name}: cannot read the configuration: {e}"))?;
    merge(&text, words).map_err(|e| format!("{name}: {e}"))
}

/// Options of a daemon of many rings that hold for all of them.
const WHOLE: [&str; 13] = [
    "control",
    "control-user",
    "control-group",
    "control-read-group",
    "workers",
    "max-rings",
    "max-memory",
    "cpu",
    "metrics",
    "user",
    "group",
    "sandbox",
    "log-format",
];

/// The command line. It is made once: a thousand files are read by it.
fn command() -> &'static Command {
    static COMMAND: LazyLock<Command> = LazyLock::new(|| {
        let mut command = Arguments::command();
        command.build();
        command
    });
    &COMMAND
}

/// Returns the arguments of one ring of many: those of its file's text, and of a command line,
/// `words`, that holds for all rings.
///
/// # Errors
///
/// The text is wrong. The error names the line.
pub fn ring(text: &str, words: &[OsString]) -> Result<Arguments, String> {
    for (arg, _) in read(text, command())? {
        let name = arg.get_long().unwrap_or_default();
        if WHOLE.contains(&name) {
            return Err(format!(
                "`{name}` is for the whole daemon: it belongs on its command line, not to one ring"
            ));
        }
    }
    merge(text, words)
}

/// Does the work of [`add`] on a file's text.
fn merge(text: &str, words: &[OsString]) -> Result<Arguments, String> {
    let command = command();
    let given = command.clone().try_get_matches_from(words).map_err(|e| first_words(&e))?;
    let is_given =
        |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let options = read(text, command)?.into_iter().filter(|(arg, _)| {
        !is_given(arg) && !command.get_arg_conflicts_with(arg).into_iter().any(is_given)
    });
    let of_file = options.flat_map(|(_, words)| words).map(OsString::from);
    let (program, of_line) = words.split_at(words.len().min(1));
    let all = program.iter().cloned().chain(of_file).chain(of_line.iter().cloned());
    let matches = command.clone().try_get_matches_from(all).map_err(|e| first_words(&e))?;
    Arguments::from_arg_matches(&matches).map_err(|e| first_words(&e))
}

/// Reads a file's text as options of `command`, each with its words.
fn read<'a>(text: &str, command: &'a Command) -> Result<Vec<(&'a Arg, Vec<String>)>, String> {
    let document = DeTable::parse(text).map_err(|e| {
        let message = e.message().replace('\n', ", ");
        e.span().map_or(message.clone(), |span| about_line(text, span.start, &message))
    })?;
    let mut options = Vec::new();
    for (key, value) in document.get_ref() {
        let placed = |message: &str| about_line(text, key.span().start, message);
        let name = key.get_ref().as_ref();
        let is_option = |arg: &&Arg| {
            arg.get_long() == Some(name) && !ELSEWHERE.contains(&arg.get_id().as_str())
        };
        let Some(arg) = command.get_arguments().find(is_option) else {
            return Err(placed(&format!("there is no option `{name}` for a file")));
        };
        let words = words_of(arg, name, value.get_ref()).map_err(|message| placed(&message))?;
        // By itself, so that an error has its line.
        let alone = [command.get_name().to_owned()].into_iter().chain(words.clone());
        if let Err(e) = command.clone().try_get_matches_from(alone) {
            return Err(placed(&first_words(&e)));
        }
        options.push((arg, words));
    }
    Ok(options)
}

/// Returns the words that an option with this value is on a command line.
fn words_of(arg: &Arg, name: &str, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value.as_bool() {
            Some(true) => Ok(vec![format!("--{name}")]),
            Some(false) => Ok(Vec::new()),
            None => Err("it takes true or false".to_owned()),
        };
    }
    let word = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(format!("--{name}={text}")),
        DeValue::Integer(number) if number.radix() == 10 => {
            Ok(format!("--{name}={}", number.as_str()))
        }
        other => {
            Err(format!("it takes a text or a number, not a value of type {}", other.type_str()))
        }
    };
    match value {
        DeValue::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            values.iter().map(|value| word(value.get_ref())).collect()
        }
        value => Ok(vec![word(value)?]),
    }
}

/// Returns what an error of a command line says, without the usage that follows.
fn first_words(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelp || error.kind() == ErrorKind::DisplayVersion {
        return "help and version are for the command line".to_owned();
    }
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let words = lines.collect::<Vec<_>>().join(" ");
    words.strip_prefix("error: ").unwrap_or(&words).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::daemon::config::{Guest, Poll, Switch};
    use std::time::Duration;

    fn merged(text: &str, words: &[&str]) -> Result<Arguments, String> {
        let words = ["daemon"].iter().chain(words).map(OsString::from).collect::<Vec<_>>();
        merge(text, &words)
    }

    const ALL: &str = r#"
        # A ring.
        socket-path = "/run/vm1.sock"
        socket-mode = "660"
        blk-file = "/var/lib/vm1.ring"
        size = "8M"
        sector-size = 4096
        read-only = true
        migratable = false
        consumer-user = ["telegraf", "nobody"]
        guest = "consumer"
        hold-ms = 100
        guard = "off"
        metrics = ["unix:/run/vm1.metrics"]
        poll = "always"
        cpu = 1
    "#;

    #[test]
    fn options_of_a_file_are_those_of_the_command_line() {
        let all = merged(ALL, &[]).unwrap();
        assert_eq!(all.socket_path.as_deref(), Some(Path::new("/run/vm1.sock")));
        assert_eq!(
            (all.size, all.cpu, all.hold_ms),
            (Some(8 << 20), vec![1], Duration::from_millis(100))
        );
        assert_eq!(all.socket_mode.unwrap().bits(), 0o660);
        assert!(all.read_only && !all.migratable);
        assert_eq!(all.consumer_user, ["telegraf", "nobody"]);
        assert_eq!(
            (all.guest, all.guard, all.poll),
            (Guest::Consumer, Switch::Off, Some(Poll::Always))
        );
        assert_eq!(all.metrics.len(), 1);
    }

    #[test]
    fn option_of_the_command_line_wins_over_the_file() {
        let words = [
            "--size",
            "1M",
            "--consumer-user",
            "root",
            "--poll-us",
            "7",
            "--guard=on",
            "--fd",
            "3",
        ];
        let all = merged(ALL, &words).unwrap();
        assert_eq!((all.size, all.guard), (Some(1 << 20), Switch::On));
        assert_eq!(all.consumer_user, ["root"]);
        // What cannot stand beside an option of the command line is not taken either.
        assert_eq!((all.poll, all.poll_us), (None, Duration::from_micros(7)));
        assert_eq!((all.socket_path, all.fd), (None, Some(3)));
        assert_eq!(all.blk_file.as_deref(), Some(Path::new("/var/lib/vm1.ring")));
    }

    #[test]
    fn error_of_a_file_names_line_and_option() {
        for (text, words) in [
            ("blk-file = \"r\"\nsokcet-path = \"s\"\n", &["line 2", "`sokcet-path`"][..]),
            ("\nsize = \"8X\"\n", &["line 2", "8X", "--size"]),
            ("guest = \"driver\"", &["line 1", "driver", "producer, consumer"]),
            ("read-only = \"yes\"", &["line 1", "true or false"]),
            ("size = true", &["line 1", "boolean"]),
            ("socket-path = [\"a\", \"b\"]", &["line 1", "array"]),
            ("[metrics]\nport = 1", &["line 1", "table"]),
            ("print-capabilities = true", &["line 1", "`print-capabilities`"]),
            ("config = \"other\"", &["line 1", "`config`"]),
            ("version = true", &["line 1", "`version`"]),
            ("size = 1\nsize = 2", &["line 2", "duplicate key"]),
            ("size = ", &["line 1"]),
            ("socket-path = \"s\"\nfd = 3", &["--socket-path", "--fd", "cannot be used"]),
        ] {
            let error = merged(text, &[]).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{text:?}: {error:?} lacks {word:?}");
            }
            assert!(!error.contains("Usage"), "{error}");
        }
    }
}
