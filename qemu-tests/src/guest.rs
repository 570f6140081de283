//! A running guest.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::job::{Job, Link, Output, Wait};
use crate::process::{self, Process};
use crate::{GuestBuilder, console, qmp};

/// A guest in a file. See [`GuestBuilder::resume`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) file: PathBuf,
    pub(crate) nonce: String,
    pub(crate) jobs: u32,
}

/// A virtual machine in QEMU; killed on drop.
///
/// All methods but those that end it take `&self`, and may be called from several threads.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    link: Arc<Link>,
    /// Offset in the console's output where the running boot begins.
    booted_at: AtomicUsize,
    boot_timeout: Duration,
    command_timeout: Duration,
    // Last, so that it is removed when QEMU is gone.
    folder: TempDir,
}

impl Guest {
    /// Boots a guest with no disk and the standard image.
    pub fn boot() -> Result<Self> {
        GuestBuilder::new().boot()
    }

    pub(crate) fn new(
        process: Process,
        link: Link,
        folder: TempDir,
        boot_timeout: Duration,
        command_timeout: Duration,
    ) -> Self {
        let (link, booted_at) = (Arc::new(link), AtomicUsize::new(0));
        Self { process, link, booted_at, boot_timeout, command_timeout, folder }
    }

    pub(crate) fn wait_for_boot(&self, word: &str) -> Result<()> {
        let wait = Wait::new("the guest's boot", self.boot_timeout);
        let from = self.booted_at.load(Ordering::Acquire);
        let found = self.link.wait_for(&self.link.mark(word), from, wait)?;
        self.booted_at.store(found.end, Ordering::Release);
        Ok(())
    }

