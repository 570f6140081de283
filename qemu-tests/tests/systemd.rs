//! Guests with a whole Debian, whose init is systemd.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{LONG, SOON, Scene};
use qemu_tests::{Daemon, Disk, Guest, GuestBuilder, Result, System, binaries, wait_until};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// Writes to the journal without an end: lines that differ, and two at once that do not.
const SPEAKER: &str = "\
[Service]
ExecStart=/bin/sh -c 'n=0; while :; do n=$((n+1)); echo $n a; echo $n b; echo twin; echo twin; sleep 0.1; done'
[Install]
WantedBy=multi-user.target
";

/// Boot, time and hash of an entry of the journal, from its cursor: what stays the same when
/// journald copies it to another file.
fn identity(line: &str) -> Option<String> {
    let cursor = line.strip_prefix("__CURSOR=")?;
    Some(cursor.split(';').filter(|part| !part.starts_with(['s', 'i'])).collect())
}

/// Entries with what tells them apart: how many there are, and how many there can be.
#[derive(Default)]
struct Entries(BTreeMap<String, (u32, u32)>);

impl Entries {
    /// Reads the lines with cursors and messages of entries in the export format.
    fn read(text: &str) -> Self {
        let mut entries = Self::default();
        let mut last = String::new();
        for line in text.lines() {
            if let Some(entry) = identity(line) {
                entries.0.entry(entry.clone()).or_insert((0, 1)).0 += 1;
                last = entry;
            } else if line == "MESSAGE=twin"
                && let Some(entry) = entries.0.get_mut(&last)
            {
                entry.1 = 2;
            }
        }
        entries
    }

    fn arrived(scene: &Scene) -> Self {
        let bytes = std::fs::read(scene.path("entries")).unwrap_or_default();
        Self::read(&String::from_utf8_lossy(&bytes))
    }

    fn count(&self) -> u32 {
        self.0.values().map(|(count, _)| count).sum()
    }

    fn has(&self, others: &Self) -> bool {
        let count = |entry| self.0.get(entry).map_or(0, |(count, _)| *count);
        others.0.iter().all(|(entry, (wanted, _))| count(entry) >= *wanted)
    }
}

/// Makes the disk of a guest that sends its journal from its early boot on, by the package for
/// guests and nothing else.
fn speaking_guest(scene: &Scene) -> Result<PathBuf> {
    let system = System::new()?;
    system.install_own("blockring-guest")?;
    system.run(&["systemctl", "enable", "blockring-journal@ring.service"])?;
    system.unit("speaker.service", SPEAKER)?;
    let settings = "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n";
    system.text("etc/systemd/journald.conf.d/test.conf", settings)?;
    system.disk(scene.dir())
}

/// Starts a backend of its own for a ring of that name, which is also its disk's serial number.
fn backend(scene: &Scene, name: &str, side: &str) -> Result<Daemon> {
    let [socket, ring, out] = ["sock", "ring", "c"].map(|end| scene.path(&format!("{name}.{end}")));
    let mut command = Command::new(binaries::release()?.vhost_device_blockring());
    command.arg("--socket-path").arg(&socket).arg("--blk-file").arg(ring);
    command.arg("--consumer-socket").arg(&out);
    command.args(["--size", "1M", "--serial", name, "--guest", side]);
    let mut backend = Daemon::spawn(name, command, scene.dir())?;
    backend.wait_for_path(&out, SOON)?;
    Ok(backend)
}

#[test]
fn commands_of_the_host_are_carried_out_and_answered() -> Result<()> {
    let scene = Scene::new(&[]);
    let _in = backend(&scene, "web-in", "consumer")?;
    let _out = backend(&scene, "web-out", "producer")?;
    let system = System::new()?;
    system.install_own("blockring-guest")?;
    system.run(&["systemctl", "enable", "blockring-exec@web.service"])?;
    let system = system.disk(scene.dir())?;
    let mut guest = GuestBuilder::new().processors(2).memory_mib(384).system(&system);
    for name in ["web-in", "web-out"] {
        guest = guest.disk(Disk::vhost_user(scene.path(&format!("{name}.sock"))).reconnecting());
    }
    let guest = guest.boot()?;
    let text = "cat /etc/hostname; exit 3\nuname -s\n";
    std::fs::write(scene.path("commands"), text).unwrap();
    let [to, from] = ["web-in", "web-out"].map(|name| scene.path(&format!("{name}.c")));
    let mut produce =
        scene.command("blockring", &["produce", &format!("unix:{}", to.display())])?;
    let commands = std::fs::File::open(scene.path("commands")).unwrap();
    assert!(produce.stdin(commands).status().unwrap().success());
    let from = format!("unix:{}", from.display());
    let words = ["consume", "--follow", "--framing", "nul", "--count", "2", &from];
    let mut consume = scene.spawn("consume", "blockring", &words)?;
    let status = consume.wait(LONG)?;
    let shown = guest.check("systemctl status blockring-exec@web || true")?;
    assert!(status.success(), "{shown}");
    let answers = String::from_utf8(consume.stdout()).unwrap();
    let answers: Vec<_> = answers.split_terminator('\0').collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert!(answers[0].contains(" status=3\n"), "{answers:?}");
    assert!(answers[1].ends_with(" status=0\nLinux\n"), "{answers:?}");
    guest.power_off()
}

#[test]
fn journal_arrives_once_over_kills_of_the_guest() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let disk = speaking_guest(&scene)?;
    let boot = || scene.guest().system(&disk).memory_mib(384);
    let address = scene.address();
    let words = ["forward", &address, "--to", "file:entries", "--framing", "export"];
    let _forwarder = scene.spawn("forwarder", "blockring", &words)?;
    let more = |guest: &Guest, count: u32| {
        let before = Entries::arrived(&scene).count();
        let enough = || Entries::arrived(&scene).count() >= before + count;
        assert!(wait_until(LONG, enough), "{before}\n{}", guest.console_tail());
    };
    // In the early boot, and in the middle of the stream.
    for count in [1, 200, 400] {
        let guest = boot().begin()?;
        more(&guest, count);
        guest.kill()?;
    }
    let guest = boot().boot()?;
    let since_boot = |unit: &str| -> Result<u64> {
        let key = "InactiveExitTimestampMonotonic";
        let shown = guest.check(&format!("systemctl show --value --property={key} {unit}"))?;
        Ok(shown.trim().parse().unwrap_or_else(|_| panic!("{unit}: {shown:?}")))
    };
    assert!(since_boot("blockring-journal@ring")? < since_boot("basic.target")?, "it starts late");
    guest.check("systemctl stop speaker; journalctl --sync")?;
    let on_disk = guest.check(
        "journalctl --quiet --output=export --output-fields=MESSAGE | grep -a '^__CURSOR\\|^MESSAGE=twin'",
    )?;
    let on_disk = Entries::read(&on_disk);
    assert!(wait_until(LONG, || Entries::arrived(&scene).has(&on_disk)), "some are missing");
    let arrived = Entries::arrived(&scene);
    println!("{} on disk, {} arrived", on_disk.count(), arrived.count());
    let repeated: Vec<_> = arrived.0.iter().filter(|(_, (count, most))| count > most).collect();
    assert!(repeated.is_empty(), "{} repeated: {repeated:?}", repeated.len());
    // The journal on the disk can lack what a kill caught.
    assert!(on_disk.count() > 600 && arrived.count() >= on_disk.count());
    guest.power_off()
}
