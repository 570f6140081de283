//! Conversations of a hostile front end: bytes, messages, and descriptors of every kind, over guest
//! memory that changes meanwhile.

use crate::messages::{MEMORY, Messages, USER_ADDRESS, VERSION, ask, memory, opening, words};
use arbitrary::{Arbitrary, Unstructured};
use nix::sys::eventfd::{EfdFlags, EventFd};
use shared_block_ring::wait::wait_readable;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Number of steps of a conversation at most: the answers to them fit a socket's buffer.
const STEPS: usize = 64;

/// Time in which an idle backend answers a request.
const MOMENT: Duration = Duration::from_millis(1);

/// Bytes and descriptors of one message at most: more than the protocol allows.
const BYTES: usize = 512;
const FILES: usize = 40;

/// The steps of one front end, from its connection on.
#[derive(Debug)]
pub struct Conversation {
    /// Whether it starts as an honest front end does.
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
    /// A message that an honest front end starts with.
    Usual(u8),
    Bytes {
        bytes: Vec<u8>,
        files: Files,
    },
    /// The guest makes a request available.
    Ask {
        index: u8,
        sector: u16,
    },
    Poke {
        at: u16,
        value: u64,
    },
    Kick,
    /// Waits for an interrupt, for a moment at most.
    Pause,
    /// Cuts the memory to that many pages.
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

/// Kinds of descriptors, and how often all of them are sent.
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

/// The descriptors that messages come with.
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
    /// Takes all steps, and waits until the backend has hung up.
    ///
    /// # Panics
    /// Where the backend does not.
    pub fn lead(&self, messages: Messages) {
        let things = Things::new();
        if self.begun {
            messages.start(&things.memory, &things.kick, &things.call);
        }
        for step in &self.steps {
            step.take(&messages, &things);
        }
        // The backend deals with all steps before it finds the end.
        messages.leaves();
    }
}

impl Step {
    fn take(&self, messages: &Messages, things: &Things) {
        match self {
            Self::Message { code, flags, size, body, files } => {
                let mut body = body.bytes();
                body.truncate(BYTES);
                let size =
                    size.as_ref().map_or_else(|| body.len() as u64, |size| size.get().into());
                let flags = flags.map_or(VERSION, u32::from);
                let size = u32::try_from(size).unwrap_or(u32::MAX);
                let head = words(&[(*code).into(), flags, size]);
                let _ = messages.raw(&[head, body].concat(), &files.get(things));
            }
            Self::Usual(which) => {
                let usual = opening(&things.memory, &things.kick, &things.call);
                let (code, body, files) = &usual[usize::from(*which) % usual.len()];
                messages.send(*code, body, files);
            }
            Self::Bytes { bytes, files } => {
                let _ = messages.raw(&bytes[..bytes.len().min(BYTES)], &files.get(things));
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
            1 << 15 | 1 << 12 | 1 << 9 | 1 << 3 | 1,
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
