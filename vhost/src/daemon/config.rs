//! The daemon's command line (vhost-user, "Backend program conventions").

use crate::data_path::executor::SERIAL_BYTES;
use clap::Parser;
use nix::sys::stat::Mode;
use ring_program::LogFormat;
use ring_program::sockets::parse_mode;
use shared_block_ring::format::{SectorSize, Side};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  vhost-device-blockring --socket-path vm1.sock --blk-file vm1.ring --size 8M \\
      --consumer-socket vm1.out --serial logs

  qemu-system-x86_64 … \\
      -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\
      -chardev socket,id=ring,path=vm1.sock,reconnect=1 -device vhost-user-blk-pci,chardev=ring

  blockring consume --follow unix:vm1.out

  vhost-device-blockring --config /etc/blockring/rings.d/vm1.toml --check-config

  vhost-device-blockring --config /etc/blockring/rings.d --control unix:/run/blockring/control
  blockring ctl list

Listening sockets that a service manager passes (LISTEN_FDS) are named `guest` (for --socket-path),
`consumer` (for --consumer-socket) and `metrics` (for --metrics). The manager is told of start, life
and end (NOTIFY_SOCKET, WATCHDOG_USEC). docs/operations.md has more.

Exit codes:
  0  normal end (SIGTERM, SIGINT)
  1  error
  2  wrong use of options";

/// Show a shared block ring to a virtual machine as a disk
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Take options from this TOML file, under their long names; one of the command line wins.
    /// If it is a folder, serve many rings: one for each NAME.toml in it
    #[arg(long, value_name = "FILE|DIR")]
    pub config: Option<PathBuf>,
    /// With a folder: take calls of `blockring ctl` on this socket, as unix:PATH
    #[arg(long, value_name = "ADDRESS")]
    pub control: Option<String>,
    /// A user that may add and remove rings there, by name or number, beside root; repeat it for
    /// more. Such a user can have any file opened that this program can open
    #[arg(long, value_name = "USER", requires = "control")]
    pub control_user: Vec<String>,
    /// Whose members may
    #[arg(long, value_name = "GROUP", requires = "control")]
    pub control_group: Vec<String>,
    /// Whose members may look at the rings there, and change nothing
    #[arg(long, value_name = "GROUP", requires = "control")]
    pub control_read_group: Vec<String>,
    /// With a folder: the number of threads that drive the queues (without it one for each
    /// processor that this process may use)
    #[arg(long, value_name = "N", value_parser = workers)]
    pub workers: Option<usize>,
    /// With a folder: the most rings that are served; others are refused
    #[arg(long, value_name = "N", value_parser = rings)]
    pub max_rings: Option<usize>,
    /// With a folder: the most bytes that the rings have together; others are refused
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub max_memory: Option<u64>,
    /// Check the options and the configuration, and end
    #[arg(long)]
    pub check_config: bool,
    /// Listen for the front end (QEMU) here
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,
    /// Mode of that socket, in octal (without it 600, or 660 with --socket-group)
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub socket_mode: Option<Mode>,
    /// Group of that socket, by name or number
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Accept front ends on this inherited listening socket, whatever name a service manager gives
    /// it
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<i32>,
    /// Print what this program can do, as JSON, and end
    #[arg(long)]
    pub print_capabilities: bool,
    /// Serve what the process that has started this one sends by standard input
    #[arg(long, hide = true)]
    pub data_process: bool,
    /// The ring: a file or a block device
    #[arg(long, value_name = "PATH")]
    pub blk_file: Option<PathBuf>,
    /// Make the file with an empty ring if it is not there (K, M and G are powers of 1024)
    #[arg(long, value_parser = ring_program::parse_size)]
    pub size: Option<u64>,
    /// Bytes in a sector of the file
    #[arg(long, value_name = "N", value_parser = sector_size)]
    pub sector_size: Option<SectorSize>,
    /// Refuse every write of the guest
    #[arg(long)]
    pub read_only: bool,
    /// Let the guest be saved with its memory (savevm), restored and migrated; see
    /// docs/snapshots.md for what a restored guest finds
    #[arg(long)]
    pub migratable: bool,
    /// Hand the region to one process on the host here
    #[arg(long, value_name = "PATH")]
    pub consumer_socket: Option<PathBuf>,
    /// Mode of that socket, in octal (without it 660 with a group, 666 with --consumer-user alone,
    /// else 600)
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub consumer_socket_mode: Option<Mode>,
    /// Group of that socket, by name or number (without it the first --consumer-group)
    #[arg(long, value_name = "GROUP")]
    pub consumer_socket_group: Option<String>,
    /// Who may have the region, by name or number, beside root; repeat it for more (without it and
    /// --consumer-group: the daemon's own user)
    #[arg(long, value_name = "USER")]
    pub consumer_user: Vec<String>,
    /// Whose members may have it
    #[arg(long, value_name = "GROUP")]
    pub consumer_group: Vec<String>,
    /// The guest's role
    #[arg(long, value_enum, default_value = "producer")]
    pub guest: Guest,
    /// The disk's serial number: in the guest, serial:NAME (without it, one that belongs to this
    /// ring; the log shows it)
    #[arg(long, value_name = "NAME", value_parser = serial)]
    pub serial: Option<[u8; SERIAL_BYTES]>,
    /// How long an idle-class read of the other side's pointer is held, in milliseconds
    #[arg(long, value_name = "MS", default_value = "5000", value_parser = milliseconds)]
    pub hold_ms: Duration,
    /// How long to look for more requests before sleeping, in microseconds, if they come so close
    /// together that it pays; 0 does not look, but after kicks without a request
    #[arg(long, value_name = "N", default_value = "50", value_parser = microseconds)]
    pub poll_us: Duration,
    /// Never sleep while there is a front end: takes a processor of its own
    #[arg(
        long,
        value_enum,
        value_name = "always",
        hide_possible_values = true,
        conflicts_with = "poll_us"
    )]
    pub poll: Option<Poll>,
    /// The most bytes that the guest reads and writes in a second: its next request waits when they
    /// are used up (K, M and G are powers of 1024; without it no limit)
    #[arg(long, value_name = "SIZE", value_parser = bytes_per_second)]
    pub max_bytes_per_second: Option<NonZeroU64>,
    /// The most requests that are taken from the guest in a second, a plain number: the next one
    /// waits when they are used up
    #[arg(long, value_name = "N", value_parser = requests_per_second)]
    pub max_requests_per_second: Option<NonZeroU64>,
    /// Judge every write of the guest by the ring's rules; off makes a plain disk, for a guest that
    /// formats its own ring or is trusted: consumers then copy what they read
    #[arg(long, value_name = "on|off", default_value = "on", hide_possible_values = true)]
    pub guard: Switch,
    /// Offer metrics (GET /metrics) and health (GET /healthz) here, unix:PATH or 127.0.0.1:PORT;
    /// repeat it for more
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Vec<ring_metrics::Address>,
    /// Have the queue's thread run on this processor alone; with a folder, one thread on each of
    /// these
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub cpu: Vec<usize>,
    /// Ask for huge pages under the region: on tmpfs (its files are then best made there), or on
    /// hugetlbfs in any case
    #[arg(long)]
    pub hugepages: bool,
    /// Form of the log: text, or one JSON object a line
    #[arg(long, value_name = "text|json", default_value = "text")]
    pub log_format: LogFormat,
    /// Run as this user once everything is open; the ring has to be readable and writable for it
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Run as this group, and no other (without it the group of --user)
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Give up every right that is not needed to serve the ring; off is for debuggers
    #[arg(long, value_name = "on|off", default_value = "on", hide_possible_values = true)]
    pub sandbox: Switch,
}

