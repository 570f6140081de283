//! A producer in a container that has nothing but the backend's socket.
#![allow(clippy::unwrap_used)]

use nix::unistd::geteuid;
use qemu_tests::scene::{SOON, Scene, numbers};
use qemu_tests::{Daemon, binaries};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user id without a user on this machine.
const USER: u32 = 65_533;

/// Lines before the backend is killed, and in all.
const BEFORE: u64 = 5000;
const LINES: u64 = 20_000;

/// The user that runs the example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    /// An ordinary user, with a user namespace.
    User,
    /// Root in a chroot, where no process may make a user namespace.
    ChrootedRoot,
}

impl Runner {
    /// Returns a command that runs `script` in `folder`.
    fn command(self, script: &Path, folder: &Path) -> Command {
        match self {
            Self::User => as_a_user(Command::new(script)),
            Self::ChrootedRoot => {
                // All of this machine's files are there under another path: that suffices for the
                // kernel to see a chroot.
                const ENTER: &str = r#"mkdir -p "$1/root" && mount --rbind / "$1/root" &&
                    exec chroot "$1/root" sh -c 'cd "$1" && shift && exec "$@"' sh "$@""#;
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", ENTER, "sh"]).arg(folder).arg(script);
                command
            }
        }
    }
}

/// Gives the folder to an ordinary user: nothing in it needs root.
fn as_a_user(mut command: Command) -> Command {
    if geteuid().is_root() {
        command.uid(USER).gid(USER);
    }
    command
}

/// Returns whether an ordinary user may make a user namespace here; in a chroot no process may.
fn users_have_namespaces() -> bool {
    let mut command = as_a_user(Command::new("unshare"));
    let output = command.args(["--user", "--map-root-user", "--net", "true"]).output().unwrap();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        println!(
            "no namespaces for users on this machine, only for root (sysctl user.max_user_namespaces, \
             kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns): {said}"
        );
    }
    output.status.success()
}

/// Returns the container's first process.
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

/// Examines the container from outside.
fn expect_nothing_but_the_socket(process: &Path, runner: Runner) {
    let root = &process.join("root");
    let mut found = BTreeSet::new();
    files(root, root, &mut found);
    assert_eq!(found, ["blockring", "ring", "ring/s"].map(PathBuf::from).into());
    for name in ["new", "ring/new"] {
        let kind = File::create(root.join(name)).unwrap_err().kind();
        // A user without write access to the folder gets that error first.
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
    let of = |process: &Path, namespace| fs::read_link(process.join("ns").join(namespace)).unwrap();
    for namespace in ["mnt", "net", "pid", "ipc", "uts"] {
        assert_ne!(of(process, namespace), of(Path::new("/proc/self"), namespace), "{namespace}");
    }
    match runner {
        Runner::User => assert_ne!(of(process, "user"), of(Path::new("/proc/self"), "user")),
        Runner::ChrootedRoot => assert_eq!(field("Uid:"), "65534\t65534\t65534\t65534"),
    }
}

#[test]
fn container_producer_needs_nothing_but_the_socket_and_outlives_its_backend() {
    if users_have_namespaces() {
        run_a_container(Runner::User);
    } else {
        assert!(
            geteuid().is_root(),
            "neither namespaces for users nor root: no container can be made"
        );
    }
    if geteuid().is_root() {
        run_a_container(Runner::ChrootedRoot);
    }
}

fn run_a_container(runner: Runner) {
    let scene = Scene::with_socket("socket/s", &["--size", "64K", "--socket-mode", "666"]);
    let public = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(scene.path("socket")).unwrap();
    public(&scene.path("socket"));
    public(scene.dir());
    let (script, program) = (scene.path("container-producer.sh"), scene.path("program"));
    fs::copy(binaries::workspace().join("examples/container-producer.sh"), &script).unwrap();
    fs::copy(binaries::programs().unwrap().blockring(), &program).unwrap();
    let mut backend = scene.backend().unwrap();
    let lines = LINES.to_string();
    let address = scene.address();
    let consume = ["consume", "--follow", "--count", &lines, &address];
    let mut consumer = scene.spawn("consumer", "blockring", &consume).unwrap();
    let mut command = runner.command(&script, scene.dir());
    command.current_dir(scene.dir()).arg("socket/s").arg(&program);
    let (mut producer, mut feed) = Daemon::spawn_fed("container", command, scene.dir()).unwrap();
    expect_nothing_but_the_socket(&first_process(&mut producer), runner);
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
