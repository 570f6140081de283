//! The files that a front end shares as guest memory.
//!
//! A page of a memfd, of tmpfs or of hugetlbfs is there or is made by the kernel. A page of a file
//! system that another process or machine serves may never come: the thread that touches it waits
//! in the kernel, with whatever it holds, and nothing but the end of the process helps. So such
//! files are refused before they are touched. Even to ask for the file system, and to close the
//! file, may wait for that process or machine: a thread of its own does both.

use crate::data_path::dirty::GuestMemory;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::statfs::fstatfs;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// File systems that another process or machine serves, by their `statfs(2)` numbers: FUSE, NFS,
/// 9p, SMB (three), Ceph, AFS, Coda.
const SERVED_ELSEWHERE: [u32; 9] = [
    0x6573_5546,
    0x6969,
    0x0102_1997,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
];

/// How long the `statfs(2)` of a file may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The time between two looks whether a refused file can be closed.
const PAUSE: Duration = Duration::from_millis(50);

/// The remedy in error messages.
const REMEDY: &str = "share memory of the kernel's (QEMU: -object memory-backend-memfd,…,share=on)";

/// A thread that asks for a file system or closes a file has not ended.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Checks that no page of `memory` depends on another process.
///
/// # Errors
///
/// A region's file depends on one. It must not be touched.
pub fn check(memory: &GuestMemory) -> io::Result<()> {
    memory.iter().filter_map(|region| region.file_offset()).try_for_each(|at| check_file(at.arc()))
}

/// Checks that no page of `file` depends on another process.
///
/// # Errors
///
/// The file depends on one. It must not be touched.
pub fn check_file(file: &Arc<File>) -> io::Result<()> {
    // Only memfd, tmpfs and hugetlbfs know seals, and no other process is asked for the answer.
    if fcntl(file.as_ref(), FcntlArg::F_GET_SEALS).is_ok() {
        return Ok(());
    }
    if BUSY.swap(true, Ordering::AcqRel) {
        return refused("lies in a file while the file system of an earlier one does not answer");
    }
    let (answer, answers) = channel();
    let file = Arc::clone(file);
    let ask = std::thread::Builder::new().name("file system".to_owned());
    ask.spawn(move || ask_and_close(file, &answer))
        .inspect_err(|_| BUSY.store(false, Ordering::Release))?;
    match answers.recv_timeout(PATIENCE) {
        Ok(false) => Ok(()),
        Ok(true) => refused("lies in a file that another process or machine serves"),
        Err(_) => refused("lies in a file whose file system does not answer"),
    }
}

fn refused(why: &str) -> io::Result<()> {
    Err(io::Error::other(format!("guest memory {why}: {REMEDY}")))
}

/// Sends whether another process or machine serves the file. If one does, drops the last reference
/// to the file here.
fn ask_and_close(file: Arc<File>, answer: &Sender<bool>) {
    let served_elsewhere = fstatfs(file.as_ref()).is_ok_and(|about| {
        // The numbers have 32 bits; the type that holds them differs between machines.
        SERVED_ELSEWHERE.iter().any(|&number| {
            about.filesystem_type().0.cast_unsigned() & 0xffff_ffff == u64::from(number)
        })
    });
    if !served_elsewhere {
        // Before the answer, after which the next file may be asked about.
        BUSY.store(false, Ordering::Release);
    }
    // If it has taken too long, the file was refused and nobody receives the answer.
    let was_heard = answer.send(served_elsewhere).is_ok();
    if served_elsewhere || !was_heard {
        while Arc::strong_count(&file) > 1 {
            std::thread::sleep(PAUSE);
        }
        drop(file);
        BUSY.store(false, Ordering::Release);
    }
}
