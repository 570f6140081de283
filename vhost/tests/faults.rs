//! SIGBUS, each time in a process of its own: what is watched is repaired, and everything else goes
//! its way as without this handler.
#![allow(clippy::unwrap_used)]

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use shared_block_ring::MappedDevice;
use shared_block_ring::device::bell::{Bell, Sleeper, new_event};
use shared_block_ring::device::{BlockDevice, Mapping, Memory};
use shared_block_ring::format::{Geometry, SectorSize};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vhost_device_blockring::data_path::dirty::GuestMemory;
use vhost_device_blockring::data_path::fault::{Faults, Owner, Watched, guest_lost, region_lost};
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
        let _faults = Faults::catch().unwrap();
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
            let _faults = Faults::catch().unwrap();
            meet_a_hole();
        });
    ends_with(&output, 42);
}

#[test]
fn fault_elsewhere_reaches_a_previous_handler_without_siginfo() {
    let output = apart("fault_elsewhere_reaches_a_previous_handler_without_siginfo", || {
        set(SigHandler::Handler(with_number), SaFlags::empty());
        let _faults = Faults::catch().unwrap();
        meet_a_hole();
    });
    ends_with(&output, libc::SIGBUS);
}

#[test]
fn second_catch_does_not_take_the_handler_for_its_own_previous_one() {
    let output = apart("second_catch_does_not_take_the_handler_for_its_own_previous_one", || {
        set(SigHandler::SigAction(with_siginfo), SaFlags::empty());
        drop(Faults::catch().unwrap());
        let _faults = Faults::catch().unwrap();
        meet_a_hole();
    });
    ends_with(&output, 42);
}

#[test]
fn ignored_fault_ends_the_process_as_the_kernel_has_it() {
    let output = apart("ignored_fault_ends_the_process_as_the_kernel_has_it", || {
        set(SigHandler::SigIgn, SaFlags::empty());
        let _faults = Faults::catch().unwrap();
        meet_a_hole();
    });
    ends_by_sigbus(&output);
}

#[test]
fn sigbus_that_was_sent_and_is_ignored_is_ignored() {
    let output = apart("sigbus_that_was_sent_and_is_ignored_is_ignored", || {
        set(SigHandler::SigIgn, SaFlags::empty());
        let _faults = Faults::catch().unwrap();
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
        let _faults = Faults::catch().unwrap();
        raise(Signal::SIGBUS).unwrap();
    });
    ends_by_sigbus(&output);
}

/// A region, and its file.
struct Ring {
    device: Watched<MappedDevice>,
    file: File,
}

fn ring() -> Ring {
    let file = shared();
    let geometry = Geometry::new(SectorSize::DEFAULT, LEN / 512).unwrap();
    let device = MappedDevice::new(file.try_clone().unwrap(), "ring", geometry).unwrap();
    Ring { device: Watched::new(device, Owner::Ring), file }
}

impl Ring {
    /// A sector behind the first page.
    fn sector(&self) -> [u8; 512] {
        let mut sector = [1; 512];
        self.device.read(9, &mut [IoSliceMut::new(&mut sector)]).unwrap();
        sector
    }
}

#[test]
fn region_that_is_truncated_is_lost_and_the_process_goes_on() {
    let output = apart("region_that_is_truncated_is_lost_and_the_process_goes_on", || {
        let faults = Faults::catch().unwrap();
        let ring = ring();
        ring.file.set_len(4096).unwrap();
        assert!(!region_lost());
        assert_eq!(ring.sector(), [0; 512]);
        assert!(region_lost() && !guest_lost() && !faults.guest_lost());
        // Of something else it is the end all the same.
        meet_a_hole();
    });
    ends_by_sigbus(&output);
}

#[test]
fn bell_page_that_is_taken_away_is_lost_with_the_ring() {
    let output = apart("bell_page_that_is_taken_away_is_lost_with_the_ring", || {
        let _faults = Faults::catch().unwrap();
        let page = shared();
        let bell = Bell::new(&page, new_event().unwrap(), Sleeper::Host).unwrap();
        let bell = Watched::new(bell, Owner::Ring);
        page.set_len(0).unwrap();
        assert!(!bell.ring(), "nobody sleeps on a page of zeros");
        assert!(region_lost());
    });
    ends_with(&output, 0);
}

fn guest(file: &File) -> Arc<GuestMemory> {
    let file = FileOffset::new(file.try_clone().unwrap(), 0);
    let len = usize::try_from(LEN).unwrap();
    Arc::new(GuestMemory::from_ranges_with_files([(GuestAddress(0), len, Some(file))]).unwrap())
}

#[test]
fn guest_memory_that_is_taken_back_is_lost_and_the_process_goes_on() {
    let output = apart("guest_memory_that_is_taken_back_is_lost_and_the_process_goes_on", || {
        let faults = Faults::catch().unwrap();
        let file = shared();
        let memory = Watched::new(guest(&file), Owner::FrontEnd);
        memory.write_obj(7u64, GuestAddress(0)).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(2 * 4096)).unwrap(), 0);
        assert!(guest_lost() && faults.guest_lost() && !region_lost());
        // A page is replaced, and no more.
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0)).unwrap(), 7);
        faults.forget_guest();
        assert!(!guest_lost() && !faults.guest_lost());
    });
    ends_with(&output, 0);
}

#[test]
fn guest_memory_is_not_repaired_once_it_is_not_watched_any_more() {
    let output = apart("guest_memory_is_not_repaired_once_it_is_not_watched_any_more", || {
        let _faults = Faults::catch().unwrap();
        let file = shared();
        let memory = guest(&file);
        drop(Watched::new(Arc::clone(&memory), Owner::FrontEnd));
        file.set_len(0).unwrap();
        let _ = memory.read_obj::<u64>(GuestAddress(0));
    });
    ends_by_sigbus(&output);
}
