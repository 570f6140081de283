//! What a forwarder is to do: from the command line, or from a file.

use super::super::address::Named;
use super::super::failure::Failure;
use super::super::framing::{Framing, OnSeparator};
use super::foreign;
use super::sink::exec::ExecOptions;
use super::sink::file::FileOptions;
use super::sink::journald::JournaldOptions;
use super::sink::nats::options::NatsOptions;
use super::values::{Choice, Memory, Name, PositiveSeconds, Seconds, Sectors, Text};
use glob::Pattern;
use ring_metrics::Address;
use ring_program::text::about_line;
use serde::Deserialize;
use shared_block_ring::format::SectorSize;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The default of `--max-memory`, in bytes.
pub const MAX_MEMORY: u64 = 64 << 20;

/// The default of `--grace`, in seconds.
pub const GRACE: f64 = 10.0;

/// The default of `--warn-after`, in seconds.
pub const WARN_AFTER: f64 = 30.0;

/// A forwarder's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub to: Destination,
    pub sinks: SinkOptions,
    pub rings: Vec<RingSource>,
    /// Bytes of items that were read and have not arrived, over all rings.
    pub max_memory: u64,
    /// The longest time that what is in flight is waited for at the end.
    pub grace: Duration,
    pub no_flush: bool,
    /// The time after which a wait for an acknowledgement is logged.
    pub warn_after: Duration,
    /// The addresses of the metrics. Another configuration does not change them.
    pub metrics: Vec<Address>,
}

/// Options of the sinks. An option of a sink that is not used is refused ([`foreign`]).
#[derive(Debug, Clone, PartialEq)]
pub struct SinkOptions {
    pub framing: Option<Framing>,
    pub on_separator: Option<OnSeparator>,
    pub file: FileOptions,
    pub exec: ExecOptions,
    pub journald: JournaldOptions,
    pub nats: NatsOptions,
}

/// Sink that `--to` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Files: a path, in which `{ring}` stands for the ring's name.
    File(String),
    /// Children that run this command.
    Exec(String),
    /// The NATS server at this address.
    Nats(String),
    /// Journal files in this folder, or else the journal of this host.
    Journald(Option<PathBuf>),
}

impl Destination {
    /// Reads what `--to` names.
    pub fn parse(text: &str) -> Result<Self, String> {
        let takes = "it takes nats://HOST, tls://HOST, file:PATH, exec:COMMAND, journald:DIRECTORY or journald:";
        let (kind, rest) = text.split_once(':').ok_or(takes)?;
        if rest.is_empty() && kind != "journald" {
            return Err(takes.to_owned());
        }
        match kind {
            "file" => Ok(Self::File(rest.to_owned())),
            "exec" => Ok(Self::Exec(rest.to_owned())),
            "journald" => {
                Ok(Self::Journald(Some(PathBuf::from(rest)).filter(|_| !rest.is_empty())))
            }
            // The sink verifies it with its options.
            "nats" | "tls" => Ok(Self::Nats(text.to_owned())),
            _ => Err(takes.to_owned()),
        }
    }

    /// Returns the question to append to a warning that nothing is acknowledged.
    pub fn acknowledgement_hint(&self) -> &'static str {
        match self {
            Self::Exec(_) => {
                " (does the command print the positions that it has dealt with, and flush each line?)"
            }
            Self::File(_) | Self::Journald(Some(_)) => " (is the disk stuck?)",
            Self::Nats(_) | Self::Journald(None) => "",
        }
    }
}

/// Ring, or rings by a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingSource {
    /// Address as `blockring --help` has it; with a path of a file or socket it can be a pattern.
    pub address: PathBuf,
    /// The ring's name, unless it is that of its file.
    pub name: Option<String>,
    pub sector_size: Option<u32>,
}

/// The characters by which a path is a pattern.
const WILD: [u8; 3] = *b"*?[";

