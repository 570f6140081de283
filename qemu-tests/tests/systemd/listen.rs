//! Units that send what a guest's programs write to their sockets.

use qemu_tests::scene::{LONG, Scene};
use qemu_tests::{Packages, Result, System, wait_until};
use ring_test_support::documents::documented;

#[test]
fn items_of_programs_start_the_unit_that_sends_them() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let system = System::new()?;
    system.install(&Packages::make("1")?, &["blockring-guest"])?;
    system.install_fetched("socat")?;
    let options = "[Service]\nEnvironment=\"OPTIONS=--credentials --max-record 64K\"\n";
    system.text("etc/systemd/system/blockring-listen@ring.service.d/options.conf", options)?;
    let disk = system.disk(scene.dir())?;
    let guest = scene.guest().system(&disk).memory_mib(384).boot()?;
    let state = |wanted: &str| {
        let state = || guest.run("systemctl is-active blockring-listen@ring.service");
        wait_until(LONG, || state().is_ok_and(|output| output.stdout.trim() == wanted))
    };
    let log = |text: &str| guest.check(&format!("logger --socket /run/blockring/ring.log {text}"));
    let commands = documented("docs/guests.md", "enable --now blockring-listen@logs");
    let commands = commands.replace("@logs", "@ring").replace("/logs.", "/ring.");
    let (enable, send) = commands.split_once('\n').unwrap();
    guest.check(enable)?;
    assert!(state("inactive"));
    // The line is acknowledged.
    assert_eq!(guest.check(send)?, "1\n");
    assert!(state("active"), "{}", guest.check("journalctl -u blockring-listen@ring")?);
    guest.check("systemctl kill --signal=KILL blockring-listen@ring.service")?;
    log("second")?;
    // Returns the items of all calls so far.
    let consume = |count: u32| -> Result<Vec<String>> {
        let (address, count) = (scene.address(), count.to_string());
        let words = ["consume", "--follow", "--count", &count, &address];
        let mut consume = scene.spawn("consume", "blockring", &words)?;
        let status = consume.wait(LONG)?;
        assert!(status.success(), "{}", guest.console_tail());
        let text = String::from_utf8(consume.stdout()).unwrap();
        Ok(text.lines().map(str::to_owned).collect())
    };
    let items = consume(3)?;
    for (item, words) in items.iter().zip(["a datagram", "a line", "second"]) {
        assert!(item.starts_with("pid=") && item.contains(" uid=0 gid=0 "), "{item}");
        assert!(item.ends_with(words), "{items:?}");
    }
    // A stop takes what was sent, and leaves the sockets: a later item starts the unit again.
    log("third")?;
    guest.check("systemctl stop blockring-listen@ring.service")?;
    let last = |items: Vec<String>| items.last().cloned().unwrap();
    assert!(last(consume(1)?).ends_with("third"));
    log("fourth")?;
    assert!(last(consume(1)?).ends_with("fourth"));
    guest.power_off()
}