impl Arguments {
    /// Returns an option that has a meaning for many rings alone, if one is given.
    pub fn of_many_rings(&self) -> Option<&'static str> {
        let given = [
            ("control", self.control.is_some()),
            ("workers", self.workers.is_some()),
            ("max-rings", self.max_rings.is_some()),
            ("max-memory", self.max_memory.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Do it
    On,
    /// Do not
    Off,
}

/// When to poll for requests instead of sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Poll {
    /// At all times
    Always,
}

/// The guest's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Guest {
    /// It sends
    Producer,
    /// It receives
    Consumer,
}

impl From<Guest> for Side {
    fn from(guest: Guest) -> Self {
        match guest {
            Guest::Producer => Self::Producer,
            Guest::Consumer => Self::Consumer,
        }
    }
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=256) => Ok(count),
        _ => Err("must be 1 to 256".to_owned()),
    }
}

fn rings(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("must be 1 to 1000000".to_owned()),
    }
}

fn memory(text: &str) -> Result<u64, String> {
    match ring_program::parse_size(text)? {
        0 => Err("must be at least 1; without it there is no limit".to_owned()),
        bytes => Ok(bytes),
    }
}

fn bytes_per_second(text: &str) -> Result<NonZeroU64, String> {
    let bytes = ring_program::parse_size(text)?;
    NonZeroU64::new(bytes)
        .ok_or_else(|| "must be at least 1; without it there is no limit".to_owned())
}

fn requests_per_second(text: &str) -> Result<NonZeroU64, String> {
    let count = text.parse().ok().filter(|count: &NonZeroU64| count.get() <= 1_000_000_000);
    count.ok_or_else(|| {
        "must be a plain number from 1 to 1000000000; without it there is no limit".to_owned()
    })
}

fn sector_size(text: &str) -> Result<SectorSize, String> {
    let bytes = text.parse().map_err(|_| "not a number of bytes".to_owned())?;
    SectorSize::new(bytes).map_err(|e| e.to_string())
}

fn serial(text: &str) -> Result<[u8; SERIAL_BYTES], String> {
    let mut serial = [0; SERIAL_BYTES];
    match serial.get_mut(..text.len()) {
        Some(start) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            start.copy_from_slice(text.as_bytes());
            Ok(serial)
        }
        _ => Err(format!("must be 1 to {SERIAL_BYTES} printable ASCII characters without spaces")),
    }
}

fn microseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(us @ 0..=1_000_000) => Ok(Duration::from_micros(us)),
        _ => Err("must be 0 to 1000000".to_owned()),
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(ms @ 1..=3_600_000) => Ok(Duration::from_millis(ms)),
        _ => Err("must be 1 to 3600000".to_owned()),
    }
}
