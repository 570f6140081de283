//! `file:PATH`: items appended to files, each of them once.
//!
//! A file has a record of positions beside it. What is in the file behind the recorded length was
//! not acknowledged: it is cut off when the file is opened again, and the items come again. So the
//! file never has a part of an item for long, nor an item twice.

mod compress;
mod locked;
mod log;
mod pool;
mod record;
mod rotation;

use self::log::Style;
use self::pool::{Job, LaneJobs, Output, Pool};
use super::super::super::failure::Failure;
use super::super::super::framing::{Framing, OnSeparator};
use super::super::values::{positive, size, time};
use super::{Batch, Lane, Reporter, RingFacts, Sink};
use ring_program::parse_size;
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Stands in a path for the name of the ring.
const RING: &str = "{ring}";

const HEADING: &str = "Options of file";

/// Options of files.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FileOptions {
    /// Begin a new file when this one has SIZE bytes, and keep it as PATH.1, PATH.2 and so on
    #[arg(long, help_heading = HEADING, value_name = "SIZE", value_parser = |text: &str| parse_size(text).and_then(positive))]
    #[serde(deserialize_with = "size")]
    pub rotate_size: Option<u64>,
    /// Begin a new file with the first item that comes when this one is S seconds old
    #[arg(long, help_heading = HEADING, value_name = "S", value_parser = super::super::super::address::positive_seconds, allow_negative_numbers = true)]
    #[serde(deserialize_with = "time")]
    pub rotate_age: Option<Duration>,
    /// Remove all but the last N files that are kept
    #[arg(long, help_heading = HEADING, value_name = "N", value_parser = super::super::super::address::positive::<u64>)]
    pub keep: Option<u64>,
    /// Compress the files that are kept
    #[arg(long, help_heading = HEADING, value_enum)]
    #[serde(deserialize_with = "compression")]
    pub compress: Option<Compression>,
}

impl FileOptions {
    /// Returns the options, and whether each was given.
    pub fn given(&self) -> [(&'static str, bool); 4] {
        let Self { rotate_size, rotate_age, keep, compress } = self;
        [
            ("rotate-size", rotate_size.is_some()),
            ("rotate-age", rotate_age.is_some()),
            ("keep", keep.is_some()),
            ("compress", compress.is_some()),
        ]
    }
}

/// How files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// PATH.1.zst, as zstd reads it
    Zstd,
}

fn compression<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Compression>, D::Error> {
    super::super::values::choice(deserializer).map(Some)
}

/// The sink `file:PATH`.
pub struct Files {
    path: String,
    style: Style,
    outputs: HashMap<PathBuf, Weak<Output>>,
    pool: Pool,
    lanes: u64,
}

impl Files {
    /// Makes the sink. `path` can have `{ring}` in it.
    pub fn new(
        path: &str,
        framing: (Framing, OnSeparator),
        options: &FileOptions,
    ) -> Result<Self, Failure> {
        if path.ends_with('/') || Path::new(path).is_dir() {
            return Err(Failure::Refused(format!(
                "file:{path} is a folder (name a file in it, such as {}/{RING}.log)",
                path.trim_end_matches('/')
            )));
        }
        let style = Style { framing: framing.0, on_separator: framing.1, options: options.clone() };
        let pool = Pool::new();
        Ok(Self { path: path.to_owned(), style, outputs: HashMap::new(), pool, lanes: 0 })
    }
}

/// Returns what keeps the files of rings with these names from being written, as far as a look
/// tells that changes nothing.
pub fn faults(path: &str, rings: &BTreeSet<&str>) -> Vec<String> {
    // A folder can be looked at before there is a ring.
    let any = BTreeSet::from(["ring"]);
    let rings = if rings.is_empty() { &any } else { rings };
    let paths: BTreeSet<_> = rings.iter().map(|ring| path.replace(RING, ring)).collect();
    paths.iter().filter_map(|path| log::examine(Path::new(path)).err()).collect()
}

impl Sink for Files {
    fn descriptors(&self) -> u64 {
        // The file and its record, and the next of each while one takes the place of the other.
        4
    }

    fn open(&mut self, ring: &RingFacts, events: Reporter) -> Box<dyn Lane> {
        let path = PathBuf::from(self.path.replace(RING, &ring.name));
        let known = self.outputs.get(&path).and_then(Weak::upgrade);
        let output = known.unwrap_or_else(|| {
            self.outputs.retain(|_, output| output.strong_count() > 0);
            let output = Arc::new(Output::new(path.clone(), self.style.clone()));
            self.outputs.insert(path, Arc::downgrade(&output));
            output
        });
        self.lanes += 1;
        let jobs = LaneJobs::new(output, self.pool.clone(), self.lanes);
        jobs.add(Job::Open { ring: ring.clone(), events });
        Box::new(FileLane { jobs })
    }
}

struct FileLane {
    jobs: LaneJobs,
}

impl Lane for FileLane {
    fn send(&mut self, batch: Batch) {
        self.jobs.add(Job::Write(batch));
    }
}

impl Drop for FileLane {
    fn drop(&mut self) {
        self.jobs.close();
    }
}
