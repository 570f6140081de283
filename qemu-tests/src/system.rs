//! A whole Debian, whose init is systemd or OpenRC's: as a guest's disk, or booted on this machine.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::scene::SOON;
use crate::{Daemon, assets, binaries, wait_until};

/// The size of the disk, which is sparse.
const SIZE: &str = "1G";

/// Runs the guest's listener, with the mark that the kernel's command line has for it. Where a
/// system is no guest's, but runs in namespaces of this host, there is no console to read from.
const LISTENER: &str = "\
[Unit]
ConditionKernelCommandLine=nonce
DefaultDependencies=no
After=systemd-tmpfiles-setup.service
[Service]
PassEnvironment=nonce
ExecStart=/bin/sh -c 'mkdir -p /tmp/jobs; exec 3<>/dev/ttyS0; stty -F /dev/ttyS0 raw -echo; exec /bin/listen'
[Install]
WantedBy=multi-user.target
";

/// The first process of a guest with OpenRC: has the guest's listener started once the guest has
/// booted, and keeps what services say from its console.
const OPENRC_INIT: &str = "\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs dev /dev
mount -t sysfs sysfs /sys
mkdir -p /tmp/jobs
exec 3<>/dev/ttyS0
stty -F /dev/ttyS0 raw -echo
{
    until [ \"$(cat /run/openrc/softlevel)\" = default ]; do sleep 0.1; done
    exec /bin/listen
} </dev/null >/dev/null 2>&1 &
exec /sbin/openrc-init 3>&- </dev/null >/dev/null 2>&1
";

/// What a guest of a test never needs, or what would talk on its console.
const MASKED: [&str; 5] = [
    "serial-getty@.service",
    "getty@.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_reap.service",
];

/// A Debian system in a folder, which becomes a disk, or boots on this machine. A guest with that
/// disk takes commands as every guest does, once its services have started.
#[derive(Debug)]
pub struct System {
    root: tempfile::TempDir,
}

impl System {
    /// Fetches the bare Debian, if need be.
    pub fn prepare() -> Result<()> {
        assets::debian().map(drop)
    }

    /// Copies the bare Debian, and installs systemd.
    pub fn new() -> Result<Self> {
        let system = Self::bare()?;
        system.install_fetched("systemd-sysv")?;
        // The journal of a system whose name changes with each boot would begin anew each time.
        system.text("etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        system.unit("listener.service", LISTENER)?;
        for unit in MASKED {
            let link = system.path(&format!("etc/systemd/system/{unit}"));
            symlink("/dev/null", &link).map_err(Error::file("linking", &link))?;
        }
        Ok(system)
    }

    /// Copies the bare Debian, and installs OpenRC, which only a guest can boot.
    pub fn with_openrc() -> Result<Self> {
        let system = Self::bare()?;
        system.install_fetched("openrc")?;
        system.program("sbin/init", OPENRC_INIT)?;
        Ok(system)
    }

    /// Copies the bare Debian.
    fn bare() -> Result<Self> {
        let root = tempfile::Builder::new().prefix("system-").tempdir();
        let root = root.map_err(Error::io("making a temporary folder"))?;
        let mut from = assets::debian()?.into_os_string();
        from.push("/.");
        run(Command::new("cp").arg("-a").arg(from).arg(root.path()))?;
        let system = Self { root };
        system.program("bin/listen", include_str!("../guest/listen"))?;
        system.program("bin/job", include_str!("../guest/job"))?;
        Ok(system)
    }

    /// Installs a package of those that the bare Debian has fetched (scripts/test-packages.sh).
    pub fn install_fetched(&self, name: &str) -> Result<()> {
        self.sh(&format!("apt-get install -q -y --no-install-recommends --no-download {name}"))
    }

    /// Installs packages of the workspace with what they depend on.
    pub fn install(&self, packages: &Packages, names: &[&str]) -> Result<()> {
        let folder = packages.copy_into(self)?;
        self.sh(&install_command(&folder, names))
    }

    /// Returns where a path of the system is, without its leading slash.
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

    /// Runs a shell command in the system, before it is a disk or has booted.
    pub fn sh(&self, command: &str) -> Result<()> {
        self.run(&["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", command])
    }

    /// Writes the disk, and returns its path in `folder`.
    pub fn disk(&self, folder: &Path) -> Result<PathBuf> {
        // Or each boot until the first shutdown would make databases anew, of hardware and of
        // libraries, as after an update of the whole system (systemd-update-done.service(8)).
        self.sh("touch /etc/.updated /var/.updated")?;
        let disk = folder.join("system.img");
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-d"]).arg(self.root.path()).arg(&disk).arg(SIZE);
        run(&mut command)?;
        Ok(disk)
    }

    /// Boots the system on this machine, without a kernel of its own
    /// (`scripts/systemd-in.sh`). Its messages go into `folder`.
    pub fn boot(self, folder: &Path) -> Result<Host> {
        let mut command = Command::new(binaries::workspace().join("scripts/systemd-in.sh"));
        command.arg(self.root.path()).arg("multi-user.target");
        let mut process = Daemon::spawn("systemd", command, folder)?;
        process.wait_for("starting", SOON, |process| process.stdout().ends_with(b"\n"))?;
        let first = String::from_utf8_lossy(&process.stdout()).trim().to_owned();
        let host = Host { system: self, process, first };
        let is_up = || host.check("systemctl is-active multi-user.target").is_ok();
        if !wait_until(SOON, is_up) {
            host.check("systemctl list-jobs >&2; exit 1")?;
        }
        Ok(host)
    }
}

/// A booted [`System`] whose processes are this machine's: what QEMU, outside of it, uses as its
/// host. Killed on drop.
#[derive(Debug)]
pub struct Host {
    process: Daemon,
    /// The id of its first process.
    first: String,
    // Last, so that it is removed when the processes are gone.
    system: System,
}

impl Host {
    /// Runs a shell command that must succeed, and returns its standard output.
    pub fn check(&self, command: &str) -> Result<String> {
        let mut enter = Command::new("nsenter");
        enter.args(["--all", "--target", &self.first, "env", "-i"]);
        enter.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]);
        output(enter.args(["DEBIAN_FRONTEND=noninteractive", "sh", "-c", command]))
    }

    /// Returns where this machine finds a path of the booted system, without its leading slash.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{name}", self.first))
    }

    /// Installs packages of the workspace while the system runs.
    pub fn install(&self, packages: &Packages, names: &[&str]) -> Result<()> {
        let folder = packages.copy_into(&self.system)?;
        self.check(&install_command(&folder, names)).map(drop)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The script removes its control group; if it does not end, it is killed with all others.
        let _ = self.process.terminate(SOON);
    }
}

