//! The system calls that remain (seccomp), each with the reason why. Everything else ends the process; see [`trap`](super::trap).

use super::Failure;
use SeccompCmpArgLen::Dword;
use SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Whatever their arguments.
const ANY: &[libc::c_long] = &[
    // Requests and messages: descriptors that are open already, or come by a socket.
    libc::SYS_read,
    libc::SYS_preadv2,
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
    // Size and kind of what a front end sends as its memory; whether a socket's file is still ours.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    // Flushes.
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    // Waiting. An epoll set and two events are made for every connection.
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
    // Memory: the allocator, stacks of threads, what a front end shares. Making it executable is below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads: two for every connection. Making them is below.
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
    // Signals that ask us to stop, and those of our own faults.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // What kind of descriptor the front end sent; what the message of a panic looks for. Most of the latter is Landlock's to refuse.
    libc::SYS_getcwd,
    libc::SYS_readlinkat,
    // Seeds of hash maps.
    libc::SYS_getrandom,
    // Answered "not implemented" by a filter of its own, so that the C library falls back to `clone`, whose flags can be judged.
    libc::SYS_clone3,
];

/// What the C library on this machine uses in place of newer calls.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// `fcntl`: duplicates, flags of a descriptor, and the role locks of the hand-over.
const FCNTL: &[libc::c_int] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_OFD_SETLK,
];

/// `setsockopt`: how long a client may keep us waiting.
const SOCKET_OPTIONS: &[libc::c_int] = &[libc::SO_RCVTIMEO, libc::SO_SNDTIMEO];

/// What a thread has in common with the others, and what no process of its own has.
const THREAD: libc::c_int = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;

/// Namespaces. `CLONE_NEWTIME` has its bit in the exit signal, which a thread does not have.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// A file is opened again, never made or cut.
const CREATING: libc::c_int = libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY;

/// Confines this thread, and those that it will start.
pub fn apply() -> Result<(), Failure> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    // The stricter of two filters decides.
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
            // The bits as they are: these arguments are flags and small numbers, 32 bits wide.
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
    for &option in SOCKET_OPTIONS {
        allow(libc::SYS_setsockopt, &[(1, Eq, libc::SOL_SOCKET), (2, Eq, option)])?;
    }
    // Who a client is; what kind of socket a front end sends.
    allow(libc::SYS_getsockopt, &[(1, Eq, libc::SOL_SOCKET)])?;
    // A fresh description of the region for every client; which files there are is Landlock's to say.
    allow(libc::SYS_openat, &[(2, none_of(CREATING), 0)])?;
    // Our sockets at the end.
    allow(libc::SYS_unlinkat, &[(2, Eq, 0)])?;
    // No new code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow(call, &[(2, none_of(libc::PROT_EXEC), 0)])?;
    }
    // Threads, no processes and no namespaces.
    allow(libc::SYS_clone, &[(0, none_of(THREAD | NAMESPACES), THREAD)])?;
    // Their names.
    allow(libc::SYS_prctl, &[(0, Eq, libc::PR_SET_NAME)])?;
    // A panic that ends us. Signals go to nobody else.
    let own = std::process::id().cast_signed();
    allow(libc::SYS_tgkill, &[(0, Eq, own)])?;
    // For the same, and for the overflow of a stack; not to replace the handlers that hold the sandbox.
    allow(libc::SYS_rt_sigaction, &[(0, Ne, libc::SIGSYS), (0, Ne, libc::SIGBUS)])?;
    // Limits are read (no new ones: a null pointer, all of it), and ours only.
    let reading = vec![
        SeccompCondition::new(0, Dword, Eq, 0)?,
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0)?,
    ];
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(reading)?]);
    Ok(rules)
}
