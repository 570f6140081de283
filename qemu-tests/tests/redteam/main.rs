//! Attacks of root in the guest on its ring: each is refused for its reason, and a consumer that
//! reads in place sees only what an honest producer has published.
#![allow(clippy::unwrap_used)]

mod witness;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use qemu_tests::redteam::{Attack, Group, RESET_DONE, Report, attacks};
use qemu_tests::scene::{LONG, SOON, Scene, numbers};
use qemu_tests::{Daemon, Disk, Guest, GuestBuilder, Result, wait_until};
use ring_simulation::Footprint;
use shared_block_ring::handover::Role;
use shared_block_ring::{Producer, UnixDevice};
use witness::Witness;

const SEED: u64 = 20_261_124;

/// Refusals by their reasons.
type Refused = BTreeMap<String, u64>;

fn refused(scene: &Scene) -> Refused {
    serde_json::from_value(scene.diagnostics()["backend"]["refused"].clone()).unwrap()
}

/// Returns the command of an attack in the guest; `next` is the number of the next honest item.
fn command(attack: &Attack, next: u32) -> String {
    format!("redteam {} --serial ring --seed {SEED} --next {next}", attack.name)
}

/// A guest with a ring, a backend between, and a witness on the host.
struct Scenery {
    scene: Scene,
    backend: Daemon,
    guest: Guest,
    witness: Witness,
    /// Number of the next honest item.
    next: u32,
}

impl Scenery {
    /// Starts everything; `options` are the backend's.
    fn new(options: &[&str]) -> Result<Self> {
        let scene = Scene::new(options);
        let backend = scene.backend()?;
        let port = ["-device", "pcie-root-port,id=upstream,slot=1"];
        let disk = Disk::vhost_user(scene.path("s")).options("bus=upstream");
        // Two processors: one changes what the other has in flight.
        let guest = GuestBuilder::new().processors(2).reboots().arguments(port).disk(disk);
        let guest = guest.boot()?;
        let witness = Witness::start(scene.path("c"), SEED);
        Ok(Self { scene, backend, guest, witness, next: 0 })
    }

    /// Carries out an attack in the guest, and compares its report with the backend's counters.
    fn carry_out(&mut self, attack: &Attack) -> Result<()> {
        let (before, begun) = (refused(&self.scene), Instant::now());
        let output = self.guest.run_for(&command(attack, self.next), LONG)?;
        assert_eq!(output.status, 0, "{output:?}");
        let report: Report = serde_json::from_str(&output.stdout).unwrap();
        let mut rise = refused(&self.scene);
        rise.retain(|reason, count| {
            *count -= before.get(reason).unwrap_or(&0);
            *count > 0
        });
        judge(attack, &report, &rise);
        let published = report.next - self.next;
        self.next = report.next;
        assert!(self.witness.is_well(), "the host has seen what it must not");
        println!(
            "{:36} {:58} {:6} passed {:3} by the kernel {:4} items {:.1?}",
            attack.name,
            rise.iter().fold(String::new(), |text, (reason, n)| format!("{text}{reason} {n} ")),
            report.passed,
            report.barred,
            published,
            begun.elapsed(),
        );
        Ok(())
    }

    /// Waits until the witness has seen all published items. Returns their number.
    fn catch_up(&self) -> u32 {
        let published = self.scene.diagnostics()["producer"].as_u64().unwrap();
        let seen = || self.witness.seen().1 == published || !self.witness.is_well();
        assert!(wait_until(SOON, seen), "{:?} and not {published}", self.witness.seen());
        self.witness.seen().0
    }

    /// All items that the guest published must have come, and no other, and no queue may be broken.
    fn finish(self) -> Result<()> {
        self.catch_up();
        let tale = self.witness.finish();
        println!("{} items, looked at {} times more", tale.items, tale.looks);
        assert_eq!(tale.items, self.next);
        assert!(tale.looks >= u64::from(tale.items));
        let facts = self.scene.diagnostics();
        assert_eq!((&facts["used"], &facts["backend"]["broken"]), (&0.into(), &0.into()));
        self.scene.check(&["check", "ring"]);
        self.guest.power_off()
    }
}

/// The backend must have refused what the guest reports as refused, for the same reasons.
fn judge(attack: &Attack, report: &Report, rise: &Refused) {
    let story = format!("{}: {report:?}, and the backend has {rise:?}", attack.name);
    let reasons: Vec<_> = attack.reasons.iter().map(ToString::to_string).collect();
    assert!(rise.keys().all(|reason| reasons.contains(reason)), "{story}");
    assert!(report.refused.keys().all(|reason| reasons.contains(reason)), "{story}");
    let sure = |reason: &String| report.refused.contains_key(reason);
    let by_chance = report.by_chance + report.perhaps > 0;
    assert!(by_chance || reasons.iter().all(sure), "{story}");
    let told = report.refused.values().sum::<u64>() + report.by_chance;
    let counted = rise.values().sum::<u64>();
    let most = if report.at_least { u64::MAX } else { told + report.perhaps };
    assert!((told..=most).contains(&counted), "{story}");
    for (reason, &told) in &report.refused {
        let counted = rise.get(reason).copied().unwrap_or(0);
        let exactly = !report.at_least && !by_chance;
        assert!(if exactly { counted == told } else { counted >= told }, "{story}");
    }
}