impl RingSource {
    /// Reads an address, and verifies a pattern.
    pub fn new(address: &OsStr) -> Result<Self, String> {
        let source = Self { address: address.into(), name: None, sector_size: None };
        if let Some(pattern) = source.pattern() {
            let text = pattern.path().and_then(Path::to_str).ok_or("a pattern has to be UTF-8")?;
            Pattern::new(text).map_err(|e| format!("not a pattern: {e}"))?;
        }
        if address.is_empty() {
            return Err("the address is empty".to_owned());
        }
        Ok(source)
    }

    /// Returns what the address names, if its path is a pattern and no file has that very name.
    pub fn pattern(&self) -> Option<Named> {
        let named = Named::from(self.address.as_path());
        let (Named::Path(path) | Named::Unix(path)) = &named else { return None };
        let wild = path.as_os_str().as_bytes().iter().any(|byte| WILD.contains(byte));
        (wild && !path.exists()).then_some(named)
    }

    /// Returns the sector size, which was verified.
    pub fn sector_size(&self) -> Option<SectorSize> {
        self.sector_size.and_then(|bytes| SectorSize::new(bytes).ok())
    }
}

/// Verifies a name that was configured, or found.
pub fn verify_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(|c: char| c.is_control() || c == '/') {
        return Err("a ring's name cannot be empty, and has no slash or control character".into());
    }
    Ok(())
}

/// Reads a number of bytes for a memory limit.
pub fn memory(bytes: u64) -> Result<u64, String> {
    const LEAST: u64 = 64 << 10;
    if bytes < LEAST {
        return Err(format!("it takes {LEAST} bytes (64K) at least"));
    }
    Ok(bytes)
}

/// Reads a configuration file.
pub fn read(path: &Path) -> Result<Settings, Failure> {
    let name = shared_block_ring::device::shown(path);
    let text = std::fs::read_to_string(path)
        .map_err(Failure::io(format!("{name}: cannot read the configuration")))?;
    parse(&text).map_err(|e| Failure::Refused(format!("{name}: {e}")))
}

/// The file's tables.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Document {
    to: Text<Destination>,
    #[serde(default)]
    rings: Vec<Text<RingSource>>,
    #[serde(default)]
    ring: Vec<RingTable>,
    #[serde(default)]
    max_memory: Option<Memory>,
    #[serde(default)]
    grace: Option<Seconds>,
    #[serde(default)]
    no_flush: bool,
    #[serde(default)]
    warn_after: Option<PositiveSeconds>,
    #[serde(default)]
    metrics: Vec<Text<Address>>,
    #[serde(default)]
    framing: Option<Choice<Framing>>,
    #[serde(default)]
    on_separator: Option<Choice<OnSeparator>>,
    #[serde(default)]
    file: FileOptions,
    #[serde(default)]
    exec: ExecOptions,
    #[serde(default)]
    journald: JournaldOptions,
    #[serde(default)]
    nats: NatsOptions,
}

/// A ring with more than its address.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RingTable {
    address: Text<RingSource>,
    name: Option<Text<Name>>,
    sector_size: Option<Sectors>,
}

/// Reads the text of a configuration file. The error names line and key.
pub fn parse(text: &str) -> Result<Settings, String> {
    let document: Document = toml::from_str(text).map_err(|e| placed(text, &e))?;
    let mut rings: Vec<_> = document.rings.into_iter().map(|text| text.0).collect();
    for table in document.ring {
        let mut source = table.address.0;
        source.name = table.name.map(|name| name.0.0);
        source.sector_size = table.sector_size.map(|size| size.0);
        if source.name.is_some() && source.pattern().is_some() {
            let address = shared_block_ring::device::shown(&source.address);
            return Err(format!(
                "key `ring.name`: {address} is a pattern, whose rings cannot all have one name"
            ));
        }
        rings.push(source);
    }
    if rings.is_empty() {
        return Err("key `rings`: no ring is named".to_owned());
    }
    let to = document.to.0;
    let sinks = SinkOptions {
        framing: document.framing.map(|choice| choice.0),
        on_separator: document.on_separator.map(|choice| choice.0),
        file: document.file,
        exec: document.exec,
        journald: document.journald,
        nats: document.nats,
    };
    if let Some(foreign) = foreign::find(&to, &sinks) {
        return Err(foreign.of_file());
    }
    Ok(Settings {
        to,
        sinks,
        rings,
        max_memory: document.max_memory.map_or(MAX_MEMORY, |memory| memory.0),
        grace: document.grace.map_or(Duration::from_secs_f64(GRACE), |seconds| seconds.0),
        no_flush: document.no_flush,
        warn_after: document
            .warn_after
            .map_or(Duration::from_secs_f64(WARN_AFTER), |seconds| seconds.0),
        metrics: document.metrics.into_iter().map(|text| text.0).collect(),
    })
}

