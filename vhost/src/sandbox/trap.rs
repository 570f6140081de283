//! The end of a process that makes a forbidden system call: named on standard error, by SIGSYS.
//!
//! The filter lets nobody replace this handler. Where it cannot run (the signal is blocked, there is no stack), the kernel
//! kills the process without it; the call is not carried out in either case.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The start of the kernel's `siginfo_t` for SIGSYS; the C library's has no names for it.
#[repr(C)]
struct Forbidden {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _padding: libc::c_int,
    at: *mut libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

const BEFORE: &[u8] = b"vhost-device-blockring: system call ";

const BEHIND: &[u8] = b" is forbidden by the sandbox (--sandbox): stopped\n";

/// From now on a forbidden call is named.
pub fn install() -> Result<(), Errno> {
    let action =
        SigAction::new(SigHandler::SigAction(name_and_die), SaFlags::SA_ONSTACK, SigSet::all());
    // SAFETY: the handler makes system calls on constants and locals; it allocates nothing and takes no lock.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop)
}

extern "C" fn name_and_die(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a whole siginfo, which begins with these fields; for another sender's SIGSYS `call` is some number.
    let call = unsafe { (*info.cast::<Forbidden>()).call };
    let mut digits = [0; 10];
    let mut first = digits.len();
    let mut rest = call.unsigned_abs();
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for text in [BEFORE, &digits[first..], BEHIND] {
        // SAFETY: constants and a local, the length of each is passed with it.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
    loop {
        // A forbidden call while SIGSYS is blocked, as it is in here: the kernel does not come back to us.
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_reboot, 0, 0, 0, 0) };
    }
}
