//! `blockring bind` and `unbind` with a real kernel: a disk with a file system on it goes and comes
//! back.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{SOON, Scene, numbers};
use qemu_tests::{Disk, Guest, GuestBuilder, ImageSpec, Result, wait_until};
use std::path::PathBuf;

/// Size of the disk: enough for a file system.
const SIZE: u64 = 8 << 20;

/// A guest whose only disk has a file system with a file in it.
struct Machine {
    guest: Guest,
    address: String,
    // Last, so that it is removed when QEMU is gone.
    _dir: tempfile::TempDir,
}

impl Machine {
    fn boot(prepare: impl FnOnce(GuestBuilder) -> GuestBuilder) -> Result<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        let image = ImageSpec::standard()?.passing().module("loop");
        let builder = GuestBuilder::new().image(image).disk(Disk::file(path, "disk"));
        let guest = prepare(builder).boot()?;
        guest.check("mke2fs /dev/vda && mkdir /tmp/mnt && mount /dev/vda /tmp/mnt")?;
        guest.check("echo kept > /tmp/mnt/file && umount /tmp/mnt")?;
        let address = address_of(&guest, "vda")?;
        Ok(Self { guest, address, _dir: dir })
    }

    /// Runs `blockring` on the device, which must succeed, and answers its standard output.
    fn check(&self, command: &str) -> Result<String> {
        self.guest.check(&format!("blockring {command} {}", self.address))
    }

    /// Runs it, and it must fail with all of these words.
    fn refuses(&self, command: &str, words: &[&str]) -> Result<()> {
        let output = self.guest.run(&format!("blockring {command} {}", self.address))?;
        assert_eq!(output.status, 1, "{output:?}");
        for words in words {
            assert!(output.stderr.contains(words), "{output:?} lacks {words:?}");
        }
        Ok(())
    }

    /// Returns the device's driver, and its driver override.
    fn state(&self) -> Result<(String, String)> {
        let device = format!("/sys/bus/pci/devices/{}", self.address);
        let driver = format!("[ ! -e {device}/driver ] || basename $(realpath {device}/driver)");
        let only = self.guest.check(&format!("cat {device}/driver_override"))?;
        Ok((self.guest.check(&driver)?.trim().to_owned(), only.trim().to_owned()))
    }

    fn assert_bound(&self, driver: &str, only: &str) -> Result<()> {
        assert_eq!(self.state()?, (driver.to_owned(), only.to_owned()));
        self.guest.check("[ ! -e /dev/vda ] && [ ! -e /sys/block/vda ]").map(drop)
    }

    /// The disk must be bound to the kernel's driver under its old name, with its old content.
    fn assert_whole(&self) -> Result<()> {
        assert_eq!(self.state()?, ("virtio-pci".to_owned(), "(null)".to_owned()));
        let file = self.guest.check("mount /dev/vda /tmp/mnt && cat /tmp/mnt/file")?;
        assert_eq!(file, "kept\n");
        self.guest.check("umount /tmp/mnt").map(drop)
    }
}

/// Address of the disk, as in the help.
fn address_of(guest: &Guest, disk: &str) -> Result<String> {
    let found = guest.check(&format!("basename \"$(realpath /sys/block/{disk}/device/..)\""))?;
    Ok(found.trim().to_owned())
}

#[test]
fn bound_disk_comes_back_and_mounts() -> Result<()> {
    let machine = Machine::boot(|guest| guest)?;
    let (guest, address) = (&machine.guest, &machine.address);
    assert!(machine.check("unbind")?.contains("is /dev/vda already"));

    let said = machine.check("bind")?;
    assert_eq!(said, format!("{address} is bound to uio_pci_generic\n"), "there is no IOMMU");
    machine.assert_bound("uio_pci_generic", "uio_pci_generic")?;
    guest.check("[ -c /dev/uio0 ]")?;
    assert!(machine.check("bind")?.contains("is bound to uio_pci_generic already"));
    assert!(machine.check("bind --driver none")?.contains("is bound to no driver\n"));
    machine.assert_bound("", "none")?;
    assert!(machine.check("bind")?.contains("is bound to no driver already"));
    assert_eq!(machine.check("unbind")?, format!("{address} is /dev/vda\n"));
    machine.assert_whole()?;

    machine.refuses("bind --driver vfio-pci", &["behind none", "intel_iommu=on"])?;
    machine.assert_whole()?;

    // A dry run prints the steps that are taken.
    guest.check(&format!("blockring bind --dry-run {address} > /tmp/steps"))?;
    machine.assert_whole()?;
    guest.check("sh -e /tmp/steps")?;
    assert!(machine.check("bind")?.contains("already"));
    assert_eq!(machine.check("bind --dry-run")?, "");
    guest.check(&format!("blockring unbind --dry-run {address} > /tmp/steps"))?;
    machine.assert_bound("uio_pci_generic", "uio_pci_generic")?;
    guest.check("sh -e /tmp/steps")?;
    machine.assert_whole()?;
    machine.guest.power_off()
}

