//! A producer in a container that has nothing but the backend's socket.
#![allow(clippy::unwrap_used)]

mod common;

use common::{SOON, Scene, numbers};
use nix::unistd::geteuid;
use qemu_tests::{Daemon, binaries};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Nobody's on this machine.
const USER: u32 = 65_533;

/// Lines before the backend is killed, and in all.
const BEFORE: u64 = 5000;
const LINES: u64 = 20_000;

/// Of an ordinary user: nothing here needs root.
fn as_a_user(mut command: Command) -> Command {
    if geteuid().is_root() {
        command.uid(USER).gid(USER);
    }
    command
}

/// Says so where the rest could not be told from a fault of ours.
fn expect_namespaces() {
    let mut command = as_a_user(Command::new("unshare"));
    let output = command.args(["--user", "--map-root-user", "--net", "true"]).output().unwrap();
    assert!(
        output.status.success(),
        "users may not make namespaces on this machine, so that there are no containers without root \
         (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns): {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The container's first process.
fn first_process(container: &mut Daemon) -> PathBuf {
    let unshare = container.pid();
    let mut found = None;
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    let is_ours = |process: &PathBuf| {
        fs::read(process.join("cmdline")).is_ok_and(|line| line.starts_with(b"/blockring\0"))
    };
    container
        .wait_for("starting the producer", SOON, |_| {
            let list = fs::read_to_string(&children).unwrap_or_default();
            found = list.split_whitespace().map(|pid| Path::new("/proc").join(pid)).find(is_ours);
            found.is_some()
        })
        .unwrap();
    found.unwrap()
}

/// Everything in a folder, by its path there.
fn files(root: &Path, folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        found.insert(entry.path().strip_prefix(root).unwrap().to_owned());
        if entry.file_type().unwrap().is_dir() {
            files(root, &entry.path(), found);
        }
    }
}

/// Looks at the container from outside, where nothing is hidden.
fn expect_nothing_but_the_socket(process: &Path) {
    let root = &process.join("root");
    let mut found = BTreeSet::new();
    files(root, root, &mut found);
    assert_eq!(found, ["blockring", "ring", "ring/s"].map(PathBuf::from).into());
    for name in ["new", "ring/new"] {
        let kind = File::create(root.join(name)).unwrap_err().kind();
        // Who may not write to the folder in any case is told that first.
        assert!(matches!(kind, ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied));
    }
    let read = |name: &str| fs::read_to_string(process.join(name)).unwrap();
    let interfaces = read("net/dev");
    let names = interfaces.lines().skip(2).map(|line| line.split(':').next().unwrap().trim());
    assert_eq!(names.collect::<Vec<_>>(), ["lo"]);
    let status = read("status");
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert!(field("NSpid:").ends_with("\t1"), "it is the first of its processes: {status}");
    for namespace in ["user", "mnt", "net", "pid", "ipc", "uts"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
        assert_ne!(of(process), of(Path::new("/proc/self")), "{namespace}");
    }
}

#[test]
fn a_producer_needs_nothing_but_the_socket_and_outlives_its_backend() {
    expect_namespaces();
    let scene = Scene::with_socket("socket/s", &["--size", "64K", "--socket-mode", "666"]);
    let public = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(scene.path("socket")).unwrap();
    public(&scene.path("socket"));
    public(scene.dir());
    let (script, program) = (scene.path("container-producer.sh"), scene.path("program"));
    fs::copy(binaries::workspace().join("examples/container-producer.sh"), &script).unwrap();
    fs::copy(binaries::guest().unwrap().blockring(), &program).unwrap();
    let mut backend = scene.backend().unwrap();
    let lines = LINES.to_string();
    let address = scene.address();
    let consume = ["consume", "--follow", "--count", &lines, &address];
    let mut consumer = scene.spawn("consumer", "blockring", &consume).unwrap();
    let mut command = as_a_user(Command::new(&script));
    command.current_dir(scene.dir()).arg("socket/s").arg(&program);
    let (mut producer, mut feed) = Daemon::spawn_fed("container", command, scene.dir()).unwrap();
    expect_nothing_but_the_socket(&first_process(&mut producer));
    let before = numbers(1, BEFORE);
    feed.write_all(before.as_bytes()).unwrap();
    let arrived = |consumer: &Daemon| consumer.printed() >= before.len() as u64 / 2;
    consumer.wait_for("getting something", SOON, arrived).unwrap();
    backend.kill().unwrap();
    let feeding = std::thread::spawn(move || {
        feed.write_all(numbers(BEFORE + 1, LINES).as_bytes()).unwrap();
    });
    let _backend = scene.backend().unwrap();
    feeding.join().unwrap();
    assert!(producer.wait(SOON).unwrap().success(), "{}", producer.stderr());
    assert!(producer.stderr().contains("the backend is back"), "{}", producer.stderr());
    assert!(consumer.wait(SOON).unwrap().success(), "{}", consumer.stderr());
    assert!(consumer.stdout() == numbers(1, LINES).into_bytes());
}
