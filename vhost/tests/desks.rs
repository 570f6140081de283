//! The consumer sockets of many rings, which one thread serves.
#![allow(clippy::unwrap_used)]

use crate::common::daemon::Scene;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, shutdown, socket,
};
use ring_test_support::RingFile;
use ring_test_support::beside::beside;
use ring_test_support::process::eventually;
use shared_block_ring::device::bell::{new_event, new_page};
use shared_block_ring::format::Side;
use shared_block_ring::handover::{
    Answer, Hello, Reply, Request, Role, VERSION, receive, refuse_descriptors, send,
};
use shared_block_ring::wait::wait_readable;
use shared_block_ring::{BlockDevice, Error, UnixDevice};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use vhost_device_blockring::daemon::condition::Condition;
use vhost_device_blockring::daemon::failure::Failure;
use vhost_device_blockring::daemon::handover::{
    DeskId, Estate, Handover, Reopening, Suspend, reopen,
};
use vhost_device_blockring::daemon::peer::Admission;
use vhost_device_blockring::daemon::sockets::{Access, Listening};
use vhost_device_blockring::data_path::counters::Counters;
use vhost_device_blockring::data_path::fault::Losses;

/// Long enough to fail a test, not to pass one.
const LONG: Duration = Duration::from_secs(60);

/// A ring and the path of its consumer socket.
struct Ring {
    file: RingFile,
    socket: PathBuf,
    /// What its clients know it by: a count among the counters.
    number: u64,
}

impl Ring {
    fn new(number: u64) -> Self {
        let file = RingFile::new(64 << 10, 512);
        let socket = file.path.with_extension("socket");
        Self { file, socket, number }
    }

    fn listen(&self) -> Listening {
        let access = Access::default();
        let listening = Listening::on(&self.socket, SockType::SeqPacket, &access).unwrap();
        refuse_descriptors(listening.fd().as_fd());
        listening
    }

    fn estate(&self, suspend: Suspend) -> Estate {
        let open = || File::options().read(true).write(true).open(&self.file.path).unwrap();
        let geometry = self.file.open().geometry();
        let counters = Arc::new(Counters::default());
        counters.suspends.add(self.number);
        let losses = Losses::new().unwrap();
        Estate {
            reopen: reopening(open()),
            geometry,
            guest: Side::Producer,
            guarded: true,
            page: new_page().unwrap(),
            to_host: Arc::new(new_event().unwrap()),
            to_backend: Arc::new(new_event().unwrap()),
            condition: Arc::new(Condition::new(open(), geometry, &counters, &losses)),
            counters,
            admission: Admission { users: vec![nix::unistd::geteuid()], groups: Vec::new() },
            suspend,
        }
    }

    /// Adds a desk that must not fail.
    fn open(&self, handover: &Handover) -> DeskId {
        let estate = self.estate(Box::new(|_| Ok(true)));
        handover.add(self.listen(), estate, || panic!("the desk has failed")).unwrap()
    }

    /// Adds a desk, and returns its listening socket as another process has it.
    fn open_shared(
        &self,
        handover: &Handover,
        failed: impl FnOnce() + Send + 'static,
    ) -> (DeskId, OwnedFd) {
        let listening = self.listen();
        let shared = listening.fd().try_clone().unwrap();
        let estate = self.estate(Box::new(|_| Ok(true)));
        (handover.add(listening, estate, failed).unwrap(), shared)
    }

    fn connect(&self, role: Role) -> Result<UnixDevice, Error> {
        UnixDevice::connect(&self.socket, role)
    }

    /// Whether a client is answered, and for this ring.
    fn answers(&self) {
        let counters = self.connect(Role::Control).unwrap().counters();
        assert_eq!(counters["suspends"], self.number);
    }
}

