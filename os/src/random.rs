//! Random bytes of the kernel.

use nix::errno::Errno;

/// Returns `N` random bytes, at most 256, of the kernel's generator.
///
/// # Panics
/// On a kernel without `getrandom(2)` (before Linux 3.17), or where a filter forbids it.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256, "more could be interrupted half-way") };
    let mut bytes = [0; N];
    loop {
        // SAFETY: the kernel writes at most `N` bytes into an array of `N` bytes that nobody else
        // refers to.
        let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
        match Errno::result(filled) {
            Ok(_) => return bytes,
            // Only while the generator starts, at the machine's boot.
            Err(Errno::EINTR) => {}
            Err(error) => panic!("cannot get random bytes: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::random_bytes;

    #[test]
    fn random_bytes_differ_from_call_to_call() {
        assert_ne!(random_bytes::<16>(), random_bytes::<16>());
    }
}
