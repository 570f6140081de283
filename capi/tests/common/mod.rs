//! The library as C programs get it, and the compilers for them.
#![allow(clippy::unwrap_used, dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const C: [&str; 5] = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror"];
pub const CPP: [&str; 7] = ["c++", "-std=c++17", "-x", "c++", "-Wall", "-Wextra", "-Werror"];

/// Returns a path in the package.
pub fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Returns the library that cargo has built together with this test: the newest of those beside it,
/// which differ in the features of other packages.
pub fn built_library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let entries = std::fs::read_dir(test.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("libblockring") && name.ends_with(".a")
    };
    let built = |path: &PathBuf| path.metadata().unwrap().modified().unwrap();
    entries.map(|entry| entry.path()).filter(is_ours).max_by_key(built).unwrap()
}

/// Makes the libraries, as programs are linked with them, in `folder`.
pub fn link(folder: &Path) {
    run(Command::new(here("link.sh")).arg(built_library()).arg(folder));
}

/// How a program gets the library.
#[derive(Clone, Copy)]
pub enum Linked {
    /// With the program. All of the program is static then, the C library included.
    Static,
    /// From the folder of the libraries, at run time, too.
    Shared,
}

/// Compiles a file of `tests/` or of the examples with the libraries in `folder`, and returns the
/// program, which lies there, too.
pub fn compile(source: &Path, compiler: &[&str], linked: Linked, folder: &Path) -> PathBuf {
    let program = folder.join(source.file_stem().unwrap());
    let mut command = Command::new(compiler[0]);
    command.args(&compiler[1..]).args(["-D_GNU_SOURCE", "-g", "-O1"]);
    command.arg("-I").arg(here("include")).arg(source).arg("-o").arg(&program);
    match linked {
        Linked::Static => command.arg("-static"),
        Linked::Shared => command.arg(format!("-Wl,-rpath,{}", folder.display())),
    };
    run(command.arg("-L").arg(folder).args(["-lblockring", "-lpthread"]));
    program
}

/// Runs a command to its end, and returns what it printed. It has to succeed.
pub fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}