fn dial(path: &Path) -> nix::Result<OwnedFd> {
    let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    let client = socket(AddressFamily::Unix, kind, flags, None)?;
    connect(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(client)
}

/// Connects, and asks for the region without a role.
fn ask(path: &Path) -> io::Result<OwnedFd> {
    let client = dial(path)?;
    send(client.as_fd(), &Hello { version: VERSION, role: Role::Control }, &[])?;
    receive::<Answer>(client.as_fd())?;
    Ok(client)
}

/// Whether the other end has closed the connection.
fn is_closed(client: &OwnedFd) -> bool {
    wait_readable(&[client.as_fd()], Some(Duration::ZERO)).unwrap().is_some()
        && receive::<Answer>(client.as_fd()).is_err()
}

fn reopening(file: File) -> Reopening {
    Box::new(move |writing| reopen(&file, writing))
}

#[test]
fn each_of_many_rings_has_clients_of_its_own() {
    let handover = Handover::start().unwrap();
    let rings: Vec<_> = (0..50).map(Ring::new).collect();
    let mut ids: Vec<_> = rings.iter().map(|ring| ring.open(&handover)).collect();
    let clients: Vec<_> = rings.iter().map(|ring| ask(&ring.socket).unwrap()).collect();
    rings.iter().for_each(Ring::answers);
    for client in &clients {
        send(client.as_fd(), &Request::Suspend(false), &[]).unwrap();
    }
    for client in &clients {
        assert!(matches!(receive(client.as_fd()).unwrap().0, Reply::Done));
    }
    let consumers: Vec<_> =
        rings[..5].iter().map(|ring| ring.connect(Role::Consumer).unwrap()).collect();
    for ring in &rings[..5] {
        let refused = ring.connect(Role::Consumer).map(drop);
        assert!(matches!(refused, Err(Error::RoleTaken { role: Side::Consumer, .. })));
    }
    drop(consumers);
    // Every second one goes.
    for (index, ring) in rings.iter().enumerate().rev().step_by(2) {
        handover.remove(ids.remove(index)).unwrap();
        assert!(is_closed(&clients[index]) && !ring.socket.exists());
    }
    for (index, ring) in rings.iter().enumerate().step_by(2) {
        ring.answers();
        assert!(!is_closed(&clients[index]));
    }
    handover.finish().unwrap();
    assert!(rings.iter().all(|ring| !ring.socket.exists()));
    assert!(clients.iter().all(is_closed));
}

#[test]
fn flood_at_one_ring_delays_no_other_ring() {
    let handover = Handover::start().unwrap();
    let [attacked, other, third] = [1, 2, 3].map(Ring::new);
    let _ids = [attacked.open(&handover), other.open(&handover)];
    let demanding = ask(&attacked.socket).unwrap();
    let connects = || drop(dial(&attacked.socket).unwrap());
    let demands = || {
        send(demanding.as_fd(), &Request::Suspend(false), &[]).unwrap();
        receive::<Reply>(demanding.as_fd()).unwrap();
    };
    let test = || {
        for _ in 0..50 {
            other.answers();
            attacked.answers();
            // Whoever adds and removes rings is not kept waiting, either.
            let id = third.open(&handover);
            third.answers();
            handover.remove(id).unwrap();
        }
    };
    beside(connects, || beside(demands, test));
    handover.finish().unwrap();
}

#[test]
fn removal_closes_the_connections_of_the_ring_alone() {
    let handover = Handover::start().unwrap();
    let [gone, other] = [1, 2].map(Ring::new);
    let (id, _other) = (gone.open(&handover), other.open(&handover));
    let (served, silent) = (ask(&gone.socket).unwrap(), dial(&gone.socket).unwrap());
    let stays = ask(&other.socket).unwrap();
    handover.remove(id).unwrap();
    assert!(is_closed(&served) && is_closed(&silent) && !is_closed(&stays));
    assert!(!gone.socket.exists() && other.socket.exists());
    assert_eq!(dial(&gone.socket).map(drop), Err(Errno::ENOENT));
    // The name, and the rest of the ring, are free for the next desk.
    let id = gone.open(&handover);
    gone.answers();
    other.answers();
    handover.remove(id).unwrap();
}

#[test]
fn rings_that_come_and_go_while_clients_send_disturb_nobody() {
    let handover = Handover::start().unwrap();
    let [coming, other] = [1, 2].map(Ring::new);
    let _other = other.open(&handover);
    let sends = || {
        let Ok(client) = dial(&coming.socket) else { return };
        let _ = send(client.as_fd(), &Hello { version: VERSION, role: Role::Control }, &[]);
        for _ in 0..10 {
            // The answers are not read.
            let _ = send(client.as_fd(), &Request::Suspend(false), &[]);
        }
    };
    let test = || {
        for _ in 0..200 {
            let id = coming.open(&handover);
            std::thread::yield_now();
            handover.remove(id).unwrap();
            assert!(!coming.socket.exists());
        }
        let id = coming.open(&handover);
        coming.answers();
        other.answers();
        handover.remove(id).unwrap();
    };
    beside(sends, || beside(sends, test));
    handover.finish().unwrap();
}

#[test]
fn socket_that_is_shut_down_ends_its_ring_alone() {
    for how in [Shutdown::Read, Shutdown::Both] {
        let handover = Handover::start().unwrap();
        let [failing, other] = [1, 2].map(Ring::new);
        let (tell, failed) = mpsc::channel();
        let (id, socket) = failing.open_shared(&handover, move || tell.send(()).unwrap());
        let _other = other.open(&handover);
        let client = ask(&failing.socket).unwrap();
        shutdown(socket.as_raw_fd(), how).unwrap();
        failed.recv_timeout(LONG).unwrap();
        assert!(is_closed(&client) && !failing.socket.exists());
        other.answers();
        // It is not called again.
        assert!(failed.recv_timeout(LONG).is_err());
        let failure = handover.remove(id).unwrap_err();
        assert!(matches!(failure, Failure::ShutDown(_)), "{failure}");
        let name = failing.socket.display().to_string();
        assert!(failure.to_string().starts_with(&name), "{failure}");
        handover.finish().unwrap();
    }
}

#[test]
fn first_failure_is_returned_at_the_end() {
    let handover = Handover::start().unwrap();
    let rings = [1, 2, 3].map(Ring::new);
    let _first = rings[0].open(&handover);
    let (tell, failed) = mpsc::channel();
    for ring in &rings[1..] {
        let tell = tell.clone();
        let (_, socket) = ring.open_shared(&handover, move || tell.send(()).unwrap());
        shutdown(socket.as_raw_fd(), Shutdown::Both).unwrap();
    }
    for _ in 1..rings.len() {
        failed.recv_timeout(LONG).unwrap();
    }
    let failure = handover.finish().unwrap_err().to_string();
    assert!(failure.starts_with(&rings[1].socket.display().to_string()), "{failure}");
    assert!(rings.iter().all(|ring| !ring.socket.exists()));
}

#[test]
fn panic_ends_its_ring_alone() {
    let handover = Handover::start().unwrap();
    let [failing, other] = [1, 2].map(Ring::new);
    let estate = failing.estate(Box::new(|_| panic!("in a test")));
    let (tell, failed) = mpsc::channel();
    let call = move || {
        tell.send(()).unwrap();
        panic!("in a test, too");
    };
    let id = handover.add(failing.listen(), estate, call).unwrap();
    let _other = other.open(&handover);
    let client = ask(&failing.socket).unwrap();
    send(client.as_fd(), &Request::Suspend(true), &[]).unwrap();
    failed.recv_timeout(LONG).unwrap();
    assert!(is_closed(&client) && !failing.socket.exists());
    other.answers();
    let failure = handover.remove(id).unwrap_err().to_string();
    assert_eq!(failure, "cannot serve clients: the thread has panicked");
    handover.finish().unwrap();
}

#[test]
fn call_of_a_failure_may_wait_for_whoever_adds_and_removes_rings() {
    let handover = Arc::new(Handover::start().unwrap());
    let [failing, other, third] = [1, 2, 3].map(Ring::new);
    let lock = Arc::new(Mutex::new(()));
    let third_id = third.open(&handover);
    let (tell, failed) = mpsc::channel();
    let (waits_for, uses) = (Arc::clone(&lock), Arc::clone(&handover));
    let (id, socket) = failing.open_shared(&handover, move || {
        tell.send(()).unwrap();
        drop(waits_for.lock());
        uses.remove(third_id).unwrap();
        drop(uses);
        tell.send(()).unwrap();
    });
    let held = lock.lock().unwrap();
    shutdown(socket.as_raw_fd(), Shutdown::Both).unwrap();
    failed.recv_timeout(LONG).unwrap();
    handover.remove(id).unwrap_err();
    let id = other.open(&handover);
    handover.remove(id).unwrap();
    let _id = other.open(&handover);
    drop(held);
    failed.recv_timeout(LONG).unwrap();
    assert!(!third.socket.exists());
    other.answers();
    Arc::into_inner(handover).unwrap().finish().unwrap();
}

#[test]
fn silent_clients_of_several_rings_are_given_up_in_their_time() {
    let handover = Handover::start().unwrap();
    let rings = [1, 2, 3].map(Ring::new);
    let _ids = rings.each_ref().map(|ring| ring.open(&handover));
    let served = ask(&rings[0].socket).unwrap();
    let begun = Instant::now();
    let silent = rings.each_ref().map(|ring| dial(&ring.socket).unwrap());
    for client in &silent {
        assert_eq!(wait_readable(&[client.as_fd()], Some(LONG)).unwrap(), Some(0));
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert!(is_closed(client));
    }
    assert!(!is_closed(&served));
    handover.finish().unwrap();
}

#[test]
fn idle_thread_sleeps() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let _consumer = scene.connect(Role::Consumer).unwrap();
    let _client = ask(&scene.path("c")).unwrap();
    let tasks = format!("/proc/{}/task", daemon.0.id());
    let is_ours = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "handover\n")
    };
    let mut all = std::fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().path());
    let thread = all.find(is_ours).unwrap();
    let sleeps = || {
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.unwrap().to_owned()
    };
    // Longer than a client is waited for: the patience with those that were answered is over, too.
    eventually("the thread sleeps", || {
        let before = sleeps();
        std::thread::sleep(Duration::from_millis(1500));
        sleeps() == before
    });
}

