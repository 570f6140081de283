//! How a backend hands its region to a process on the host: one message each way over a UNIX
//! socket.
//!
//! The client says who it wants to be, the backend answers with the ring's facts and descriptors.
//! For a role these are: the region (a fresh open file description, on which the backend has taken
//! the role's lock: it dies with the client), the page of the [bells](crate::device::bell), and an
//! event for each direction. The connection then stays open and carries nothing more: its end is
//! how each side learns of the other's.
//!
//! A client without a role gets a description of the region for reading, and nothing else. What it
//! may change it asks the backend for ([`Request`]), which answers each request.

use crate::format::Side;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Version of this protocol. A backend refuses a client with a version that it does not know.
pub const VERSION: u32 = 1;

/// A message's size at most: a few facts, or the counters.
const MAX_MESSAGE: usize = 16 * 1024;

/// Descriptors in the answer to a client with a role: region, page, event to the host, event to the
/// backend.
pub const DESCRIPTORS: usize = 4;

/// Role that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The ring's only producer, for a guest that consumes.
    Producer,
    /// The ring's only consumer, for a guest that produces.
    Consumer,
    /// Neither: to look, suspend and resume.
    Control,
}

impl From<Side> for Role {
    fn from(side: Side) -> Self {
        match side {
            Side::Producer => Self::Producer,
            Side::Consumer => Self::Consumer,
        }
    }
}

/// The client's message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// As what it wants the region.
    pub role: Role,
}

/// The backend's message.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The descriptors come with it.
    Welcome {
        /// Bytes in a sector.
        sector_size: u32,
        /// Sectors of the region.
        sectors: u64,
        /// The role of the guest.
        guest: Role,
        /// Whether nobody but the consumer can make published bytes change: the guest is the
        /// producer, and the guard is on. A backend that does not say so does not promise it.
        #[serde(default)]
        guarded: bool,
        /// The backend's counters.
        counters: serde_json::Value,
    },
    /// The backend refuses the client.
    Refused {
        /// The reason, with what to do about it.
        reason: String,
        /// Process that has the role already, if it is known.
        held_by: Option<i32>,
        /// Whether the reason is that another client has the role.
        held: bool,
    },
}

/// A later message of a client without a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Sets whether the ring's producer is to stop.
    Suspend(bool),
}

/// The backend's answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The flag is stored in the region, and not yet durable.
    Done,
    /// The flag is not stored, since another process edits the sector. The client asks again.
    Busy,
    /// The flag is not stored, for this reason.
    Failed(String),
}

/// Option of a socket's level that refuses descriptors when they are sent (`SO_PASSRIGHTS`, Linux
/// 6.16).
const PASS_RIGHTS: libc::c_int = 83;

/// Has the kernel refuse descriptors that others send to `socket`, and to what is accepted on it.
/// An older kernel takes them, and [`receive_words`] closes them.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) {
    const BYTES: libc::socklen_t = 4;
    let no: libc::c_int = 0;
    // SAFETY: the option is a number that the kernel reads from a local of that size.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            PASS_RIGHTS,
            (&raw const no).cast(),
            BYTES,
        )
    };
}

/// Receives one message, and no descriptors: this process never has one that was sent along. To
/// close what another process has sent can take as long as that process likes, where the descriptor
/// is of a file system that it serves.
pub fn receive_words<T: for<'a> Deserialize<'a>>(socket: BorrowedFd<'_>) -> io::Result<T> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let (len, flags) = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, None, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            other => break other.map(|message| (message.bytes, message.flags))?,
        }
    };
    if flags.intersects(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors are not taken"));
    }
    decode(&bytes[..len], flags)
}

/// The message that `bytes` are.
fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8], flags: MsgFlags) -> io::Result<T> {
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Descriptors that the kernel passes with one message at most (`SCM_MAX_FD`). There is room for
/// all of them: of those that do not fit, some would be open in this process, and nobody would know
/// their numbers.
const MAX_DESCRIPTORS: usize = 253;

/// Sends one message, with descriptors.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one message. The sockets keep messages apart (`SOCK_SEQPACKET`); an empty one is the
/// end.
pub fn receive<T: for<'a> Deserialize<'a>>(
    socket: BorrowedFd<'_>,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let (len, flags, descriptors) = receive_bytes(socket, &mut bytes)?;
    if descriptors.len() > DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
    }
    Ok((decode(&bytes[..len], flags)?, descriptors))
}

/// Receives bytes of a stream, at least one unless it has ended, and the descriptors that came with
/// the last of them.
pub fn receive_part(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    // The kernel ends a read behind bytes that descriptors came with.
    let (len, _, descriptors) = receive_bytes(socket, bytes)?;
    Ok((len, descriptors))
}

fn receive_bytes(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, MsgFlags, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut buffers = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows
            // them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, message.flags, descriptors))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn receive_words_takes_no_descriptor() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let hello = Hello { version: VERSION, role: Role::Control };
        send(theirs.as_fd(), &hello, &[writer.as_fd()]).unwrap();
        let error = receive_words::<Hello>(ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        send(theirs.as_fd(), &hello, &[]).unwrap();
        assert_eq!(receive_words::<Hello>(ours.as_fd()).unwrap().role, Role::Control);
        // The other end of what was sent hears of the end: ours was the last one open.
        drop(writer);
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
        // Where the kernel can refuse them, the sender is told.
        refuse_descriptors(ours.as_fd());
        match send(theirs.as_fd(), &hello, &[reader.as_fd()]) {
            Ok(()) => assert!(receive_words::<Hello>(ours.as_fd()).is_err()),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied, "{e}"),
        }
    }

    #[test]
    fn receive_closes_descriptors_beyond_the_expected_number() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let hello = Hello { version: VERSION, role: Role::Control };
        for count in [0, 1, DESCRIPTORS, DESCRIPTORS + 1, MAX_DESCRIPTORS] {
            send(theirs.as_fd(), &hello, &vec![writer.as_fd(); count]).unwrap();
            let received = receive::<Hello>(ours.as_fd()).map(|(_, descriptors)| descriptors.len());
            assert_eq!(received.ok(), (count <= DESCRIPTORS).then_some(count));
        }
        // Its other end hears of the end: ours was the last one open.
        drop(writer);
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
    }
}