    /// Runs a shell command (or several lines of them) to its end, for at most the builder's
    /// `command_timeout`. Its exit status is an answer, not an error.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_for(command, self.command_timeout)
    }

    /// Runs a shell command for at most `timeout`. A command that takes longer goes on in the
    /// guest, which stays usable.
    pub fn run_for(&self, command: &str, timeout: Duration) -> Result<Output> {
        self.spawn(command)?.wait(timeout)
    }

    /// Runs a command that must succeed, and answers its standard output.
    pub fn check(&self, command: &str) -> Result<String> {
        let output = self.run(command)?;
        if output.status == 0 {
            return Ok(output.stdout);
        }
        Err(Error::Answer { what: command.to_owned(), answer: format!("{output:?}") })
    }

    /// Returns where a disk's (`vda`) PCI device is: `0000:00:04.0`.
    pub fn pci_address(&self, disk: &str) -> Result<String> {
        let path = self.check(&format!("dirname $(readlink -f /sys/block/{disk}/device)"))?;
        Ok(path.trim().rsplit('/').next().unwrap_or_default().to_owned())
    }

    /// Starts a shell command in the background.
    pub fn spawn(&self, command: &str) -> Result<Job> {
        self.link.start(command)
    }

    /// Waits for a boot after the last one seen: the guest was told to reboot, or was reset.
    pub fn wait_ready(&self) -> Result<()> {
        self.wait_for_boot("ready>>\n")
    }

    /// Passes on what the guest's script prints as it comes, and answers the script's exit status.
    pub fn follow_script(&self, out: &mut impl Write, timeout: Duration) -> Result<i32> {
        let wait = Wait::new("the guest's script", timeout);
        let end = self.link.mark("exit ");
        let console = &self.link.console;
        let mut from = self.booted_at.load(Ordering::Acquire);
        let mut held = 0;
        loop {
            let more = console.wait_past(from + held, wait.deadline);
            more.map_err(|reason| wait.error(reason, console))?;
            let more = console.wait_past(from, Instant::now()).unwrap_or_default();
            let found = console::find(&more, end.as_bytes());
            // What may be the beginning of the mark is held back until more has come.
            held = if found.is_some() { 0 } else { half_mark(&more, end.as_bytes()) };
            let pass = found.unwrap_or(more.len() - held);
            out.write_all(&more[..pass])
                .and_then(|()| out.flush())
                .map_err(Error::io("passing on the guest's output"))?;
            from += pass;
            if found.is_some() {
                return self.link.wait_for_exit(&end, from, wait).map(|(_, status)| status);
            }
        }
    }

    /// Runs a command of QEMU's machine protocol.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value> {
        let socket: PathBuf = self.folder.path().join("qmp.socket");
        qmp::execute(&socket, command, arguments)
    }

    /// Saves the guest to `file`: its memory and devices, not its disks. It is stopped then; see
    /// [`Guest::cont`].
    ///
    /// An emulated guest (TCG) is stopped first: QEMU loses pages that such a guest changes while
    /// its memory is copied. Of 120 live migrations of a guest without disks, under load on its
    /// memory, 100 arrived with other bytes than the source had.
    pub fn save(&self, file: &Path) -> Result<Snapshot> {
        self.migrate_to(&format!("exec:cat > '{}'", file.display()))?;
        let (nonce, jobs) = self.state();
        Ok(Snapshot { file: file.to_owned(), nonce, jobs })
    }

    /// Sends the guest to this address of QEMU's. It is stopped then.
    pub(crate) fn migrate_to(&self, address: &str) -> Result<()> {
        if self.is_emulated()? {
            self.stop()?;
        }
        self.qmp("migrate", &json!({ "uri": address }))?;
        self.wait_for_status("query-migrate", "completed")
    }

    /// The address at which another QEMU can await this guest.
    pub(crate) fn incoming(&self) -> String {
        format!("unix:{}", self.folder.path().join("migration.socket").display())
    }

    /// What a link to the guest in another QEMU has to know.
    pub(crate) fn state(&self) -> (String, u32) {
        self.link.state()
    }

    /// Begins a migration of the running guest and cancels it: the backends of its disks have
    /// logged changed pages meanwhile.
    pub fn begin_and_cancel_migration(&self) -> Result<()> {
        // So slow that it is under way until it is cancelled.
        self.limit_migration(1 << 20)?;
        self.qmp("migrate", &json!({ "uri": "exec:cat >/dev/null" }))?;
        self.wait_for_status("query-migrate", "active")?;
        self.qmp("migrate_cancel", &json!({}))?;
        self.wait_for_status("query-migrate", "cancelled")?;
        self.limit_migration(1 << 40)
    }

    /// Sets the bytes a second that a migration may send.
    fn limit_migration(&self, bytes: u64) -> Result<()> {
        self.qmp("migrate-set-parameters", &json!({ "max-bandwidth": bytes })).map(drop)
    }

    fn is_emulated(&self) -> Result<bool> {
        Ok(self.qmp("query-kvm", &json!({}))?["enabled"] != true)
    }

    /// Takes over a job that was started in this guest before it was saved.
    pub fn adopt(&self, job: &Job) -> Job {
        job.through(&self.link)
    }

    /// Lets the guest run that was saved, once all of it is here.
    pub(crate) fn run_restored(&mut self) -> Result<()> {
        let mut last = Ok(Value::Null);
        let mut ended = false;
        process::wait_until(self.boot_timeout, || {
            ended = !self.process.is_running();
            last = self.qmp("query-status", &json!({}));
            // One that was stopped before it was saved waits to be let run.
            let arrived =
                |answer: &Value| answer["status"] == "paused" || answer["running"] == true;
            ended || last.as_ref().is_ok_and(arrived)
        });
        let what = "the saved guest's arrival".to_owned();
        let log = self.console_tail();
        match last {
            _ if ended => Err(Error::Died { what, log }),
            Ok(answer) if answer["status"] == "inmigrate" => {
                Err(Error::Timeout { what, after: self.boot_timeout, log })
            }
            Ok(_) => self.cont(),
            Err(error) => Err(Error::Answer { what, answer: format!("{error}\n{log}") }),
        }
    }

    /// Waits until `reached`, for at most `bound`, and as long as QEMU runs.
    pub fn wait_for(
        &self,
        what: &str,
        bound: Duration,
        mut reached: impl FnMut() -> bool,
    ) -> Result<()> {
        let mut is_reached = false;
        let over = process::wait_until(bound, || {
            is_reached = reached();
            is_reached || self.link.console.has_ended()
        });
        let (what, log) = (what.to_owned(), self.console_tail());
        match over {
            _ if is_reached => Ok(()),
            true => Err(Error::Died { what, log }),
            false => Err(Error::Timeout { what, after: bound, log }),
        }
    }

    /// Waits until this query of QEMU's has this answer for `status`.
    pub(crate) fn wait_for_status(&self, query: &str, wanted: &str) -> Result<()> {
        let mut last = Value::Null;
        let reached = process::wait_until(self.command_timeout, || {
            last = self.qmp(query, &json!({})).unwrap_or_default();
            last["status"] == wanted || last["status"] == "failed"
        });
        if reached && last["status"] == wanted {
            return Ok(());
        }
        let answer = format!("{last}\n{}", self.console_tail());
        Err(Error::Answer { what: format!("{query}, {wanted} wanted"), answer })
    }

    /// Presses the reset button. Then [`Guest::wait_ready`]; the builder must have allowed reboots.
    pub fn reset(&self) -> Result<()> {
        self.qmp("system_reset", &json!({})).map(drop)
    }

    /// Stops the guest's processors.
    pub fn stop(&self) -> Result<()> {
        self.qmp("stop", &json!({})).map(drop)
    }

    /// Lets them run again.
    pub fn cont(&self) -> Result<()> {
        self.qmp("cont", &json!({})).map(drop)
    }

    /// Powers the guest off and waits for QEMU's end.
    pub fn power_off(self) -> Result<()> {
        self.spawn("sync; poweroff -f")?;
        self.wait_for_end()
    }

    /// Waits for QEMU's end, for at most the builder's `command_timeout`.
    pub fn wait_for_end(mut self) -> Result<()> {
        let what = "the guest's end".to_owned();
        match self.process.wait(self.command_timeout) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Error::Answer { what, answer: status.to_string() }),
            None => {
                let (after, log) = (self.command_timeout, self.console_tail());
                Err(Error::Timeout { what, after, log })
            }
        }
    }

    /// Kills QEMU: the guest dies as if by a power cut.
    pub fn kill(mut self) -> Result<()> {
        self.end()
    }

    /// Returns whether QEMU has ended by SIGSEGV, or does so soon.
    pub(crate) fn has_crashed(&mut self) -> bool {
        self.process.has_crashed()
    }

    /// Kills QEMU, and leaves its log.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the processor time QEMU has used: the guest's and its own.
    pub fn cpu_time(&self) -> Result<Duration> {
        process::cpu_time(self.pid())
    }

    /// Returns the last lines of the console, for a test's own messages.
    pub fn console_tail(&self) -> String {
        self.link.console.tail()
    }

    /// Returns a folder on the host that lives as long as the guest.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Returns how many bytes at the end of `text` may be the beginning of `mark`.
fn half_mark(text: &[u8], mark: &[u8]) -> usize {
    let longest = text.len().min(mark.len() - 1);
    (1..=longest).rev().find(|&length| text.ends_with(&mark[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::half_mark;

    #[test]
    fn output_is_held_back_only_where_it_may_begin_the_mark() {
        assert_eq!(half_mark(b"a line\n", b"<<n exit "), 0);
        assert_eq!(half_mark(b"a line\n<", b"<<n exit "), 1);
        assert_eq!(half_mark(b"a line\n<<n ex", b"<<n exit "), 6);
        assert_eq!(half_mark(b"", b"<<n exit "), 0);
    }
}
