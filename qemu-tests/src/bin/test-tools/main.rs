//! The programs of tests and scripts in one executable, since each is linked for long and most go
//! into every guest. It is the program that it is called by (a link of that name), or the one that
//! its first argument names.

mod boot_guest;
mod channels;
mod crash_campaign;
mod crashload;
mod redteam;
mod ringload;
mod ringmodel;
mod syscalls;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// A program, which gets its own name and its arguments.
type Program = fn(Vec<OsString>) -> ExitCode;

const PROGRAMS: [(&str, Program); 8] = [
    ("boot-guest", boot_guest::main),
    ("channels", channels::main),
    ("crash-campaign", crash_campaign::main),
    ("crashload", crashload::main),
    ("redteam", redteam::main),
    ("ringload", ringload::main),
    ("ringmodel", ringmodel::main),
    ("syscalls", syscalls::main),
];

fn program(called: Option<&OsString>) -> Option<Program> {
    let name = called.and_then(|called| Path::new(called).file_name()).and_then(OsStr::to_str)?;
    PROGRAMS.iter().find(|(known, _)| *known == name).map(|(_, program)| *program)
}

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if program(arguments.first()).is_none() && !arguments.is_empty() {
        arguments.remove(0);
    }
    let Some(program) = program(arguments.first()) else {
        let names = PROGRAMS.map(|(name, _)| name).join(", ");
        eprintln!("usage: test-tools PROGRAM [ARGUMENT...], with one of the programs {names}");
        return ExitCode::from(2);
    };
    program(arguments)
}