fn attacks_of(group: Group) -> impl Iterator<Item = Attack> {
    attacks().into_iter().filter(move |attack| attack.group == group)
}

fn all_of(group: Group) -> Result<()> {
    let mut scenery = Scenery::new(&["--size", "128K"])?;
    for attack in attacks_of(group) {
        scenery.carry_out(&attack)?;
    }
    scenery.finish()
}

#[test]
fn attacks_on_heads_and_framing_are_refused_by_their_reasons() -> Result<()> {
    all_of(Group::Heads)
}

#[test]
fn attacks_on_published_data_change_nothing() -> Result<()> {
    all_of(Group::Data)
}

#[test]
fn other_kernel_interfaces_do_not_bypass_the_guard() -> Result<()> {
    all_of(Group::Kernel)
}

#[test]
fn changes_in_flight_are_refused_or_exactly_framed() -> Result<()> {
    all_of(Group::Races)
}

#[test]
fn storms_leave_the_backend_unchanged() -> Result<()> {
    // The last idle read of a storm is held until another request follows.
    let mut scenery = Scenery::new(&["--size", "4M", "--hold-ms", "100"])?;
    let log = |scenery: &Scenery| fs::metadata(scenery.scene.path("backend.stderr")).unwrap().len();
    let mut before = None;
    for attack in attacks_of(Group::Storms) {
        scenery.carry_out(&attack)?;
        // The first attack has the backend allocate what it needs.
        before.get_or_insert_with(|| Footprint::of(scenery.backend.pid()));
    }
    let (before, now) = (before.unwrap(), || Footprint::of(scenery.backend.pid()));
    println!("{} bytes of log, {before:?}, then {:?}", log(&scenery), now());
    assert!(log(&scenery) < 1_000_000);
    assert!(now().own_kib <= before.own_kib + 1024, "{before:?} became {:?}", now());
    // The connection of the request for the counters takes a moment to end.
    let as_before = || now().descriptors <= before.descriptors && now().threads <= before.threads;
    assert!(wait_until(SOON, as_before), "{before:?} became {:?}", now());
    assert!(scenery.scene.held() > 0, "reads were held");
    scenery.finish()
}

#[test]
fn driver_or_device_that_goes_away_under_load_loses_nothing() -> Result<()> {
    let mut scenery = Scenery::new(&["--size", "128K"])?;
    let group: Vec<_> = attacks_of(Group::Driver).collect();
    let [unbind, reset] = &group[..] else { panic!("two attacks") };
    scenery.carry_out(unbind)?;
    // Requests in flight are lost for good, and the guest's kernel waits for them: only the next
    // boot goes on.
    let job = scenery.guest.spawn(&command(reset, scenery.next))?;
    let done = || scenery.guest.run(&format!("test -e {RESET_DONE}")).unwrap().status == 0;
    assert!(wait_until(SOON, done), "the device is not reset: {:?}", job.wait(Duration::ZERO));
    assert!(job.wait(Duration::from_millis(200)).is_err(), "nothing waits for what is lost");
    scenery.guest.reset()?;
    scenery.guest.wait_ready()?;
    let seen = scenery.catch_up();
    assert!(seen >= scenery.next + 10, "{seen}");
    scenery.next = seen;
    let again = attacks_of(Group::Heads).next().unwrap();
    scenery.carry_out(&again)?;
    scenery.finish()
}

/// A consuming guest writes one sector of the disk, and the producer on the host all others.
#[test]
fn consuming_guest_can_change_only_its_own_pointer() -> Result<()> {
    let scene = Scene::new(&["--size", "64K", "--guest", "consumer"]);
    let _backend = scene.backend()?;
    let guest = scene.guest().boot()?;
    let device = UnixDevice::connect(scene.path("c"), Role::Producer).unwrap();
    let mut producer = Producer::attach(device, "redteam", "host").unwrap();
    let lines: Vec<_> = (1..=500).map(|number| number.to_string()).collect();
    let end = producer.push_batch(&lines).unwrap();
    producer.advance(end).unwrap();
    let before = fs::read(scene.path("ring")).unwrap();
    let attack = attacks_of(Group::Consumer).next().unwrap();
    let said = guest.check(&command(&attack, 0))?;
    judge(&attack, &serde_json::from_str(&said).unwrap(), &refused(&scene));
    assert!(fs::read(scene.path("ring")).unwrap() == before, "the region has changed");
    assert_eq!(guest.check("blockring consume serial:ring")?, numbers(1, 500));
    guest.power_off()
}
