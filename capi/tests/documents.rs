//! `docs/c.md` and the examples, as their reader uses them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{built_library, here, run};
use ring_test_support::documents::documented;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The libraries, installed as the page says, for a user of their own.
struct Home {
    folder: TempDir,
    /// The commands that prepare the shell.
    prepared: String,
}

impl Home {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let install = documented("docs/c.md", "scripts/install-c.sh --prefix");
        // The packages are there, and cargo has built the library already.
        let (_, commands) = install.split_once('\n').unwrap();
        let built = format!("install-c.sh --library '{}'", built_library().display());
        let commands = commands.replace("install-c.sh", &built);
        let home = Self { folder, prepared: String::new() };
        home.shell(&commands);
        let (_, prepared) = commands.split_once("\nexport").unwrap();
        Self { prepared: format!("export{prepared}"), ..home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs commands in the root of the repository, or of what the reader has copied from it.
    fn shell(&self, commands: &str) -> String {
        let script = format!("set -euo pipefail\n{}\n{commands}", self.prepared);
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(script).env("HOME", self.folder.path());
        run(shell.current_dir(here("..")))
    }

    /// Runs a block of the page in the user's folder.
    fn block(&self, commands: &str) {
        let examples = here("../examples");
        let link = format!("cd \"$HOME\" && ln -sfn '{}' examples", examples.display());
        self.shell(&format!("{link}\n{commands}"));
    }

    fn start(&self, program: &str, address: &str) -> Child {
        let mut command = Command::new(self.path(program));
        command.arg(address).env("LD_LIBRARY_PATH", self.path(".local/lib"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

#[test]
fn first_program_says_hello() {
    let home = Home::new();
    std::fs::write(home.path("hello.c"), documented("docs/c.md", "int main(void)")).unwrap();
    let shown = documented("docs/c.md", "cc hello.c");
    let (commands, output): (Vec<_>, Vec<_>) =
        shown.lines().partition(|line| line.starts_with("$ "));
    let commands: Vec<_> = commands.iter().map(|line| &line[2..]).collect();
    let said = home.shell(&format!("cd \"$HOME\"\n{}", commands.join("\n")));
    assert_eq!(said.lines().collect::<Vec<_>>(), output);
}

#[test]
fn shipper_and_collector_carry_lines() {
    let home = Home::new();
    home.block(&documented("docs/c.md", "-o collector"));
    home.block(&documented("docs/c.md", "-o shipper-static"));
    let ring = home.path("ring");
    shared_block_ring::make_file(&ring, 1 << 16).unwrap();
    let device = shared_block_ring::OpenOptions::default().open(&ring).unwrap();
    shared_block_ring::create(&device, shared_block_ring::CreateOptions::default()).unwrap();
    let address = ring.to_str().unwrap();

    let mut collector = home.start("collector", address);
    let mut lines = BufReader::new(collector.stdout.take().unwrap()).lines();
    for program in ["shipper", "shipper-static"] {
        let mut shipper = home.start(program, address);
        let mut input = shipper.stdin.take().unwrap();
        for n in 0..1000 {
            writeln!(input, "{program} {n}").unwrap();
        }
        drop(input);
        for n in 0..1000 {
            assert_eq!(lines.next().unwrap().unwrap(), format!("{program} {n}"));
        }
        assert!(shipper.wait().unwrap().success());
    }
    run(Command::new("kill").arg(collector.id().to_string()));
    assert!(collector.wait().unwrap().success());
}

#[test]
fn page_lists_the_codes_of_the_header() {
    let page = std::fs::read_to_string(here("../docs/c.md")).unwrap();
    let header = std::fs::read_to_string(here("include/blockring.h")).unwrap();
    let listed: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("| `BLOCKRING_")).collect();
    let listed: Vec<Vec<&str>> =
        listed.iter().map(|row| row.split(" | ").take(2).collect()).collect();
    let (_, codes) = header.split_once("\nenum blockring_code\n").unwrap();
    let (codes, _) = codes.split_once("\n};").unwrap();
    let codes = codes.lines().filter_map(|line| line.trim().strip_prefix("BLOCKRING_"));
    let codes: Vec<Vec<String>> = codes
        .map(|code| {
            let (name, number) = code.trim_end_matches(',').split_once(" = ").unwrap();
            vec![format!("{name}`"), number.to_owned()]
        })
        .collect();
    let expected: Vec<Vec<&str>> =
        codes.iter().map(|code| code.iter().map(String::as_str).collect()).collect();
    assert_eq!(listed, expected);
}
