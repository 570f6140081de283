//! A host with the packages and their units, under guests: killed, restarted, upgraded, hung and
//! purged.

use crate::journal::{expect_each_once, speaking_guest, wait_for_more};
use qemu_tests::scene::{LONG, SOON, assert_no_io_error, job_report};
use qemu_tests::{Disk, Guest, GuestBuilder, Host, Packages, Qemu, Result, System, wait_until};
use std::path::Path;
use std::time::Instant;

/// The ring of the guest's journal, one for a load in the same guest, and one for a load in a guest
/// of the system's QEMU.
const RINGS: [&str; 3] = ["web", "timed", "old"];

/// The host's packages.
const PACKAGES: [&str; 2] = ["blockring", "vhost-device-blockring"];

/// Kills of the backend and as many of the forwarder, and restarts that are measured.
const TIMES: usize = 3;

/// What the host's user keeps over a purge.
const KEPT: [&str; 3] =
    ["/etc/blockring/rings.d", "/var/lib/blockring", "/etc/systemd/system/blockring@.service.d"];

/// Boots a host with a configuration for each ring, from the example that the package has, and a
/// forwarder of the journal.
fn host(folder: &Path, packages: &Packages) -> Result<Host> {
    let system = System::new()?;
    system.install(packages, &PACKAGES)?;
    for ring in RINGS {
        system.sh(&format!(
            "sed 's/NAME/{ring}/; s/8M/64M/' /usr/share/doc/vhost-device-blockring/examples/ring.toml \
             >/etc/blockring/rings.d/{ring}.toml"
        ))?;
    }
    system.sh(
        "sed -i 's|^rings = .*|rings = [\"unix:/run/blockring/web.out\"]\\nframing = \"export\"|' \
         /etc/blockring/forward.toml",
    )?;
    let host = system.boot(folder)?;
    host.check("systemctl enable --now blockring@web.socket blockring@timed.socket blockring@old.socket blockring-forward")?;
    Ok(host)
}

/// Returns the process of a unit.
fn process(host: &Host, unit: &str) -> Result<String> {
    Ok(host.check(&format!("systemctl show --value --property=MainPID {unit}"))?.trim().to_owned())
}

/// Sends a signal to the process of a unit, and waits until systemd has started another one.
fn replaced_after(host: &Host, signal: &str, unit: &str) -> Result<()> {
    let before = process(host, unit)?;
    host.check(&format!("systemctl kill --kill-who=main --signal={signal} {unit}"))?;
    let is_another = || {
        process(host, unit).is_ok_and(|now| now != before)
            && host.check(&format!("systemctl is-active {unit}")).is_ok()
    };
    assert!(wait_until(SOON, is_another), "{}", host.check("journalctl --no-pager -n 40")?);
    Ok(())
}

/// Has the guest push items one by one while `event` happens, and prints how long the longest of
/// them took: how long the guest's I/O stood still. No flush adds the time of the host's disk.
fn stall(
    what: &str,
    host: &Host,
    (guest, ring): (&Guest, &str),
    event: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let position = || {
        let report =
            host.check(&format!("blockring diagnostics --json unix:/run/blockring/{ring}.out"));
        let report: serde_json::Value =
            serde_json::from_str(&report.unwrap_or_default()).unwrap_or_default();
        report["producer"].as_u64()
    };
    let push_on = || {
        let mut before = None;
        let is_known = || {
            before = position();
            before.is_some()
        };
        assert!(wait_until(SOON, is_known), "{what}: the backend does not answer");
        assert!(wait_until(LONG, || position() > before), "{what}: nothing is pushed");
    };
    let load = "exec blockring bench --json --batch 1 --durability none --seconds 600";
    let load = guest.spawn(&format!("{load} serial:{ring}"))?;
    push_on();
    push_on();
    let start = Instant::now();
    event()?;
    let took = start.elapsed().as_millis();
    push_on();
    load.signal("TERM")?;
    let report = job_report(&load, SOON)?;
    let [half, longest] = ["batch_p50_us", "batch_max_us"]
        .map(|key| report[key].as_f64().unwrap_or_default() / 1000.0);
    println!(
        "stall: {longest:.0} ms ({what}, which took {took} ms); half of the pushes took at most {half:.1} ms"
    );
    Ok(())
}

