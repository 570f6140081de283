//! Faults of a disk under a whole program.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

const EIO: u32 = 5;

/// Has every `fdatasync` and `fsync` of the program fail with EIO, as on a disk that has lost
/// writes.
pub fn fail_flushes(command: &mut Command) -> &mut Command {
    fail_calls(command, [(libc::SYS_fdatasync, vec![]), (libc::SYS_fsync, vec![])].into())
}

/// Has every `pwritev` of the program at this byte of any file fail with EIO, as on a disk with a
/// bad sector.
pub fn fail_writes_at(command: &mut Command, byte: u64) -> &mut Command {
    const OFFSET: u8 = 3;
    let (qword, equal) = (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq);
    let rule = SeccompCondition::new(OFFSET, qword, equal, byte)
        .and_then(|there| SeccompRule::new(vec![there]))
        .expect("a rule with one condition");
    fail_calls(command, [(libc::SYS_pwritev, vec![rule])].into())
}

fn fail_calls(
    command: &mut Command,
    failing: BTreeMap<libc::c_long, Vec<SeccompRule>>,
) -> &mut Command {
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with seccomp");
    let filter = SeccompFilter::new(failing, SeccompAction::Allow, SeccompAction::Errno(EIO), arch);
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter of few rules");
    let install = move || {
        seccompiler::apply_filter(&program).map_err(|_| std::io::ErrorKind::Unsupported.into())
    };
    // SAFETY: between fork and exec it makes two system calls on a program that was built before;
    // it allocates nothing and takes no lock.
    unsafe { command.pre_exec(install) }
}
