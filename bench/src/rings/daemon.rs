//! A daemon of many rings, and what the kernel tells of its two processes.

use crate::error::{Error, Result, doing};
use crate::machine::Processors;
use crate::requests::Plan;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qemu_tests::Daemon;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of a ring, as an option has them.
const SIZE: &str = "1M";

/// Bound on the time until all rings are served.
const PATIENCE: Duration = Duration::from_secs(120);

/// The control socket.
const CONTROL: &str = "control";

/// The pause between two lists of all rings, each of which costs both processes something.
const BETWEEN_LISTS: Duration = Duration::from_millis(20);

/// Milliseconds of a tick of `/proc/PID/stat`, on every architecture that is served.
const MS_PER_TICK: u64 = 10;

/// How often the data process is looked for, after one has died.
const LOOK: Duration = Duration::from_millis(1);

/// Memory of a process that it shares with no other, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// Pages that no other process maps. Pages of a ring's file are among them: the data process
    /// alone maps it.
    pub private: u64,
    /// Those of them that belong to no file.
    pub anonymous: u64,
}

/// A daemon that serves rings, one at least.
pub struct Server {
    daemon: Daemon,
    dir: PathBuf,
    rings: usize,
    started: Instant,
}

impl Server {
    /// Starts a daemon of `rings` rings, with one thread for their queues.
    pub fn many(plan: &Plan, dir: &Path, rings: usize) -> Result<Self> {
        let dir = folder(dir, &format!("many-{rings}"))?;
        let configured = folder(&dir, "rings.d")?;
        for ring in 0..rings {
            let text = configuration(&dir, ring);
            let path = configured.join(format!("{}.toml", name(ring)));
            fs::write(&path, text).map_err(doing(format!("writing {}", path.display())))?;
        }
        let mut command = command(plan);
        command.arg("--config").arg(configured);
        command.arg("--control").arg(format!("unix:{}", dir.join(CONTROL).display()));
        Self::start("many", command.args(["--workers", "1"]), plan, dir, rings)
    }

    /// Starts a daemon of a single ring.
    pub fn single(plan: &Plan, dir: &Path) -> Result<Self> {
        let dir = folder(dir, "single")?;
        let mut command = command(plan);
        command.arg("--socket-path").arg(socket(&dir, 0)).arg("--size").arg(SIZE);
        command.arg("--blk-file").arg(dir.join("ring"));
        command.arg("--consumer-socket").arg(dir.join("out"));
        let mut server = Self::start("single", &mut command, plan, dir, 1)?;
        server.daemon.wait_for_path(&socket(&server.dir, 0), PATIENCE)?;
        Ok(server)
    }

    fn start(
        name: &str,
        command: &mut Command,
        plan: &Plan,
        dir: PathBuf,
        rings: usize,
    ) -> Result<Self> {
        command.arg("--cpu").arg(plan.processors.back.to_string()).args(&plan.arguments);
        let command = std::mem::replace(command, Command::new(""));
        let started = Instant::now();
        let daemon = Daemon::spawn(name, command, &dir)?;
        Ok(Self { daemon, dir, rings, started })
    }

    /// Returns the time of the start.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Returns the sockets for front ends, one of each ring.
    pub fn sockets(&self) -> Vec<PathBuf> {
        (0..self.rings).map(|ring| socket(&self.dir, ring)).collect()
    }

    /// Waits until all rings are served for the first time.
    pub fn wait_until_served(&mut self) -> Result<()> {
        let said = format!(" of {} rings by", self.rings);
        let settled = |daemon: &Daemon| daemon.stderr().contains(&said);
        self.daemon.wait_for("serving all rings", PATIENCE, settled)?;
        let log = self.daemon.stderr();
        if log.contains(&format!("serving {}{said}", self.rings)) {
            return Ok(());
        }
        let why =
            log.lines().find(|line| line.contains(" ERROR ")).unwrap_or("it does not say why");
        Err(Error::Usage(format!("the daemon does not serve all {} rings: {why}", self.rings)))
    }

    /// Waits until the control socket says of every ring that it is served.
    pub fn wait_until_listed(&self) -> Result<()> {
        let ask = || served(&self.dir.join(CONTROL)).map_err(doing("listing the rings"));
        let start = Instant::now();
        while ask()? < self.rings {
            if start.elapsed() > PATIENCE {
                return Err(Error::Stalled("the daemon of many rings"));
            }
            std::thread::sleep(BETWEEN_LISTS);
        }
        Ok(())
    }

    /// Returns the process that serves the rings.
    pub fn data_process(&self) -> Result<u32> {
        let children = Path::new("/proc").join(self.control_process().to_string()).join("task");
        let tasks = fs::read_dir(&children).map_err(doing("looking for the data process"))?;
        // It is the only child; a thread that ends meanwhile has none.
        let listed = tasks.flatten().find_map(|task| {
            let text = fs::read_to_string(task.path().join("children")).ok()?;
            text.split_whitespace().next()?.parse().ok()
        });
        listed.ok_or_else(|| Error::Usage("the daemon has no data process".to_owned()))
    }

