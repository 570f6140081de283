//! Other users of this machine.

/// Nobody's on this machine.
pub const USER: u32 = 65_533;
pub const GROUP: u32 = 65_532;

/// Runs `run` as another user with that supplementary group.
pub fn as_user<T: Send>(uid: u32, group: u32, run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // The system calls themselves: the C library would change all threads.
            // SAFETY: one number is read through a pointer to a local.
            let groups = unsafe { libc::syscall(libc::SYS_setgroups, 1, &raw const group) };
            // SAFETY: no memory is passed.
            let user = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
            assert_eq!((groups, user), (0, 0));
            run()
        });
        thread.join().unwrap()
    })
}
