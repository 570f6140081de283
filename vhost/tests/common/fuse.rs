//! A file on FUSE whose server stops answering, or is slow (`linux/fuse.h`). Mounting it takes
//! root.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::CString;
use std::fs::File;
use std::io::{Error, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of a file that cannot be read.
pub const LEN: u64 = 4 << 20;

const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const INIT: u32 = 26;

/// The mount. It goes, and with it every wait for it, when this does.
pub struct FuseFile {
    path: PathBuf,
    /// The connection lives as long as this is open.
    _device: File,
    stalled: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    server: Option<JoinHandle<()>>,
    /// To close one may wait for the server: not before the mount is gone.
    opened: Vec<File>,
}

impl FuseFile {
    /// Mounts one that cannot be read over a new file at `path`.
    pub fn mount(path: &Path) -> Self {
        Self::mount_with(path, Contents { len: LEN, bytes: Vec::new(), pause: Duration::ZERO })
    }

    /// Mounts one with these bytes, each read of which takes so long.
    pub fn mount_slow(path: &Path, bytes: Vec<u8>, pause: Duration) -> Self {
        Self::mount_with(path, Contents { len: bytes.len() as u64, bytes, pause })
    }

    fn mount_with(path: &Path, contents: Contents) -> Self {
        File::create(path).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options =
            format!("fd={},rootmode=100000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        let (place, flags) = (c_path(path), libc::MS_NODEV | libc::MS_NOSUID);
        // SAFETY: all are strings that live through the call.
        let mounted = unsafe {
            let kind = c"fuse".as_ptr();
            libc::mount(kind, place.as_ptr(), kind, flags, options.as_ptr().cast())
        };
        assert_eq!(mounted, 0, "{}", Error::last_os_error());
        let stalled = Arc::new(AtomicBool::new(false));
        let reads = Arc::new(AtomicU64::new(0));
        let (file, stop, count) =
            (device.try_clone().unwrap(), Arc::clone(&stalled), Arc::clone(&reads));
        let server = Some(std::thread::spawn(move || serve(file, &stop, &contents, &count)));
        Self { path: path.to_owned(), _device: device, stalled, reads, server, opened: Vec::new() }
    }

    /// How often it was read.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Opens it. The descriptor is open as long as this lives.
    pub fn open(&mut self) -> RawFd {
        let file = File::options().read(true).write(true).open(&self.path).unwrap();
        // Its attributes are known to the kernel from here on.
        assert_eq!(file.metadata().unwrap().len(), LEN);
        let number = file.as_raw_fd();
        self.opened.push(file);
        number
    }

    /// From now on no request is even read: those who wait can be killed.
    pub fn stall(&mut self) {
        self.stalled.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        // With force: it ends every request.
        let place = c_path(&self.path);
        for flags in [libc::MNT_FORCE, libc::MNT_DETACH] {
            // SAFETY: a string that lives through the call.
            unsafe { libc::umount2(place.as_ptr(), flags) };
        }
        self.stalled.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// What the server answers with.
struct Contents {
    len: u64,
    /// None of a file that cannot be read.
    bytes: Vec<u8>,
    /// Before each answer to a read.
    pause: Duration,
}

impl Contents {
    fn read(&self, from: u64, size: u32) -> (i32, Vec<u8>) {
        if self.bytes.is_empty() {
            return (-libc::ENOSYS, Vec::new());
        }
        std::thread::sleep(self.pause);
        let from = usize::try_from(from).unwrap().min(self.bytes.len());
        let to = (from + size as usize).min(self.bytes.len());
        (0, self.bytes[from..to].to_vec())
    }
}

fn serve(mut device: File, stalled: &AtomicBool, contents: &Contents, reads: &AtomicU64) {
    let mut request = vec![0; 1 << 17];
    while !stalled.load(Ordering::Relaxed) {
        let mut wait = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wait, PollTimeout::from(20u8)).unwrap() == 0 {
            continue;
        }
        // Unmounted, or taken back by who asked.
        let Ok(len) = device.read(&mut request) else { return };
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        assert!(len >= 40);
        let (error, body) = match word(4) {
            INIT => (0, init()),
            GETATTR => (0, attributes(contents.len)),
            READ => {
                reads.fetch_add(1, Ordering::Relaxed);
                let from = u64::from_ne_bytes(request[48..56].try_into().unwrap());
                contents.read(from, word(56))
            }
            OPEN => (0, vec![0; 16]),
            STATFS => (0, vec![0; 80]),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut answer = Vec::new();
        answer.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        answer.extend(error.to_ne_bytes());
        answer.extend(&request[8..16]);
        answer.extend(body);
        // One that wants no answer gets an error for it.
        let _ = device.write(&answer);
    }
}

/// `struct fuse_init_out` of version 7.31: no flags.
fn init() -> Vec<u8> {
    let mut body = vec![0; 64];
    for (at, value) in [(0, 7u32), (4, 31), (8, 4096), (20, 4096)] {
        body[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    body
}

/// `struct fuse_attr_out` of a regular file of everybody's, valid for a day.
fn attributes(len: u64) -> Vec<u8> {
    let mut body = vec![0; 104];
    body[..8].copy_from_slice(&86_400u64.to_ne_bytes());
    body[16..24].copy_from_slice(&1u64.to_ne_bytes());
    body[24..32].copy_from_slice(&len.to_ne_bytes());
    let mode = libc::S_IFREG | 0o666;
    for (at, value) in [(76, mode), (80, 1), (96, 4096)] {
        body[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    body
}
