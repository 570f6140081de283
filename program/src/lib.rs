//! Process code of `blockring` and `vhost-device-blockring`: messages on standard error that never
//! block a thread, a log that guests and clients cannot fill or forge, and documented exit codes
//! where memory is refused, a file's size is limited or the program is at fault. Both programs
//! write their man pages and completions by [`manual`].

pub mod descriptors;
mod format;
mod logger;
pub mod manual;
mod memory;
mod pace;
pub mod scope;
pub mod service;
mod size;
pub mod sockets;
pub mod standard;
pub mod stderr;
mod stop;
pub mod text;
pub mod users;

pub use format::LogFormat;
pub use memory::Memory;
pub use pace::Pace;
pub use service::ServiceManager;
pub use size::parse_size;
pub use stop::{Stop, leave_stops_to_parent, restore_limits, set_up_signals, tie_to_parent};

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

/// Time that the end of a program waits for a reader of standard error.
const LAST_WORDS: Duration = Duration::from_secs(2);

static NAME: OnceLock<&'static str> = OnceLock::new();

/// Writes a message to standard error, with the program's name in front. Never blocks.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => { $crate::stderr::message(format_args!($($words)*)) };
}

/// Returns the program's name, with which messages begin.
pub fn name() -> &'static str {
    NAME.get().copied().unwrap_or("program")
}

/// Runs a program: `main` with all of this set up, and its last messages delivered. A panic that
/// reaches the top is exit code 1.
///
/// `filter` is what is logged unless `RUST_LOG` says otherwise.
pub fn run(name: &'static str, filter: &str, main: impl FnOnce() -> ExitCode) -> ExitCode {
    // The first call's name stays.
    let _ = NAME.set(name);
    std::panic::set_hook(Box::new(panicked));
    logger::install(filter);
    // No state that a panic may have left half changed is used again.
    let code = catch_unwind(AssertUnwindSafe(main)).unwrap_or(ExitCode::FAILURE);
    stderr::finish(LAST_WORDS);
    code
}

/// Ends the process with exit code 1 after its last messages, for a thread whose work nobody can
/// take over.
pub fn fail() -> ! {
    stderr::finish(LAST_WORDS);
    std::process::exit(1)
}

/// Makes a panic on any thread end the process with exit code 1.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        panicked(panic);
        fail();
    }));
}

/// Reports a panic like any other message: the default report blocks on a pipe that nobody reads.
fn panicked(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let words = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    say!(
        "thread {thread} panicked at {place}: {words} (a mistake in the program: please report it)"
    );
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        stderr::block(&format!("{trace}\n"));
    }
}
