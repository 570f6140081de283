//! The sandbox from inside: this program starts itself once for each case, confines itself as the
//! daemon does, and tries the case's action. There is no test harness, whose threads would run
//! before the sandbox.
#![allow(clippy::unwrap_used)]

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, UnlinkatFlags, unlinkat};
use shared_block_ring::device::{Mapping, Memory};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use vhost_device_blockring::daemon::handover::reopen;
use vhost_device_blockring::daemon::sandbox::{self, Failure, Identity, MAX_DESCRIPTORS, Policy};
use vhost_device_blockring::data_path::fault;

/// A forbidden call ends the process by SIGSYS, with its number on standard error.
const FORBIDDEN: &[(&str, libc::c_long, fn())] = &[
    ("making a socket", libc::SYS_socket, || {
        let _ = std::net::UdpSocket::bind("127.0.0.1:0");
    }),
    ("starting a program", libc::SYS_execve, || {
        // Without a fork, which is forbidden, too.
        let nothing: [std::ffi::CString; 0] = [];
        let _ = nix::unistd::execve(c"/bin/true", &nothing, &nothing);
    }),
    ("forking", libc::SYS_clone, || {
        // SAFETY: does not come back in either process.
        let _ = unsafe { nix::unistd::fork() };
    }),
    ("tracing", libc::SYS_ptrace, || {
        // SAFETY: no memory is passed.
        unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    }),
    ("making memory executable", libc::SYS_mmap, || {
        let (access, flags) = (libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0) };
    }),
    ("a signal to another process", libc::SYS_kill, || {
        let _ = nix::sys::signal::kill(Pid::from_raw(1), None);
    }),
    ("making a file", libc::SYS_openat, || {
        let _ = File::create("made");
    }),
    ("cutting a file", libc::SYS_ftruncate, || {
        let _ = file().set_len(0);
    }),
    ("raising a limit", libc::SYS_prlimit64, || {
        let _ = nix::sys::resource::setrlimit(Resource::RLIMIT_CORE, 0, 0);
    }),
    ("becoming another user", libc::SYS_setuid, || {
        let _ = nix::unistd::setuid(Uid::from_raw(0));
    }),
    ("another handler for the sandbox's signal", libc::SYS_rt_sigaction, || {
        // SAFETY: the default handler is always sound.
        let _ = unsafe {
            nix::sys::signal::signal(Signal::SIGSYS, nix::sys::signal::SigHandler::SigDfl)
        };
    }),
    ("a command of fcntl that is not needed", libc::SYS_fcntl, || {
        let _ = fcntl(file().as_fd(), FcntlArg::F_GETPIPE_SZ);
    }),
];

/// Actions that work inside, or are refused with an error that the daemon survives.
const ALLOWED: &[(&str, fn())] = &[
    ("the region can be opened again, and nothing else", || {
        let mut text = String::new();
        reopen(file(), true).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "the ring");
        reopen(file(), true).unwrap().write_all(b"THE").unwrap();
        for path in ["/etc/passwd", "/proc/self/status", "/dev/null", "beside"] {
            assert_eq!(denied(File::open(path)), libc::EACCES, "{path}");
        }
        assert_eq!(denied(std::fs::read_dir("/")), libc::EACCES);
        let writing = File::options().write(true).open("beside");
        assert_eq!(denied(writing), libc::EACCES);
    }),
    ("only sockets' folders can be removed from", || {
        let folder = FOLDER.get().unwrap();
        let remove = |name: &str| unlinkat(folder, name, UnlinkatFlags::NoRemoveDir);
        remove("socket").unwrap();
        assert_eq!(remove("../beside"), Err(nix::errno::Errno::EACCES));
    }),
    ("threads can be made, and are confined too", || {
        let denied = std::thread::spawn(|| denied(File::open("/etc/passwd"))).join().unwrap();
        assert_eq!(denied, libc::EACCES);
    }),
    ("limits are those of the policy", || {
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(soft == hard && hard <= MAX_DESCRIPTORS);
    }),
    ("a panic is survived", || {
        // With a backtrace, for which the message opens files.
        assert!(std::panic::catch_unwind(|| panic!("as ever")).is_err());
    }),
];

/// The file and the folder that the policy allows, opened before it takes effect.
static FILE: OnceLock<File> = OnceLock::new();
static FOLDER: OnceLock<File> = OnceLock::new();

fn file() -> &'static File {
    FILE.get().unwrap()
}

fn denied<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

/// The environment variable that names the case to be tried inside.
const CASE: &str = "BLOCKRING_SANDBOX_CASE";

fn main() -> ExitCode {
    match std::env::var(CASE) {
        Ok(case) => inside(&case),
        Err(_) => outside(),
    }
}

