//! A disk that several hosts share.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::error::{Error, Result};
use crate::{Daemon, Disk, qmp};

/// Bound on the server's start.
const START: Duration = Duration::from_secs(60);

/// A raw file that QEMU's storage daemon serves over NBD. Each host has an export of its own, so
/// that the server can shut out one of them.
#[derive(Debug)]
pub struct Lun {
    socket: PathBuf,
    control: PathBuf,
    /// Killed when this is dropped.
    _server: Daemon,
}

impl Lun {
    /// Makes the file of that many bytes in `dir`, and starts its server.
    pub fn serve(dir: &Path, bytes: u64, hosts: &[&str]) -> Result<Self> {
        let file = dir.join("lun");
        let made = File::create(&file).and_then(|file| file.set_len(bytes));
        made.map_err(Error::file("making", &file))?;
        let (socket, control) = (dir.join("lun.nbd"), dir.join("lun.control"));
        let mut command = Command::new("qemu-storage-daemon");
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=lun,filename={}", file.display()))
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .arg("--chardev")
            .arg(format!("socket,id=control,path={},server=on,wait=off", control.display()))
            .args(["--monitor", "chardev=control"]);
        for host in hosts {
            command.arg("--export");
            command.arg(format!("nbd,id={host},node-name=lun,name={host},writable=on"));
        }
        let mut server = Daemon::spawn("lun", command, dir)?;
        let asks = |_: &Daemon| qmp::execute(&control, "query-block-exports", &json!({})).is_ok();
        server.wait_for("answering", START, asks)?;
        Ok(Self { socket, control, _server: server })
    }

    /// Returns the disk of one of the hosts.
    pub fn disk(&self, host: &str) -> Disk {
        let socket = self.socket.clone();
        Disk::Network { socket, export: host.to_owned(), options: String::new() }
    }

    /// Shuts a host out for good: when this returns, no request of it can reach the file any more.
    pub fn revoke(&self, host: &str) -> Result<()> {
        // The command closes the connections and returns; the export is gone once the requests in
        // flight have ended.
        qmp::execute(&self.control, "block-export-del", &json!({ "id": host, "mode": "hard" }))?;
        let is_gone = || {
            let exports = qmp::execute(&self.control, "query-block-exports", &json!({}));
            exports.is_ok_and(|all| {
                all.as_array().is_some_and(|all| all.iter().all(|export| export["id"] != host))
            })
        };
        if crate::wait_until(START, is_gone) {
            return Ok(());
        }
        Err(Error::Answer { what: format!("revoking {host}"), answer: "it stays".to_owned() })
    }
}
