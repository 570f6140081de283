//! The end of a process that is refused memory: a message and exit code 1, where Rust would abort.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write;

/// The system's allocator. A request that it refuses ends the process.
///
/// This loses no more than a SIGKILL would.
#[derive(Debug)]
pub struct Memory;

// SAFETY: every call goes to the system's allocator with the arguments it was given, and its answer
// is handed on unless it is null.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps this function's contract, which is that of the function called.
        granted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        granted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; `memory` came from the system's allocator with `layout`.
        granted(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn granted(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        refused(size);
    }
    memory
}

/// Ends the process. Allocates nothing, takes no lock, and runs no other code of the process.
#[cold]
fn refused(size: usize) -> ! {
    let mut words = Words { text: [0; 200], len: 0 };
    // Text that does not fit is left out.
    let _ = writeln!(
        words,
        "{}: out of memory: {size} bytes more were refused (is there a limit? ulimit -v, cgroup)",
        crate::name()
    );
    crate::stderr::write_now(&words.text[..words.len]);
    // SAFETY: ends the process at once; no memory is passed.
    unsafe { libc::_exit(1) }
}

/// A line of text on the stack.
struct Words {
    text: [u8; 200],
    len: usize,
}

impl Write for Words {
    fn write_str(&mut self, more: &str) -> std::fmt::Result {
        let room = &mut self.text[self.len..];
        let len = more.len().min(room.len());
        room[..len].copy_from_slice(&more.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}
