//! The folder with one file for each ring, and the options of the whole daemon.

use crate::daemon::config::Arguments;
use crate::daemon::config_file;
use crate::daemon::rings::passed::PassedDescriptors;
use crate::daemon::settings::{Invalid, Settings};
use crate::daemon::sockets::Purpose;
use ring_program::text::one_line;
use shared_block_ring::device::shown;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// What a ring's file is called: its name, and this.
const EXTENSION: &str = "toml";

/// What the name of a ring is.
const NO_NAME: &str = "a ring's name begins with a letter or digit, and has letters, digits and -_.@ alone, at most 200";

/// Longest name of a ring.
const MAX_NAME: usize = 200;

/// The largest file of a ring, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// The longest message about a file, in bytes.
const MAX_WORDS: usize = 1000;

/// The files of the rings, and the words of the command line, which hold for all of them.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    words: Vec<OsString>,
}

/// One ring's configuration: its text, and what it says.
#[derive(Debug)]
pub struct Configured {
    /// The text, by which a change is noticed.
    pub text: String,
    /// The settings, or what is wrong with them.
    pub settings: Result<Settings, String>,
    /// It was sent by a client, and is no file of the folder.
    pub added: bool,
    /// Descriptors that came with it.
    pub passed: PassedDescriptors,
}

impl Folder {
    /// The folder at `path`, for a daemon with this command line.
    pub fn new(path: PathBuf, words: Vec<OsString>) -> Self {
        Self { path, words }
    }

    /// Reads the files of all rings, by the rings' names. Other files are left alone.
    ///
    /// # Errors
    ///
    /// The folder cannot be read; in words that name it.
    pub fn read(&self) -> Result<BTreeMap<String, Configured>, String> {
        let name = self.path.display();
        let fail = |e: io::Error| format!("{name}: cannot read the folder of the rings: {e}");
        let mut rings = BTreeMap::new();
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let is_ring = path.extension().is_some_and(|extension| extension == EXTENSION);
            match stem {
                Some(stem) if is_ring && is_name(stem) => {
                    rings.insert(stem.to_owned(), self.configured(&path));
                }
                // Editors leave such files.
                Some(stem) if stem.starts_with('.') => {}
                _ if is_ring => log::warn!("{}: not read: {NO_NAME}", shown(&path)),
                _ => {}
            }
        }
        Ok(rings)
    }

    /// Reads one ring's file.
    ///
    /// # Errors
    ///
    /// There is none; in words.
    pub fn read_one(&self, name: &str) -> Result<Configured, String> {
        if !is_name(name) {
            return Err(format!("{name:?}: {NO_NAME}"));
        }
        let path = self.path.join(format!("{name}.{EXTENSION}"));
        match std::fs::metadata(&path) {
            Ok(_) => Ok(self.configured(&path)),
            Err(e) => Err(format!("{}: cannot read the configuration: {e}", path.display())),
        }
    }

    fn configured(&self, path: &Path) -> Configured {
        match read(path) {
            Ok(text) => {
                let words = |e: String| {
                    let text = format_args!("{}: {e}", path.display());
                    one_line(text, MAX_WORDS)
                };
                let settings = self.settings(&text).map_err(words);
                Configured { text, settings, added: false, passed: PassedDescriptors::default() }
            }
            Err(e) => {
                let words = format!("{}: cannot read the configuration: {e}", path.display());
                let (text, passed) = (String::new(), PassedDescriptors::default());
                Configured { text, settings: Err(words), added: false, passed }
            }
        }
    }

    /// Returns the settings of a ring from the text of its configuration.
    ///
    /// # Errors
    ///
    /// The error of the text, with its line.
    pub fn settings(&self, text: &str) -> Result<Settings, String> {
        self.settings_with(text, &PassedDescriptors::default())
    }

    /// Returns a configuration that a client has sent, with the descriptors that it has passed.
    pub fn added(&self, text: String, passed: PassedDescriptors) -> Configured {
        let settings = self.settings_with(&text, &passed);
        Configured { text, settings, added: true, passed }
    }

    fn settings_with(&self, text: &str, passed: &PassedDescriptors) -> Result<Settings, String> {
        let mut arguments = config_file::ring(text, &self.words)?;
        // Those of the whole daemon.
        arguments.metrics.clear();
        arguments.cpu.clear();
        if let Some(path) = passed.ring_path()
            && let Some(named) = arguments.blk_file.replace(path)
        {
            let named = named.display();
            return Err(format!(
                "blk-file = {named}, and the ring was passed, too: one of them is enough"
            ));
        }
        // Whoever has made a socket has set its mode and group: those options of the command line
        // are for the sockets that this daemon makes.
        let [guest, consumer] = [Purpose::Guest, Purpose::Consumer].map(|one| passed.source(one));
        if guest.is_some() {
            (arguments.socket_mode, arguments.socket_group) = (None, None);
        }
        if consumer.is_some() {
            (arguments.consumer_socket_mode, arguments.consumer_socket_group) = (None, None);
        }
        let mut settings =
            Settings::new(arguments, &passed.described()).map_err(|e| e.to_string())?;
        if let Some(guest) = guest {
            settings.front_ends = guest;
        }
        if let (Some(consumers), Some(consumer)) = (&mut settings.consumers, consumer) {
            consumers.source = consumer;
        }
        Ok(settings)
    }
}

