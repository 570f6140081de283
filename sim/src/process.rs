//! Faults of a disk, for a whole program.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

const EIO: u32 = 5;

/// Has every `fdatasync` and `fsync` of the program fail with EIO, as of a disk that has lost what it was given.
pub fn fail_flushes(command: &mut Command) -> &mut Command {
    let failing = BTreeMap::from([(libc::SYS_fdatasync, vec![]), (libc::SYS_fsync, vec![])]);
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with seccomp");
    let filter = SeccompFilter::new(failing, SeccompAction::Allow, SeccompAction::Errno(EIO), arch);
    let program: BpfProgram =
        filter.and_then(TryInto::try_into).expect("a filter without conditions");
    let install = move || {
        seccompiler::apply_filter(&program).map_err(|_| std::io::ErrorKind::Unsupported.into())
    };
    // SAFETY: between fork and exec it makes two system calls on a program that was built before; it allocates
    // nothing and takes no lock.
    unsafe { command.pre_exec(install) }
}
