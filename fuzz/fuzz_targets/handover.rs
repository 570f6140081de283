//! Messages of the hand-over, from either side: a message or an error, and no descriptor that came
//! with one is left open.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use shared_block_ring::handover::{Answer, DESCRIPTORS, Hello, receive, receive_words, send};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, RawFd};

#[derive(Debug, Arbitrary)]
struct Input {
    bytes: Vec<u8>,
    descriptors: u8,
    hello: bool,
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

fuzz_target!(|input: Input| {
    let before = open_descriptors();
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (ours, theirs) = pair.expect("a pair of sockets");
    let rights: Vec<RawFd> = vec![theirs.as_raw_fd(); usize::from(input.descriptors)];
    let control = [ControlMessage::ScmRights(&rights)];
    let control: &[ControlMessage<'_>] = if rights.is_empty() { &[] } else { &control };
    let sent = sendmsg::<()>(
        theirs.as_raw_fd(),
        &[IoSlice::new(&input.bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    );
    drop(theirs);
    // A message that is too long for the socket never leaves.
    if sent.is_ok() {
        if input.hello {
            if let Ok(hello) = receive_words::<Hello>(ours.as_fd()) {
                assert!(rights.is_empty());
                let text = serde_json::to_value(&hello).expect("JSON");
                assert!(text.is_object());
            }
        } else if let Ok((answer, got)) = receive::<Answer>(ours.as_fd()) {
            assert!(got.len() <= DESCRIPTORS);
            // The peer is gone: an error, not a signal.
            assert!(send(ours.as_fd(), &answer, &[]).is_err());
        }
    }
    drop(ours);
    assert_eq!(open_descriptors(), before, "a descriptor was left open");
});
