//! Options that were given and belong to other sinks. They are refused: nobody who gives one means
//! it to do nothing.

use super::settings::{Destination, SinkOptions};

/// An option of another sink than the one that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// The option's name, without dashes.
    pub option: &'static str,
    /// The table that has it in a configuration file; none for options of several sinks.
    pub table: Option<&'static str>,
    /// The sinks that take it.
    owners: &'static str,
    /// The sink that is used.
    used: &'static str,
}

impl Foreign {
    /// Returns the refusal of an option of the command line.
    pub fn of_command_line(self) -> String {
        let Self { option, owners, used, .. } = self;
        format!("--{option} is an option of {owners}: it does nothing for {used} (leave it out)")
    }

    /// Returns the refusal of a key of a configuration file.
    pub fn of_file(self) -> String {
        let Self { option, table, owners, used } = self;
        let table = table.map(|table| format!("{table}.")).unwrap_or_default();
        format!(
            "key `{table}{option}`: it is for {owners}, and does nothing for {used} (remove it)"
        )
    }
}

/// Returns the first option that was given and has no effect with that sink.
pub fn find(to: &Destination, options: &SinkOptions) -> Option<Foreign> {
    const NATS: &str = "nats:// and tls://";
    const FOLDER: &str = "journald:DIRECTORY";
    const SOCKET: &str = "journald:";
    let used = match to {
        Destination::File(_) => "file:",
        Destination::Exec(_) => "exec:",
        Destination::Nats(_) => NATS,
        Destination::Journald(Some(_)) => FOLDER,
        Destination::Journald(None) => SOCKET,
    };
    let framed =
        [("framing", options.framing.is_some()), ("on-separator", options.on_separator.is_some())];
    let [socket, remote, gather] = options.journald.given();
    let group = |given: &[(&'static str, bool)], table, owners, takers: &[&str]| {
        let (option, _) = given.iter().find(|(_, is_given)| *is_given)?;
        let is_foreign = !takers.contains(&used);
        is_foreign.then_some(Foreign { option, table, owners, used })
    };
    group(&framed, None, "file: and exec:", &["file:", "exec:"])
        .or_else(|| group(&options.file.given(), Some("file"), "file:", &["file:"]))
        .or_else(|| group(&options.exec.given(), Some("exec"), "exec:", &["exec:"]))
        .or_else(|| group(&[socket], Some("journald"), SOCKET, &[SOCKET]))
        .or_else(|| group(&[remote, gather], Some("journald"), FOLDER, &[FOLDER]))
        .or_else(|| group(&options.nats.given(), Some("nats"), NATS, &[NATS]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Forward;
    use clap::{Args, Command, FromArgMatches};

    fn forward(words: &str) -> Forward {
        let command = Forward::augment_args(Command::new("forward"));
        let words = ["forward", "ring"].into_iter().chain(words.split(' '));
        Forward::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    #[test]
    fn option_of_another_sink_is_named_with_its_own() {
        for (words, option, owner) in [
            ("--to file:x --ack lines", "--ack", "exec:"),
            ("--to file:x --per-batch", "--per-batch", "exec:"),
            ("--to file:x --gather 1", "--gather", "journald:DIRECTORY"),
            ("--to file:x --create-stream", "--create-stream", "nats://"),
            ("--to exec:x --keep 3", "--keep", "file:"),
            ("--to exec:x --compress zstd", "--compress", "file:"),
            ("--to journald: --framing lines", "--framing", "file: and exec:"),
            ("--to journald: --gather 1", "--gather", "journald:DIRECTORY"),
            ("--to journald:d --journal-socket s", "--journal-socket", "option of journald:"),
            ("--to nats://h --on-separator fail", "--on-separator", "file: and exec:"),
            ("--to nats://h --rotate-age 3", "--rotate-age", "file:"),
        ] {
            let words = forward(words).settings().unwrap_err().to_string();
            assert!(words.contains(option) && words.contains(owner), "{words}");
        }
        for words in [
            "--to file:x --framing nul --keep 3 --rotate-size 1M",
            "--to exec:x --ack exit --on-separator escape",
            "--to journald:d --gather 1 --journal-remote r",
            "--to journald: --journal-socket s",
            "--to nats://h --stream S --subject s.{ring} --tls-ca f",
        ] {
            forward(words).settings().unwrap();
        }
    }

    #[test]
    fn every_option_of_a_sink_is_known() {
        let options = forward("--to file:x");
        let known = [
            options.file.given().len() + options.exec.given().len(),
            options.journald.given().len() + options.nats.given().len(),
        ];
        let command = [
            super::super::FileOptions::augment_args(Command::new("")),
            super::super::ExecOptions::augment_args(Command::new("")),
            super::super::JournaldOptions::augment_args(Command::new("")),
            super::super::NatsOptions::augment_args(Command::new("")),
        ];
        let names = command.iter().flat_map(Command::get_arguments);
        assert_eq!(names.count(), known.iter().sum::<usize>());
    }
}
