//! The library from C and C++: plainly, under valgrind and with sanitizers.
#![allow(clippy::unwrap_used)]

mod common;

use common::{C, CPP, Linked, compile, here, link, run};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

fn source(name: &str) -> PathBuf {
    here("tests/c").join(name)
}

/// Runs a test program with a folder of its own.
fn check(command: &mut Command) {
    let folder = TempDir::new().unwrap();
    assert_eq!(run(command.arg(folder.path())), "ok\n");
}

/// Compiles a test program with libraries of its own.
fn program(folder: &TempDir, name: &str, compiler: &[&str], linked: Linked) -> PathBuf {
    link(folder.path());
    compile(&source(name), compiler, linked, folder.path())
}

#[test]
fn every_function_keeps_its_promises_in_c() {
    let folder = TempDir::new().unwrap();
    check(&mut Command::new(program(&folder, "api.c", &C, Linked::Shared)));
}

#[test]
fn every_function_keeps_its_promises_in_cpp_and_a_static_program() {
    let folder = TempDir::new().unwrap();
    check(&mut Command::new(program(&folder, "api.c", &CPP, Linked::Static)));
}

#[test]
fn sanitizers_find_nothing() {
    let folder = TempDir::new().unwrap();
    let compiler = [&C[..], &["-fsanitize=address,undefined", "-fno-sanitize-recover"]].concat();
    check(&mut Command::new(program(&folder, "api.c", &compiler, Linked::Shared)));
}

#[test]
fn valgrind_finds_nothing() {
    let folder = TempDir::new().unwrap();
    let program = program(&folder, "api.c", &C, Linked::Shared);
    let suppressions = format!("--suppressions={}", source("valgrind.supp").display());
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full", &suppressions]);
    check(valgrind.arg("--errors-for-leak-kinds=definite,indirect").arg(program));
}

#[test]
fn ten_thousand_handles_leave_nothing_behind() {
    let folder = TempDir::new().unwrap();
    check(&mut Command::new(program(&folder, "cycles.c", &C, Linked::Shared)));
}

#[test]
fn structures_have_the_layout_of_the_abi() {
    let folder = TempDir::new().unwrap();
    for compiler in [&C[..], &CPP[..]] {
        let mut command = Command::new(compiler[0]);
        command.args(&compiler[1..]).arg("-I").arg(here("include")).arg(source("layout.c"));
        run(command.arg("-o").arg(folder.path().join("layout")));
    }
}