#[test]
fn disk_behind_an_iommu_is_bound_to_vfio() -> Result<()> {
    let machine = Machine::boot(GuestBuilder::iommu)?;
    let (guest, address) = (&machine.guest, &machine.address);
    assert_eq!(machine.check("bind")?, format!("{address} is bound to vfio-pci\n"));
    machine.assert_bound("vfio-pci", "vfio-pci")?;
    let group = format!("/sys/bus/pci/devices/{address}/iommu_group");
    let node = format!("/dev/vfio/{}", guest.check(&format!("basename $(realpath {group})"))?);
    let node = node.trim();
    guest.check(&format!("[ -c {node} ]"))?;

    // The kernel would wait for the process to end.
    let driving = guest.spawn(&format!("exec sleep 1000 9<>{node}"))?;
    let in_use = || machine.refuses("unbind", &["(sleep) drives", node, "end it first"]);
    wait_for_command(guest, "sleep 1000")?;
    in_use()?;
    machine.refuses("bind --driver none", &["(sleep) drives"])?;
    driving.signal("KILL")?;
    assert!(wait_until(SOON, || machine.check("unbind").is_ok()));
    machine.assert_whole()?;
    machine.guest.power_off()
}

/// Waits until a process has this command line, which a shell's becomes when it has opened all
/// files for the command.
fn wait_for_command(guest: &Guest, command: &str) -> Result<()> {
    let look = format!("until ps -o args | grep -q '^{command}$'; do usleep 20000; done");
    guest.check(&look).map(drop)
}

#[test]
fn disk_in_use_is_refused_by_name() -> Result<()> {
    let machine = Machine::boot(|guest| guest)?;
    let guest = &machine.guest;
    let refuses = |words: &[&str]| -> Result<()> {
        machine.refuses("bind", words)?;
        machine.refuses("bind --dry-run", words)
    };
    guest.check("mount /dev/vda /tmp/mnt")?;
    refuses(&["/dev/vda is mounted at /tmp/mnt", "umount /dev/vda"])?;
    guest.check("umount /tmp/mnt")?;

    // The process's own mount table does not show it.
    let hidden =
        guest.spawn("exec unshare -m sh -c 'mount /dev/vda /tmp/mnt && exec sleep 1000'")?;
    wait_for_command(guest, "sleep 1000")?;
    refuses(&["/dev/vda is in use by something that cannot be seen", "namespace"])?;
    hidden.signal("KILL")?;
    assert!(wait_until(SOON, || machine.check("bind --dry-run").is_ok()));

    let open = guest.spawn("exec sleep 2000 9</dev/vda")?;
    wait_for_command(guest, "sleep 2000")?;
    refuses(&["(sleep) has /dev/vda open", "end it first"])?;
    open.signal("KILL")?;
    assert!(wait_until(SOON, || machine.check("bind --dry-run").is_ok()));

    guest.check("losetup /dev/loop0 /dev/vda")?;
    refuses(&["/dev/loop0 shows /dev/vda", "losetup -d /dev/loop0"])?;
    guest.check("losetup -d /dev/loop0")?;
    machine.assert_whole()?;

    guest.check("dd if=/dev/zero of=/dev/vda bs=1M count=1; mkswap /dev/vda; swapon /dev/vda")?;
    refuses(&["/dev/vda is a swap", "swapoff /dev/vda"])?;
    guest.check("swapoff /dev/vda")?;

    guest.check("printf 'o\\nn\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/vda; mke2fs /dev/vda1")?;
    guest.check("mount /dev/vda1 /tmp/mnt")?;
    refuses(&["/dev/vda1 is mounted at /tmp/mnt", "umount /dev/vda1"])?;
    guest.check("umount /tmp/mnt")?;
    assert!(machine.check("bind")?.contains("is bound to"));

    let elsewhere = guest.run("blockring bind 00:00.0")?;
    assert_eq!(elsewhere.status, 1, "{elsewhere:?}");
    let words = format!("no virtio disk but 8086:29c0 (virtio disks: {})", machine.address);
    assert!(elsewhere.stderr.contains(&words), "{elsewhere:?}");
    machine.guest.power_off()
}

