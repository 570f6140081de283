//! The parts of a guest that are not this workspace's: kernel, modules, busybox.
//!
//! `scripts/setup.sh` fetches them into the target folder; environment variables name others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::binaries;
use crate::error::{Error, Result};

/// Returns the guest's kernel: `BLOCKRING_KERNEL`, or the one fetched.
pub(crate) fn kernel() -> Result<PathBuf> {
    asset("BLOCKRING_KERNEL", "vmlinuz")
}

/// Returns a static busybox: `BLOCKRING_BUSYBOX`, or the one fetched.
pub(crate) fn busybox() -> Result<PathBuf> {
    asset("BLOCKRING_BUSYBOX", "busybox")
}

/// Returns a module of the guest's kernel, somewhere below `BLOCKRING_MODULES` or the folder
/// fetched.
pub(crate) fn module(name: &str) -> Result<PathBuf> {
    let tree = asset("BLOCKRING_MODULES", "modules")?;
    find_module(&tree, name).ok_or_else(|| Error::Missing {
        what: format!("kernel module {name} in {}", tree.display()),
        remedy: "look for its name there".to_owned(),
    })
}

/// Returns the folder of a bare Debian, in which the packages are tested, too. It has fetched other
/// packages and not installed them.
pub(crate) fn debian() -> Result<PathBuf> {
    run_script("scripts/test-packages.sh", &["--prepare"])?;
    Ok(binaries::target_dir().join("packages-root/root"))
}

/// Returns where the fetched parts and the images are kept.
pub(crate) fn cache_dir() -> PathBuf {
    binaries::target_dir().join("guest-image")
}

fn asset(variable: &str, name: &str) -> Result<PathBuf> {
    let Some(path) = env::var_os(variable).map(PathBuf::from) else {
        let path = cache_dir().join("debian").join(name);
        return if path.exists() { Ok(path) } else { fetch(path) };
    };
    if path.exists() {
        return Ok(path);
    }
    let what = path.display().to_string();
    Err(Error::Missing { what, remedy: format!("{variable} names it") })
}

/// Files in the target folder may come from `cargo test` alone; packages are installed only for who
/// asks for it.
fn fetch(wanted: PathBuf) -> Result<PathBuf> {
    run_script("scripts/setup.sh", &["--image-only"])?;
    if wanted.exists() {
        return Ok(wanted);
    }
    let what = wanted.display().to_string();
    Err(Error::Missing { what, remedy: "scripts/setup.sh fetches it".to_owned() })
}

/// Runs a script that fetches something into the target folder.
pub(crate) fn run_script(script: &str, arguments: &[&str]) -> Result<()> {
    let path = binaries::workspace().join(script);
    let output = Command::new(&path)
        .args(arguments)
        .env("CARGO_TARGET_DIR", binaries::target_dir())
        // Packages for a test are made once and read once: fast compression is enough.
        .envs([("DPKG_DEB_COMPRESSOR_TYPE", "gzip"), ("DPKG_DEB_COMPRESSOR_LEVEL", "1")])
        .output()
        .map_err(Error::file("running", &path))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Missing {
        what: format!("what {script} fetches"),
        remedy: format!("the script said:\n{said}"),
    })
}

fn find_module(tree: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if module_name(&path).is_some_and(|found| found == name) {
                return Some(path);
            }
        }
    }
    None
}

/// Modules are spelt with `-` in some files' names and with `_` in others.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}
