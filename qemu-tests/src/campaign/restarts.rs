//! Events that operators and guests bring about under a ring in use: restarts, upgrades, resets,
//! plugging.
//!
//! Each event is over when a new item has arrived. The logs of the ends, and of the guest's kernel,
//! tell at the end whether it has cost anything.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::{Control, UnixDevice};

use super::inside::{CHARDEV, DISK, Manner, SLOT};
use super::rig::{Rig, host_build, other};
use super::stream::SOON;
use super::{Result, Tally, host, in_a_folder, recipe, unsound};
use crate::load::Random;
use crate::{Daemon, Guest, wait_until};

/// Event of the process on the host at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Nothing.
    Stays,
    /// The process is stopped by a signal, and another one started.
    IsRestarted,
    /// The process is killed, and another one started.
    IsKilled,
}

impl Host {
    /// All of them, one after the other.
    pub const ALL: [Self; 3] = [Self::Stays, Self::IsRestarted, Self::IsKilled];
}

/// QEMU's connection to the backend when the disk is unplugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chardev {
    /// The connection is removed with the disk, and made anew before the next one.
    IsRemade,
    /// The connection stays, and the next disk takes it over.
    IsKept,
}

/// Runs `story` on a ring under load, and judges its stream. `side` is the guest's; as a consumer
/// it has the backend hold its reads.
pub fn tell(side: Side, seed: u64, story: impl FnOnce(&mut Rig) -> Result<()>) -> Result<Tally> {
    in_a_folder(|folder| {
        let manner = if side == Side::Consumer { Manner::HeldReads } else { Manner::Plain };
        let mut rig = Rig::start(folder, side, manner, recipe(&mut Random::new(seed)))?;
        story(&mut rig)?;
        Ok(rig.finish()?.tally)
    })
}

/// The parts of an event.
struct Event<T, H, R> {
    /// Brings it about.
    trigger: T,
    /// Waits until the event has happened.
    happened: H,
    /// Reacts as an operator does.
    recover: R,
}

/// Duration of the interruption.
struct Pause {
    since_trigger: Duration,
    since_recovery: Duration,
}

impl Rig {
    /// Replaces the backend by `program`. Returns the time until a new item arrived.
    pub fn replace_backend(&mut self, program: PathBuf, host: Host) -> Result<Duration> {
        let event = Event {
            trigger: |rig: &mut Self| Ok(rig.backend.signal(Signal::SIGTERM)?),
            happened: |rig: &mut Self| host::end(&mut rig.backend),
            recover: |rig: &mut Self| {
                rig.backend = rig.start_backend(program)?;
                Ok(())
            },
        };
        Ok(self.happen(host, event)?.since_trigger)
    }

    /// Starts a second backend with the same arguments while the first one serves. Returns its exit
    /// status and messages.
    pub fn overlap_backend(&mut self) -> Result<(ExitStatus, String)> {
        self.wait_for_load()?;
        let command = self.backend_command(host_build()?);
        let mut second = Daemon::spawn("second", command, &self.folder)?;
        let status = second.wait(SOON)?;
        self.wait_for_load()?;
        Ok((status, second.stderr()))
    }

    /// Returns the backend's process.
    pub fn backend_pid(&self) -> u32 {
        self.backend.pid()
    }

    /// Has the guest's kernel reboot, which shuts its devices down first: a write that is under way
    /// can fail then. Returns the time until a new item arrived.
    pub fn reboot(&mut self, host: Host) -> Result<Duration> {
        self.stream.shut_down(self.side)?;
        self.boot_again(|guest| guest.spawn("sync; reboot -f").map(drop), host)
    }

    /// Has the guest boot again by `trigger`. Returns the time until a new item arrived.
    pub fn boot_again(
        &mut self,
        trigger: impl FnOnce(&Guest) -> crate::Result<()>,
        host: Host,
    ) -> Result<Duration> {
        // The kernel's log does not survive.
        self.guest.expect_no_io_error()?;
        let event = Event {
            trigger: |rig: &mut Self| Ok(trigger(&rig.guest.guest)?),
            happened: |rig: &mut Self| Ok(rig.guest.guest.wait_ready()?),
            recover: |rig: &mut Self| rig.guest.restart_load(rig.side, rig.manner, &mut rig.stream),
        };
        Ok(self.happen(host, event)?.since_trigger)
    }

    /// Stops the guest's processors for `time`: a producer's while everything is consumed, a
    /// consumer's while its read is held. Returns the time from their restart until a new item
    /// arrived.
    pub fn stop_guest(&mut self, time: Duration, host: Host) -> Result<Duration> {
        let event = Event {
            trigger: |rig: &mut Self| {
                if rig.side == Side::Producer {
                    return Ok(rig.guest.guest.stop()?);
                }
                rig.host.signal(Signal::SIGSTOP)?;
                rig.wait_until_empty()?;
                rig.wait_until_held()?;
                rig.guest.guest.stop()?;
                Ok(rig.host.signal(Signal::SIGCONT)?)
            },
            happened: |rig: &mut Self| {
                // A killed process leaves items unconsumed.
                if rig.side == Side::Producer && host != Host::IsKilled {
                    rig.wait_until_empty()?;
                }
                thread::sleep(time);
                Ok(())
            },
            recover: |rig: &mut Self| Ok(rig.guest.guest.cont()?),
        };
        Ok(self.happen(host, event)?.since_recovery)
    }

