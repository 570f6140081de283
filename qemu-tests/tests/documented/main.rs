//! Guests as the documents and the examples have them.
#![allow(clippy::unwrap_used)]

mod examples;

use qemu_tests::scene::{LONG, SOON, Scene};
use qemu_tests::{Daemon, GuestBuilder, ImageSpec, Qemu, Result};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// The path of the front end's socket in the documents.
const SOCKET: &str = "/run/vm1.sock";

/// What the guest sends: how many processors it has, and how many queues its disk has.
const SCRIPT: &str = "\
{ nproc; ls /sys/block/vda/mq | wc -l; } | blockring produce --timeout 60 serial:ring
";

/// Returns the blocks of the documents in this language that contain `words`.
fn blocks(language: &str, words: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(&path).unwrap();
            let begin = format!("```{language}\n");
            let blocks = text.split(&begin).skip(1).filter_map(|rest| rest.split("\n```").next());
            found.extend(blocks.filter(|block| block.contains(words)).map(str::to_owned));
        }
    }
    assert!(!found.is_empty(), "{words}");
    found
}

fn guest() -> Result<GuestBuilder> {
    let image = ImageSpec::standard()?.script("send", SCRIPT);
    Ok(GuestBuilder::new().image(image).script("send"))
}

/// Waits for what the guest sends: it has two processors, and the disk a queue for each.
fn has_sent(scene: &Scene, said: impl Fn() -> String) -> Result<()> {
    let words = ["consume", "--follow", "--count", "2", "--timeout", "120", &scene.address()];
    let output = scene.command("blockring", &words)?.output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "2\n2\n", "{}", said());
    Ok(())
}

/// Runs a guest by a command line of the documents.
fn run_as_written(text: &str) -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let at = |name: &str| scene.path(name).display().to_string();
    let text =
        text.replace("\\\n", " ").replace(SOCKET, &at("s")).replace("/run/vm1.qmp", &at("qmp"));
    let (kernel, image, line) = guest()?.kernel()?;
    // The rest of a guest, in the place of the dots.
    let memory = if text.contains("size=1G") { "1G" } else { "256M" };
    let mut rest = vec!["-smp", "2", "-accel", "tcg", "-cpu", "max", "-display", "none"];
    rest.extend(["-no-reboot", "-serial", "stdio", "-append", &line]);
    if !text.contains("-m ") {
        rest.extend(["-m", memory]);
    }
    let files = [kernel, image].map(|path| path.display().to_string());
    rest.extend(["-kernel", &files[0], "-initrd", &files[1]]);
    let mut words = text.split_whitespace();
    assert_eq!(words.next(), Some("qemu-system-x86_64"));
    let mut command = Command::new(Qemu::Ten.program()?);
    for word in words {
        if word == "…" {
            command.args(&rest)
        } else {
            command.arg(word)
        };
    }
    let mut qemu = Daemon::spawn("qemu", command, scene.dir())?;
    let status = qemu.wait(LONG)?;
    assert!(status.success(), "{text}: {status}: {}", qemu.stderr());
    has_sent(&scene, || qemu.stderr())
}

#[test]
fn command_lines_of_qemu_start_guests_in_the_newer_one_as_they_are_written() -> Result<()> {
    // In the system's, `tests/docs/` runs them.
    let lines = blocks("sh", "vhost-user-blk-pci");
    for text in lines.iter().filter(|text| text.contains('…')) {
        run_as_written(text)?;
    }
    Ok(())
}

/// A user that owns nothing here: libvirt runs guests of its own user without further setup.
const NOBODY: u32 = 65534;

#[test]
fn domain_of_libvirt_is_valid_and_starts_as_it_is_written() -> Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    let group = if is_root { NOBODY } else { nix::unistd::getegid().as_raw() };
    let scene = Scene::new(&["--size", "1M", "--socket-group", &group.to_string()]);
    let _backend = scene.backend()?;
    let (kernel, image, line) = guest()?.kernel()?;
    fs::set_permissions(scene.dir(), Permissions::from_mode(0o711)).unwrap();
    for (from, to) in [(kernel, "kernel"), (image, "initrd")] {
        fs::copy(from, scene.path(to)).unwrap();
        fs::set_permissions(scene.path(to), Permissions::from_mode(0o644)).unwrap();
    }
    let own = scene.path("own");
    fs::create_dir_all(own.join("etc")).unwrap();
    // Without a daemon for the guest's output.
    fs::write(own.join("etc/qemu.conf"), "stdio_handler = \"file\"\n").unwrap();
    let text =
        blocks("xml", "vhostuser").remove(0).replace(SOCKET, scene.path("s").to_str().unwrap());
    // What every domain has besides.
    let at = |name: &str| scene.path(name).display().to_string();
    let head = format!(
        "<domain type='qemu'><name>vm1</name><memory unit='MiB'>256</memory><vcpu>2</vcpu>
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>
         <cmdline>{line}</cmdline></os><on_reboot>destroy</on_reboot><cpu mode='maximum'/>",
        at("kernel"),
        at("initrd")
    );
    let serial =
        format!("<devices><serial type='file'><source path='{}'/></serial>", at("own/serial"));
    let domain = text.replacen("<domain>", &head, 1).replacen("<devices>", &serial, 1);
    let file = scene.path("domain.xml");
    fs::write(&file, domain).unwrap();
    let mut validate = Command::new("virt-xml-validate");
    let output = validate.arg(&file).arg("domain").output();
    let output = output.expect("scripts/setup.sh installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // libvirt's driver for QEMU, in a process of its own. The guest powers itself off.
    let mut command = Command::new("virt-qemu-run");
    if is_root {
        chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        command = Command::new("setpriv");
        let user = NOBODY.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "virt-qemu-run"]);
    }
    command.env("HOME", &own).env("XDG_RUNTIME_DIR", &own).env_remove("DBUS_SESSION_BUS_ADDRESS");
    command.arg("--root").arg(&own).arg(&file);
    let mut libvirt = Daemon::spawn("libvirt", command, scene.dir())?;
    let serial = || fs::read_to_string(own.join("serial")).unwrap_or_default();
    has_sent(&scene, || format!("{} {}", libvirt.stderr(), serial()))?;
    libvirt.terminate(SOON)?;
    Ok(())
}