#[test]
fn unbind_gives_back_what_a_killed_process_left_and_a_failed_step_is_taken_back() -> Result<()> {
    const DRIVERS: &str = "/sys/bus/pci/drivers";
    let machine = Machine::boot(|guest| guest)?;
    let guest = &machine.guest;
    // A pipe in the place of a sysfs file holds a process that opens it for writing: there it is
    // killed.
    let killed_at = |command: &str, file: &str, state: (&str, &str)| -> Result<()> {
        let file = format!("{DRIVERS}/{file}");
        guest.check(&format!("mkfifo /tmp/pipe; mount --bind /tmp/pipe {file}"))?;
        let running = guest.spawn(&format!("exec blockring {command} {}", machine.address))?;
        let there = || machine.state().is_ok_and(|(driver, only)| (&*driver, &*only) == state);
        assert!(wait_until(SOON, there), "{:?}", machine.state());
        running.signal("KILL")?;
        assert_eq!(running.wait(SOON)?.status, 128 + 9);
        guest.check(&format!("umount {file}; rm /tmp/pipe"))?;
        machine.check("unbind")?;
        machine.assert_whole()
    };
    killed_at("bind", "virtio-pci/unbind", ("virtio-pci", "uio_pci_generic"))?;
    killed_at("bind", "uio_pci_generic/bind", ("", "uio_pci_generic"))?;
    machine.check("bind")?;
    killed_at("unbind", "uio_pci_generic/unbind", ("uio_pci_generic", "(null)"))?;
    machine.check("bind")?;
    killed_at("unbind", "virtio-pci/bind", ("", "(null)"))?;

    // A regular file takes the write, without effect.
    guest.check(&format!(
        "touch /tmp/file; mount --bind /tmp/file {DRIVERS}/uio_pci_generic/bind"
    ))?;
    machine
        .refuses("bind", &["no driver has it where uio_pci_generic should", "it is as it was"])?;
    machine.assert_whole()?;
    guest.check(&format!("umount {DRIVERS}/uio_pci_generic/bind"))?;
    machine.check("bind")?;
    guest.check(&format!("mount --bind /tmp/file {DRIVERS}/virtio-pci/bind"))?;
    machine.refuses("unbind", &["no driver has it where virtio-pci should", "it is as it was"])?;
    machine.assert_bound("uio_pci_generic", "uio_pci_generic")?;
    machine.guest.power_off()
}

#[test]
fn ring_goes_on_after_its_disk_was_away() -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let address = address_of(&guest, "vda")?;
    // This image has no such module.
    let lines = |first, last| format!("seq {first} {last} | blockring produce serial:ring");
    guest.check(&lines(1, 100))?;
    let output = guest.run(&format!("blockring bind {address}"))?;
    assert!(output.stdout.contains("is bound to no driver"), "{output:?}");
    assert!(output.stderr.contains("modprobe uio_pci_generic"), "{output:?}");
    let missing = guest.run(&format!("blockring bind --driver uio_pci_generic {address}"))?;
    assert_eq!(missing.status, 1, "{missing:?}");
    assert!(missing.stderr.contains("modprobe uio_pci_generic"), "{missing:?}");
    guest.check(&format!("blockring unbind {address}"))?;
    guest.check(&lines(101, 200))?;
    assert_eq!(scene.check(&["consume", &scene.address()]), numbers(1, 200));

    // A waiting producer has the disk open.
    let attached = guest.spawn("(echo 201; sleep 1000) | blockring produce serial:ring")?;
    assert!(wait_until(SOON, || scene.diagnostics()["used"].as_u64() > Some(0)));
    let refused = guest.run(&format!("blockring bind {address}"))?;
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("(blockring) has /dev/vda open"), "{refused:?}");
    attached.signal("TERM")?;
    guest.power_off()
}
