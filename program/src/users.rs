//! Users and groups by name or number.
//!
//! The C library's own look-up loads the modules that `nsswitch.conf` names. A program that is
//! linked statically does not survive each of them: systemd's ended it by SIGSEGV. So the files
//! are read here, and whatever else there is, `getent` is asked for.

use nix::unistd::{Gid, Uid};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

/// Returns a user by name or number; none if there is no such name.
///
/// # Errors
/// The operating system's, if the user database cannot be read.
pub fn user(name: &str) -> io::Result<Option<Uid>> {
    Database::system("passwd").id(name).map(|id| id.map(Uid::from_raw))
}

/// Returns a group by name or number; none if there is no such name.
///
/// # Errors
/// As [`user`].
pub fn group(name: &str) -> io::Result<Option<Gid>> {
    Database::system("group").id(name).map(|id| id.map(Gid::from_raw))
}

/// Returns the group that a user has in the user database; none if the user is not in it.
///
/// # Errors
/// As [`user`].
pub fn primary_group(user: Uid) -> io::Result<Option<Gid>> {
    let group = Database::system("passwd").look_up(&user.to_string(), ID, GROUP)?;
    Ok(group.map(Gid::from_raw))
}

/// Columns of a line of `/etc/passwd`, of which `/etc/group` has the first two as well.
const NAME: usize = 0;
const ID: usize = 2;
const GROUP: usize = 3;

/// `getent`'s exit code for a key that it does not find.
const NOT_FOUND: i32 = 2;

/// One of the two databases, `passwd` or `group`.
struct Database {
    name: &'static str,
    file: PathBuf,
    /// The program that knows what is in no file.
    getent: PathBuf,
}

impl Database {
    fn system(name: &'static str) -> Self {
        Self { name, file: Path::new("/etc").join(name), getent: "getent".into() }
    }

    /// Returns the ID that `name` has, or is.
    fn id(&self, name: &str) -> io::Result<Option<u32>> {
        match number(name) {
            Some(id) => Ok(Some(id)),
            None => self.look_up(name, NAME, ID),
        }
    }

    /// Returns the number in column `wanted` of the line that has `key` in column `column`.
    fn look_up(&self, key: &str, column: usize, wanted: usize) -> io::Result<Option<u32>> {
        let lines = match fs::read(&self.file) {
            Ok(lines) => lines,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        match find(&lines, key, column, wanted) {
            Some(id) => Ok(Some(id)),
            // An empty key would be none at all for `getent`, and the other an option.
            None if key.is_empty() || key.starts_with('-') => Ok(None),
            None => {
                let output = Command::new(&self.getent)
                    .args([self.name, key])
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .output();
                match output {
                    Ok(output) if output.status.success() => {
                        Ok(find(&output.stdout, key, column, wanted))
                    }
                    Ok(output) if output.status.code() == Some(NOT_FOUND) => Ok(None),
                    Ok(output) => {
                        let text = format!("getent {} {key}: {}", self.name, output.status);
                        Err(io::Error::other(text))
                    }
                    // A small system has the files alone.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e),
                }
            }
        }
    }
}

fn find(lines: &[u8], key: &str, column: usize, wanted: usize) -> Option<u32> {
    String::from_utf8_lossy(lines).lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(column) == Some(&key)).then(|| number(fields.get(wanted)?)).flatten()
    })
}

/// Returns the ID that `name` is, if it is one.
fn number(name: &str) -> Option<u32> {
    // The largest number means "unchanged" to the kernel.
    name.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A user database of a file, and of a `getent` that does `script`.
    fn database(folder: &Path, script: &str) -> Database {
        let (file, getent) = (folder.join("passwd"), folder.join("getent"));
        fs::write(&file, "root:x:0:0::/root:/bin/sh\nbroken\nweb:x:33:34::/:/bin/sh\n").unwrap();
        // By another process: what another thread starts meanwhile would have a descriptor of ours
        // for a moment, and nobody could execute the file.
        let mut make = Command::new("sh");
        make.args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#]);
        assert!(make.arg(&getent).arg(script).status().unwrap().success());
        Database { name: "passwd", file, getent }
    }

    #[test]
    fn users_are_found_in_the_file_by_name_and_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let users = database(folder.path(), "exit 3");
        assert_eq!(users.id("web").unwrap(), Some(33));
        assert_eq!(users.id("77").unwrap(), Some(77));
        assert_eq!(users.look_up("33", ID, GROUP).unwrap(), Some(34));
    }

    #[test]
    fn users_in_no_file_are_asked_of_getent() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"[ "$*" = "passwd ldap" ] && echo "ldap:x:5000:5001::/:/bin/sh" || exit 2"#;
        let users = database(folder.path(), script);
        assert_eq!(users.id("ldap").unwrap(), Some(5000));
        assert_eq!(users.id("nobody knows").unwrap(), None);
        assert_eq!(users.id("-h").unwrap(), None);
        assert_eq!(users.id("").unwrap(), None);
    }

    #[test]
    fn getent_that_fails_is_an_error_and_one_that_is_missing_knows_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let users = database(folder.path(), "exit 3");
        let error = users.id("ldap").unwrap_err().to_string();
        assert_eq!(error, "getent passwd ldap: exit status: 3");
        fs::remove_file(&users.getent).unwrap();
        assert_eq!(users.id("ldap").unwrap(), None);
        fs::remove_file(&users.file).unwrap();
        assert_eq!(users.id("web").unwrap(), None);
    }
}
