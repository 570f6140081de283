//! Guests of one daemon of many rings, which is upgraded and killed while they send.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{LONG, SOON, Scene, assert_no_io_error};
use qemu_tests::{Daemon, Disk, Guest, GuestBuilder, Job, Qemu, Result, binaries};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// How much happens.
struct Extent {
    /// The guests: each with a version of QEMU, and a number of processors.
    guests: &'static [(Qemu, u32)],
    /// Upgrades of the daemon.
    rounds: u32,
    /// Kills of the process that does the work. A daemon bears five in a minute.
    kills: u32,
    /// Rings that come and go before each upgrade, and after it.
    passers: u32,
    /// Parts in which each guest sends its lines, with a second after each.
    parts: u32,
}

/// Lines in a part.
const PART: u32 = 1000;

const USUAL: Extent = Extent {
    guests: &[(Qemu::System, 1), (Qemu::System, 4), (Qemu::Ten, 4)],
    rounds: 5,
    kills: 5,
    passers: 10,
    parts: 20,
};

/// With `BLOCKRING_LONG` set.
const MORE: Extent = Extent {
    guests: &[
        (Qemu::System, 1),
        (Qemu::System, 4),
        (Qemu::Ten, 4),
        (Qemu::System, 1),
        (Qemu::Ten, 1),
        (Qemu::System, 1),
        (Qemu::Ten, 1),
        (Qemu::System, 2),
    ],
    rounds: 20,
    kills: 5,
    passers: 25,
    parts: 200,
};

/// A folder of rings, and the daemon that serves them.
struct Rings {
    folder: PathBuf,
    daemon: Daemon,
}

impl Rings {
    fn start(folder: &Path, number: usize) -> Result<Self> {
        fs::create_dir(folder.join("rings.d")).unwrap();
        for number in 0..number {
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
    fn pass(&self, round: u32, passers: u32) {
        for number in 0..passers {
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

fn boot(scene: &Scene, number: usize, (emulator, processors): (Qemu, u32)) -> Result<Guest> {
    let by = if emulator == Qemu::Ten { "reconnect-ms=50" } else { "reconnect=1" };
    let disk = Disk::vhost_user(scene.path(&format!("{number}.s"))).reconnecting_by(by);
    GuestBuilder::new().emulator(emulator).processors(processors).disk(disk).boot()
}

/// Has a guest send its lines in parts.
fn sends(guest: &Guest, parts: u32) -> Result<Job> {
    guest.spawn(&format!(
        "part=0; while [ $part -lt {parts} ]; do first=$((part * {PART} + 1)); \
         seq $first $((first + {PART} - 1)) | blockring produce /dev/vda || exit 1; \
         part=$((part + 1)); sleep 1; done"
    ))
}

#[test]
fn streams_of_several_guests_cross_while_the_daemon_is_upgraded_and_killed() -> Result<()> {
    let long = std::env::var_os("BLOCKRING_LONG").is_some();
    let Extent { guests, rounds, kills, passers, parts } = if long { MORE } else { USUAL };
    let scene = Scene::new(&[]);
    let rings = Rings::start(scene.dir(), guests.len())?;
    let boots = guests.iter().enumerate().map(|(number, guest)| boot(&scene, number, *guest));
    let guests = boots.collect::<Result<Vec<_>>>()?;
    let mut consumers = Vec::new();
    for number in 0..guests.len() {
        let (name, address) = (format!("consumer{number}"), format!("unix:{number}.c"));
        consumers.push(scene.spawn(&name, "blockring", &["consume", "--follow", &address])?);
    }
    let sending = guests.iter().map(|guest| sends(guest, parts)).collect::<Result<Vec<_>>>()?;
    for round in 0..rounds {
        rings.pass(round, passers);
        // In turns: the data process alone, and both processes.
        let upgrade: &[&str] = if round % 2 == 0 { &["upgrade"] } else { &["upgrade", "--whole"] };
        rings.ctl(upgrade);
        rings.pass(round + rounds, passers);
        if round % (rounds / kills) == 0 {
            rings.kill();
        }
    }
    for job in sending {
        assert_eq!(job.wait(LONG * rounds / 5)?.status, 0, "{}", rings.daemon.stderr());
    }
    let lines = (1..=parts * PART).fold(String::new(), |mut lines, line| {
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
