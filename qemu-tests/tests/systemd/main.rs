//! Guests and hosts with a whole Debian, whose init is systemd.
#![allow(clippy::unwrap_used)]

mod jetstream;
mod journal;
mod listen;
mod units;

use journal::{expect_each_once, speaking_guest, wait_for_more};
use qemu_tests::scene::{LONG, SOON, Scene};
use qemu_tests::{Daemon, Disk, GuestBuilder, Packages, Result, System, binaries};
use ring_test_support::documents::documented;
use std::process::Command;

/// Starts a backend of its own for a ring of that name, which is also its disk's serial number.
fn backend(scene: &Scene, name: &str, side: &str) -> Result<Daemon> {
    let [socket, ring, out] = ["sock", "ring", "c"].map(|end| scene.path(&format!("{name}.{end}")));
    let mut command = Command::new(binaries::programs()?.vhost_device_blockring());
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
    system.install(&Packages::make("1")?, &["blockring-guest"])?;
    let system = system.disk(scene.dir())?;
    let mut guest = GuestBuilder::new().processors(2).memory_mib(384).system(&system);
    for name in ["web-in", "web-out"] {
        guest = guest.disk(Disk::vhost_user(scene.path(&format!("{name}.sock"))).reconnecting());
    }
    let guest = guest.boot()?;
    guest.check(&documented("docs/guests.md", "enable --now blockring-exec@web"))?;
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
    let disk = speaking_guest(scene.dir(), &Packages::make("1")?, "ring")?;
    let boot = || scene.guest().system(&disk).memory_mib(384);
    let address = scene.address();
    let words = ["forward", &address, "--to", "file:entries", "--framing", "export"];
    let _forwarder = scene.spawn("forwarder", "blockring", &words)?;
    let entries = scene.path("entries");
    // In the early boot, and in the middle of the stream.
    for count in [1, 200, 400] {
        boot().begin_until(|guest| wait_for_more(guest, &entries, count))?.kill()?;
    }
    let guest = boot().boot()?;
    let since_boot = |unit: &str| -> Result<u64> {
        let key = "InactiveExitTimestampMonotonic";
        let shown = guest.check(&format!("systemctl show --value --property={key} {unit}"))?;
        Ok(shown.trim().parse().unwrap_or_else(|_| panic!("{unit}: {shown:?}")))
    };
    assert!(since_boot("blockring-journal@ring")? < since_boot("basic.target")?, "it starts late");
    // By hand, as by the unit.
    guest.check("systemctl stop blockring-journal@ring")?;
    let by_hand = documented("docs/guests.md", "produce --journald");
    let _by_hand = guest.spawn(&by_hand.replace("serial:logs", "serial:ring"))?;
    wait_for_more(&guest, &entries, 40)?;
    assert!(expect_each_once(&guest, &entries)? > 600);
    guest.power_off()
}
