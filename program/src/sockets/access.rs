//! Who may use a socket: owner, group and mode of its file.

use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

/// The mode of a socket for a group.
pub const GROUP_MODE: Mode =
    Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP).union(Mode::S_IWGRP);

/// Owner, group and mode of a socket's file: a process that may write to the file can connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The file's mode.
    pub mode: Mode,
    /// The file's owner, if that is not this process's user.
    pub owner: Option<Uid>,
    /// The file's group, if that is not this process's.
    pub group: Option<Gid>,
}

impl Default for Access {
    fn default() -> Self {
        Self { mode: Mode::S_IRUSR | Mode::S_IWUSR, owner: None, group: None }
    }
}

/// Parses the mode of a socket: octal digits, such as `660`.
///
/// # Errors
/// What a mode looks like, in words.
pub fn parse_mode(text: &str) -> Result<Mode, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .and_then(Mode::from_bits)
        .ok_or_else(|| "must be octal digits up to 777, such as 660".to_owned())
}
