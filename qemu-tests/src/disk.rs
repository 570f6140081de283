//! The guest's disks, as QEMU's command line has them.

use std::path::{Path, PathBuf};

/// A virtio disk of the guest. The first is `/dev/vda`.
#[derive(Debug, Clone)]
pub enum Disk {
    /// Served by a vhost-user back end, which also gives it its serial number.
    VhostUser {
        /// The back end's socket; it must be bound when the guest boots.
        socket: PathBuf,
        /// QEMU's option by which it connects again when the back end goes away: `reconnect=1`.
        reconnect: Option<String>,
        /// More properties of the device: `queue-size=256`. May be empty.
        options: String,
    },
    /// A raw file, served by QEMU through the host's page cache (`cache=writeback`, its default): a
    /// flush of the guest is an fdatasync, and works on tmpfs too.
    File {
        /// The file; its size is the disk's.
        path: PathBuf,
        /// The serial number the guest sees.
        serial: String,
        /// More properties of the device. May be empty.
        options: String,
    },
    /// A disk on the network (NBD), which other machines may have, too. QEMU keeps nothing of it in
    /// a cache. An error of the connection is an I/O error in the guest at once.
    Network {
        /// The server's socket.
        socket: PathBuf,
        /// The name of the export.
        export: String,
        /// More properties of the device. May be empty.
        options: String,
    },
}

impl Disk {
    /// Makes a disk of the vhost-user back end at `socket`.
    pub fn vhost_user(socket: impl Into<PathBuf>) -> Self {
        Self::VhostUser { socket: socket.into(), reconnect: None, options: String::new() }
    }

    /// Makes a disk in a raw file.
    pub fn file(path: impl Into<PathBuf>, serial: impl Into<String>) -> Self {
        Self::File { path: path.into(), serial: serial.into(), options: String::new() }
    }

    /// Lets QEMU connect again, after a second, when the back end went away. Only for disks of a
    /// vhost-user back end.
    #[must_use]
    pub fn reconnecting(self) -> Self {
        self.reconnecting_by("reconnect=1")
    }

    /// The same with another of QEMU's options: from 9.2 on there is `reconnect-ms=50`.
    #[must_use]
    pub fn reconnecting_by(mut self, option: &str) -> Self {
        if let Self::VhostUser { reconnect, .. } = &mut self {
            *reconnect = Some(option.to_owned());
        }
        self
    }

    /// Adds device properties: `queue-size=256`.
    #[must_use]
    pub fn options(mut self, more: &str) -> Self {
        let (Self::VhostUser { options, .. }
        | Self::File { options, .. }
        | Self::Network { options, .. }) = &mut self;
        if !options.is_empty() {
            options.push(',');
        }
        options.push_str(more);
        self
    }

    /// QEMU's arguments for the disk with this index.
    pub(crate) fn arguments(&self, index: usize) -> Vec<String> {
        let (kind, source, device, options) = match self {
            Self::VhostUser { socket, reconnect, options } => {
                let mut source = format!("socket,id=c{index},path={}", quote(socket));
                if let Some(reconnect) = reconnect {
                    source.push(',');
                    source.push_str(reconnect);
                }
                let device = format!("vhost-user-blk-pci,chardev=c{index}");
                ("-chardev", source, device, options)
            }
            Self::File { path, serial, options } => {
                let source = format!("file={},format=raw,if=none,id=d{index}", quote(path));
                let device = format!("virtio-blk-pci,drive=d{index},serial={serial}");
                ("-drive", source, device, options)
            }
            Self::Network { socket, export, options } => {
                let socket = quote(socket);
                let source = format!(
                    "file.driver=nbd,file.server.type=unix,file.server.path={socket},\
                     file.export={export},format=raw,cache=none,if=none,id=d{index}"
                );
                ("-drive", source, format!("virtio-blk-pci,drive=d{index}"), options)
            }
        };
        let comma = if options.is_empty() { "" } else { "," };
        vec![kind.to_owned(), source, "-device".to_owned(), format!("{device}{comma}{options}")]
    }
}

/// Quotes a path for QEMU's option lists, in which a comma is written twice.
fn quote(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}
