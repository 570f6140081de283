//! Conversations of a front end of bad faith: bytes, messages, and descriptors of every kind, over guest memory that changes meanwhile.

use crate::front_end::{FrontEnd, MEMORY, USER_ADDRESS, VERSION, ask, memory, opening, words};
use arbitrary::{Arbitrary, Unstructured};
use nix::sys::eventfd::{EfdFlags, EventFd};
use shared_block_ring::wait::wait_readable;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Steps of a conversation at most: what is answered to them fits a socket's buffer.
const STEPS: usize = 64;

/// A backend at rest needs less for one request.
const MOMENT: Duration = Duration::from_millis(1);

/// Bytes and descriptors with one message at most: more than there may be.
const BYTES: usize = 512;
const FILES: usize = 40;

/// What a front end does from its arrival on.
#[derive(Debug)]
pub struct Conversation {
    /// It starts as it should.
    begun: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Message {
        code: u8,
        flags: Option<u8>,
        size: Option<Word>,
        body: Body,
        files: Files,
    },
    /// One of those that an honest front end starts with.
    Usual(u8),
    Bytes {
        bytes: Vec<u8>,
        files: Files,
    },
    /// The guest.
    Ask {
        index: u8,
        sector: u16,
    },
    Poke {
        at: u16,
        value: u64,
    },
    Kick,
    /// Until the guest is interrupted, or a moment.
    Pause,
    /// So many pages are left of the memory.
    Cut(u8),
}

#[derive(Debug, Arbitrary)]
enum Body {
    Empty,
    Word(Word),
    /// An index or an offset, and a number.
    Pair(Word, Word),
    Long(Long),
    Regions(Vec<[Long; 4]>),
    /// One region, behind padding.
    Region([Long; 4]),
    Addresses(Word, Word, [Long; 4]),
    Config(Word, Word, Word, Vec<u8>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Word {
    Small(u8),
    Edge(u8),
    Any(u32),
}

#[derive(Debug, Arbitrary)]
enum Long {
    Small(u8),
    Pages(u8),
    User(u16),
    Edge(u8),
    Any(u64),
}

/// Kinds of descriptors, and how often all of them.
#[derive(Debug, Arbitrary)]
struct Files {
    kinds: Vec<u8>,
    times: u8,
}

impl<'a> Arbitrary<'a> for Conversation {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let begun = input.arbitrary()?;
        let mut steps = Vec::new();
        while !input.is_empty() && steps.len() < STEPS {
            steps.push(input.arbitrary()?);
        }
        Ok(Self { begun, steps })
    }
}

/// What messages come with.
struct Things {
    memory: File,
    kick: OwnedFd,
    call: OwnedFd,
    pipe: (OwnedFd, OwnedFd),
    socket: UnixStream,
}

impl Things {
    fn new() -> Self {
        let event = |flags: EfdFlags| {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | flags).expect("an event").into()
        };
        Self {
            memory: memory(),
            kick: event(EfdFlags::empty()),
            call: event(EfdFlags::EFD_NONBLOCK),
            pipe: nix::unistd::pipe().expect("a pipe"),
            socket: UnixStream::pair().expect("a pair").0,
        }
    }

    fn get(&self, kind: u8) -> BorrowedFd<'_> {
        match kind % 6 {
            0 => self.memory.as_fd(),
            1 => self.kick.as_fd(),
            2 => self.call.as_fd(),
            3 => self.pipe.0.as_fd(),
            4 => self.pipe.1.as_fd(),
            _ => self.socket.as_fd(),
        }
    }
}

impl Conversation {
    /// Leads it to its end, after which the backend has hung up.
    ///
    /// # Panics
    /// Where it does not.
    pub fn lead(&self, front_end: FrontEnd) {
        let things = Things::new();
        if self.begun {
            front_end.start(&things.memory, &things.kick, &things.call);
        }
        for step in &self.steps {
            step.take(&front_end, &things);
        }
        // The backend has dealt with everything before it finds this out.
        let _ = front_end.0.shutdown(std::net::Shutdown::Write);
        front_end.ends();
    }
}