    /// Unplugs the guest's disk and plugs it in again. Returns the time until a new item arrived.
    pub fn plug_again(&mut self, chardev: Chardev, host: Host) -> Result<Duration> {
        self.guest.expect_no_io_error()?;
        let event = Event {
            trigger: |rig: &mut Self| {
                Ok(rig.guest.guest.qmp("device_del", &json!({ "id": DISK })).map(drop)?)
            },
            happened: Self::unplugged,
            recover: |rig: &mut Self| rig.plug(chardev),
        };
        Ok(self.happen(host, event)?.since_trigger)
    }

    fn unplugged(&mut self) -> Result<()> {
        let list = json!({ "path": "/machine/peripheral" });
        let is_gone = || {
            let devices = self.guest.guest.qmp("qom-list", &list);
            devices.is_ok_and(|devices| !names(&devices).any(|name| name == DISK))
        };
        if !wait_until(SOON, is_gone) {
            return unsound("the guest does not let its disk go".to_owned());
        }
        self.stream.expect_failure(self.side, "No such device")
    }

    fn plug(&mut self, chardev: Chardev) -> Result<()> {
        let guest = &self.guest.guest;
        if chardev == Chardev::IsRemade {
            patiently(guest, "chardev-remove", &json!({ "id": CHARDEV }))?;
            let address = json!({ "type": "unix", "data": { "path": self.folder.join("s") } });
            let socket = json!({ "addr": address, "server": false, "reconnect": 1 });
            let backend = json!({ "type": "socket", "data": socket });
            guest.qmp("chardev-add", &json!({ "id": CHARDEV, "backend": backend }))?;
        }
        let (driver, id) = ("vhost-user-blk-pci", DISK);
        let device = json!({
            "driver": driver, "id": id, "chardev": CHARDEV, "bus": SLOT
        });
        patiently(guest, "device_add", &device)?;
        // The kernel's messages about a removed disk are no errors.
        guest
            .check("until grep -qsx ring /sys/block/vd*/serial; do usleep 20000; done; dmesg -c")?;
        self.guest.restart_load(self.side, self.manner, &mut self.stream)
    }

    fn happen(
        &mut self,
        host: Host,
        event: Event<
            impl FnOnce(&mut Self) -> Result<()>,
            impl FnOnce(&mut Self) -> Result<()>,
            impl FnOnce(&mut Self) -> Result<()>,
        >,
    ) -> Result<Pause> {
        self.wait_for_load()?;
        let trigger = Instant::now();
        (event.trigger)(self)?;
        match host {
            Host::Stays => {}
            Host::IsRestarted => self.host.signal(Signal::SIGTERM)?,
            Host::IsKilled => host::kill(&mut self.host)?,
        }
        (event.happened)(self)?;
        let mark = self.stream.pushed()?;
        let recovery = Instant::now();
        (event.recover)(self)?;
        if host == Host::IsRestarted {
            host::end(&mut self.host)?;
        }
        if host != Host::Stays {
            self.host = self.load.start(other(self.side), &mut self.stream)?;
        }
        self.stream.wait_for_arrival(mark)?;
        let pause = Pause { since_trigger: trigger.elapsed(), since_recovery: recovery.elapsed() };
        self.wait_for_flow()?;
        Ok(pause)
    }

    /// Waits until both ends move, beyond their start.
    fn wait_for_load(&mut self) -> Result<()> {
        self.wait_for_more(Side::Producer, 3)?;
        self.wait_for_more(Side::Consumer, 3)
    }

    fn wait_until_empty(&self) -> Result<()> {
        let ring = Control::open(self.beside()?)?;
        if wait_until(SOON, || ring.debug_info().is_ok_and(|info| info.used == 0)) {
            return Ok(());
        }
        unsound(format!("not everything is consumed within {SOON:?}"))
    }

    /// Waits until the backend holds a read, where nothing else goes on.
    fn wait_until_held(&self) -> Result<()> {
        let held = || -> Result<Option<u64>> { Ok(self.beside()?.counters()["held"].as_u64()) };
        let before = held()?;
        if wait_until(SOON, || held().is_ok_and(|now| now > before)) {
            return Ok(());
        }
        unsound(format!("no read is held within {SOON:?}"))
    }

    /// Opens the ring without a role.
    fn beside(&self) -> Result<UnixDevice> {
        Ok(UnixDevice::connect(self.folder.join("c"), Role::Control)?)
    }
}

/// QEMU reports that a device is gone before it releases the connection.
fn patiently(guest: &Guest, command: &str, arguments: &Value) -> Result<()> {
    let mut answer = Ok(Value::Null);
    wait_until(SOON, || {
        answer = guest.qmp(command, arguments);
        let is_used = |text: &str| text.contains("in use") || text.contains("is busy");
        !matches!(&answer, Err(e) if is_used(&e.to_string()))
    });
    Ok(answer.map(drop)?)
}

fn names(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str())
}
