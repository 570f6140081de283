//! Sockets in a folder whose owner replaces every name in it as fast as possible: nothing outside
//! of the folder changes.
#![allow(clippy::unwrap_used)]

use crate::common::user::{GROUP, USER, as_user};
use nix::sys::socket::SockType;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, geteuid};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vhost_device_blockring::daemon::sockets::{Access, Listening};

/// Sockets that are made in that folder.
const STARTS: u32 = 1000;

/// Returns the properties of a file that may not change.
fn about(path: &Path) -> (u32, u32, u32) {
    let about = fs::metadata(path).unwrap();
    (about.uid(), about.gid(), about.mode())
}

/// Replaces each name in `folder` by a link to each of `victims` in turn. Returns the number of
/// names replaced.
fn replace_all(folder: &Path, victims: &[&Path], turn: u64) -> u64 {
    let victim = victims[usize::try_from(turn).unwrap() % victims.len()];
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let mut replaced = 0;
    for entry in entries.flatten() {
        let name = entry.path();
        let away = folder.join("away");
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link || name == away {
            // A socket that an earlier daemon has left.
            let _ = fs::remove_file(&name).or_else(|_| fs::remove_dir(&name));
        } else if fs::rename(&name, &away).is_ok() && symlink(victim, &name).is_ok() {
            replaced += 1;
        }
    }
    replaced
}

#[test]
fn socket_in_folder_of_an_attacker_changes_nothing_else() {
    if !geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    // Files of root's alone: one, and one in a folder, of the name that drafts of sockets have.
    let [file, vault, folder] = ["file", "vault", "folder"].map(|name| dir.path().join(name));
    let inside = vault.join("s");
    fs::create_dir(&vault).unwrap();
    for path in [&file, &inside] {
        fs::write(path, "precious").unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    fs::set_permissions(&vault, Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(USER), Some(GROUP)).unwrap();
    let all = [&*file, &*vault, &*inside];
    let before = all.map(about);
    let access = Access {
        mode: Mode::from_bits_truncate(0o666),
        owner: Some(Uid::from_raw(USER)),
        group: Some(Gid::from_raw(GROUP)),
    };
    let (replaced, turn) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            as_user(USER, GROUP, || {
                while !over.load(Ordering::Relaxed) {
                    let turn = turn.fetch_add(1, Ordering::Relaxed);
                    let count = replace_all(&folder, &[&file, &vault], turn);
                    replaced.fetch_add(count, Ordering::Relaxed);
                }
            });
        });
        for _ in 0..STARTS {
            // The attacker decides whether there is a socket in the end: it is his folder.
            drop(Listening::on(&folder.join("socket"), SockType::Stream, &access));
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(all.map(about), before);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert_eq!(fs::read(&inside).unwrap(), b"precious");
    assert!(replaced.load(Ordering::Relaxed) > 0, "nothing was attacked");
}