fn inside(case: &str) -> ExitCode {
    FILE.set(File::options().read(true).write(true).open("ring").unwrap()).unwrap();
    FOLDER.set(File::open("sockets").unwrap()).unwrap();
    if case == THREADS {
        let (_hold, held) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || held.recv());
        assert!(matches!(confine(), Err(Failure::Threads)));
        return ExitCode::SUCCESS;
    }
    if case == IDENTITY {
        let (uid, gid) = (Uid::from_raw(65_533), Gid::from_raw(65_532));
        Identity { uid, gid }.assume().unwrap();
        confine().unwrap();
        // The parent inspects this process meanwhile, and kills it.
        println!("ready");
        std::thread::sleep(SOON);
        return ExitCode::FAILURE;
    }
    if case == FAULT {
        fault::catch().unwrap();
        let gone = tempfile::tempfile().unwrap();
        gone.set_len(4096).unwrap();
        let mapping = Mapping::new(gone.try_clone().unwrap(), 4096).unwrap();
        gone.set_len(0).unwrap();
        confine().unwrap();
        mapping.load_u64(0);
        return ExitCode::FAILURE;
    }
    confine().unwrap();
    let allowed = ALLOWED.iter().find(|(name, _)| *name == case).map(|(_, run)| run);
    let forbidden = FORBIDDEN.iter().find(|(name, ..)| *name == case).map(|(.., run)| run);
    allowed.or(forbidden).unwrap()();
    ExitCode::SUCCESS
}

fn confine() -> Result<(), Failure> {
    let (files, folders) = (&[file().as_fd()], &[FOLDER.get().unwrap().as_fd()]);
    let descriptors = Some(MAX_DESCRIPTORS);
    sandbox::apply(&Policy { files, folders, descriptors }).map(drop)
}

const THREADS: &str = "no thread is left outside";
const IDENTITY: &str = "who becomes another user keeps nothing of root's";
const FAULT: &str =
    "memory that is taken away and is nobody's ends it by SIGBUS, as without a handler";
const SOON: Duration = Duration::from_secs(20);

/// Starts this program for a case, in a folder of its own.
fn child(case: &str) -> (tempfile::TempDir, Command) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ring"), "the ring").unwrap();
    std::fs::write(dir.path().join("beside"), "not ours").unwrap();
    std::fs::create_dir(dir.path().join("sockets")).unwrap();
    std::fs::write(dir.path().join("sockets/socket"), "").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CASE, case).env("RUST_BACKTRACE", "full").current_dir(dir.path());
    (dir, command)
}

fn outside() -> ExitCode {
    let filter = std::env::args().nth(1).filter(|text| !text.starts_with('-'));
    let mut failed = false;
    let mut test = |name: &str, check: &dyn Fn() -> Result<(), String>| {
        if filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            return;
        }
        let outcome = check();
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        if let Err(text) = outcome {
            failed = true;
            println!("{text}");
        }
    };
    for (name, call, _) in FORBIDDEN {
        test(name, &|| {
            let (dir, mut command) = child(name);
            let output = command.output().unwrap();
            let words = format!("system call {call} is forbidden by the sandbox");
            let stopped = output.status.signal() == Some(libc::SIGSYS)
                && String::from_utf8_lossy(&output.stderr).contains(&words)
                && !dir.path().join("made").exists()
                && std::fs::read(dir.path().join("ring")).unwrap() == b"the ring";
            stopped.then_some(()).ok_or(format!("{output:?}"))
        });
    }
    for name in ALLOWED.iter().map(|(name, _)| *name).chain([THREADS]) {
        test(name, &|| {
            let (dir, mut command) = child(name);
            let output = command.output().unwrap();
            let well = output.status.success() && dir.path().join("beside").exists();
            well.then_some(()).ok_or(format!("{output:?}"))
        });
    }
    test(FAULT, &|| {
        let (_dir, mut command) = child(FAULT);
        let output = command.output().unwrap();
        (output.status.signal() == Some(libc::SIGBUS)).then_some(()).ok_or(format!("{output:?}"))
    });
    if nix::unistd::geteuid().is_root() {
        test(IDENTITY, &becomes_another);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn becomes_another() -> Result<(), String> {
    let (dir, mut command) = child(IDENTITY);
    let inside = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(dir.path(), inside).unwrap();
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut word = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut word).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (name, expected) in [
        ("Uid", "65533 65533 65533 65533"),
        ("Gid", "65532 65532 65532 65532"),
        ("Groups", "65532"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapInh", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        if field(name) != expected {
            return Err(format!("{name} is {:?}", field(name)));
        }
    }
    Ok(())
}
