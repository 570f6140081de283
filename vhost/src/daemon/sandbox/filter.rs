//! The system calls that remain allowed (seccomp), each with its reason. Every other call ends the
//! process: see [`trap`](super::trap).

use super::Failure;
use SeccompCmpArgLen::Dword;
use SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Calls that are allowed whatever their arguments.
const ANY: &[libc::c_long] = &[
    // Requests and messages: descriptors that are open already, or come by a socket.
    libc::SYS_read,
    libc::SYS_preadv2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_dup,
    // Size and kind of the files that a front end shares as memory; whether a socket's file is
    // still ours.
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    // An interrupt, and the wake-up of a host that sleeps: neither may wait for the other holders
    // of its event.
    libc::SYS_io_submit,
    libc::SYS_io_destroy,
    // Flushes.
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    // Waiting. An epoll set and events are made for every connection.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    // Where the vDSO cannot read the clock.
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    // Memory: the allocator, stacks of threads, what a front end shares. Making it executable is
    // below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads: one for every connection, and one for a flush. Making them is below.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals that ask for a stop, and those of faults.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // The kind of a descriptor that the front end has sent; the files that the message of a panic
    // looks for, most of which Landlock refuses.
    libc::SYS_getcwd,
    libc::SYS_readlinkat,
    // Seeds of hash maps.
    libc::SYS_getrandom,
    // Answered with "not implemented" by a filter of its own, so that the C library falls back to
    // `clone`, whose flags can be checked.
    libc::SYS_clone3,
];

/// Calls that the C library of this architecture uses in place of newer ones.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Allowed commands of `fcntl`: duplicates, flags of a descriptor, the kind of a memory file, and
/// the role locks of the hand-over.
const FCNTL: &[libc::c_int] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GET_SEALS,
    libc::F_ADD_SEALS,
    libc::F_OFD_SETLK,
    libc::F_OFD_GETLK,
];

/// Flags of the memory that a front end asks for.
const INFLIGHT_REGION: libc::c_int = (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING).cast_signed();

/// Flags of `clone` that make a thread, and no process.
const THREAD: libc::c_int = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;

/// Flags of `clone` that make namespaces. `CLONE_NEWTIME` has its bit in the exit signal, which a
/// thread does not have.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Flags of `openat` that are forbidden: a file is opened again, never made or truncated.
const CREATING: libc::c_int = libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY;

/// Restricts the system calls of this thread, and of those that it will start.
///
/// # Errors
///
/// The filter cannot be compiled or installed.
pub fn apply() -> Result<(), Failure> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    // The kernel applies the stricter result of two filters.
    let clone3 = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        arch,
    )?;
    let allowed = SeccompFilter::new(allowed()?, SeccompAction::Trap, SeccompAction::Allow, arch)?;
    for filter in [clone3, allowed] {
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ANY.iter().chain(OLDER).map(|&call| (call, vec![])).collect();
    let mut allow = |call, conditions: &[(u8, SeccompCmpOp, libc::c_int)]| {
        let conditions = conditions.iter().map(|(argument, compare, value)| {
            // Without a sign extension: these arguments are flags and small numbers of 32 bits.
            let value = u64::from(value.cast_unsigned());
            SeccompCondition::new(*argument, Dword, compare.clone(), value)
        });
        let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
        rules.entry(call).or_default().push(rule);
        Ok::<_, BackendError>(())
    };
    let none_of = |bits: libc::c_int| MaskedEq(u64::from(bits.cast_unsigned()));

    for &command in FCNTL {
        allow(libc::SYS_fcntl, &[(1, Eq, command)])?;
    }
    // The credentials of a client; the kind of a socket that a front end has sent.
    allow(libc::SYS_getsockopt, &[(1, Eq, libc::SOL_SOCKET)])?;
    // A fresh open file description of the region for every client; Landlock restricts the files.
    allow(libc::SYS_openat, &[(2, none_of(CREATING), 0)])?;
    // Removing our sockets at the end.
    allow(libc::SYS_unlinkat, &[(2, Eq, 0)])?;
    // The in-flight region that a front end asks for: memory of the kernel's.
    allow(libc::SYS_memfd_create, &[(1, Eq, INFLIGHT_REGION)])?;
    // No executable memory.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow(call, &[(2, none_of(libc::PROT_EXEC), 0)])?;
    }
    // Threads, but no processes and no namespaces.
    allow(libc::SYS_clone, &[(0, none_of(THREAD | NAMESPACES), THREAD)])?;
    // Names of threads.
    allow(libc::SYS_prctl, &[(0, Eq, libc::PR_SET_NAME)])?;
    // Signals to this process alone: a panic ends it by one.
    let own = std::process::id().cast_signed();
    allow(libc::SYS_tgkill, &[(0, Eq, own)])?;
    // For the same, for the overflow of a stack, and for a SIGBUS that is passed on; not for the
    // handler that reports forbidden calls.
    allow(libc::SYS_rt_sigaction, &[(0, Ne, libc::SIGSYS)])?;
    // Limits of this process are read; new ones (a pointer that is not null) are forbidden.
    let reading = vec![
        SeccompCondition::new(0, Dword, Eq, 0)?,
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0)?,
    ];
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(reading)?]);
    Ok(rules)
}
