//! Guests of one daemon of many rings, which is upgraded and killed while they send.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{LONG, SOON, Scene, assert_no_io_error};
use qemu_tests::{Daemon, Disk, Guest, GuestBuilder, Job, Qemu, Result, binaries};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Lines that each guest sends, and the parts in which it does.
const LINES: u32 = 20_000;
const PARTS: u32 = 20;

/// The guests: each with a version of QEMU, and a number of processors.
const GUESTS: [(Qemu, u32); 3] = [(Qemu::System, 1), (Qemu::System, 4), (Qemu::Ten, 4)];

/// Upgrades of the daemon, each followed by a kill of the process that does the work.
const ROUNDS: u32 = 5;

/// Rings that come and go in each round.
const PASSERS: u32 = 10;

/// A folder of rings, and the daemon that serves them.
struct Rings {
    folder: PathBuf,
    daemon: Daemon,
}

impl Rings {
    fn start(folder: &Path) -> Result<Self> {
        fs::create_dir(folder.join("rings.d")).unwrap();
        for number in 0..GUESTS.len() {
            let file = folder.join(format!("rings.d/vm{number}.toml"));
            fs::write(file, ring(folder, &number.to_string())).unwrap();
        }
        let mut command = Command::new(binaries::programs()?.vhost_device_blockring());
        command.current_dir(folder).args(["--config", "rings.d", "--control", "unix:control"]);
        command.args(["--workers", "2"]);
        let mut daemon = Daemon::spawn("daemon", command, folder)?;
        daemon.wait_for("serving", SOON, |daemon| daemon.stderr().contains("threads; the"))?;
        Ok(Self { folder: folder.to_owned(), daemon })
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binaries::programs().unwrap().blockring());
        command.current_dir(&self.folder).args(["ctl", "--socket", "control"]).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.daemon.stderr());
        output
    }

    /// Kills the process that does the work.
    fn kill(&self) {
        let pid = self.daemon.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let child = children.split_whitespace().next().unwrap().to_owned();
        assert!(Command::new("kill").args(["-9", &child]).status().unwrap().success());
    }

    /// Has rings come and go.
    fn pass(&self, round: u32) {
        for number in 0..PASSERS {
            let name = format!("passer{round}-{number}");
            let file = self.folder.join("passer.toml");
            fs::write(&file, ring(&self.folder, &name)).unwrap();
            self.ctl(&["add", &name, "--file", file.to_str().unwrap()]);
            self.ctl(&["drain", &name]);
            self.ctl(&["remove", &name]);
        }
    }
}

/// Returns the configuration of a ring, with its file and sockets in the folder.
fn ring(folder: &Path, name: &str) -> String {
    let at = folder.join(name);
    let at = at.display();
    format!(
        "socket-path = \"{at}.s\"\nblk-file = \"{at}.ring\"\nconsumer-socket = \"{at}.c\"\nsize = \"64K\"\n"
    )
}

fn boot(scene: &Scene, number: usize) -> Result<Guest> {
    let (emulator, processors) = GUESTS[number];
    let by = if emulator == Qemu::Ten { "reconnect-ms=50" } else { "reconnect=1" };
    let disk = Disk::vhost_user(scene.path(&format!("{number}.s"))).reconnecting_by(by);
    GuestBuilder::new().emulator(emulator).processors(processors).disk(disk).boot()
}

/// Has a guest send its lines in parts.
fn sends(guest: &Guest) -> Result<Job> {
    let part = LINES / PARTS;
    guest.spawn(&format!(
        "part=0; while [ $part -lt {PARTS} ]; do first=$((part * {part} + 1)); \
         seq $first $((first + {part} - 1)) | blockring produce /dev/vda || exit 1; \
         part=$((part + 1)); sleep 1; done"
    ))
}

#[test]
fn streams_of_several_guests_cross_while_the_daemon_is_upgraded_and_killed() -> Result<()> {
    let scene = Scene::new(&[]);
    let rings = Rings::start(scene.dir())?;
    let guests =
        (0..GUESTS.len()).map(|number| boot(&scene, number)).collect::<Result<Vec<_>>>()?;
    let mut consumers = Vec::new();
    for number in 0..GUESTS.len() {
        let (name, address) = (format!("consumer{number}"), format!("unix:{number}.c"));
        consumers.push(scene.spawn(&name, "blockring", &["consume", "--follow", &address])?);
    }
    let sending = guests.iter().map(sends).collect::<Result<Vec<_>>>()?;
    for round in 0..ROUNDS {
        rings.pass(round);
        rings.ctl(&["upgrade"]);
        rings.pass(round + ROUNDS);
        rings.kill();
    }
    for job in sending {
        assert_eq!(job.wait(LONG)?.status, 0, "{}", rings.daemon.stderr());
    }
    let lines = (1..=LINES).fold(String::new(), |mut lines, line| {
        writeln!(lines, "{line}").unwrap();
        lines
    });
    for (number, mut consumer) in consumers.into_iter().enumerate() {
        rings.ctl(&["drain", &format!("vm{number}")]);
        let all = |consumer: &Daemon| consumer.printed() >= lines.len() as u64;
        consumer.wait_for("having all", SOON, all)?;
        assert!(consumer.terminate(SOON)?.success());
        assert!(consumer.stdout() == lines.as_bytes(), "guest {number}");
    }
    for guest in guests {
        assert_no_io_error(&guest)?;
        guest.power_off()?;
    }
    let Rings { mut daemon, .. } = rings;
    assert!(daemon.terminate(SOON)?.success(), "{}", daemon.stderr());
    Ok(())
}