/// Sets the daemon's limit of open descriptors, and returns the limit before.
fn limit(daemon: u32, most: libc::rlim_t) -> libc::rlim_t {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let pid = daemon.cast_signed();
    // SAFETY: the kernel writes one structure to a local.
    let read =
        unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before) };
    Errno::result(read).unwrap();
    let limit = libc::rlimit { rlim_cur: most, ..before };
    // SAFETY: the kernel reads one structure of a local.
    let written =
        unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    Errno::result(written).unwrap();
    before.rlim_cur
}

#[test]
fn clients_are_served_while_no_connection_can_be_accepted() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    let client = ask(&scene.path("c")).unwrap();
    let before = limit(daemon.0.id(), 3);
    let waits = dial(&scene.path("c")).unwrap();
    send(waits.as_fd(), &Hello { version: VERSION, role: Role::Control }, &[]).unwrap();
    eventually("it cannot be accepted", || scene.logged("c: a client was lost: EMFILE") > 0);
    assert!(scene.log().contains("LimitNOFILE="), "{}", scene.log());
    for _ in 0..100 {
        send(client.as_fd(), &Request::Suspend(false), &[]).unwrap();
        receive::<Reply>(client.as_fd()).unwrap();
    }
    assert_eq!(wait_readable(&[waits.as_fd()], Some(Duration::ZERO)).unwrap(), None);
    limit(daemon.0.id(), before);
    receive::<Answer>(waits.as_fd()).unwrap();
}
