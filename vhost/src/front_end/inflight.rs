//! The record of unfinished requests that a front end may ask for (vhost-user, "Inflight I/O
//! tracking"): memory that outlives the backend, and tells the next one what to carry out again.
//!
//! This backend completes in order, so what is unfinished is what lies behind the used index. Its
//! record is therefore empty at all times, which is true, and costs a request nothing: a backend
//! that knows the record goes on at the used index, too, and finds every request there. A record
//! that another backend has left may name requests before that index, which were overtaken: those
//! cannot be carried out in order, and the front end is told so.

use crate::front_end::backing;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserInflight;

/// The version of the record.
const VERSION: u16 = 1;

/// Bytes in front of a queue's descriptor states: features (8), version, number of descriptors,
/// head of the last batch, used index (2 each).
const HEADER: usize = 16;
const VERSION_AT: usize = 8;
const LAST_HEAD_AT: usize = 12;
const USED_AT: usize = 14;

/// Bytes of a descriptor's state, of which the first says whether a request that begins there is
/// unfinished.
const STATE: usize = 16;

/// What each queue's part is aligned to, as in other backends.
const ALIGNMENT: usize = 64;

/// The largest queue of the standard (virtio 1.3, 2.7).
const MAX_SIZE: u16 = 32_768;

/// A front end's record.
#[derive(Debug)]
pub struct Inflight {
    file: Arc<File>,
    offset: u64,
    queues: u16,
    size: u16,
}

/// Bytes of one queue's part.
fn part(size: u16) -> usize {
    (HEADER + STATE * usize::from(size)).next_multiple_of(ALIGNMENT)
}

fn header(size: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[VERSION_AT..][..2].copy_from_slice(&VERSION.to_ne_bytes());
    header[VERSION_AT + 2..][..2].copy_from_slice(&size.to_ne_bytes());
    header
}

fn field(part: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([part[at], part[at + 1]])
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Makes an empty record for `queues` queues of `size` descriptors.
///
/// # Errors
///
/// There is no queue, none is that large, or there is no memory.
pub fn make(queues: u16, size: u16) -> io::Result<(VhostUserInflight, File)> {
    if queues == 0 || !size.is_power_of_two() || size > MAX_SIZE {
        return Err(refused(format!(
            "there is no record for {queues} queues of {size} descriptors"
        )));
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"inflight", flags)?);
    let bytes = part(size) as u64 * u64::from(queues);
    for queue in 0..u64::from(queues) {
        file.write_all_at(&header(size), queue * part(size) as u64)?;
    }
    // Everything between is zero; the sandbox lets no file be cut or grown in another way.
    file.write_all_at(&[0], bytes - 1)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    let seals = nix::fcntl::SealFlag::from_bits_truncate(seals);
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
    Ok((VhostUserInflight::new(bytes, 0, queues, size), file))
}

impl Inflight {
    /// Accepts the record that a front end has kept.
    ///
    /// # Errors
    ///
    /// It is not one of as many queues, or its file is too short or depends on another process.
    pub fn new(about: &VhostUserInflight, file: File, most: usize) -> io::Result<Self> {
        let VhostUserInflight { mmap_size, mmap_offset, num_queues: queues, queue_size: size } =
            *about;
        let file = Arc::new(file);
        backing::check_file(&file)?;
        let needed = part(size) as u64 * u64::from(queues);
        let end = mmap_offset.checked_add(mmap_size);
        let is_there = end.is_some_and(|end| file.metadata().is_ok_and(|about| end <= about.len()));
        if usize::from(queues) > most
            || !size.is_power_of_two()
            || size > MAX_SIZE
            || mmap_size < needed
            || !is_there
        {
            return Err(refused(format!(
                "its record of unfinished requests ({mmap_size} bytes from {mmap_offset} on, descriptor {}) is none for {queues} queues \
                 of {size} descriptors, of which this disk has {most}",
                file.as_raw_fd()
            )));
        }
        Ok(Self { file, offset: mmap_offset, queues, size })
    }

