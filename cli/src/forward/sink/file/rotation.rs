//! The names of files that are kept.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Returns the path with `.end` behind it.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(".");
    path.push(end);
    path.into()
}

/// Returns the path of the file that is kept by a number.
pub fn numbered(path: &Path, number: u64) -> PathBuf {
    beside(path, &number.to_string())
}

/// Returns the numbers of the files that are kept, compressed or not.
pub fn kept(path: &Path) -> io::Result<BTreeSet<u64>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Some(name) = path.file_name() else { return Ok(BTreeSet::new()) };
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir(folder.unwrap_or(Path::new(".")))? {
        let found = entry?.file_name();
        let rest = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let rest = rest.and_then(|rest| std::str::from_utf8(rest.strip_prefix(b".")?).ok());
        let number = rest.map(|rest| rest.strip_suffix(".zst").unwrap_or(rest));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(numbers)
}

/// Removes the files that are kept by numbers up to `last`. A folder is none of them.
pub fn remove_old(path: &Path, last: u64) -> io::Result<()> {
    for number in kept(path)?.into_iter().filter(|number| *number <= last) {
        let file = numbered(path, number);
        for file in [beside(&file, "zst"), file] {
            if file.symlink_metadata().is_ok_and(|about| about.is_dir()) {
                continue;
            }
            match std::fs::remove_file(file) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}