impl Step {
    fn take(&self, front_end: &FrontEnd, things: &Things) {
        match self {
            Self::Message { code, flags, size, body, files } => {
                let mut body = body.bytes();
                body.truncate(BYTES);
                let size =
                    size.as_ref().map_or_else(|| body.len() as u64, |size| size.get().into());
                let flags = flags.map_or(VERSION, u32::from);
                let size = u32::try_from(size).unwrap_or(u32::MAX);
                let head = words(&[(*code).into(), flags, size]);
                let _ = front_end.raw(&[head, body].concat(), &files.get(things));
            }
            Self::Usual(which) => {
                let messages = opening(&things.memory, &things.kick, &things.call);
                let (code, body, files) = &messages[usize::from(*which) % messages.len()];
                front_end.send(*code, body, files);
            }
            Self::Bytes { bytes, files } => {
                let _ = front_end.raw(&bytes[..bytes.len().min(BYTES)], &files.get(things));
            }
            Self::Ask { index, sector } => ask(&things.memory, (*index).into(), (*sector).into()),
            Self::Poke { at, value } => {
                let at = u64::from(*at) % (MEMORY - 8);
                things.memory.write_all_at(&value.to_ne_bytes(), at).expect("memory");
            }
            Self::Kick => drop(nix::unistd::write(&things.kick, &1u64.to_ne_bytes())),
            Self::Pause => {
                wait_readable(&[things.call.as_fd()], Some(MOMENT)).expect("a poll");
                // Not readable: the moment is over.
                let _ = nix::unistd::read(&things.call, &mut [0; 8]);
            }
            Self::Cut(pages) => {
                let left = u64::from(*pages) * 4096 % (MEMORY + 4096);
                things.memory.set_len(left).expect("memory");
            }
        }
    }
}

impl Files {
    fn get<'a>(&self, things: &'a Things) -> Vec<BorrowedFd<'a>> {
        let all = self.kinds.iter().map(|&kind| things.get(kind));
        std::iter::repeat_n(all, usize::from(self.times)).flatten().take(FILES).collect()
    }
}

impl Body {
    fn bytes(&self) -> Vec<u8> {
        let longs = |longs: &[Long]| -> Vec<u8> {
            longs.iter().flat_map(|long| long.get().to_ne_bytes()).collect()
        };
        match self {
            Self::Empty => Vec::new(),
            Self::Word(word) => words(&[word.get()]),
            Self::Pair(first, second) => words(&[first.get(), second.get()]),
            Self::Long(long) => long.get().to_ne_bytes().to_vec(),
            Self::Regions(regions) => {
                let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
                let regions = regions.iter().flat_map(|region| longs(region));
                words(&[count, 0]).into_iter().chain(regions).collect()
            }
            Self::Region(region) => [vec![0; 8], longs(region)].concat(),
            Self::Addresses(index, flags, addresses) => {
                [words(&[index.get(), flags.get()]), longs(addresses)].concat()
            }
            Self::Config(offset, size, flags, bytes) => {
                [words(&[offset.get(), size.get(), flags.get()]), bytes.clone()].concat()
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Word {
    fn get(&self) -> u32 {
        const EDGES: [u32; 8] = [4096, 256, 1 << 30, 1 << 31, u32::MAX, 0x8000, 257, 0xffff];
        match self {
            Self::Small(word) => (*word).into(),
            Self::Edge(index) => EDGES[usize::from(*index) % EDGES.len()],
            Self::Any(word) => *word,
        }
    }
}

impl Long {
    fn get(&self) -> u64 {
        // Among them the features that there are.
        const EDGES: [u64; 8] = [
            1 << 32 | 1 << 30,
            1 << 32,
            1 << 9 | 1 << 15 | 1 << 3 | 1,
            u64::MAX,
            u64::MAX - 4095,
            1 << 63,
            1 << 8,
            MEMORY,
        ];
        match self {
            Self::Small(long) => (*long).into(),
            Self::Pages(pages) => u64::from(*pages) << 12,
            Self::User(at) => USER_ADDRESS + u64::from(*at),
            Self::Edge(index) => EDGES[usize::from(*index) % EDGES.len()],
            Self::Any(long) => *long,
        }
    }
}
