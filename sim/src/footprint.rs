//! Resources of a process.

use std::fs;

/// Resources of a process at one moment. Compare two of the same process: what grows with other
/// processes' requests has no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Resident memory that is private and anonymous, in KiB.
    pub own_kib: u64,
    /// Number of open descriptors.
    pub descriptors: usize,
    /// Number of threads.
    pub threads: usize,
}

impl Footprint {
    /// Reads the resources of a running process.
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
