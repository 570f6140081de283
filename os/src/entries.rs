//! Entries of a folder of sysfs or proc.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Returns the names of a folder's entries; none if there is no such folder.
///
/// # Errors
/// The operating system's.
pub fn entry_names(folder: impl AsRef<Path>) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
