#![allow(clippy::unwrap_used)]
use super::super::export::parse;
use super::super::scene::{TestLane, ring};
use super::*;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, recvmsg};
use std::io::{IoSliceMut, Read, Seek};
use std::os::fd::RawFd;

/// A journal's socket.
struct Journal {
    _folder: tempfile::TempDir,
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Journal {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { _folder: folder, path, socket: Some(socket) }
    }

    /// Returns the next record, and whether it came as a file.
    fn record(&self) -> (Vec<u8>, bool) {
        let socket = self.socket.as_ref().unwrap();
        let mut bytes = vec![0; 1 << 20];
        let mut space = cmsg_space!(RawFd);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let length = received.bytes;
        let mut descriptors = Vec::new();
        for message in received.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(given) = message else { panic!("{message:?}") };
            for descriptor in given {
                descriptors.push(File::open(format!("/proc/self/fd/{descriptor}")).unwrap());
                nix::unistd::close(descriptor).unwrap();
            }
        }
        let Some(descriptor) = descriptors.pop() else {
            bytes.truncate(length);
            return (bytes, false);
        };
        assert!(length == 0 && descriptors.is_empty());
        let seals = fcntl(&descriptor, FcntlArg::F_GET_SEALS).unwrap();
        let all = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SEAL;
        assert_eq!(SealFlag::from_bits_truncate(seals), all);
        let mut file = descriptor;
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        (bytes, true)
    }

    fn message(&self) -> Vec<u8> {
        let record = self.record().0;
        let fields = parse(&record).unwrap();
        assert!(fields.iter().any(|f| (f.name, f.value) == ("SYSLOG_IDENTIFIER", b"vm1")));
        fields.iter().find(|field| field.name == "MESSAGE").unwrap().value.to_vec()
    }
}

#[test]
fn records_are_datagrams_and_long_ones_sealed_files() {
    let journal = Journal::new();
    let mut sink = Local::new(&journal.path).unwrap();
    let (mut lane, arrived) = TestLane::ready(&mut sink, &ring("vm1"));
    assert_eq!(arrived, None);
    let mut entry = b"MESSAGE=hi\n".to_vec();
    super::super::export::put(&mut entry, "LONG", &vec![b'y'; 63 << 10]).unwrap();
    let long = vec![b'x'; LONGEST_DATAGRAM + 1];
    let end = lane.send(&[b"a\0\n\xff", &entry[..], &long, b"last"]);
    let (plain, is_file) = journal.record();
    assert!(!is_file);
    let fields = parse(&plain).unwrap();
    assert_eq!(fields.last().unwrap().value, b"a\0\n\xff");
    assert!(fields.iter().all(|field| !field.name.starts_with('_')));
    assert!(!journal.record().1);
    let (record, is_file) = journal.record();
    assert!(is_file);
    assert_eq!(parse(&record).unwrap().last().unwrap().value, long);
    assert_eq!(journal.message(), b"last");
    lane.await_arrival(end);
}

#[test]
fn record_beyond_the_socket_s_limit_comes_as_a_file() {
    let journal = Journal::new();
    let mut writer = Writer::new(&journal.path, Arc::default());
    writer.connect().unwrap();
    // A buffer so small that no datagram of this size fits.
    setsockopt(writer.socket.as_ref().unwrap(), sockopt::SndBuf, &4096).unwrap();
    let (sender, _events) = channel();
    let wake = nix::sys::eventfd::EventFd::new().unwrap();
    let events = Reporter::new(super::super::super::LaneId(1), sender, Arc::new(wake));
    let way = Way { facts: ring("vm1"), events, is_closed: AtomicBool::new(false) };
    let payload = vec![b'x'; 20_000];
    let (position, next) = (Position::ZERO, Position::new(64).unwrap());
    let item = Item { range: 0..payload.len(), position, next, time: None };
    assert!(writer.put(&way, &item, &payload).unwrap());
    let (record, is_file) = journal.record();
    assert!(is_file);
    assert_eq!(parse(&record).unwrap().last().unwrap().value, payload);
}

#[test]
fn full_socket_makes_the_ring_wait() {
    let journal = Journal::new();
    let mut sink = Local::new(&journal.path).unwrap();
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    // More than the queue of any socket takes.
    let items: Vec<_> = (0..20_000).map(|number| format!("{number}")).collect();
    let end = lane.send(&items);
    let (first, last) = items.split_at(items.len() / 2);
    for item in first {
        assert!(lane.is_silent(), "acknowledged before item {item} was taken");
        assert_eq!(journal.message(), item.as_bytes());
    }
    for item in last {
        assert_eq!(journal.message(), item.as_bytes());
    }
    lane.await_arrival(end);
}

#[test]
fn journal_that_goes_away_fails_the_lane_and_the_next_one_goes_on() {
    let mut journal = Journal::new();
    let mut sink = Local::new(&journal.path).unwrap();
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    let end = lane.send(&["a"]);
    lane.await_arrival(end);
    assert_eq!(journal.message(), b"a");
    journal.socket = None;
    std::fs::remove_file(&journal.path).unwrap();
    // A child that another test starts meanwhile has a copy of the socket until it runs its own
    // program.
    let error = loop {
        lane.send(&["b"]);
        match lane.event() {
            Event::Failed(error) => break error,
            Event::Acknowledged(_) => {}
            _ => panic!("neither failed nor sent"),
        }
    };
    assert!(
        error.kind == SinkErrorKind::Retry && error.message.contains("systemd-journald"),
        "{error}"
    );
    let lane = TestLane::open(&mut sink, &ring("vm1"));
    let Event::Failed(error) = lane.event() else { panic!("not failed") };
    assert!(error.message.contains("No such file"), "{error}");
    journal.socket = Some(UnixDatagram::bind(&journal.path).unwrap());
    let (mut lane, _) = TestLane::ready(&mut sink, &ring("vm1"));
    let end = lane.send(&["b"]);
    lane.await_arrival(end);
    assert_eq!(journal.message(), b"b");
}

#[test]
fn lane_that_nobody_wants_makes_no_other_wait() {
    let journal = Journal::new();
    let mut sink = Local::new(&journal.path).unwrap();
    let (mut stuck, _) = TestLane::ready(&mut sink, &ring("vm1"));
    let items = vec!["x"; 20_000];
    stuck.send(&items);
    // The socket is full, and stays so.
    drop(stuck);
    TestLane::ready(&mut sink, &ring("vm1"));
}
