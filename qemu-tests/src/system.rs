//! A guest's disk with a whole Debian, whose init is systemd.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::{assets, binaries};

/// The size of the disk, which is sparse.
const SIZE: &str = "1G";

/// Runs the guest's listener, with the mark that the kernel's command line has for it.
const LISTENER: &str = "\
[Unit]
DefaultDependencies=no
After=systemd-tmpfiles-setup.service
[Service]
PassEnvironment=nonce
ExecStart=/bin/sh -c 'mkdir -p /tmp/jobs; exec 3<>/dev/ttyS0; stty -F /dev/ttyS0 raw -echo; exec /bin/listen'
[Install]
WantedBy=multi-user.target
";

/// What a guest of a test never needs, or what would talk on its console.
const MASKED: [&str; 5] = [
    "serial-getty@.service",
    "getty@.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_reap.service",
];

/// A Debian system in a folder, which becomes a disk. It takes commands as every guest does, once
/// its services have started.
#[derive(Debug)]
pub struct System {
    root: tempfile::TempDir,
}

impl System {
    /// Copies the bare Debian.
    pub fn new() -> Result<Self> {
        let folder = assets::cache_dir();
        let root = tempfile::Builder::new().prefix("system-").tempdir_in(&folder);
        let root = root.map_err(Error::file("making a folder in", &folder))?;
        let mut from = assets::debian()?.into_os_string();
        from.push("/.");
        run(Command::new("cp").arg("-a").arg(from).arg(root.path()))?;
        let system = Self { root };
        system.sh("apt-get install -q -y --no-install-recommends --no-download systemd-sysv")?;
        system.program("bin/listen", include_str!("../guest/listen"))?;
        system.program("bin/job", include_str!("../guest/job"))?;
        // The journal of a system whose name changes with each boot would begin anew each time.
        system.text("etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        system.unit("listener.service", LISTENER)?;
        for unit in MASKED {
            let link = system.path(&format!("etc/systemd/system/{unit}"));
            symlink("/dev/null", &link).map_err(Error::file("linking", &link))?;
        }
        Ok(system)
    }

    /// Makes the Debian package of that name from the programs that were built, and installs it.
    pub fn install_own(&self, name: &str) -> Result<()> {
        let built = binaries::release()?;
        let programs = built.blockring().parent().map(|folder| folder.display().to_string());
        let folder = self.path("packages").display().to_string();
        let arguments = ["--programs", &programs.unwrap_or_default(), &folder];
        assets::run_script("scripts/package.sh", &arguments)?;
        self.sh(&format!("dpkg -i /packages/{name}_*.deb"))
    }

    /// Returns where a path of the guest is, without its leading slash.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a file.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let folder = path.parent().unwrap_or(self.root.path());
        fs::create_dir_all(folder).map_err(Error::file("making", folder))?;
        fs::write(&path, text).map_err(Error::file("writing", &path))
    }

    fn program(&self, name: &str, text: &str) -> Result<()> {
        self.text(name, text)?;
        let (path, mode) = (self.path(name), Permissions::from_mode(0o755));
        fs::set_permissions(&path, mode).map_err(Error::file("changing the mode of", &path))
    }

    /// Writes a unit of systemd, and enables it.
    pub fn unit(&self, name: &str, text: &str) -> Result<()> {
        self.text(&format!("etc/systemd/system/{name}"), text)?;
        self.run(&["systemctl", "enable", name])
    }

    /// Runs a command in the system, before it is a disk.
    pub fn run(&self, words: &[&str]) -> Result<()> {
        let script = r#"mount -t proc proc "$1/proc" && exec chroot "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"]);
        run(command.arg(self.root.path()).args(words))
    }

    fn sh(&self, command: &str) -> Result<()> {
        self.run(&["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", command])
    }

    /// Writes the disk, and returns its path in `folder`.
    pub fn disk(&self, folder: &Path) -> Result<PathBuf> {
        let disk = folder.join("system.img");
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-d"]).arg(self.root.path()).arg(&disk).arg(SIZE);
        run(&mut command)?;
        Ok(disk)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(Error::io("starting a program of the system"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Build { command: format!("{command:?}"), stderr })
}
