//! Paths of all kinds: names that are not UTF-8, file types that hold no ring, sockets with long
//! paths.
#![allow(clippy::unwrap_used)]

use crate::common::machine::succeed;
use ring_test_support::backend::{Backend, Word};
use ring_test_support::{RingFile, assert_fails};
use shared_block_ring::UnixDevice;
use shared_block_ring::handover::Role;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[test]
fn non_utf8_name_works_with_every_command() {
    succeed(
        r#"name=$(printf 'a\377\nb')
        "$RING" create --size 64K "$name"
        echo one | "$RING" produce "$name"
        must 0 sound "$RING" check "$name"
        must 0 '"used":8' "$RING" diagnostics --json "$name"
        "$RING" suspend "$name"
        "$RING" resume "$name" 2> /dev/null || :
        test "$("$RING" consume "$name")" = one
        printf 'two\n' > input
        test "$("$RING" journal --size 64K --exec cat "$name.journal" < input)" = two
        printf '\377' | dd of="$name" bs=1 seek=520 conv=notrunc status=none
        must 5 '"a\xFF\nb": ' "$RING" check "$name"
        must 0 '"kept":"\"a\\xFF\\nb.before-repair\""' "$RING" repair --write --json "$name"
        test -e "$name.before-repair"
        must 1 '"a\xFF\nb" holds a ring already' "$RING" create "$name"
        must 1 '"b\xFF": cannot open' "$RING" produce "$(printf 'b\377')"
        must 1 'unix:"b\xFF": ' "$RING" consume "$(printf 'unix:b\377')"
        must 1 'b\xFF' "$RING" consume "$(printf 'vhost-user:b\377')"
        must 1 'serial:b' "$RING" consume "$(printf 'serial:b\377')""#,
    );
}

#[test]
fn path_that_is_no_file_and_no_disk_is_refused_without_waiting() {
    succeed(
        r#"mkfifo pipe
        mkdir folder
        for command in "create" "create --force" produce consume check diagnostics suspend \
            "repair --write" "journal --exec cat"; do
            must 1 "a named pipe is neither" timeout 60 "$RING" $command pipe
            must 1 "a folder is neither" timeout 60 "$RING" $command folder
            must 1 "a character device is neither" timeout 60 "$RING" $command /dev/null
        done
        must 1 "exists, and is neither a file" timeout 60 "$RING" create --size 64K pipe
        ln -s loop loop
        must 1 "symbolic links" "$RING" produce loop
        must 1 "Not a directory" "$RING" produce "$RING/"
        "$RING" create --size 64K journal
        printf 'one\n' > input
        must 1 "cannot append to pipe" timeout 60 sh -c '"$RING" journal --exec false --retry 0.01 --limit 1 --aside pipe --timeout 1 journal < input'"#,
    );
}

#[test]
fn every_command_says_what_is_wrong_with_its_ring_and_what_to_do() {
    succeed(
        r#"mkdir folder
        chmod 755 .
        ln -s nowhere link
        : > empty
        printf x > one
        head -c 65536 /dev/zero | tr '\0' x > text
        "$RING" create --size 64K closed
        chmod 600 closed
        alone="setpriv --reuid 65534 --regid 65534 --clear-groups"
        must 1 "text is not empty" "$RING" create text
        for command in create produce consume check diagnostics suspend resume "repair" \
            "repair --write" "journal --exec cat" "bench --seconds 0.01"; do
            must 1 "missing: cannot open: No such file or directory" "$RING" $command missing
            must 1 "there is no folder nowhere" "$RING" $command nowhere/ring
            must 1 "link to nowhere, which does not exist" "$RING" $command link
            must 5 "empty: too small for a ring: it has 0 sectors" "$RING" $command empty
            must 5 "one: too small for a ring: it has 0 sectors" "$RING" $command one
            must 1 "as a user who may open it" $alone "$RING" $command closed
            case $command in
                create | journal*) ;;
                *) must 5 "is it the right file or device" "$RING" $command text ;;
            esac
        done
        said=$("$RING" check folder 2>&1) && exit 1
        case $said in *unix:PATH*) echo "$said"; exit 1 ;; esac
        must 1 "folder exists, and is neither a file" "$RING" create --size 64K folder
        must 1 "has 65536 bytes, not 131072" "$RING" create --size 128K text
        must 1 "empty exists, and is too small for a ring: 0 bytes: remove it" \
            "$RING" create --size 64K empty
        must 1 "there is no folder nowhere" "$RING" create --size 64K nowhere/ring
        must 1 "missing: cannot open: No such file or directory (os error 2) (--size 8M makes it)" \
            "$RING" journal --exec cat missing
        must 1 "there is no folder nowhere" "$RING" journal --size 64K --exec cat nowhere/ring
        must 1 "takes at least 262144 bytes" "$RING" create --size 64K --sector-size 65536 x
        must 1 "link to nowhere, which does not exist" \
            "$RING" journal --exec false --limit 1 --aside link closed"#,
    );
}

