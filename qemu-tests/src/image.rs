//! The guest's kernel and its initramfs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cpio::newc;
use twox_hash::XxHash3_128;

use crate::assets;
use crate::binaries::{self, Binaries};
use crate::error::{Error, Result};

/// Modules for a virtio disk, in the order of loading.
const DISK_MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
];
/// Modules that hand devices to processes: interrupts of a device that has no other driver, and
/// VFIO.
const PASSING_MODULES: [&str; 8] = [
    "uio",
    "uio_pci_generic",
    "irqbypass",
    "vfio",
    "vfio_virqfd",
    "vfio_iommu_type1",
    "vfio_pci_core",
    "vfio_pci",
];
const FOLDERS: [&str; 8] = ["bin", "dev", "lib", "modules", "proc", "scripts", "sys", "tmp"];
const FOLDER_MODE: u32 = 0o040_755;
const PROGRAM_MODE: u32 = 0o100_755;
const LINK_MODE: u32 = 0o120_777;
/// Images pile up as the programs change; nothing that still runs uses one that old.
const IMAGE_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Content of the guest's initramfs.
#[derive(Debug, Clone, Default)]
pub struct ImageSpec {
    modules: Vec<String>,
    files: BTreeMap<String, Content>,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Vec<u8>),
    File(PathBuf),
    /// What a link leads to.
    Link(String),
}

impl ImageSpec {
    /// Busybox, the modules of a virtio disk, and `/init`.
    pub fn minimal() -> Self {
        let spec = Self::default()
            .text("init", include_str!("../guest/init"))
            .text("bin/listen", include_str!("../guest/listen"))
            .text("bin/job", include_str!("../guest/job"));
        DISK_MODULES.into_iter().fold(spec, Self::module)
    }

    /// Returns the minimal image, and this workspace's programs for guests in `/bin`.
    pub fn standard() -> Result<Self> {
        Ok(Self::with(binaries::programs()?))
    }

    /// Returns the same with the programs of this build.
    pub fn with(programs: &Binaries) -> Self {
        let spec = Self::minimal().file("bin/blockring", programs.blockring());
        let tools = ["crashload", "redteam", "ringload", "ringmodel", "syscalls"];
        spec.tools_of(programs, &tools)
    }

    /// Adds these programs of the tests (`src/bin/test-tools/main.rs`) to `/bin`.
    pub fn tools(self, names: &[&str]) -> Result<Self> {
        Ok(self.tools_of(binaries::programs()?, names))
    }

    fn tools_of(mut self, programs: &Binaries, names: &[&str]) -> Self {
        for name in names {
            self.files.insert(format!("bin/{name}"), Content::Link("test-tools".to_owned()));
        }
        self.file("bin/test-tools", programs.test_tools())
    }

    /// Adds the kernel's drivers that leave a device to a process.
    #[must_use]
    pub fn passing(self) -> Self {
        PASSING_MODULES.into_iter().fold(self, Self::module)
    }

    /// Adds a kernel module by name (`vfio_pci`), loaded at boot after those added before.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Adds an executable file of the host at `guest_path` (no leading slash; its folder is one
    /// that every image has: `bin`, `lib`, `scripts`).
    #[must_use]
    pub fn file(mut self, guest_path: &str, host_path: impl Into<PathBuf>) -> Self {
        self.files.insert(guest_path.to_owned(), Content::File(host_path.into()));
        self
    }

    /// Adds an executable file with this text at `guest_path`, as with [`ImageSpec::file`].
    #[must_use]
    pub fn text(mut self, guest_path: &str, text: &str) -> Self {
        self.files.insert(guest_path.to_owned(), Content::Bytes(text.into()));
        self
    }

    /// Adds a script that [`GuestBuilder::script`](crate::GuestBuilder::script) can name.
    #[must_use]
    pub fn script(self, name: &str, text: &str) -> Self {
        self.text(&format!("scripts/{name}"), text)
    }

    /// Writes the image, unless one with the same content is there, and answers where it is.
    pub fn build(&self) -> Result<PathBuf> {
        let archive = self.archive()?;
        let folder = assets::cache_dir();
        let hash = XxHash3_128::oneshot(&archive);
        let image = folder.join(format!("initramfs-{hash:032x}.cpio"));
        if let Ok(file) = fs::File::options().append(true).open(&image) {
            // In use: keep it from those who clear up.
            let _ = file.set_modified(SystemTime::now());
            return Ok(image);
        }
        clear_old_images(&folder);
        // Written aside and renamed: whoever finds the image finds it whole.
        let file = tempfile::Builder::new().prefix("initramfs-").tempfile_in(&folder);
        let mut file = file.map_err(Error::file("writing in", &folder))?;
        file.write_all(&archive).map_err(Error::file("writing", file.path()))?;
        file.persist(&image).map_err(|failed| Error::file("renaming to", &image)(failed.error))?;
        Ok(image)
    }

    fn archive(&self) -> Result<Vec<u8>> {
        let folders = FOLDERS.map(|folder| (folder.to_owned(), FOLDER_MODE, Vec::new()));
        let mut entries = Vec::from(folders);
        entries.push(("bin/busybox".to_owned(), PROGRAM_MODE, read(&assets::busybox()?)?));
        entries.push(("bin/sh".to_owned(), LINK_MODE, b"busybox".to_vec()));
        for (index, name) in self.modules.iter().enumerate() {
            // The number keeps the order of loading.
            let path = format!("modules/{index:02}-{name}.ko");
            entries.push((path, PROGRAM_MODE, read(&assets::module(name)?)?));
        }
        for (guest_path, content) in &self.files {
            let (mode, bytes) = match content {
                Content::Bytes(bytes) => (PROGRAM_MODE, bytes.clone()),
                Content::File(path) => (PROGRAM_MODE, read(path)?),
                Content::Link(target) => (LINK_MODE, target.clone().into_bytes()),
            };
            entries.push((guest_path.clone(), mode, bytes));
        }
        pack(&entries).map_err(Error::io("packing the initramfs"))
    }
}

/// Times, owners and inode numbers are the same each time, so that equal content is an equal image.
fn pack(entries: &[(String, u32, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut archive = Vec::new();
    for (number, (name, mode, content)) in (1..).zip(entries) {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let entry = newc::Builder::new(name).ino(number).mode(*mode);
        let mut entry = entry.write(&mut archive, size);
        entry.write_all(content)?;
        entry.finish()?;
    }
    newc::trailer(&mut archive)?;
    Ok(archive)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::file("reading", path))
}

fn clear_old_images(folder: &Path) {
    let is_old = |path: &Path| {
        let modified = path.metadata().and_then(|metadata| metadata.modified());
        modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > IMAGE_LIFETIME))
    };
    // Only to save room: what cannot be listed or removed stays.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_image = entry.file_name().to_string_lossy().starts_with("initramfs-");
        if is_image && is_old(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
