//! SIGBUS, each time in a process of its own: what is watched is repaired, and everything else goes
//! its way as without this handler.
#![allow(clippy::unwrap_used)]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use ring_test_support::executor_disk::{Disk, open};
use ring_test_support::worker_disk::{Direct, Payload};
use shared_block_ring::MappedDevice;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event};
use shared_block_ring::device::{BlockDevice, Mapping, Memory};
use shared_block_ring::format::{Geometry, SectorSize, Side};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vhost_device_blockring::data_path::dirty::GuestMemory;
use vhost_device_blockring::data_path::fault::{Losses, Owner, Watched, catch};
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vm_memory::{Bytes, FileOffset, GuestAddress};

/// Names the test whose other half the process is to run.
const CASE: &str = "BLOCKRING_FAULT_CASE";

/// Bytes of memory that is taken away.
const LEN: u64 = 4 * 4096;

/// Runs the other half of a test, in this process if it is the one for that. `name` is the test's.
fn apart(name: &str, half: fn()) -> Output {
    if std::env::var(CASE).is_ok_and(|case| case == name) {
        setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
        half();
        exit(0);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(CASE, name);
    command.output().unwrap()
}

fn ends_by_sigbus(output: &Output) {
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

fn ends_with(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
}

fn shared() -> File {
    let file = File::from(memfd_create("shared", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(LEN).unwrap();
    file
}

/// Meets a page that was taken away, in memory that is not watched.
fn meet_a_hole() -> u64 {
    let file = shared();
    let mapping = Mapping::new(file.try_clone().unwrap(), LEN).unwrap();
    HOLE.store(mapping.addresses().start, Ordering::Relaxed);
    file.set_len(0).unwrap();
    mapping.load_u64(0)
}

/// Where it is.
static HOLE: AtomicUsize = AtomicUsize::new(0);

fn set(handler: SigHandler, flags: SaFlags) {
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the handlers of this file end the process, by a call that a handler may make.
    unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
}

#[test]
fn fault_elsewhere_ends_the_process_as_it_would_without_the_handler() {
    let output = apart("fault_elsewhere_ends_the_process_as_it_would_without_the_handler", || {
        // The watch ends with the memory.
        drop(ring());
        catch().unwrap();
        let _watched = ring();
        meet_a_hole();
    });
    ends_by_sigbus(&output);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("vhost-device-blockring"), "{text}");
}

extern "C" fn with_siginfo(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a whole siginfo.
    let info = unsafe { &*info };
    // SAFETY: it is that of a fault.
    let address = unsafe { info.si_addr() }.addr();
    let same = signal == libc::SIGBUS && address == HOLE.load(Ordering::Relaxed);
    let code = if same && !context.is_null() { 42 } else { 43 };
    // SAFETY: may be called in a signal handler.
    unsafe { libc::_exit(code) };
}

extern "C" fn with_number(signal: libc::c_int) {
    // SAFETY: may be called in a signal handler.
    unsafe { libc::_exit(signal) };
}

#[test]
fn fault_elsewhere_reaches_the_previous_handler_with_the_same_siginfo() {
    let output =
        apart("fault_elsewhere_reaches_the_previous_handler_with_the_same_siginfo", || {
            set(SigHandler::SigAction(with_siginfo), SaFlags::empty());
            catch().unwrap();
            meet_a_hole();
        });
    ends_with(&output, 42);
}

#[test]
fn fault_elsewhere_reaches_a_previous_handler_without_siginfo() {
    let output = apart("fault_elsewhere_reaches_a_previous_handler_without_siginfo", || {
        set(SigHandler::Handler(with_number), SaFlags::empty());
        catch().unwrap();
        meet_a_hole();
    });
    ends_with(&output, libc::SIGBUS);
}

#[test]
fn second_catch_does_not_take_the_handler_for_its_own_previous_one() {
    let output = apart("second_catch_does_not_take_the_handler_for_its_own_previous_one", || {
        set(SigHandler::SigAction(with_siginfo), SaFlags::empty());
        catch().unwrap();
        catch().unwrap();
        meet_a_hole();
    });
    ends_with(&output, 42);
}

#[test]
fn ignored_fault_ends_the_process_as_the_kernel_has_it() {
    let output = apart("ignored_fault_ends_the_process_as_the_kernel_has_it", || {
        set(SigHandler::SigIgn, SaFlags::empty());
        catch().unwrap();
        meet_a_hole();
    });
    ends_by_sigbus(&output);
}

#[test]
fn sigbus_that_was_sent_and_is_ignored_is_ignored() {
    let output = apart("sigbus_that_was_sent_and_is_ignored_is_ignored", || {
        set(SigHandler::SigIgn, SaFlags::empty());
        catch().unwrap();
        raise(Signal::SIGBUS).unwrap();
        // The handler is still there.
        let ring = ring();
        ring.file.set_len(0).unwrap();
        assert_eq!(ring.sector(), [0; 512]);
    });
    ends_with(&output, 0);
}

#[test]
fn sigbus_that_was_sent_ends_the_process_by_default() {
    let output = apart("sigbus_that_was_sent_ends_the_process_by_default", || {
        set(SigHandler::SigDfl, SaFlags::empty());
        catch().unwrap();
        raise(Signal::SIGBUS).unwrap();
    });
    ends_by_sigbus(&output);
}

/// A region, its file, and what was lost of it.
struct Ring {
    device: Watched<MappedDevice>,
    file: File,
    losses: Losses,
}

fn ring() -> Ring {
    let file = shared();
    let geometry = Geometry::new(SectorSize::DEFAULT, LEN / 512).unwrap();
    let device = MappedDevice::new(file.try_clone().unwrap(), "ring", geometry).unwrap();
    let losses = Losses::new().unwrap();
    Ring { device: Watched::new(device, Owner::Ring, &losses), file, losses }
}

impl Ring {
    /// A sector behind the first page.
    fn sector(&self) -> [u8; 512] {
        let mut sector = [1; 512];
        self.device.read(9, &mut [IoSliceMut::new(&mut sector)]).unwrap();
        sector
    }

    /// Whether the ring's event says that memory was lost.
    fn has_event(&self) -> bool {
        let mut polled = [PollFd::new(self.losses.fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
    }
}

#[test]
fn region_that_is_truncated_is_lost_and_the_process_goes_on() {
    let output = apart("region_that_is_truncated_is_lost_and_the_process_goes_on", || {
        catch().unwrap();
        let ring = ring();
        ring.file.set_len(4096).unwrap();
        assert!(!ring.losses.anything_lost() && !ring.has_event());
        assert_eq!(ring.sector(), [0; 512]);
        assert!(ring.losses.anything_lost() && ring.losses.region_lost() && ring.has_event());
        assert!(!ring.losses.guest_lost() && !ring.losses.take_guest_lost());
        assert!(!ring.has_event(), "it is reset");
        // Of something else it is the end all the same.
        meet_a_hole();
    });
    ends_by_sigbus(&output);
}

#[test]
fn bell_page_that_is_taken_away_is_lost_with_the_ring() {
    let output = apart("bell_page_that_is_taken_away_is_lost_with_the_ring", || {
        catch().unwrap();
        let page = shared();
        let bell = Bell::new(&page, new_event().unwrap(), Sleeper::Host).unwrap();
        let losses = Losses::new().unwrap();
        let bell = Watched::new(bell, Owner::Ring, &losses);
        page.set_len(0).unwrap();
        assert!(!bell.ring(), "nobody sleeps on a page of zeros");
        assert!(losses.region_lost());
    });
    ends_with(&output, 0);
}

fn guest(file: &File) -> Arc<GuestMemory> {
    let file = FileOffset::new(file.try_clone().unwrap(), 0);
    let len = usize::try_from(file.file().metadata().unwrap().len()).unwrap();
    Arc::new(GuestMemory::from_ranges_with_files([(GuestAddress(0), len, Some(file))]).unwrap())
}

#[test]
fn guest_memory_that_is_taken_back_is_lost_and_the_process_goes_on() {
    let output = apart("guest_memory_that_is_taken_back_is_lost_and_the_process_goes_on", || {
        catch().unwrap();
        let (file, losses) = (shared(), Losses::new().unwrap());
        let memory = Watched::new(guest(&file), Owner::FrontEnd, &losses);
        memory.write_obj(7u64, GuestAddress(0)).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(2 * 4096)).unwrap(), 0);
        assert!(losses.guest_lost() && losses.take_guest_lost() && !losses.region_lost());
        // A page is replaced, and no more.
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0)).unwrap(), 7);
        losses.forget_guest();
        assert!(!losses.guest_lost() && !losses.take_guest_lost());
    });
    ends_with(&output, 0);
}

