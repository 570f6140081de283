//! A guest that sends its journal, and the entries that arrive.

use qemu_tests::scene::LONG;
use qemu_tests::{Guest, Packages, Result, System, wait_until};
use ring_test_support::documents::documented;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Writes to the journal without an end: in each round two lines that differ, and two that do not.
const SPEAKER: &str = "\
[Service]
ExecStart=/bin/sh -c 'n=0; while :; do n=$((n+1)); echo $n a; echo $n b; echo twin $n; echo twin $n; sleep 0.1; done'
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
pub struct Entries(BTreeMap<String, (u32, u32)>);

impl Entries {
    /// Reads the lines with cursors and messages of entries in the export format.
    fn read(text: &str) -> Self {
        let mut entries = Self::default();
        let mut last = String::new();
        for line in text.lines() {
            if let Some(entry) = identity(line) {
                entries.0.entry(entry.clone()).or_insert((0, 1)).0 += 1;
                last = entry;
            } else if line.starts_with("MESSAGE=twin ")
                && let Some(entry) = entries.0.get_mut(&last)
            {
                entry.1 = 2;
            }
        }
        entries
    }

    /// Reads the file in which entries arrive.
    pub fn arrived(file: &Path) -> Self {
        let bytes = std::fs::read(file).unwrap_or_default();
        Self::read(&String::from_utf8_lossy(&bytes))
    }

    pub fn count(&self) -> u32 {
        self.0.values().map(|(count, _)| count).sum()
    }

    fn has(&self, others: &Self) -> bool {
        let count = |entry| self.0.get(entry).map_or(0, |(count, _)| *count);
        others.0.iter().all(|(entry, (wanted, _))| count(entry) >= *wanted)
    }
}

/// Waits until `count` more entries have arrived in the file.
pub fn wait_for_more(guest: &Guest, file: &Path, count: u32) -> Result<()> {
    let before = Entries::arrived(file).count();
    let enough = || Entries::arrived(file).count() >= before + count;
    guest.wait_for(&format!("{count} entries after {before}"), LONG, enough)
}

/// Ends what the guest says to its journal, and waits until the file has each entry that the guest
/// has on its disk; none has arrived twice. Returns how many there are on the disk.
pub fn expect_each_once(guest: &Guest, file: &Path) -> Result<u32> {
    guest.check("systemctl stop speaker; journalctl --sync")?;
    let on_disk = guest.check(
        "journalctl --quiet --output=export --output-fields=MESSAGE | grep -a '^__CURSOR\\|^MESSAGE=twin'",
    )?;
    let on_disk = Entries::read(&on_disk);
    assert!(wait_until(LONG, || Entries::arrived(file).has(&on_disk)), "some are missing");
    let arrived = Entries::arrived(file);
    println!("{} entries on the guest's disk, {} arrived", on_disk.count(), arrived.count());
    let repeated: Vec<_> = arrived.0.iter().filter(|(_, (count, most))| count > most).collect();
    assert!(repeated.is_empty(), "{} repeated: {repeated:?}", repeated.len());
    // The journal on the disk can lack what a kill caught.
    assert!(arrived.count() >= on_disk.count());
    Ok(on_disk.count())
}

/// Makes the disk of a guest that sends its journal from its early boot on, by the package for
/// guests and nothing else.
pub fn speaking_guest(folder: &Path, packages: &Packages, ring: &str) -> Result<PathBuf> {
    let system = System::new()?;
    system.install(packages, &["blockring-guest"])?;
    let enable = documented("docs/installation.md", "blockring-journal@web");
    // There is no systemd yet that could start it.
    let enable = enable.replace("enable --now", "enable").replace("@web", &format!("@{ring}"));
    system.sh(&enable)?;
    system.unit("speaker.service", SPEAKER)?;
    let settings = "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n";
    system.text("etc/systemd/journald.conf.d/test.conf", settings)?;
    system.disk(folder)
}