/// Debian packages of the programs that were built, all of one version.
#[derive(Debug)]
pub struct Packages {
    version: String,
    folder: tempfile::TempDir,
}

impl Packages {
    /// Makes them, as a release of this version.
    pub fn make(version: &str) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let built = binaries::programs()?;
        let programs = built.blockring().parent().map(|folder| folder.display().to_string());
        let (programs, to) = (programs.unwrap_or_default(), folder.path().display().to_string());
        let arguments = ["--version", version, "--programs", &programs, &to];
        assets::run_script("scripts/package.sh", &arguments)?;
        Ok(Self { version: version.to_owned(), folder })
    }

    /// Returns where they are then, as the system sees it.
    fn copy_into(&self, system: &System) -> Result<String> {
        let name = format!("packages-{}", self.version);
        run(Command::new("cp").arg("-a").arg(self.folder.path()).arg(system.path(&name)))?;
        Ok(format!("/{name}"))
    }
}

fn install_command(folder: &str, names: &[&str]) -> String {
    let packages: Vec<_> = names.iter().map(|name| format!("./{name}_*.deb")).collect();
    format!("cd {folder} && apt-get install -q -y --no-install-recommends {}", packages.join(" "))
}

fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(Error::io("starting a program of the system"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let stderr = String::from_utf8_lossy(&said).into_owned();
    Err(Error::Build { command: format!("{command:?}"), stderr })
}
