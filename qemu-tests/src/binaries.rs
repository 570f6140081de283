//! The programs under test: built once a process, by cargo, and found where cargo puts them.
//!
//! Several test processes may do so at once: cargo's lock makes the later ones wait, and then find
//! everything fresh. With `BLOCKRING_BUILT` in the environment nothing is built: `scripts/test.sh`
//! has done that.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{Error, Result, tail};

/// The guest's programs are linked statically: its image has no shared libraries.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs of one build.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Returns the command-line program.
    pub fn blockring(&self) -> PathBuf {
        self.folder.join("blockring")
    }

    /// Returns the vhost-user back end. Only the host has it.
    pub fn vhost_device_blockring(&self) -> PathBuf {
        self.folder.join("vhost-device-blockring")
    }

    /// Returns the example of a journal. Only the tests' build has it.
    pub fn transfer(&self) -> PathBuf {
        self.folder.join("examples/transfer")
    }

    /// Returns the load generator of the tests.
    pub fn ringload(&self) -> PathBuf {
        self.folder.join("ringload")
    }

    /// Returns the load of a crash campaign.
    pub fn crashload(&self) -> PathBuf {
        self.folder.join("crashload")
    }

    /// Returns the program that sends messages on each way out of a guest.
    pub fn channels(&self) -> PathBuf {
        self.folder.join("channels")
    }

    /// Returns the program with the attacks of a guest on its ring.
    pub fn redteam(&self) -> PathBuf {
        self.folder.join("redteam")
    }

    /// Returns the program that counts another program's system calls.
    pub fn syscalls(&self) -> PathBuf {
        self.folder.join("syscalls")
    }

    /// Returns the program that compares a ring with a queue.
    pub fn ringmodel(&self) -> PathBuf {
        self.folder.join("ringmodel")
    }
}

/// The programs that the guest's image holds.
const GUEST_PROGRAMS: [&str; 7] =
    ["blockring", "ringload", "crashload", "ringmodel", "redteam", "channels", "syscalls"];

/// The programs that tests start on the host.
const HOST_PROGRAMS: [&str; 4] = ["blockring", "vhost-device-blockring", "crashload", "ringload"];

/// Returns the host's programs, release build.
///
/// The build selects all of the workspace's packages: a build of some of them would ask for other
/// features of the crates they share, and compile those again.
pub fn host() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    once(&BUILT, || {
        let programs = HOST_PROGRAMS.iter().flat_map(|program| ["--bin", program]);
        build(
            &["--workspace", "--release"].into_iter().chain(programs).collect::<Vec<_>>(),
            |_| {},
        )?;
        Ok(Binaries { folder: target_dir().join("release") })
    })
}

/// Returns the host's two programs and the example, as another build: that of the tests, with
/// assertions.
pub fn debug() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    let programs = ["--bin", "blockring", "--bin", "vhost-device-blockring"];
    once(&BUILT, || {
        let all = ["--workspace", "--profile", "test", "--example", "transfer"];
        build(&[&all[..], &programs].concat(), |_| {})?;
        Ok(Binaries { folder: target_dir().join("debug") })
    })
}

/// Returns the guest's programs, release build, static.
pub fn guest() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    once(&BUILT, || {
        // A folder of its own, so that other flags do not throw away the host's build.
        let folder = target_dir().join("guest");
        let packages = ["-p", "blockring", "-p", "qemu-tests", "--target", GUEST_TARGET];
        let programs = GUEST_PROGRAMS.iter().flat_map(|program| ["--bin", program]);
        build(&packages.into_iter().chain(programs).collect::<Vec<_>>(), |cargo| {
            cargo.arg("--release").arg("--target-dir").arg(&folder);
            cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
            cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
        })?;
        Ok(Binaries { folder: folder.join(GUEST_TARGET).join("release") })
    })
}

/// `OnceLock::get_or_try_init`, which is not stable yet. Two threads may both build; cargo sorts
/// that out.
fn once(cell: &OnceLock<Binaries>, run: impl FnOnce() -> Result<Binaries>) -> Result<&Binaries> {
    match cell.get() {
        Some(made) => Ok(made),
        None => run().map(|made| cell.get_or_init(|| made)),
    }
}

fn build(arguments: &[&str], adjust: impl FnOnce(&mut Command)) -> Result<()> {
    if env::var_os("BLOCKRING_BUILT").is_some() {
        return Ok(());
    }
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(&program);
    cargo.arg("build").args(arguments).current_dir(workspace());
    cargo.env("CARGO_TARGET_DIR", target_dir()).env_remove("CARGO_BUILD_TARGET");
    adjust(&mut cargo);
    let output = cargo.output().map_err(Error::io(format!("starting {}", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Build { command: format!("{cargo:?}"), stderr: tail(&output.stderr) })
}

/// Returns the workspace's root folder.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Cargo's target folder, absolute.
pub fn target_dir() -> PathBuf {
    // `join` keeps an absolute path as it is.
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
