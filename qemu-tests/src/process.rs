//! Processes on the host that never outlive the test.

use std::fs::{self, File};
use std::io::{self, PipeWriter};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, getpid, getppid};

use crate::error::{Error, Result, tail};

/// Pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Looks every few milliseconds whether `condition` holds, for at most `timeout`. Returns whether
/// it came to hold.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

type SpawnRequest = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns a child that the kernel kills when this process dies, however it dies.
///
/// The kernel ties that to the *thread* that spawned the child, and tests spawn from threads that
/// come and go. So one thread that lives as long as the process spawns them all.
fn spawn_bound(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<SpawnRequest>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                // The thread that asked waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let gone = || io::Error::other("the spawning thread is gone");
    let (answer, result) = mpsc::channel();
    spawner.send((with_death_signal(command), answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

fn with_death_signal(mut command: Command) -> Command {
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec and makes two system calls, which are
    // async-signal-safe; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the call above.
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    command
}

/// A child that is killed and reaped on drop.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
}

impl Process {
    pub(crate) fn spawn(command: Command) -> Result<Self> {
        let what = format!("starting {}", command.get_program().display());
        spawn_bound(command).map(|child| Self { child }).map_err(Error::io(what))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status, if the process ends within `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let mut status = None;
        wait_until(timeout, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns whether the process has ended by SIGSEGV. One that has just closed its output may
    /// take a moment to end.
    pub(crate) fn has_crashed(&mut self) -> bool {
        let status = self.wait(Duration::from_secs(2));
        status.is_some_and(|status| status.signal() == Some(Signal::SIGSEGV as i32))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        // A process id of this system always fits; the fallback names no process.
        let pid = Pid::from_raw(self.pid().try_into().unwrap_or(i32::MAX));
        signal::kill(pid, signal)
            .map_err(io::Error::from)
            .map_err(Error::io(format!("sending {signal} to process {pid}")))
    }

    pub(crate) fn kill(&mut self) -> Result<ExitStatus> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map_err(Error::io(format!("killing process {}", self.pid())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // This fails only if the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program on the host with its output in files; killed on drop.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    process: Process,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon {
    /// Starts `command`. Its standard output and error go to `NAME.stdout` and `NAME.stderr` in
    /// `dir` (appended, so that a restarted daemon's log tells the whole story); its input is
    /// empty.
    pub fn spawn(name: &str, command: Command, dir: &Path) -> Result<Self> {
        Self::spawn_reading(Stdio::null(), name, command, dir)
    }

    /// Returns the same with an input, which is what is written to the other end of a pipe.
    pub fn spawn_fed(name: &str, command: Command, dir: &Path) -> Result<(Self, PipeWriter)> {
        let (input, feed) = io::pipe().map_err(Error::io("making a pipe"))?;
        Ok((Self::spawn_reading(input.into(), name, command, dir)?, feed))
    }

    fn spawn_reading(input: Stdio, name: &str, mut command: Command, dir: &Path) -> Result<Self> {
        let open = |suffix: &str| {
            let path = dir.join(format!("{name}.{suffix}"));
            let file = File::options().create(true).append(true).open(&path);
            file.map_err(Error::file("creating", &path)).map(|file| (file, path))
        };
        let (stdout_file, stdout) = open("stdout")?;
        let (stderr_file, stderr) = open("stderr")?;
        command.stdin(input).stdout(stdout_file).stderr(stderr_file);
        let process = Process::spawn(command)?;
        Ok(Self { name: name.to_owned(), process, stdout, stderr })
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns what it has written to standard output so far.
    pub fn stdout(&self) -> Vec<u8> {
        fs::read(&self.stdout).unwrap_or_default()
    }

    /// Returns what it has written to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Returns how many bytes it has written to standard output so far.
    pub fn printed(&self) -> u64 {
        fs::metadata(&self.stdout).map_or(0, |file| file.len())
    }

    /// Returns the file that takes standard output.
    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    /// Returns whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits until `path` exists: a socket is bound. It is not connected to, because a vhost-user
    /// back end would take that for its front end.
    ///
    /// A file that an earlier daemon left satisfies this too: remove it first where that matters.
    pub fn wait_for_path(&mut self, path: &Path, timeout: Duration) -> Result<()> {
        self.wait_for(&format!("creating {}", path.display()), timeout, |_| path.exists())
    }

    /// Waits until `condition` holds, and fails early if the daemon ends.
    pub fn wait_for(
        &mut self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let what = format!("{} {what}", self.name);
        let (mut held, mut running) = (false, true);
        wait_until(timeout, || {
            // In this order: a process may do its work and end.
            running = self.process.is_running();
            held = condition(self);
            held || !running
        });
        match (held, running) {
            (true, _) => Ok(()),
            (false, false) => Err(Error::Died { what, log: self.log() }),
            (false, true) => Err(Error::Timeout { what, after: timeout, log: self.log() }),
        }
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.wait(timeout).ok_or_else(|| Error::Timeout {
            what: format!("{} ending", self.name),
            after: timeout,
            log: self.log(),
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        // A process that was found dead is reaped, and its id may be another process's by now.
        if self.process.is_running() {
            self.process.signal(Signal::SIGTERM)?;
        }
        self.wait(timeout)
    }

    /// Sends SIGKILL and reaps it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// Returns the processor time it has used so far, user and system, all threads.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid())
    }

    fn log(&self) -> String {
        tail(&fs::read(&self.stderr).unwrap_or_default())
    }
}

/// Returns the time that a process's threads have run, from `/proc/PID/task/*/schedstat`: in
/// nanoseconds, where `stat` counts clock ticks, too coarse for a process that hardly runs.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let folder = PathBuf::from(format!("/proc/{pid}/task"));
    let threads = fs::read_dir(&folder).map_err(Error::file("reading", &folder))?;
    // A thread that ends meanwhile is not counted.
    let times = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(times.sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_is_told_from_other_ends_and_from_life() -> Result<()> {
        for (script, crashed) in [
            ("kill -SEGV $$", true),
            ("kill -TERM $$", false),
            ("exit 139", false),
            ("exec sleep 60", false),
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            assert_eq!(Process::spawn(command)?.has_crashed(), crashed, "{script}");
        }
        Ok(())
    }
}
