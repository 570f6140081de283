//! A ring on a disk that two hosts share. Each host is a guest here, with a kernel of its own, and
//! the disk is on the network. The locks on a ring's roles end at a host, so that a role moves to
//! the other one safely only behind a fence: the server shuts the first host out.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qemu_tests::scene::{SOON, is_full, numbers, report};
use qemu_tests::{Guest, GuestBuilder, Job, Lun, Result, wait_until};
use serde_json::json;

/// Bytes of the disk.
const SIZE: u64 = 64 << 10;

/// Two hosts of one disk. The ring's role is on the first one, and moves to the second one.
struct Hosts {
    first: Guest,
    second: Guest,
    lun: Lun,
    _dir: tempfile::TempDir,
}

impl Hosts {
    fn boot() -> Result<Self> {
        let dir = tempfile::tempdir().unwrap();
        let lun = Lun::serve(dir.path(), SIZE, &["first", "second"])?;
        let boot = |host| GuestBuilder::new().disk(lun.disk(host)).boot();
        let (first, second) = (boot("first")?, boot("second")?);
        second.check("blockring create /dev/vda")?;
        Ok(Self { first, second, lun, _dir: dir })
    }

    fn produce(&self, first: u64, last: u64) -> Result<()> {
        let command = format!("seq {first} {last} | blockring produce --timeout 60 /dev/vda");
        self.second.check(&command).map(drop)
    }

    fn consume(&self) -> Result<String> {
        self.second.check("blockring consume /dev/vda")
    }

    /// Sends and takes those batches of a thousand items.
    fn go_round(&self, batches: Range<u64>) -> Result<()> {
        for batch in batches {
            let (first, last) = (batch * 1000 + 1, (batch + 1) * 1000);
            self.produce(first, last)?;
            assert_eq!(self.consume()?, numbers(first, last));
        }
        Ok(())
    }

    fn used(&self) -> Result<u64> {
        let facts = self.second.check("blockring diagnostics --json /dev/vda")?;
        Ok(report(facts.as_bytes())["used"].as_u64().unwrap())
    }

    /// Waits until everything is freed.
    fn wait_until_empty(&self) {
        assert!(wait_until(SOON, || self.used().is_ok_and(|used| used == 0)));
    }

    /// Bounds the writes of the first host to so many bytes a second; 0 lifts the bound. With one
    /// byte a second, the next write passes, and the one behind it waits for minutes.
    fn bound_writes(&self, bytes: u64) -> Result<()> {
        let bounds = json!({
            // QEMU's name of the first disk's drive.
            "device": "d0", "bps": 0, "bps_rd": 0, "bps_wr": bytes, "iops": 0, "iops_rd": 0,
            "iops_wr": 0,
        });
        self.first.qmp("block_set_io_throttle", &bounds).map(drop)
    }

    /// Waits until the program on the first host is in a write, which waits.
    fn wait_until_writing(&self) -> Result<()> {
        let command = "grep State: /proc/$(pidof blockring)/status";
        let is_waiting = || self.first.run(command).is_ok_and(|said| said.stdout.contains('D'));
        // A short request can be met by chance, but not again and again.
        let is_stuck = || (0..5).all(|_| is_waiting());
        assert!(wait_until(SOON, is_stuck), "{:?}", self.first.run(command)?);
        Ok(())
    }

    /// The first host hangs, with a write on its way.
    fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// The first host goes on, and its write with it.
    fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT);
        self.bound_writes(0)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.first.pid().cast_signed()), signal).unwrap();
    }

    /// The first host's program must have been told that its disk is gone, and no program of it
    /// reaches the disk again.
    fn assert_shut_out(&self, job: &Job) -> Result<()> {
        let ended = job.wait(SOON)?;
        assert!(ended.status == 1 && ended.stderr.contains("Input/output error"), "{ended:?}");
        for command in [
            "echo late | blockring produce --timeout 5 /dev/vda",
            "blockring consume /dev/vda",
            "dd if=/dev/zero of=/dev/vda bs=512 count=1 oflag=direct conv=notrunc",
        ] {
            let refused = self.first.run(command)?;
            assert_ne!(refused.status, 0, "{command}: {refused:?}");
        }
        Ok(())
    }

    fn power_off(self) -> Result<()> {
        self.first.kill()?;
        self.second.power_off()
    }
}

/// Returns a consumer on the first host that has written the items up to 3000 to its output, and
/// freed those up to 2000: the write of its pointer behind 3000 is on its way.
fn consumer_with_a_late_write(hosts: &Hosts) -> Result<Job> {
    let job = hosts.first.spawn("exec blockring consume --follow /dev/vda >/tmp/out")?;
    let has = |last| {
        let out = || hosts.first.check("cat /tmp/out");
        assert!(wait_until(SOON, || out().is_ok_and(|text| text == numbers(1, last))), "{last}");
    };
    hosts.produce(1, 1000)?;
    has(1000);
    hosts.wait_until_empty();
    hosts.bound_writes(1)?;
    hosts.produce(1001, 2000)?;
    has(2000);
    hosts.wait_until_empty();
    hosts.produce(2001, 3000)?;
    has(3000);
    hosts.wait_until_writing()?;
    assert_ne!(hosts.used()?, 0, "the pointer is on its way");
    hosts.hang();
    Ok(job)
}

