//! QEMU with options that do not fit the disk: the guest hangs in its boot, and the backend's log
//! names once the option to change.
#![allow(clippy::unwrap_used)]

use qemu_tests::scene::{SOON, Scene};
use qemu_tests::{Disk, GuestBuilder, Qemu, Result, wait_until};

/// Time in which QEMU reconnects several times, once each second.
const TIMES: u64 = 4;

fn is_said_once(words: &str, guest: impl FnOnce(Disk) -> GuestBuilder) -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let backend = scene.backend()?;
    let guest = guest(Disk::vhost_user(scene.path("s")).reconnecting()).begin()?;
    let said = || backend.stderr().matches(words).count();
    assert!(wait_until(2 * SOON, || said() > 0), "{}", backend.stderr());
    let connections = || scene.diagnostics()["backend"]["connections"].as_u64().unwrap();
    let before = connections();
    assert!(wait_until(SOON, || connections() >= before + TIMES), "QEMU does not come again");
    assert_eq!(said(), 1, "{}", backend.stderr());
    guest.kill()
}

fn memory_that_is_not_shared_is_named_once(emulator: Qemu) -> Result<()> {
    let private =
        ["-object", "memory-backend-ram,id=own,size=256M", "-machine", "memory-backend=own"];
    is_said_once("share=on -machine memory-backend=mem", |disk| {
        GuestBuilder::new().emulator(emulator).disk(disk).arguments(private)
    })
}

#[test]
fn memory_that_is_not_shared_is_named_once_for_the_systems_qemu() -> Result<()> {
    memory_that_is_not_shared_is_named_once(Qemu::System)
}

#[test]
fn memory_that_is_not_shared_is_named_once_for_qemu_10() -> Result<()> {
    memory_that_is_not_shared_is_named_once(Qemu::Ten)
}

/// QEMU shares such memory all the same, without the guest's writes to it.
fn memory_of_a_private_mapping_is_named(emulator: Qemu) -> Result<()> {
    let scene = Scene::new(&["--size", "1M"]);
    let backend = scene.backend()?;
    let private = [
        "-object",
        "memory-backend-memfd,id=own,size=256M,share=off",
        "-machine",
        "memory-backend=own",
    ];
    let disk = Disk::vhost_user(scene.path("s"));
    let guest = GuestBuilder::new().emulator(emulator).disk(disk).arguments(private).begin()?;
    let words = "its memory is not what is shared";
    assert!(wait_until(2 * SOON, || backend.stderr().contains(words)), "{}", backend.stderr());
    guest.kill()
}

#[test]
fn memory_of_a_private_mapping_is_named_for_the_systems_qemu() -> Result<()> {
    memory_of_a_private_mapping_is_named(Qemu::System)
}

#[test]
fn memory_of_a_private_mapping_is_named_for_qemu_10() -> Result<()> {
    memory_of_a_private_mapping_is_named(Qemu::Ten)
}