    /// Takes over what the record says of a queue that starts at `used`. `head` returns the chain
    /// that the driver has put into the available ring under an index.
    ///
    /// # Errors
    ///
    /// Another backend has left requests unfinished that cannot be carried out in order, or the
    /// record cannot be read.
    pub fn resume(
        &self,
        queue: usize,
        used: u16,
        head: impl Fn(u16) -> io::Result<u16>,
    ) -> io::Result<()> {
        if queue >= usize::from(self.queues) {
            return Ok(());
        }
        let at = self.offset + (queue * part(self.size)) as u64;
        let mut bytes = vec![0; HEADER + STATE * usize::from(self.size)];
        self.file.read_exact_at(&mut bytes, at)?;
        if field(&bytes, VERSION_AT) == 0 {
            // Fresh memory, which the front end has made by itself.
            return self.file.write_all_at(&header(self.size), at);
        }
        let (states, last) = (&bytes[HEADER..], field(&bytes, LAST_HEAD_AT));
        // A backend that died after it had published the used index, and before it noted that.
        let noted = field(&bytes, USED_AT) == used;
        let unfinished: Vec<u16> = (0..self.size)
            .filter(|&head| states[STATE * usize::from(head)] != 0 && (noted || head != last))
            .collect();
        if unfinished.is_empty() {
            return Ok(());
        }
        let mut behind = Vec::new();
        for index in 0..u16::try_from(unfinished.len()).unwrap_or(self.size) {
            behind.push(head(used.wrapping_add(index))?);
        }
        behind.sort_unstable();
        if behind != unfinished {
            return Err(io::Error::other(
                "another backend has left requests of this guest unfinished that it took out of order, which this one cannot do: let that \
                 backend finish them, or start the guest again",
            ));
        }
        // They are found again behind the used index. The record is emptied before the first of
        // them is carried out.
        self.file.write_all_at(&vec![0; STATE * usize::from(self.size)], at + HEADER as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SIZE: u16 = 8;

    /// A record of two queues; in the second one these requests are unfinished.
    fn record(unfinished: &[u16], used: u16, last: u16) -> (File, Inflight) {
        let (about, file) = make(2, SIZE).unwrap();
        let at = part(SIZE) as u64;
        for &head in unfinished {
            file.write_all_at(&[1], at + (HEADER + STATE * usize::from(head)) as u64).unwrap();
        }
        file.write_all_at(&last.to_ne_bytes(), at + LAST_HEAD_AT as u64).unwrap();
        file.write_all_at(&used.to_ne_bytes(), at + USED_AT as u64).unwrap();
        (file.try_clone().unwrap(), Inflight::new(&about, file, 2).unwrap())
    }

    /// An available ring in which each index has the head of its number.
    fn resume(inflight: &Inflight, used: u16) -> io::Result<()> {
        inflight.resume(1, used, |index| Ok(index % SIZE))
    }

    #[test]
    fn record_of_ours_is_resumed_at_any_index() {
        let (file, inflight) = record(&[], 0, 0);
        assert!([0, 1, 65_535].into_iter().all(|used| resume(&inflight, used).is_ok()));
        assert!(file.set_len(0).is_err(), "it is sealed");
        assert_eq!(file.metadata().unwrap().len(), 2 * part(SIZE) as u64);
    }

    #[test]
    fn requests_that_another_backend_left_in_order_are_found_and_forgotten() {
        let (file, inflight) = record(&[5, 6], 5, 0);
        resume(&inflight, 5).unwrap();
        let mut left = vec![0; STATE * usize::from(SIZE)];
        file.read_exact_at(&mut left, (part(SIZE) + HEADER) as u64).unwrap();
        assert!(left.iter().all(|&byte| byte == 0));
        // The used index was published, and the answer not noted.
        let (_, inflight) = record(&[4, 5, 6], 4, 4);
        resume(&inflight, 5).unwrap();
    }

    #[test]
    fn requests_that_another_backend_has_overtaken_are_refused() {
        for unfinished in [&[4][..], &[5, 7], &[0, 5]] {
            let (_, inflight) = record(unfinished, 5, 0);
            let error = resume(&inflight, 5).unwrap_err();
            assert!(error.to_string().contains("out of order"), "{unfinished:?}");
        }
    }

    #[test]
    fn record_that_is_none_is_refused() {
        let (about, file) = make(2, SIZE).unwrap();
        let refused =
            |about: VhostUserInflight| Inflight::new(&about, file.try_clone().unwrap(), 2).is_err();
        for (size, offset, queues, length) in [
            (about.mmap_size, 1, 2, SIZE),
            (about.mmap_size, u64::MAX, 2, SIZE),
            (about.mmap_size - 1, 0, 2, SIZE),
            (about.mmap_size, 0, 3, SIZE),
            (about.mmap_size, 0, 2, SIZE + 1),
            (about.mmap_size, 0, 2, 2 * SIZE),
            (u64::MAX, 0, 2, SIZE),
        ] {
            assert!(refused(VhostUserInflight::new(size, offset, queues, length)));
        }
        assert!(make(0, SIZE).is_err());
        assert!(make(1, 3).is_err() && make(1, 0).is_err() && make(1, 65_535).is_err());
        // Made by the front end, and empty.
        let (pipe, _writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        assert!(Inflight::new(&about, pipe, 2).is_err());
    }
}