#[test]
fn guest_memory_is_not_repaired_once_it_is_not_watched_any_more() {
    let output = apart("guest_memory_is_not_repaired_once_it_is_not_watched_any_more", || {
        catch().unwrap();
        let file = shared();
        let memory = guest(&file);
        let losses = Losses::new().unwrap();
        drop(Watched::new(Arc::clone(&memory), Owner::FrontEnd, &losses));
        file.set_len(0).unwrap();
        let _ = memory.read_obj::<u64>(GuestAddress(0));
    });
    ends_by_sigbus(&output);
}

#[test]
fn region_that_is_truncated_is_lost_to_its_own_ring_alone() {
    let output = apart("region_that_is_truncated_is_lost_to_its_own_ring_alone", || {
        catch().unwrap();
        let (whole, cut) = (ring(), ring());
        cut.file.set_len(0).unwrap();
        assert_eq!(cut.sector(), [0; 512]);
        assert!(cut.losses.region_lost() && cut.has_event());
        whole.device.write(9, &[IoSlice::new(&[7; 512])]).unwrap();
        assert_eq!(whole.sector(), [7; 512]);
        assert!(!whole.losses.anything_lost() && !whole.has_event());
        // Its turn comes when its own memory goes.
        whole.file.set_len(0).unwrap();
        assert_eq!(whole.sector(), [0; 512]);
        assert!(whole.losses.region_lost() && whole.has_event());
    });
    ends_with(&output, 0);
}