/// Returns the error with its line, and what is there: the key.
fn placed(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let Some(span) = error.span() else { return message };
    about_line(text, span.start, &message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn file_has_all_settings() {
        let settings = parse(
            r#"
            to = "file:/var/log/{ring}.log"
            rings = ["unix:/run/blockring/*.out", "serial:commands"]
            max-memory = "16M"
            grace = 2.5
            warn-after = 7
            framing = "length"
            [[ring]]
            address = "/dev/vdb"
            name = "web"
            sector-size = 4096
            [file]
            rotate-size = "100M"
            keep = 3
            "#,
        )
        .unwrap();
        assert_eq!(settings.to, Destination::File("/var/log/{ring}.log".to_owned()));
        assert_eq!(settings.rings.len(), 3);
        assert_eq!(settings.rings[2].name.as_deref(), Some("web"));
        assert_eq!((settings.max_memory, settings.grace.as_millis()), (16 << 20, 2500));
        assert_eq!(settings.warn_after, Duration::from_secs(7));
        assert_eq!(settings.sinks.framing, Some(Framing::Length));
        assert_eq!(settings.sinks.file.rotate_size, Some(100 << 20));
        let text = "to = \"journald:/log\"\nrings = [\"a\"]\n[journald]\ngather = 1.5\njournal-remote = \"r\"";
        let journald = parse(text).unwrap().sinks.journald;
        assert_eq!(journald.gather, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn error_names_line_and_key() {
        let to = "to = \"file:/log\"\n";
        for (text, words) in [
            ("", &["to"][..]),
            ("to = \"file:/log\"", &["rings"]),
            ("to = \"tape:/log\"", &["line 1", "to =", "file:PATH"]),
            ("rings = [\"a\"]\nto = 3", &["line 2", "to = 3"]),
            (&format!("{to}rings = [\"\"]"), &["line 2", "rings", "empty"]),
            (&format!("{to}rings = [\"a[\"]"), &["line 2", "rings", "pattern"]),
            (&format!("{to}ring = [\"a\"]"), &["line 2", "ring"]),
            (&format!("{to}rings = [\"a\"]\nmax-memroy = \"1M\""), &["line 3", "max-memroy"]),
            (&format!("{to}rings = [\"a\"]\nmax-memory = \"1\""), &["line 3", "max-memory", "64K"]),
            (&format!("{to}rings = [\"a\"]\ngrace = -1"), &["line 3", "grace", "seconds"]),
            (&format!("{to}rings = [\"a\"]\nframing = \"x\""), &["line 3", "framing", "lines"]),
            (&format!("{to}rings = [\"a\"]\n[file]\nkeep = \"x\""), &["line 4", "keep"]),
            (&format!("{to}rings = [\"a\"]\n[file]\nrotate = 1"), &["line 4", "rotate"]),
            (
                &format!("{to}rings = [\"a\"]\n[nats]\nstream = \"S\""),
                &["`nats.stream`", "nats://", "file:"],
            ),
            (&format!("{to}[[ring]]\nname = \"x\""), &["line 2", "address"]),
            (&format!("{to}[[ring]]\naddress = \"a\"\nname = \"\""), &["line 4", "name"]),
            (&format!("{to}[[ring]]\naddress = \"a*\"\nname = \"n\""), &["name", "pattern"]),
            (
                &format!("{to}[[ring]]\naddress = \"a\"\nsector-size = 100"),
                &["line 4", "sector-size", "power of two"],
            ),
        ] {
            let error = parse(text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{text:?}: {error:?} lacks {word:?}");
            }
        }
    }
}
