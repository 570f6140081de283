//! What operators do to a running ring, and guests to themselves: restarts, upgrades, resets, plugging.
//!
//! Each is over when something new has arrived. What the ends have logged, and the guest's kernel, tell at the end whether it has cost
//! anything.

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

/// What befalls the process on the host at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Nothing.
    Stays,
    /// It is asked to end, and another one started.
    IsRestarted,
    /// It is killed, and another one started.
    IsKilled,
}

impl Host {
    /// The one after the other.
    pub const ALL: [Self; 3] = [Self::Stays, Self::IsRestarted, Self::IsKilled];
}

/// What becomes of QEMU's connection to the backend when the disk is unplugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chardev {
    /// It is removed with the disk, and made anew before the next one.
    IsRemade,
    /// It stays, and the next disk takes it over.
    IsKept,
}

/// Lets `story` happen to a ring under load, and judges its stream. `side` is the guest's; as a consumer it has the backend hold its
/// reads.
pub fn tell(side: Side, seed: u64, story: impl FnOnce(&mut Rig) -> Result<()>) -> Result<Tally> {
    in_a_folder(|folder| {
        let manner = if side == Side::Consumer { Manner::HeldReads } else { Manner::Plain };
        let mut rig = Rig::start(folder, side, manner, recipe(&mut Random::new(seed)))?;
        story(&mut rig)?;
        Ok(rig.finish()?.tally)
    })
}

/// An event in its parts.
struct Event<T, H, R> {
    /// Brings it about.
    trigger: T,
    /// Waits until it has happened.
    happened: H,
    /// Does about it what an operator does.
    recover: R,
}

/// How long the stream stood still.
struct Pause {
    since_trigger: Duration,
    since_recovery: Duration,
}

impl Rig {
    /// The backend is asked to end, and `program` takes its place. How long it took until something new arrived.
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

    /// A second backend with the same arguments is started while the first one serves: how it ends, and what it says.
    pub fn overlap_backend(&mut self) -> Result<(ExitStatus, String)> {
        self.wait_for_load()?;
        let command = self.backend_command(host_build()?);
        let mut second = Daemon::spawn("second", command, &self.folder)?;
        let status = second.wait(SOON)?;
        self.wait_for_load()?;
        Ok((status, second.stderr()))
    }

    /// The backend's process.
    pub fn backend_pid(&self) -> u32 {
        self.backend.pid()
    }

    /// The guest boots again, because of what `trigger` does. How long it took until something new arrived.
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

    /// The guest's processors stand still for `time`: a producer's while everything is consumed, a consumer's while it waits in a read that
    /// is held. How long it took, when they ran again, until something new arrived.
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
                // One that was killed leaves something.
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

    /// The guest's disk is unplugged and plugged in again. How long it took until something new arrived.
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
        let device = json!({ "driver": driver, "id": id, "chardev": CHARDEV, "bus": SLOT });
        patiently(guest, "device_add", &device)?;
        // What the kernel has said of a disk that went away is no error.
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

    /// Both ends move, and not only because they have just begun.
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

    /// The ring, in no role.
    fn beside(&self) -> Result<UnixDevice> {
        Ok(UnixDevice::connect(&self.folder.join("c"), Role::Control)?)
    }
}

/// QEMU says that a device is gone, and lets go of what it used a moment later.
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