/// The second host goes on where the first one has freed last, and the ring goes round several
/// times. At the end the items from 13001 to 14000 are in it.
fn take_over(hosts: &Hosts) -> Result<()> {
    // The first host had delivered these, and not freed: at least once.
    assert_eq!(hosts.consume()?, numbers(2001, 3000));
    hosts.go_round(3..13)?;
    hosts.produce(13_001, 14_000)?;
    hosts.second.check("blockring check /dev/vda").map(drop)
}

#[test]
fn fenced_consumer_is_continued_on_another_host_and_its_late_write_does_nothing() -> Result<()> {
    let hosts = Hosts::boot()?;
    let job = consumer_with_a_late_write(&hosts)?;
    hosts.lun.revoke("first")?;
    take_over(&hosts)?;
    hosts.go_on()?;
    hosts.assert_shut_out(&job)?;
    hosts.second.check("blockring check /dev/vda")?;
    assert_eq!(hosts.consume()?, numbers(13_001, 14_000));
    hosts.power_off()
}

/// This is why docs/scaling.md asks for a fence.
#[test]
fn late_write_of_a_consumer_without_a_fence_damages_the_ring() -> Result<()> {
    let hosts = Hosts::boot()?;
    let job = consumer_with_a_late_write(&hosts)?;
    take_over(&hosts)?;
    hosts.go_on()?;
    // The consumer's pointer is back at 3000, further behind the producer's than the ring is long.
    let words = "pointers contradict each other";
    let ended = job.wait(SOON)?;
    assert!(ended.status == 5 && ended.stderr.contains(words), "{ended:?}");
    for command in ["blockring check /dev/vda", "blockring consume /dev/vda"] {
        let failed = hosts.second.run(command)?;
        assert_ne!(failed.status, 0, "{command}: {failed:?}");
    }
    let check = hosts.second.run("blockring check /dev/vda")?;
    assert!((check.stdout + &check.stderr).contains(words));
    hosts.power_off()
}

#[test]
fn roles_of_one_ring_on_two_hosts_do_not_exclude_each_other() -> Result<()> {
    let hosts = Hosts::boot()?;
    let job = hosts.first.spawn("exec blockring consume --follow /dev/vda >/tmp/out")?;
    hosts.produce(1, 10)?;
    hosts.wait_until_empty();
    let same_host = hosts.first.run("blockring consume /dev/vda")?;
    assert!(same_host.stderr.contains("already has a consumer"), "{same_host:?}");
    // The other host knows nothing of that consumer.
    assert_eq!(hosts.consume()?, "");
    hosts.hang();
    hosts.produce(11, 20)?;
    assert_eq!(hosts.consume()?, numbers(11, 20));
    // It had no write on its way: it finds its pointer moved before it writes.
    hosts.signal(Signal::SIGCONT);
    hosts.produce(21, 30)?;
    let ended = job.wait(SOON)?;
    assert!(ended.status == 6 && ended.stderr.contains("superseded"), "{ended:?}");
    // If it hung within a look, it has read them, too.
    let out = hosts.first.check("cat /tmp/out")?;
    assert!([numbers(1, 10), numbers(1, 20)].contains(&out), "{out}");
    assert_eq!(hosts.consume()?, numbers(21, 30));
    hosts.power_off()
}

#[test]
fn fenced_producer_is_continued_on_another_host_and_its_late_write_does_nothing() -> Result<()> {
    let hosts = Hosts::boot()?;
    hosts.first.check("seq 1 1000 | blockring produce /dev/vda")?;
    hosts.bound_writes(1)?;
    // Its items pass, and its pointer does not.
    let job = hosts.first.spawn("seq 1001 2000 | blockring produce /dev/vda")?;
    hosts.wait_until_writing()?;
    hosts.hang();
    hosts.lun.revoke("first")?;
    // What the first host has published is there, and nothing else is.
    assert_eq!(hosts.consume()?, numbers(1, 1000));
    hosts.go_round(2..12)?;
    hosts.produce(12_001, 13_000)?;
    hosts.go_on()?;
    hosts.assert_shut_out(&job)?;
    hosts.second.check("blockring check /dev/vda")?;
    assert_eq!(hosts.consume()?, numbers(12_001, 13_000));
    hosts.power_off()
}

#[test]
fn ring_that_waits_for_another_host_loses_nothing() -> Result<()> {
    let hosts = Hosts::boot()?;
    let job = hosts.first.spawn("seq 1 20000 | blockring produce /dev/vda")?;
    let facts = || hosts.second.check("blockring diagnostics --json /dev/vda");
    assert!(wait_until(SOON, || facts().is_ok_and(|facts| is_full(&report(facts.as_bytes())))));
    let all = "timeout -s TERM 100 blockring consume --count 20000 -f /dev/vda >/tmp/out";
    hosts.second.check(all)?;
    assert_eq!(job.wait(Duration::from_secs(60))?.status, 0);
    assert_eq!(hosts.second.check("cat /tmp/out")?, numbers(1, 20_000));
    hosts.power_off()
}
