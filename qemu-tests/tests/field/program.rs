//! The programs, and an ordinary run of each.

use qemu_tests::binaries;
use std::path::PathBuf;

/// A column of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Create,
    Produce,
    Consume,
    Journal,
    Diagnostics,
    Check,
    Repair,
    Suspend,
    Resume,
    Bench,
    Bind,
    Unbind,
    Backend,
    Transfer,
}

impl Program {
    pub const ALL: [Self; 14] = [
        Self::Create,
        Self::Produce,
        Self::Consume,
        Self::Journal,
        Self::Diagnostics,
        Self::Check,
        Self::Repair,
        Self::Suspend,
        Self::Resume,
        Self::Bench,
        Self::Bind,
        Self::Unbind,
        Self::Backend,
        Self::Transfer,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Produce => "produce",
            Self::Consume => "consume",
            Self::Journal => "journal",
            Self::Diagnostics => "diagnostics",
            Self::Check => "check",
            Self::Repair => "repair",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Bench => "bench",
            Self::Bind => "bind",
            Self::Unbind => "unbind",
            Self::Backend => "vhost-device-blockring",
            Self::Transfer => "examples/transfer",
        }
    }

    /// Returns the file to run, of the tests' build.
    pub fn path(self) -> PathBuf {
        let built = binaries::debug().unwrap();
        match self {
            Self::Backend => built.vhost_device_blockring(),
            Self::Transfer => built.transfer(),
            _ => built.blockring(),
        }
    }

    /// Returns the arguments of an ordinary run on the ring at `address`; a created file has
    /// `size`.
    pub fn arguments(self, address: &str, size: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Create => &["create", "--size", size, address],
            Self::Journal => &["journal", "--size", size, "--exec", "cat", address],
            Self::Bench => &["bench", "--seconds", "0.1", address],
            // There is no device: they take a virtio disk of a guest from its kernel.
            Self::Bind | Self::Unbind => &[self.name(), "0000:ff:1f.7"],
            Self::Backend => &[
                "--size",
                size,
                "--socket-path",
                "s",
                "--consumer-socket",
                "c",
                "--blk-file",
                address,
            ],
            Self::Transfer => &["bank"],
            _ => &[self.name(), address],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// Returns the name of the file that an ordinary run makes or works on.
    pub fn file(self) -> &'static str {
        match self {
            Self::Create => "new",
            Self::Journal => "journal",
            _ => "ring",
        }
    }

    /// Returns the input of an ordinary run.
    pub fn input(self) -> &'static [u8] {
        match self {
            Self::Produce | Self::Journal => b"three\nfour\n",
            Self::Transfer => b"1 alice bob 30\n",
            _ => b"",
        }
    }
}
