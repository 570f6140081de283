//! The documents' commands and configuration files, as a reader copies them.
//!
//! Each page is read from top to bottom in a session of its own, in namespaces with a host that is
//! thrown away; QEMU's documented command lines boot real guests. CONTRIBUTING.md says which notes
//! the blocks of a page may have.
#![allow(clippy::unwrap_used)]

mod accounts;
mod files;
mod page;
mod session;
mod shown;

macro_rules! sessions {
    ($($test:ident: [$($page:literal),+];)+) => {
        /// The pages that a test reads.
        const READ: &[&str] = &[$($($page),+),+];

        $(#[test]
        fn $test() {
            session::read(stringify!($test), &[$($page),+]);
        })+
    };
}

sessions! {
    readme_works_as_written: ["README.md"];
    shell_page_works_as_written: ["docs/blockring.md"];
    forwarding_and_installation_work_as_written: ["docs/forwarding.md", "docs/installation.md"];
    jetstream_page_works_as_written: ["docs/jetstream.md"];
    guests_page_works_as_written: ["docs/guests.md"];
    kernel_bypass_works_as_written: ["docs/kernel-bypass.md"];
    operations_work_as_written: ["docs/operations.md"];
    observability_works_as_written: ["docs/observability.md"];
    other_pages_work_as_written: ["docs/front-ends.md", "docs/snapshots.md"];
}
