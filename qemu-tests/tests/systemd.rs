//! Guests with a whole Debian, whose init is systemd.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{LONG, Scene};
use qemu_tests::{Guest, Result, System, wait_until};
use std::collections::BTreeMap;
use std::path::PathBuf;

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
