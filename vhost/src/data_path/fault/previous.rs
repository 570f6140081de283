//! The handler or disposition that a signal had before the backend's handler.

use nix::sys::signal::{SigAction, Signal};
use std::io;
use std::sync::OnceLock;

/// A handler with three arguments (`SA_SIGINFO`), and one with the signal's number alone.
type Full = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
type Plain = extern "C" fn(libc::c_int);

/// The previous handler or disposition. It is set before our handler is, and never changed.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Sets the handler of `signal`, once in a process: from the second time on this does nothing.
///
/// # Safety
/// The handler of `action` may be run between any two instructions of this process. For the signals
/// that the caller sets in one process, it is always the same one.
pub(super) unsafe fn replace_by(signal: Signal, action: &SigAction) -> io::Result<()> {
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    let mut previous = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only asks; the kernel fills all of the local.
    let asked =
        unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), previous.as_mut_ptr()) };
    nix::errno::Errno::result(asked)?;
    // SAFETY: filled, as the call has not failed.
    let previous = unsafe { previous.assume_init() };
    if PREVIOUS.set(previous).is_ok() {
        // SAFETY: the caller vouches for the handler of `action`.
        unsafe { nix::sys::signal::sigaction(signal, action) }?;
    }
    Ok(())
}

/// Runs the previous handler or disposition, from inside the present handler.
///
/// The previous handler is called with the same arguments. Without one the previous disposition is
/// put back: a fault happens again when the handler returns, and a signal that was sent is sent
/// again.
///
/// # Safety
/// The arguments are those that the kernel has called the signal's present handler with.
pub(super) unsafe fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // No handler of ours runs before this is set.
    let Some(previous) = PREVIOUS.get() else { return };
    // SAFETY: the kernel passes a whole siginfo.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if was_sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the kernel itself has reported this disposition.
            unsafe { libc::sigaction(signal, previous, std::ptr::null_mut()) };
            if was_sent {
                // SAFETY: may be called in a signal handler; it is delivered when that returns.
                unsafe { libc::raise(signal) };
            }
        }
        address => {
            let handler = std::ptr::with_exposed_provenance::<()>(address);
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: the kernel has told that this is the address of such a handler.
                let handler: Full = unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: the same, without that flag.
                let handler: Plain = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}
