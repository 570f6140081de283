//! What a process takes of its machine.

use std::fs;

/// Compare two of the same process: what grows with what others ask of it has no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// All pages of memory it has in use, in KiB.
    pub resident_kib: u64,
    /// Those of them that are nobody else's: no file's, and shared with nobody.
    pub own_kib: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Footprint {
    /// Of a process that runs, and that this one may look at.
    pub fn of(pid: u32) -> Self {
        let folder = format!("/proc/{pid}");
        let status = fs::read_to_string(format!("{folder}/status")).expect("it runs");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        let entries =
            |what: &str| fs::read_dir(format!("{folder}/{what}")).expect("it runs").count();
        Self {
            resident_kib: kib("VmRSS:"),
            own_kib: kib("RssAnon:"),
            descriptors: entries("fd"),
            threads: entries("task"),
        }
    }
}
