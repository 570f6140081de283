//! The handler of SIGSYS, which a forbidden system call raises: it names the call on standard error
//! and ends the process.
//!
//! The filter forbids replacing this handler. Where it cannot run (the signal is blocked, there is
//! no stack), the kernel kills the process without it. In neither case is the call carried out.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The start of the kernel's `siginfo_t` for SIGSYS; the C library's has no names for these fields.
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

/// Installs the handler.
///
/// # Errors
///
/// The kernel refuses it.
pub fn install() -> Result<(), Errno> {
    let action =
        SigAction::new(SigHandler::SigAction(name_and_die), SaFlags::SA_ONSTACK, SigSet::all());
    // SAFETY: the handler makes system calls on constants and locals; it allocates nothing and
    // takes no lock.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop)
}

extern "C" fn name_and_die(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a whole siginfo, which begins with these fields. In a SIGSYS that
    // another process has sent, `call` is an arbitrary number.
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
        ring_program::stderr::write_now(text);
    }
    loop {
        // A forbidden call while SIGSYS is blocked, as it is in this handler: the kernel ends the
        // process. SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_reboot, 0, 0, 0, 0) };
    }
}