/// Reads a file, and nothing that would have to be waited for.
fn read(path: &Path) -> io::Result<String> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if about.len() > MAX_TEXT {
        return Err(io::Error::other("it is too large"));
    }
    std::fs::read_to_string(path)
}

/// Whether a ring can have this name: it is a file's, and shown as it is.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Checks that the command line of a daemon with a folder of rings names no single ring.
///
/// # Errors
///
/// The option that does.
pub fn expect_no_ring(arguments: &Arguments) -> Result<(), Invalid> {
    let named = [
        ("socket-path", arguments.socket_path.is_some()),
        ("fd", arguments.fd.is_some()),
        ("blk-file", arguments.blk_file.is_some()),
        ("consumer-socket", arguments.consumer_socket.is_some()),
        ("serial", arguments.serial.is_some()),
    ];
    match named.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Invalid::OfOneRing(option)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder(path: &Path, more: &[&str]) -> Folder {
        let words = ["daemon", "--config", "d"].iter().chain(more).map(OsString::from);
        Folder::new(path.to_owned(), words.collect())
    }

    #[test]
    fn files_of_the_folder_are_rings_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("vm1.toml", "socket-path = \"s1\"\nblk-file = \"r1\"\n");
        write("vm2.toml", "socket-path = \"s2\"\nblk-file = \"r2\"\npoll-us = 7\n");
        write("vm3.toml", "socket-path = true\n");
        write("README", "no ring");
        write(".hidden.toml", "no ring either");
        let rings = folder(dir.path(), &["--hold-ms", "9"]).read().unwrap();
        assert_eq!(rings.keys().collect::<Vec<_>>(), ["vm1", "vm2", "vm3"]);
        let settings = rings["vm1"].settings.as_ref().unwrap();
        assert_eq!((settings.ring.to_str(), settings.hold.as_millis()), (Some("r1"), 9));
        let error = rings["vm3"].settings.as_ref().unwrap_err();
        assert!(error.contains("vm3.toml") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn option_of_the_whole_daemon_is_refused_in_a_rings_file() {
        let folder = folder(Path::new("d"), &["--metrics", "unix:m", "--cpu", "0,1"]);
        for (option, value) in [("user", "\"root\""), ("metrics", "[\"unix:m\"]"), ("workers", "2")]
        {
            let error = folder.settings(&format!("{option} = {value}")).unwrap_err();
            assert!(error.contains(option) && error.contains("whole daemon"), "{error}");
        }
        let settings = folder.settings("socket-path = \"s\"\nblk-file = \"r\"").unwrap();
        assert!(settings.metrics.is_empty() && settings.cpus.is_empty());
    }

    #[test]
    fn name_of_a_ring_is_a_plain_file_name() {
        for (name, is) in [
            ("vm1", true),
            ("blockring@web.2", true),
            ("", false),
            (".vm", false),
            ("../vm", false),
            ("a/b", false),
            ("a b", false),
            ("a\n", false),
        ] {
            assert_eq!(is_name(name), is, "{name:?}");
        }
    }
}