/// Returns the host's files whose paths name the packages.
fn files(host: &Host) -> Result<Vec<String>> {
    let found = host.check(
        "find / -xdev \\( -path '/packages-*' -o -path /var/lib/dpkg -o -path /var/log \\) -prune -o -ipath '*blockring*' ! -type d -print && \
         find /run -ipath '*blockring*' ! -type d",
    )?;
    Ok(found.lines().map(str::to_owned).collect())
}

#[test]
fn units_of_the_packages_serve_guests_until_they_are_purged() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let [first, newer] = ["1", "2"].map(|version| Packages::make(version).unwrap());
    let host = host(folder.path(), &first)?;
    let disk = |ring: &str| Disk::vhost_user(host.path(&format!("run/blockring/{ring}.sock")));
    let quick = |ring: &str| disk(ring).reconnecting_by("reconnect-ms=10");
    let system = speaking_guest(folder.path(), &first, "web")?;
    let guest = GuestBuilder::new().emulator(Qemu::Ten).processors(2).memory_mib(384);
    let guest = guest.system(&system).disk(quick("web")).disk(quick("timed"));
    let old = GuestBuilder::new().disk(disk("old").reconnecting());
    let (guest, old) = std::thread::scope(|scope| {
        let old = scope.spawn(|| old.boot());
        (guest.boot(), old.join().unwrap())
    });
    let (guest, old) = (guest?, old?);
    let entries = host.path("var/lib/blockring/forward/web.log");

    for _ in 0..TIMES {
        for unit in ["blockring@web", "blockring-forward"] {
            wait_for_more(&guest, &entries, 40)?;
            replaced_after(&host, "KILL", unit)?;
        }
    }
    wait_for_more(&guest, &entries, 40)?;

    let restart = |ring: &str| host.check(&format!("systemctl restart blockring@{ring}")).map(drop);
    stall("nothing happens, QEMU 10", &host, (&guest, "timed"), || Ok(()))?;
    for _ in 0..TIMES {
        stall("restart, reconnect-ms=10", &host, (&guest, "timed"), || restart("timed"))?;
    }
    for _ in 0..TIMES {
        stall("restart, reconnect=1", &host, (&old, "old"), || restart("old"))?;
    }

    let before = ["blockring@web", "blockring-forward"].map(|unit| process(&host, unit).unwrap());
    stall("upgrade of the packages, reconnect-ms=10", &host, (&guest, "timed"), || {
        host.install(&newer, &PACKAGES)?;
        let version =
            host.check("dpkg-query -W -f '${Version} ' blockring vhost-device-blockring")?;
        assert_eq!(version, "2-1 2-1 ");
        let still =
            ["blockring@web", "blockring-forward"].map(|unit| process(&host, unit).unwrap());
        assert_eq!(still, before, "an upgrade restarts nothing");
        host.check("systemctl restart 'blockring@*.service' blockring-forward").map(drop)
    })?;
    wait_for_more(&guest, &entries, 40)?;

    let [.., drop_ins] = KEPT;
    host.check(&format!(
        "mkdir {drop_ins} && printf '[Service]\\nWatchdogSec=2s\\n' >{drop_ins}/watchdog.conf && \
         systemctl daemon-reload && systemctl restart blockring@timed"
    ))?;
    stall("backend hangs, WatchdogSec=2s, reconnect-ms=10", &host, (&guest, "timed"), || {
        replaced_after(&host, "STOP", "blockring@timed")
    })?;
    let said = host.check("journalctl --no-pager -u blockring@timed")?;
    assert!(said.contains("Watchdog timeout"), "{said}");

    assert!(expect_each_once(&guest, &entries)? > 200);
    for guest in [guest, old] {
        assert_no_io_error(&guest)?;
        guest.power_off()?;
    }

    let said = host.check(&format!("apt-get purge -q -y {}", PACKAGES.join(" ")))?;
    for kept in KEPT {
        let wanted = format!("kept, as it is not empty: {kept}");
        assert!(said.lines().any(|line| line.trim().ends_with(&wanted)), "{said}");
    }
    let left = |kept: &[&str]| -> Result<Vec<String>> {
        let is_kept = |name: &String| kept.iter().any(|kept| name.starts_with(kept));
        Ok(files(&host)?.into_iter().filter(|name| !is_kept(name)).collect())
    };
    assert_eq!(left(&KEPT)?, [""; 0]);
    let running = host.check("systemctl list-units --plain --no-legend 'blockring*'")?;
    assert_eq!(running, "");
    host.check("rm -r /var/lib/blockring /etc/blockring && userdel blockring")?;
    assert_eq!(left(&[drop_ins])?, [""; 0]);
    Ok(())
}
