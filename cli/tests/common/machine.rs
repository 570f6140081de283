//! Shell scripts in a mount namespace of their own. They need root.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Functions for every script: `L=$(loop FILE)` makes a loop device that ends with the script;
/// `must CODE WORDS COMMAND…` runs a command that has to end with that code and print these words.
const PRELUDE: &str = r#"
set -eu
# Open all the time: the script may mount something over its folder.
exec 8<> .loops 9< .loops
trap 'while read -r name; do losetup -d "$name" || :; done <&9' EXIT
loop() { name=$(losetup -f --show "$@"); echo "$name" >&8; echo "$name"; }
must() {
    code=$1 words=$2
    shift 2
    got=0
    said=$("$@" 2>&1 < /dev/null) || got=$?
    case $said in *"$words"*) ;; *) echo "'$*' ended with $got and said '$said', not '$words'"; exit 99 ;; esac
    [ "$got" = "$code" ] || { echo "'$*' ended with $got, not $code, and said '$said'"; exit 99; }
}
"#;

/// Runs `script` in a mount namespace of its own and a folder of its own; `$RING` is the program
/// `blockring`.
pub fn run(script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let output = run_in(folder.path(), script);
    drop(folder);
    output
}

/// Runs `script` in `folder`.
pub fn run_in(folder: &Path, script: &str) -> Output {
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!("{PRELUDE}{script}"))
        .env("RING", env!("CARGO_BIN_EXE_blockring"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs `script`, which must end with 0.
pub fn succeed(script: &str) {
    let output = run(script);
    let (said, errors) = (&output.stdout, &output.stderr);
    assert!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(said),
        String::from_utf8_lossy(errors)
    );
}
