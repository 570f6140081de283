//! Promises of the guest helper to the tests that boot guests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use qemu_tests::{Daemon, Disk, Error, GuestBuilder, ImageSpec, Result, wait_until};

const DISK_SIZE: u64 = 1 << 20;

/// Image without this workspace's programs, which these tests do not need.
fn builder() -> GuestBuilder {
    GuestBuilder::new().image(ImageSpec::minimal())
}

#[test]
fn commands_run_and_report_output_errors_and_status() -> Result<()> {
    let guest = builder().boot()?;
    let output = guest.run("echo hello; echo trouble >&2; printf 'no newline'")?;
    assert_eq!(output.stdout, "hello\nno newline");
    assert_eq!(output.stderr, "trouble\n");
    assert_eq!(output.status, 0);
    assert_eq!(guest.run("exit 7")?.status, 7);
    assert_eq!(guest.run("kill -9 $$")?.status, 128 + 9);

    // Several lines, quotes, and more than a line of the terminal's own editing would take.
    let long = format!("{}\n\t$\"'\\\n", "x".repeat(10_000));
    let echoed = guest.check(&format!("cat <<'END'\n{long}END"))?;
    assert!(echoed == long, "{} bytes came back, not {}", echoed.len(), long.len());
    let many = guest.check("seq 1 20000")?;
    assert_eq!(many.lines().count(), 20_000);
    assert!(many.ends_with("\n20000\n"));
    guest.power_off()
}

#[test]
fn file_disk_carries_direct_writes_to_the_host() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk,with comma.img");
    fs::File::create(&path).unwrap().set_len(DISK_SIZE).unwrap();
    let guest = builder().disk(Disk::file(&path, "helper")).boot()?;
    assert_eq!(guest.check("cat /sys/block/vda/serial")?, "helper");
    assert_eq!(guest.check("blockdev --getsize64 /dev/vda")?, format!("{DISK_SIZE}\n"));
    guest.check(
        "yes 0123456 | dd of=/tmp/sector bs=512 count=1 iflag=fullblock
         dd if=/tmp/sector of=/dev/vda bs=512 seek=3 oflag=direct conv=notrunc",
    )?;
    let bytes = fs::read(&path).unwrap();
    assert_eq!(&bytes[3 * 512..][..16], b"0123456\n0123456\n");
    assert!(bytes[..3 * 512].iter().all(|&byte| byte == 0));
    guest.power_off()
}

#[test]
fn hanging_command_is_a_timeout_and_leaves_the_guest_usable() -> Result<()> {
    let guest = builder().boot()?;
    let start = Instant::now();
    let error = guest.run_for("sleep 1000", Duration::from_millis(500)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));

    let job = guest.spawn("sleep 1000")?;
    assert_eq!(guest.check("echo still here")?, "still here\n");
    job.signal("KILL")?;
    assert_eq!(job.wait(Duration::from_secs(30))?.status, 128 + 9);
    guest.power_off()
}

#[test]
fn command_sent_while_another_ends_arrives_whole() -> Result<()> {
    const COMMAND: &str = ": 0123456789 0123456789 0123456789 0123456789 0123456789; sleep 0.05";
    let guest = builder().boot()?;
    let jobs: Vec<_> = (0..30).map(|_| guest.spawn(COMMAND)).collect::<Result<_>>()?;
    for job in jobs {
        assert_eq!(job.wait(Duration::from_secs(60))?.status, 0);
    }
    guest.power_off()
}

#[test]
fn jobs_run_side_by_side() -> Result<()> {
    let guest = builder().boot()?;
    let jobs: Vec<_> = (0..4)
        .map(|number| guest.spawn(&format!("sleep 1; seq {number} 500")))
        .collect::<Result<_>>()?;
    for (number, job) in jobs.iter().enumerate() {
        let output = job.wait(Duration::from_secs(60))?;
        assert!(output.stdout.starts_with(&format!("{number}\n")), "{output:?}");
        assert!(output.stdout.ends_with("\n500\n"), "{output:?}");
    }
    guest.power_off()
}

#[test]
fn guest_can_be_rebooted_reset_and_stopped() -> Result<()> {
    let guest = builder().reboots().boot()?;
    let boot_id = || guest.check("cat /proc/sys/kernel/random/boot_id");
    let first = boot_id()?;
    guest.spawn("reboot -f")?;
    guest.wait_ready()?;
    let second = boot_id()?;
    assert_ne!(first, second);
    guest.reset()?;
    guest.wait_ready()?;
    assert_ne!(second, boot_id()?);

    guest.stop()?;
    let job = guest.spawn("echo late")?;
    assert!(matches!(job.wait(Duration::from_millis(300)), Err(Error::Timeout { .. })));
    guest.cont()?;
    assert_eq!(job.wait(Duration::from_secs(30))?.stdout, "late\n");
    guest.power_off()
}

#[test]
fn script_streams_its_output_and_powers_off() -> Result<()> {
    let image = ImageSpec::minimal().script("count", "seq 1 2000; echo '<<almost a mark'; exit 3");
    let guest = GuestBuilder::new().image(image).script("count").boot()?;
    let mut output = Vec::new();
    assert_eq!(guest.follow_script(&mut output, Duration::from_secs(60))?, 3);
    let text = String::from_utf8(output).unwrap();
    assert!(text.starts_with("1\n2\n"), "{text}");
    assert!(text.ends_with("\n2000\n<<almost a mark\n"), "{text}");
    guest.wait_for_end()
}

#[test]
fn end_of_qemu_is_told_apart_from_a_timeout() -> Result<()> {
    let guest = builder().boot()?;
    let job = guest.spawn("sleep 1; reboot -f")?;
    // Reboots are not allowed, so that this ends QEMU.
    assert!(matches!(job.wait(Duration::from_secs(60)), Err(Error::Died { .. })));

    let wrong = builder().arguments(["-no-such-option"]).boot().unwrap_err();
    assert!(wrong.to_string().contains("no-such-option"), "{wrong}");
    Ok(())
}

#[test]
fn daemon_is_watched_timed_and_killed() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        command
    };
    let path = folder.path().join("made");
    let script = "echo started >&2; touch made; while :; do :; done";
    let mut busy = Daemon::spawn("busy", shell(script), folder.path())?;
    busy.wait_for_path(&path, Duration::from_secs(10))?;
    assert_eq!(busy.stderr(), "started\n");
    assert!(wait_until(Duration::from_secs(10), || busy.cpu_time().unwrap()
        >= Duration::from_millis(50)));
    let status = busy.terminate(Duration::from_secs(10))?;
    assert!(!status.success());
    assert!(!busy.is_running());

    let mut dead = Daemon::spawn("dead", shell("echo cannot >&2; exit 1"), folder.path())?;
    let error =
        dead.wait_for_path(&folder.path().join("never"), Duration::from_secs(10)).unwrap_err();
    assert!(matches!(&error, Error::Died { log, .. } if log == "cannot\n"), "{error}");

    let pid = Daemon::spawn("dropped", shell("exec sleep 1000"), folder.path())?.pid();
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    Ok(())
}
