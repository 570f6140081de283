//! Restart, upgrade and reset under running guests: nothing is lost, no I/O of a guest fails, and
//! the stream goes on.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use qemu_tests::Guest;
use qemu_tests::binaries::{self, Binaries};
use qemu_tests::campaign::restarts::{Chardev, Host, tell};
use qemu_tests::campaign::{Failure, Rig};
use shared_block_ring::format::Side;

/// Bound on an interruption. On an idle machine it takes a boot of the guest at most: some seconds.
/// Test machines are not idle.
const AT_MOST: Duration = Duration::from_secs(120);

/// Number of replacements of the backend under one guest.
const UPGRADES: usize = 10;

/// Runs `story` on a ring that both ends use.
fn under_load(side: Side, story: impl FnOnce(&mut Rig) -> Result<(), Failure>) {
    let tally = tell(side, 5, story).unwrap_or_else(|failure| panic!("{failure}"));
    println!("guest is the {side}: {tally:?}");
    assert!(tally.acknowledged > 0 && tally.delivered >= tally.acknowledged, "{tally:?}");
}

fn report(event: &str, host: Host, took: Duration) {
    println!("time to continue: {:.1} s ({event}; the other end: {host:?})", took.as_secs_f64());
    assert!(took < AT_MOST, "{event}, the other end: {host:?}: {took:?}");
}

/// Two builds of the backend.
fn builds() -> [PathBuf; 2] {
    let builds = [binaries::programs().unwrap(), binaries::debug().unwrap()];
    let builds = builds.map(Binaries::vhost_device_blockring);
    assert!(fs::read(&builds[0]).unwrap() != fs::read(&builds[1]).unwrap(), "{builds:?}");
    builds
}

fn backends_replaced(side: Side) {
    let builds = builds();
    under_load(side, |rig| {
        for number in 0..UPGRADES {
            let host = Host::ALL[number % Host::ALL.len()];
            // The first backend is the first build.
            let next = builds[(number + 1) % builds.len()].clone();
            report("backend replaced by another build", host, rig.replace_backend(next, host)?);
        }
        Ok(())
    });
}

#[test]
fn backend_is_replaced_by_another_build_under_a_producing_guest() {
    backends_replaced(Side::Producer);
}

#[test]
fn backend_is_replaced_by_another_build_under_a_consuming_guest() {
    backends_replaced(Side::Consumer);
}

#[test]
fn second_backend_is_refused_and_disturbs_nobody() {
    under_load(Side::Producer, |rig| {
        for _ in 0..3 {
            let (status, words) = rig.overlap_backend()?;
            assert_eq!(status.code(), Some(1), "{words}");
            let old = format!("process {}", rig.backend_pid());
            for part in ["in use", &old, "end it first", "SIGTERM"] {
                assert!(words.contains(part), "{words:?} lacks {part:?}");
            }
        }
        // The advice of the message helps.
        let [usual, _] = builds();
        report(
            "backend replaced after an overlap",
            Host::Stays,
            rig.replace_backend(usual, Host::Stays)?,
        );
        Ok(())
    });
}

fn booted_again(event: &str, side: Side, trigger: impl Fn(&Guest) -> qemu_tests::Result<()>) {
    under_load(side, |rig| {
        for host in Host::ALL {
            report(event, host, rig.boot_again(&trigger, host)?);
        }
        Ok(())
    });
}

#[test]
fn guest_reboots_while_it_pushes() {
    under_load(Side::Producer, |rig| {
        for host in Host::ALL {
            report("reboot", host, rig.reboot(host)?);
        }
        Ok(())
    });
}

#[test]
fn guest_reboots_in_good_order() {
    const ORDERLY: &str = "killall crashload; while pidof crashload >/dev/null; do usleep 20000; done; sync; reboot -f";
    under_load(Side::Producer, |rig| {
        let shut_down = |guest: &Guest| guest.spawn(ORDERLY).map(drop);
        report("orderly reboot", Host::Stays, rig.boot_again(shut_down, Host::Stays)?);
        Ok(())
    });
}

#[test]
fn guest_panics_while_it_pushes() {
    let panic = |guest: &Guest| guest.spawn("echo c >/proc/sysrq-trigger").map(drop);
    booted_again("kernel panic", Side::Producer, panic);
}

#[test]
fn producing_guest_is_reset() {
    booted_again("system_reset", Side::Producer, Guest::reset);
}

#[test]
fn consuming_guest_is_reset() {
    booted_again("system_reset", Side::Consumer, Guest::reset);
}

fn stopped(side: Side) {
    under_load(side, |rig| {
        for host in Host::ALL {
            report("cont", host, rig.stop_guest(Duration::from_secs(2), host)?);
        }
        Ok(())
    });
}

#[test]
fn producing_guest_stands_still_while_everything_is_consumed() {
    stopped(Side::Producer);
}

#[test]
fn consuming_guest_stands_still_while_its_read_is_held() {
    stopped(Side::Consumer);
}

#[test]
fn disk_is_unplugged_and_plugged_in_again() {
    under_load(Side::Producer, |rig| {
        for (chardev, host) in [
            (Chardev::IsRemade, Host::Stays),
            (Chardev::IsRemade, Host::IsRestarted),
            (Chardev::IsKept, Host::IsKilled),
        ] {
            report("unplugged and plugged in", host, rig.plug_again(chardev, host)?);
        }
        Ok(())
    });
}
