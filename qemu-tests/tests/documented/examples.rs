//! The examples that need a guest, and guests without systemd.

use qemu_tests::scene::{SOON, Scene};
use qemu_tests::{Daemon, Disk, Guest, GuestBuilder, ImageSpec, Result, System, binaries};
use ring_test_support::documents::documented;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn example(name: &str) -> PathBuf {
    binaries::workspace().join("examples").join(name)
}

/// Returns a shell for an example, which finds the programs.
fn shell(scene: &Scene) -> Result<Command> {
    let folder = binaries::programs()?.blockring();
    let folder = folder.parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.env("PATH", format!("{folder}:{path}")).current_dir(scene.dir());
    Ok(command)
}

/// Waits for an item of the ring.
fn item(scene: &Scene) -> String {
    let address = scene.address();
    let words = ["consume", "--follow", "--framing", "nul", "--count", "1", "--timeout", "120"];
    let mut command = scene.command("blockring", &words).unwrap();
    let output = command.arg(address).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn last_words_of_a_program_are_on_the_host_when_the_guest_dies() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let script = fs::read_to_string(example("last-words.sh")).unwrap();
    let handler = script.replace("serial:last-words", "serial:ring");
    let image = ImageSpec::standard()?.text("bin/last-words", &handler);
    let guest = scene.guest().image(image).boot()?;
    guest.check("mkdir -p /usr/local/bin && cp /bin/last-words /usr/local/bin")?;
    // As its head says.
    let setup: Vec<_> = script.lines().filter_map(|line| line.strip_prefix("#   echo")).collect();
    assert_eq!(setup.len(), 2, "{setup:?}");
    for line in setup {
        guest.check(&format!("echo{line}"))?;
    }
    // Its parent learns of its end when all has been said.
    let end = guest.run("sh -c 'kill -SEGV $$; true' with words")?;
    assert_eq!(end.status, 139, "{end:?}");
    guest.kill()?;
    let said = item(&scene);
    assert!(said.starts_with("crash program=sh pid="), "{said}");
    for words in [" signal=11 at=20", "command: sh -c kill -SEGV $$; true with words", "VmRSS:"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(said.contains("[stack]") && said.contains("\nkernel:\n"), "{said}");
    Ok(())
}

#[test]
fn commands_are_carried_out_in_a_guest_and_answered_by_the_example() -> Result<()> {
    let scene = Scene::new(&[]);
    let mut backends = Vec::new();
    let mut guest = GuestBuilder::new().processors(2);
    for (name, side) in [("web-in", "consumer"), ("web-out", "producer")] {
        let mut command = Command::new(binaries::programs()?.vhost_device_blockring());
        command.current_dir(scene.dir()).args(["--size", "1M", "--serial", name, "--guest", side]);
        for (option, end) in
            [("--socket-path", "sock"), ("--blk-file", "ring"), ("--consumer-socket", "out")]
        {
            command.arg(option).arg(format!("{name}.{end}"));
        }
        let mut backend = Daemon::spawn(name, command, scene.dir())?;
        backend.wait_for_path(&scene.path(&format!("{name}.out")), SOON)?;
        backends.push(backend);
        guest = guest.disk(Disk::vhost_user(scene.path(&format!("{name}.sock"))));
    }
    let program = binaries::workspace().join("packaging/guest/exec-commands");
    let guest = guest.image(ImageSpec::standard()?.file("bin/exec-commands", program)).boot()?;
    let _work = guest.spawn(
        "blockring forward serial:web-in --to 'exec:exec /bin/exec-commands serial:web-out'",
    )?;
    let ask = |commands: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = shell(&scene)?;
        command.arg(example("guest-commands.sh")).args(["unix:web-in.out", "unix:web-out.out"]);
        let output = command.args(commands).output().unwrap();
        Ok((output.status.code(), String::from_utf8(output.stdout).unwrap()))
    };
    let (code, answers) = ask(&["uname -s", "echo one; echo two"])?;
    assert_eq!(code, Some(0), "{answers}");
    let answers: Vec<_> =
        answers.lines().filter(|line| !line.is_empty() && !line.starts_with("position=")).collect();
    assert_eq!(answers, ["Linux", "one", "two"]);
    let (code, answers) = ask(&["false"])?;
    assert_eq!(code, Some(1));
    assert!(answers.contains(" status=1\n"), "{answers}");
    guest.power_off()
}

