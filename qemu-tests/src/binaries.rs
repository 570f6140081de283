//! The programs under test: built once a process, by cargo, and found where cargo puts them.
//!
//! Several test processes may do so at once: cargo's lock makes the later ones wait, and then find
//! everything fresh.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::error::{Error, Result, tail};

/// The guest's programs are linked statically: its image has no shared libraries.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where one build's programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// The command-line program.
    pub fn blockring(&self) -> PathBuf {
        self.folder.join("blockring")
    }

    /// The vhost-user back end. Only the host has it.
    pub fn vhost_device_blockring(&self) -> PathBuf {
        self.folder.join("vhost-device-blockring")
    }

    /// The load generator of the tests.
    pub fn ringload(&self) -> PathBuf {
        self.folder.join("ringload")
    }

    /// The ends of a crash campaign's rings.
    pub fn crashload(&self) -> PathBuf {
        self.folder.join("crashload")
    }

    /// What sends as fast as it goes on each of the ways out of a guest.
    pub fn channels(&self) -> PathBuf {
        self.folder.join("channels")
    }

    /// The attacks of a guest on its ring.
    pub fn redteam(&self) -> PathBuf {
        self.folder.join("redteam")
    }

    /// What counts another program's system calls.
    pub fn syscalls(&self) -> PathBuf {
        self.folder.join("syscalls")
    }

    /// The tests' comparison of a ring with a queue.
    pub fn ringmodel(&self) -> PathBuf {
        self.folder.join("ringmodel")
    }
}

/// The host's programs, release build.
pub fn host() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    let packages = ["-p", "shared-block-ring", "-p", "vhost-device-blockring", "-p", "qemu-tests"];
    once(&BUILT, || {
        build(&packages, |cargo| {
            cargo.arg("--release");
        })?;
        Ok(Binaries { folder: target_dir().join("release") })
    })
}

/// The host's back end, and nothing else, as another build: not optimized, with assertions.
pub fn debug() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    once(&BUILT, || {
        build(&["-p", "vhost-device-blockring"], |_| {})?;
        Ok(Binaries { folder: target_dir().join("debug") })
    })
}

/// The guest's programs, release build, static.
pub fn guest() -> Result<&'static Binaries> {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    let packages = ["-p", "shared-block-ring", "-p", "qemu-tests", "--target", GUEST_TARGET];
    once(&BUILT, || {
        // A folder of its own, so that other flags do not throw away the host's build.
        let folder = target_dir().join("guest");
        build(&packages, |cargo| {
            cargo.arg("--release").arg("--target-dir").arg(&folder);
            cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
            cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
        })?;
        Ok(Binaries { folder: folder.join(GUEST_TARGET).join("release") })
    })
}

/// `OnceLock::get_or_try_init`, which is not stable yet. Two threads may both build; cargo sorts that
/// out.
fn once(cell: &OnceLock<Binaries>, run: impl FnOnce() -> Result<Binaries>) -> Result<&Binaries> {
    match cell.get() {
        Some(made) => Ok(made),
        None => run().map(|made| cell.get_or_init(|| made)),
    }
}

fn build(arguments: &[&str], adjust: impl FnOnce(&mut Command)) -> Result<()> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(&program);
    cargo.args(["build", "--bins"]).args(arguments).current_dir(workspace());
    cargo.env("CARGO_TARGET_DIR", target_dir()).env_remove("CARGO_BUILD_TARGET");
    adjust(&mut cargo);
    let output = cargo.output().map_err(Error::io(format!("starting {}", program.display())))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Build { command: format!("{cargo:?}"), stderr: tail(&output.stderr) })
}

/// The workspace's root folder.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Cargo's target folder, absolute.
pub fn target_dir() -> PathBuf {
    // `join` keeps an absolute path as it is.
    workspace().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
