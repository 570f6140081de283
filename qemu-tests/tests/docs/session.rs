//! A reader's session with a page: its blocks in order, on a host that is thrown away, and in the
//! guests that it boots.

use crate::page::{Block, Treatment, blocks, commands};
use crate::shown::is_as_shown;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, geteuid};
use qemu_tests::{
    Daemon, Guest, GuestBuilder, Host, ImageSpec, Job, Packages, System, binaries, wait_until,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Present in the environment of a test that is in its namespaces.
const INSIDE: &str = "BLOCKRING_DOCS_INSIDE";
/// Seconds for a session: several times what the slowest takes.
const SESSION_SECONDS: &str = "600";
/// Bound on a block.
const PATIENCE: Duration = Duration::from_secs(120);
const PAGE_FOLDER: &str = "/mnt/page";
const QEMU: &str = "qemu-system-x86_64 ";

/// What goes on until the end of the page.
enum Running {
    OnHost(Daemon),
    InGuest(Job),
}

impl Running {
    /// Whether it has ended, and not well. The end of a guest's command is not known before it is
    /// waited for.
    fn has_failed(&mut self) -> bool {
        match self {
            Self::OnHost(daemon) => {
                let status = daemon.wait(Duration::ZERO);
                status.is_ok_and(|status| !status.success())
            }
            Self::InGuest(_) => false,
        }
    }

    /// What it has printed so far: in a guest that is known at its end.
    fn said(&self) -> String {
        match self {
            Self::OnHost(daemon) => said(daemon),
            Self::InGuest(_) => String::new(),
        }
    }
}

#[derive(Default)]
struct Session {
    guest: Option<Guest>,
    /// A host with systemd and the packages.
    installed: Option<Host>,
    running: Vec<(String, Running)>,
    /// How many commands of the host there were: each has logs of its own.
    count: u32,
}

/// Reads pages in one session: called by the test of that name, which begins anew in namespaces.
pub fn read(test: &str, pages: &[&str]) {
    if std::env::var_os(INSIDE).is_some() {
        // QEMU is started here, too.
        std::env::set_current_dir(PAGE_FOLDER).unwrap();
        let mut session = Session::default();
        for page in pages {
            for block in blocks(page) {
                session.block(&block);
            }
        }
        session.end();
        return;
    }
    prepare();
    let enter = binaries::workspace().join("qemu-tests/tests/docs/enter.sh");
    let programs = binaries::programs().unwrap().blockring();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", SESSION_SECONDS, "unshare", "--mount", "--pid", "--net"]);
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--fork", "--kill-child"]).arg(enter).arg(binaries::workspace());
    command.arg(programs.parent().unwrap()).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command.env(INSIDE, "1").env("BLOCKRING_BUILT", "1").env("PATH", path());
    let output = command.output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
    assert!(output.status.success(), "{}\n{}\n{}", output.status, said[0], said[1]);
    print!("{}", said[0]);
}

/// Builds and fetches what the session, which has no network, starts.
fn prepare() {
    binaries::programs().unwrap();
    ImageSpec::standard().unwrap().passing().build().unwrap();
    System::prepare().unwrap();
}

/// Returns the path of programs, with those that stand for a machine's and those that were fetched.
fn path() -> std::ffi::OsString {
    let fetched = |variable: &str, folder: &str| {
        std::env::var_os(variable)
            .map_or_else(|| binaries::target_dir().join(folder), PathBuf::from)
    };
    let promtool = fetched("BLOCKRING_PROMTOOL", "promtool/promtool");
    let mut folders = vec![
        binaries::workspace().join("qemu-tests/tests/docs/tools"),
        fetched("BLOCKRING_NATS", "nats-server"),
        promtool.parent().unwrap_or(&promtool).to_owned(),
    ];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    std::env::join_paths(folders).unwrap()
}

impl Session {
    fn block(&mut self, block: &Block) {
        let treatment = block.treatment();
        let is_another_tests = [Treatment::Compiled, Treatment::RunElsewhere];
        let is_none_to_run = [Treatment::Shown, Treatment::NotRun];
        if is_another_tests.contains(&treatment) || is_none_to_run.contains(&treatment) {
            return;
        }
        let start = Instant::now();
        let place = &block.place;
        let notes = &block.notes;
        for line in &notes.first {
            if notes.installed {
                self.installed(place, line);
            } else {
                self.run(place, line);
            }
        }
        notes.first_in_guest.iter().for_each(|line| self.run_in_guest(place, line));
        match treatment {
            Treatment::Checked => self.file(block),
            Treatment::RunInstalled => self.run_installed(block),
            _ if notes.to_qmp => self.send_to_qmp(block),
            _ if block.language == "console" => self.dialogue(block),
            _ if notes.goes_on || notes.until.is_some() || notes.until_it_says.is_some() => {
                self.start(block);
            }
            Treatment::RunInGuest => self.run_in_guest(place, &block.text()),
            _ => self.run(place, &block.text()),
        }
        notes.then.iter().for_each(|line| self.run(place, line));
        println!("{place}: {treatment:?}, {:.1} s", start.elapsed().as_secs_f64());
    }

    /// Starts commands of the host, as a process group.
    fn spawn(&mut self, script: &str) -> Daemon {
        use std::os::unix::process::CommandExt as _;
        self.count += 1;
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).process_group(0).env("HOME", "/mnt/home");
        Daemon::spawn(&format!("command-{}", self.count), command, Path::new("/mnt")).unwrap()
    }

    /// Runs commands of the host to their end, which has to be a good one. QEMU is booted by the
    /// helpers of these tests, with its options.
    fn run(&mut self, place: &str, script: &str) {
        let mut before = String::new();
        for command in commands(script) {
            if let Some(options) = command.strip_prefix(QEMU) {
                self.finish(place, &std::mem::take(&mut before));
                self.boot(options);
            } else if command == "end the guest" {
                self.end_guest();
            } else {
                before.push_str(&command);
                before.push('\n');
            }
        }
        self.finish(place, &before);
    }

    fn finish(&mut self, place: &str, script: &str) {
        if script.is_empty() {
            return;
        }
        let mut shell = self.spawn(script);
        let status = shell.wait(PATIENCE);
        let ended = status.as_ref().is_ok_and(std::process::ExitStatus::success);
        assert!(ended, "{place}: {script}{status:?}\n{}", said(&shell));
    }

    fn guest(&self, place: &str) -> &Guest {
        self.guest.as_ref().unwrap_or_else(|| panic!("{place}: no guest runs"))
    }

    fn run_in_guest(&self, place: &str, script: &str) {
        let guest = self.guest(place);
        let output = guest.run(script).unwrap();
        assert_eq!(output.status, 0, "{place}: {script}{output:?}\n{}", guest.console_tail());
    }

    /// Runs commands of the host that has the packages.
    fn installed(&mut self, place: &str, script: &str) -> String {
        let host = self.installed.get_or_insert_with(installed_host);
        host.check(script).unwrap_or_else(|error| panic!("{place}: {error}"))
    }

    fn run_installed(&mut self, block: &Block) {
        let (place, notes) = (&block.place, &block.notes);
        let script = block.text();
        if notes.goes_on {
            let file = self.installed.get_or_insert_with(installed_host).path("tmp/block");
            std::fs::write(file, script).unwrap();
            self.installed(place, "setsid sh /tmp/block >/dev/null 2>&1 &");
        } else if let Some(text) = &notes.until_it_says {
            let mut last = String::new();
            let seen = wait_until(PATIENCE, || {
                last = self.installed(place, &script);
                last.contains(text)
            });
            assert!(seen, "{place}: never said: {text}\n{last}");
        } else {
            self.installed(place, &script);
        }
    }

    /// Ends the guest, and with it what goes on there.
    fn end_guest(&mut self) {
        self.running.retain(|(_, running)| matches!(running, Running::OnHost(_)));
        self.guest = None;
    }

    /// Boots a guest with documented options.
    fn boot(&mut self, options: &str) {
        let options: Vec<_> = options.split_whitespace().collect();
        // What the documents leave out has to fit to the memory that they state.
        let size =
            options.iter().find_map(|option| option.split_once(",size=")?.1.split(',').next());
        let size = size.unwrap();
        let (number, unit) = size.split_at(size.len() - 1);
        let memory = number.parse::<u32>().unwrap() * if unit == "G" { 1024 } else { 1 };
        self.end_guest();
        let mut builder = GuestBuilder::new().memory_mib(memory);
        if options.iter().any(|option| option.starts_with("intel-iommu")) {
            builder = builder.kernel_word("intel_iommu=on");
        }
        let image = ImageSpec::standard().unwrap().passing();
        let image = image.text("bin/journalctl", include_str!("tools/journalctl"));
        let commands = binaries::workspace().join("packaging/guest/exec-commands");
        builder = builder.image(image.file("bin/exec-commands", commands));
        self.guest = Some(builder.documented(options).boot().unwrap());
    }

    /// Runs commands that do not end by themselves.
    fn start(&mut self, block: &Block) {
        let (place, notes) = (&block.place, &block.notes);
        let mut running = if notes.in_guest {
            Running::InGuest(self.guest(place).spawn(&block.text()).unwrap())
        } else {
            Running::OnHost(self.spawn(&block.text()))
        };
        if let Some(command) = &notes.until {
            let mut look = self.spawn(&format!("until {command}; do sleep 0.1; done"));
            wait_until(PATIENCE, || !look.is_running() || running.has_failed());
            let seen = look.wait(Duration::ZERO).is_ok();
            let console = self.guest.as_ref().map(Guest::console_tail).unwrap_or_default();
            let log = [said(&look), running.said(), console].join("\n");
            assert!(seen, "{place}: never: {command}\n{log}");
        }
        if let Some(text) = &notes.until_it_says {
            wait_until(PATIENCE, || running.said().contains(text) || running.has_failed());
            let said = running.said();
            assert!(said.contains(text), "{place}: never said: {text}\n{said}");
        }
        if notes.goes_on {
            self.running.push((place.clone(), running));
        } else {
            end(place, running);
        }
    }

    /// Runs the commands behind `$`, and compares what they say with what the block has below them.
    fn dialogue(&mut self, block: &Block) {
        let place = &block.place;
        for part in format!("\n{}", block.text()).split("\n$ ").skip(1) {
            let (command, expected) = part.split_once('\n').unwrap_or((part, ""));
            let (status, said) = if block.notes.in_guest {
                let output = self.guest(place).run(command).unwrap();
                (output.status, output.stdout + &output.stderr)
            } else {
                let mut shell = self.spawn(command);
                (shell.wait(PATIENCE).unwrap().code().unwrap(), said(&shell))
            };
            assert_eq!(status, block.notes.exit_code, "{place}: {command}\n{said}");
            assert!(is_as_shown(&said, expected), "{place}: {command}\n{said}not\n{expected}");
        }
    }

    /// Saves a configuration file, and has its program read it.
    fn file(&mut self, block: &Block) {
        let text = block.text();
        let saved_as = block.notes.saved_as.clone();
        let path = saved_as.unwrap_or_else(|| crate::files::default_path(block));
        let path = Path::new(PAGE_FOLDER).join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
        if let Some(command) = crate::files::check(&block.place, &block.language, &path, &text) {
            self.finish(&block.place, &command);
        }
    }

    fn send_to_qmp(&self, block: &Block) {
        let guest = self.guest(&block.place);
        let text = block.text();
        for command in serde_json::Deserializer::from_str(&text).into_iter() {
            let command: serde_json::Value = command.unwrap();
            let name = command["execute"].as_str().unwrap();
            let mut last = String::new();
            // QEMU is busy with a device for a moment after the guest has let it go.
            let done = wait_until(PATIENCE, || {
                let answer = guest.qmp(name, &command["arguments"]);
                last = format!("{answer:?}");
                answer.is_ok()
            });
            assert!(done, "{}: {command}: {last}", block.place);
        }
    }

    fn end(self) {
        for (place, mut running) in self.running {
            if let Running::OnHost(daemon) = &mut running {
                assert!(daemon.is_running(), "{place}: has ended: {}", said(daemon));
            }
            end(&place, running);
        }
    }
}

/// Boots a Debian with the packages, in namespaces of its own.
fn installed_host() -> Host {
    let system = System::new().unwrap();
    let packages = Packages::make("1").unwrap();
    system.install(&packages, &["blockring", "vhost-device-blockring"]).unwrap();
    system.boot(Path::new("/mnt")).unwrap()
}

fn said(daemon: &Daemon) -> String {
    String::from_utf8_lossy(&daemon.stdout()).into_owned() + &daemon.stderr()
}

/// Ends commands as Ctrl-C does, with all that they have started.
fn end(place: &str, running: Running) {
    match running {
        Running::OnHost(mut daemon) => {
            let group = Pid::from_raw(daemon.pid().try_into().unwrap());
            let _ = killpg(group, Signal::SIGTERM);
            let ended =
                wait_until(PATIENCE, || !daemon.is_running() && killpg(group, None).is_err());
            assert!(ended, "{place}: does not end: {}", said(&daemon));
        }
        Running::InGuest(job) => {
            job.signal("TERM").unwrap();
            job.wait(PATIENCE).unwrap();
        }
    }
}