/// Times that a service's program is killed: more often than OpenRC starts it again by itself.
const KILLS: usize = 11;

#[test]
fn guest_with_openrc_sends_its_log_by_the_documented_service() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let system = System::with_openrc()?;
    fs::copy(binaries::programs()?.blockring(), system.path("usr/bin/blockring")).unwrap();
    let service = documented("docs/guests.md", "#!/sbin/openrc-run");
    // No pause: OpenRC counts the starts, however fast they are.
    let service = service.replace("serial:logs", "serial:ring").replace("respawn_delay=1", "");
    system.text("etc/init.d/blockring-log", &service)?;
    let disk = system.disk(scene.dir())?;
    let log = |guest: &Guest, words: &str| -> Result<()> {
        let logger = format!("logger --socket-errors=on -t shop '{words}'");
        guest.check(&format!("until {logger}; do sleep 0.1; done"))?;
        let item = item(&scene);
        assert!(item.starts_with("pid=") && item.contains(&format!("shop: {words}")), "{item}");
        Ok(())
    };
    let guest = scene.guest().system(&disk).boot()?;
    guest.check(&documented("docs/guests.md", "rc-update add"))?;
    log(&guest, "order 7")?;
    // Without a program of its own in each turn: those take long in an emulated guest.
    let kills = format!(
        "read daemon </run/supervise-blockring-log.pid
         child() {{ read new </proc/$daemon/task/$daemon/children || [ \"$new\" ]; }}
         for n in $(seq {KILLS}); do
             child && old=$new && kill -9 $old || exit
             until child && [ \"$new\" != \"$old\" ]; do sleep 0.1; done
         done"
    );
    guest.check(&kills)?;
    log(&guest, "order 8")?;
    // A boot starts what is in this runlevel.
    guest.check("rc-update show default | grep -w blockring-log")?;
    guest.check("rc-service blockring-log stop")?;
    guest.kill()
}

#[test]
fn guest_with_the_init_of_busybox_sends_its_log_by_the_documented_lines() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let lines = documented("docs/guests.md", "::respawn:");
    assert!(lines.lines().count() <= 3, "{lines}");
    let lines = lines.replace("serial:logs", "serial:ring").replace("/usr/bin/", "/bin/");
    // The listener of these tests.
    let listen = "exec 3<>/dev/ttyS0; stty -F /dev/ttyS0 raw -echo; exec /bin/listen";
    let table = format!("{lines}\n::respawn:/bin/sh -c '{listen}'\n");
    let image = ImageSpec::standard()?.text("scripts/inittab", &table);
    let guest = scene.guest().image(image).kernel_word("inittab=/scripts/inittab").boot()?;
    guest.check("tr '\\0' ' ' </proc/1/cmdline | grep -w init")?;
    guest.check("until [ -S /dev/log ]; do sleep 0.1; done; logger -t shop 'order 7'")?;
    // What the kernel has said since its start, and the program's line.
    let mut awaited = vec!["Linux version", "shop: order 7"];
    while !awaited.is_empty() {
        let item = item(&scene);
        assert!(item.starts_with("pid="), "{item}");
        awaited.retain(|words| !item.contains(words));
    }
    // A program that dies is started again.
    guest.check("killall -9 blockring")?;
    let _shop = guest.spawn("while sleep 1; do logger -t shop 'order 8'; done")?;
    while !item(&scene).contains("shop: order 8") {}
    guest.power_off()
}