    /// Returns the process that has started that one.
    pub fn control_process(&self) -> u32 {
        self.daemon.pid()
    }

    /// Kills the data process, and waits until there is another one.
    pub fn kill_data_process(&self) -> Result<Instant> {
        let old = self.data_process()?;
        let pid = Pid::from_raw(old.try_into().unwrap_or_default());
        let killed = Instant::now();
        kill(pid, Signal::SIGKILL).map_err(|e| doing("killing the data process")(e.into()))?;
        while self.data_process().is_ok_and(|pid| pid == old) && killed.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
        }
        Ok(killed)
    }

    /// Returns the processor time of the process that carries out requests.
    pub fn serving_time(&self) -> Result<Duration> {
        // A daemon of a single ring has no other process.
        processor_time(self.data_process().unwrap_or(self.control_process()))
    }

    /// Returns the processor time that each process has used since its start, with that of threads
    /// that have ended, in steps of hundredths of a second: data process and control process.
    pub fn spent(&self) -> Result<[Duration; 2]> {
        Ok([spent(self.data_process()?)?, spent(self.control_process())?])
    }

    /// Returns the processor time that the threads of both processes have used.
    pub fn processor_time(&self) -> Result<Duration> {
        Ok(processor_time(self.control_process())? + processor_time(self.data_process()?)?)
    }
}

/// Returns how many rings are served, by the list that the socket at `control` answers with.
fn served(control: &Path) -> io::Result<usize> {
    let mut connection = UnixStream::connect(control)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.write_all(b"{\"method\":\"io.blockring.Rings.List\"}\0")?;
    let mut answer = Vec::new();
    BufReader::new(connection).read_until(0, &mut answer)?;
    Ok(String::from_utf8_lossy(&answer).matches("\"state\":\"serving\"").count())
}

/// Begins the command line of a daemon that may use both processors: this thread has one alone.
fn command(plan: &Plan) -> Command {
    let Processors { front, back } = plan.processors;
    let mut command = Command::new("taskset");
    command.arg("--cpu-list").arg(format!("{front},{back}")).arg(&plan.program);
    command
}

fn folder(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::create_dir(&path).map_err(doing(format!("making {}", path.display())))?;
    Ok(path)
}

fn name(ring: usize) -> String {
    format!("ring-{ring}")
}

fn socket(dir: &Path, ring: usize) -> PathBuf {
    dir.join(format!("{}.sock", name(ring)))
}

/// Returns the text of a ring's file.
fn configuration(dir: &Path, ring: usize) -> String {
    let mut text = format!("size = \"{SIZE}\"\n");
    let files = [("socket-path", "sock"), ("blk-file", "ring"), ("consumer-socket", "out")];
    for (option, suffix) in files {
        let path = dir.join(format!("{}.{suffix}", name(ring)));
        let _ = writeln!(text, "{option} = {:?}", path.display().to_string());
    }
    text
}

/// Returns the number of a process's threads.
pub fn threads(process: u32) -> Result<usize> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).map_err(doing("counting threads"))?;
    Ok(tasks.count())
}

/// Returns the number of a process's open descriptors.
pub fn descriptors(process: u32) -> Result<usize> {
    let open = fs::read_dir(format!("/proc/{process}/fd"));
    Ok(open.map_err(doing("counting descriptors"))?.count())
}

/// Returns the processor time of the threads that a process has now.
fn processor_time(process: u32) -> Result<Duration> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).map_err(doing("reading times"))?;
    let times = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(times.sum()))
}

fn spent(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).map_err(doing(format!("reading {path}")))?;
    Ok(parse_spent(&text))
}

/// Returns user and system time, from the fields behind the name, which may contain anything.
fn parse_spent(text: &str) -> Duration {
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Duration::from_millis(ticks * MS_PER_TICK)
}

/// Returns the memory of a process.
pub fn memory(process: u32) -> Result<Memory> {
    let path = format!("/proc/{process}/smaps_rollup");
    Ok(parse_memory(&fs::read_to_string(&path).map_err(doing(format!("reading {path}")))?))
}

fn parse_memory(text: &str) -> Memory {
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_default() << 10
    };
    Memory { private: of("Private_Clean:") + of("Private_Dirty:"), anonymous: of("Anonymous:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_no_other_process_maps() {
        let text = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nShared_Clean: 7 kB\n\
                    Private_Clean:       12 kB\nPrivate_Dirty:  30 kB\nAnonymous:    20 kB\n";
        let Memory { private, anonymous } = parse_memory(text);
        assert_eq!((private, anonymous), (42 << 10, 20 << 10));
    }

    #[test]
    fn time_spent_is_that_of_user_and_kernel() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 9 9 20 0 3 0";
        assert_eq!(parse_spent(text), Duration::from_millis(1750));
        assert_eq!(parse_spent(""), Duration::ZERO);
    }

    #[test]
    fn configuration_quotes_paths() {
        let text = configuration(Path::new("/a \"b\""), 3);
        assert!(text.contains("blk-file = \"/a \\\"b\\\"/ring-3.ring\"\n"), "{text}");
    }
}