#[test]
fn requests_of_another_ring_succeed_when_a_region_is_truncated() {
    let output = apart("requests_of_another_ring_succeed_when_a_region_is_truncated", || {
        catch().unwrap();
        let serve = || {
            let disk = Disk::new(Side::Producer);
            let (file, losses) = (open(&disk.path), disk.executor.losses().clone());
            let flusher =
                Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters))
                    .unwrap();
            (Direct::with_queues(disk, 1, flusher), file, losses)
        };
        let [(whole, _file, none), (cut, file, losses)] = [serve(), serve()];
        let write = |direct: &Direct| {
            let place = direct.put(0, 0, 3, Payload::Write(&[7; 512]));
            direct.turn();
            direct.status(place)
        };
        assert_eq!([write(&whole), write(&cut)], [Some(0); 2]);
        file.set_len(0).unwrap();
        assert_eq!([write(&cut), write(&cut)], [Some(1); 2], "the one that met the hole, too");
        assert_eq!([write(&whole), write(&whole)], [Some(0); 2]);
        assert!(losses.region_lost() && !none.anything_lost());
    });
    ends_with(&output, 0);
}

#[test]
fn front_end_that_takes_back_memory_is_let_go_alone() {
    let output = apart("front_end_that_takes_back_memory_is_let_go_alone", || {
        catch().unwrap();
        let [(other, others), (file, losses)] =
            [(); 2].map(|()| (shared(), Losses::new().unwrap()));
        let whole = Watched::new(guest(&other), Owner::FrontEnd, &others);
        let cut = Watched::new(guest(&file), Owner::FrontEnd, &losses);
        whole.write_obj(7u64, GuestAddress(4096)).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(cut.read_obj::<u64>(GuestAddress(4096)).unwrap(), 0);
        assert!(losses.take_guest_lost() && !others.take_guest_lost() && !others.anything_lost());
        assert_eq!(whole.read_obj::<u64>(GuestAddress(4096)).unwrap(), 7);
        // Neither do they forget for each other.
        others.forget_guest();
        assert!(losses.guest_lost());
    });
    ends_with(&output, 0);
}

#[test]
fn ring_that_is_served_after_a_lost_one_has_lost_nothing() {
    let output = apart("ring_that_is_served_after_a_lost_one_has_lost_nothing", || {
        catch().unwrap();
        for _ in 0..3 {
            // Takes what the one before has left.
            let ring = ring();
            assert!(!ring.losses.anything_lost() && !ring.has_event());
            ring.file.set_len(0).unwrap();
            assert_eq!(ring.sector(), [0; 512]);
            assert!(ring.losses.region_lost() && ring.has_event());
        }
    });
    ends_with(&output, 0);
}

#[test]
fn guest_memory_with_many_holes_takes_few_mappings() {
    let output = apart("guest_memory_with_many_holes_takes_few_mappings", || {
        catch().unwrap();
        let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let (file, losses) = (shared(), Losses::new().unwrap());
        file.set_len(400 * 4096).unwrap();
        let memory = Watched::new(guest(&file), Owner::FrontEnd, &losses);
        let before = mappings();
        file.set_len(0).unwrap();
        for page in (0..400).step_by(2) {
            assert_eq!(memory.read_obj::<u64>(GuestAddress(page * 4096)).unwrap(), 0);
        }
        assert!(losses.guest_lost());
        assert!(mappings() < before + 40, "{before} have become {}", mappings());
    });
    ends_with(&output, 0);
}
