//! Boots a guest, runs a script in it, and passes on what that prints: for demonstrations, and to
//! try things by hand.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use qemu_tests::binaries::Binaries;
use qemu_tests::{Disk, GuestBuilder, ImageSpec, Result};

/// Boots a guest and runs a shell script in it.
///
/// The guest holds busybox and this workspace's programs. What the script prints goes to standard
/// output; its exit status becomes this program's.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A vhost-user-blk back end's socket: /dev/vda, /dev/vdb and so on
    #[arg(long, value_name = "SOCKET")]
    vhost_user: Vec<PathBuf>,
    /// Connect again when a back end goes away
    #[arg(long)]
    reconnect: bool,
    /// A raw file as a disk, after those of back ends; its name is its serial number
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Give up after that many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// The folder of the guest's programs, instead of that of the release
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Only build the programs and the guest's image, so that a later boot is quick
    #[arg(long)]
    prepare: bool,
    /// The script
    #[arg(required_unless_present = "prepare")]
    script: Option<PathBuf>,
}

pub fn main(words: Vec<OsString>) -> ExitCode {
    match run(Arguments::parse_from(words)) {
        // A script's exit status is one byte.
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("boot-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<i32> {
    const SCRIPT: &str = "main";
    let mut image = match arguments.programs {
        Some(folder) => ImageSpec::with(&Binaries::in_folder(folder)),
        None => ImageSpec::standard()?,
    };
    let Some(script) = arguments.script else {
        return image.build().map(|_| 0);
    };
    image = image.file(&format!("scripts/{SCRIPT}"), script);
    let mut guest = GuestBuilder::new().processors(2).image(image).script(SCRIPT);
    for socket in arguments.vhost_user {
        let disk = Disk::vhost_user(socket);
        guest = guest.disk(if arguments.reconnect { disk.reconnecting() } else { disk });
    }
    for path in arguments.disk {
        let serial = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        guest = guest.disk(Disk::file(path, serial));
    }
    let guest = guest.boot()?;
    let status = guest.follow_script(&mut io::stdout(), Duration::from_secs(arguments.timeout))?;
    guest.wait_for_end()?;
    Ok(status)
}
