//! Guests with a whole Debian, whose init is systemd.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{LONG, Scene};
use qemu_tests::{Guest, Result, System, binaries, wait_until};
use std::collections::BTreeMap;

/// Writes to the journal without an end: many lines at once, and one by one.
const SPEAKER: &str = "\
[Service]
ExecStart=/bin/sh -c 'while :; do for i in 1 2 3 4 5 6 7 8 9; do echo line; done; sleep 0.2; done'
[Install]
WantedBy=multi-user.target
";

/// Boot, time and hash of an entry of the journal, from its cursor: what stays the same when
/// journald copies it to another file.
fn identity(line: &str) -> Option<String> {
    let cursor = line.strip_prefix("__CURSOR=")?;
    Some(cursor.split(';').filter(|part| !part.starts_with(['s', 'i'])).collect())
}

/// Returns how often each entry has arrived on the host, and how many have.
fn arrived(scene: &Scene) -> (BTreeMap<String, u32>, usize) {
    let bytes = std::fs::read(scene.path("entries")).unwrap_or_default();
    let mut entries = BTreeMap::new();
    let text = String::from_utf8_lossy(&bytes);
    for entry in text.lines().filter_map(identity) {
        *entries.entry(entry).or_default() += 1;
    }
    let count = entries.len();
    (entries, count)
}

/// A guest that sends its journal from its early boot on.
fn speaking_guest(scene: &Scene) -> Result<std::path::PathBuf> {
    let system = System::new()?;
    let program = system.path("usr/bin/blockring");
    std::fs::copy(binaries::release()?.blockring(), program).unwrap();
    let unit = include_str!("../../packaging/systemd/blockring-journal@.service");
    system.text("usr/lib/systemd/system/blockring-journal@.service", unit)?;
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
    let more = |guest: &Guest, count: usize| {
        let before = arrived(&scene).1;
        let enough = || arrived(&scene).1 >= before + count;
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
        Ok(shown.trim().parse().unwrap())
    };
    assert!(since_boot("blockring-journal@ring")? < since_boot("basic.target")?, "it starts late");
    guest.check("systemctl stop speaker; journalctl --sync")?;
    let on_disk =
        guest.check("journalctl --quiet --output=export --output-fields=_PID | grep ^__CURSOR")?;
    let on_disk: Vec<_> = on_disk.lines().filter_map(identity).collect();
    let all = || {
        let (entries, _) = arrived(&scene);
        on_disk.iter().all(|entry| entries.contains_key(entry))
    };
    assert!(wait_until(LONG, all), "{} of {}", arrived(&scene).1, on_disk.len());
    let (entries, count) = arrived(&scene);
    println!("{} on disk, {count} arrived", on_disk.len());
    let repeated: Vec<_> = entries.iter().filter(|(_, count)| **count > 1).collect();
    assert!(repeated.is_empty(), "{} repeated: {repeated:?}", repeated.len());
    guest.power_off()
}