#[test]
fn socket_path_is_refused_with_the_address_to_use() {
    let ring = RingFile::new(65536, 512);
    let _backend = Backend::new(&ring, Word::Guarded);
    for command in ["produce", "consume", "check", "create"] {
        let output = Command::new(env!("CARGO_BIN_EXE_blockring"))
            .args([OsStr::new(command), ring.path.with_extension("socket").as_os_str()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_fails(&output, 1, "unix:PATH");
    }
}

#[test]
fn empty_address_is_refused() {
    succeed(
        r#"must 1 "empty" "$RING" consume unix:
        must 1 "empty" "$RING" consume vhost-user:
        must 1 "empty" "$RING" consume serial:
        must 2 "value is required" "$RING" consume """#,
    );
}

#[test]
fn serial_and_socket_addresses_make_no_file() {
    succeed(
        r#"must 1 "leave out --size" "$RING" create --size 64K serial:logs
        must 1 "backend's" "$RING" create --size 64K unix:ring
        test -z "$(ls)"
        "$RING" create --size 64K ./serial:logs
        must 0 sound "$RING" check ./serial:logs"#,
    );
}

#[test]
fn socket_with_a_long_path_can_be_connected() {
    let mut ring = RingFile::new(65536, 512);
    let mut folder = ring.path.parent().unwrap().to_owned();
    for _ in 0..3 {
        folder = folder.join("a".repeat(100));
    }
    std::fs::create_dir_all(&folder).unwrap();
    // The socket is bound beside the ring, by a path that fits, and moved.
    let backend = Backend::new(&ring, Word::Guarded);
    let long = folder.join("socket");
    std::fs::rename(ring.path.with_extension("socket"), &long).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| backend.serve());
        UnixDevice::connect(&long, Role::Consumer).unwrap();
    });
    ring.path = PathBuf::new();
    let name = folder.join("b".repeat(120));
    let words = UnixDevice::connect(&name, Role::Consumer).err().unwrap().to_string();
    assert!(words.contains("too long"), "{words}");
}

#[test]
fn relative_socket_path_can_be_connected() {
    let ring = RingFile::new(65536, 512);
    let backend = Backend::new(&ring, Word::Guarded);
    let child = Command::new(env!("CARGO_BIN_EXE_blockring"))
        .args(["diagnostics", "unix:ring.socket"])
        .current_dir(ring.path.parent().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    backend.serve();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn message_is_one_line_with_any_name() {
    let output = Command::new(env!("CARGO_BIN_EXE_blockring"))
        .args([OsStr::new("consume"), OsStr::from_bytes(b"/tmp/no\n\x1b[31m\xff")])
        .output()
        .unwrap();
    assert_fails(&output, 1, r#""/tmp/no\n\u{1b}[31m\xFF""#);
    assert_eq!(String::from_utf8(output.stderr.clone()).unwrap().lines().count(), 1);
    assert!(!output.stderr.contains(&0x1b));
}

#[test]
fn overlay_carries_a_ring_that_is_only_in_its_lower_part() {
    succeed(
        r#"mkdir m
        mount -t tmpfs none m
        mkdir m/lower m/upper m/work merged
        "$RING" create --size 64K m/lower/ring
        mount -t overlay -o lowerdir=m/lower,upperdir=m/upper,workdir=m/work none merged
        must 0 sound "$RING" check merged/ring
        "$RING" consume --count 2 --timeout 60 merged/ring > out &
        { echo one; sleep 2; echo two; } | "$RING" produce merged/ring
        wait $!
        test "$(cat out)" = "one
two"
        "$RING" create --size 64K merged/new"#,
    );
}
