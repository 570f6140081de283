//! A ring on a simulated disk, its two sides, and the promises made.

mod operations;

use crate::disk::Disk;
use crate::explore::control::{Access, Control, Trouble};
use crate::explore::mutant::Mutant;
use crate::explore::oracle::Oracle;
use crate::explore::step::{Op, Party, Step};
use crate::explore::tap::{Tap, TapMemory};
use shared_block_ring::{
    Consumer, Durability, Error, MappedDevice, Position, Producer, RingDevice,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Device = Box<dyn RingDevice>;

/// Settings of an exploration.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Whether the ring is used through a shared mapping, where each store is a change, or by
    /// sectors.
    pub mapped: bool,
    /// Payload of a small item, in bytes.
    pub small: usize,
    /// Payload of a large item, in bytes.
    pub large: usize,
    /// Durability of both sides.
    pub durability: Durability,
    /// Mutation of both sides, if any.
    pub mutant: Option<Mutant>,
}

/// Examiner of the disk after every change.
pub trait Sink: Send {
    /// Examines the disk. An error describes a broken promise.
    fn visit(&mut self, disk: &Disk, oracle: &Oracle) -> Result<(), String>;
}

/// State of the disk, both sides and the promises.
pub struct World {
    disk: Disk,
    setting: Setting,
    producing: Control,
    consuming: Control,
    producer: Mutex<Option<Producer<Device>>>,
    /// Ends of the items that were pushed and not advanced over.
    ends: Mutex<Vec<Position>>,
    consumer: Mutex<Option<Consumer<Device>>>,
    oracle: Mutex<Oracle>,
    sink: Mutex<Option<Arc<Mutex<dyn Sink>>>>,
    violation: Mutex<Option<String>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic has failed the test already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Makes a world with no side attached.
    pub fn new(disk: Disk, oracle: Oracle, setting: Setting) -> Arc<Self> {
        let world = Arc::new(Self {
            disk,
            setting,
            producing: Control::default(),
            consuming: Control::default(),
            producer: Mutex::default(),
            ends: Mutex::default(),
            consumer: Mutex::default(),
            oracle: Mutex::new(oracle),
            sink: Mutex::default(),
            violation: Mutex::default(),
        });
        for control in [&world.producing, &world.consuming] {
            control.mutate(setting.mutant);
            let weak = Arc::downgrade(&world);
            control.observe(Some(Arc::new(move || {
                if let Some(world) = weak.upgrade() {
                    world.look();
                }
            })));
        }
        world
    }

    /// Has `sink` examine the disk from here on.
    pub fn observe(&self, sink: Arc<Mutex<dyn Sink>>) {
        *lock(&self.sink) = Some(sink);
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub fn oracle(&self) -> Oracle {
        lock(&self.oracle).clone()
    }

    /// Returns the broken promise, if any.
    pub fn violation(&self) -> Option<String> {
        lock(&self.violation).clone()
    }

    /// Returns all that the sides know, to tell states apart.
    pub fn sides(&self) -> String {
        format!("{:?} {:?} {:?}", lock(&self.producer), lock(&self.ends), lock(&self.consumer))
    }

    /// Returns whether the operation has an effect.
    pub fn is_enabled(&self, op: Op) -> bool {
        // Only this side's state is read: the other may be in the middle of an operation.
        let made = || lock(&self.oracle).is_made();
        let producing = || lock(&self.producer).is_some();
        let consuming = || lock(&self.consumer).is_some();
        let pushed = || lock(&self.ends).len();
        match op {
            Op::Create => !made(),
            Op::AttachProducer => made() && !producing(),
            Op::AttachConsumer => made() && !consuming(),
            Op::Push(_) | Op::Batch | Op::KillProducer => producing(),
            Op::AdvanceAll => producing() && pushed() > 0,
            Op::AdvanceFirst => producing() && pushed() > 1,
            Op::Peek
            | Op::ConsumeOne
            | Op::ConsumeAll
            | Op::Suspend
            | Op::Resume
            | Op::KillConsumer => consuming(),
        }
    }

    /// Carries out a step, and returns its accesses to the disk.
    pub fn run(self: &Arc<Self>, step: Step) -> Vec<Access> {
        let op = match step {
            Step::Plain(op) | Step::Troubled(op, ..) | Step::Between(op, ..) => op,
        };
        let control = self.control(op.party());
        control.begin(op.name());
        match step {
            Step::Plain(_) => {}
            Step::Troubled(_, at, trouble) => control.arrange(at, trouble),
            Step::Between(_, at, inner) => {
                let world = Arc::clone(self);
                control.interpose(at, move || {
                    let control = world.control(inner.party());
                    control.begin(inner.name());
                    world.operate(inner);
                    control.end();
                });
            }
        }
        self.operate(op);
        let (trace, dead) = control.end();
        let error = match step {
            Step::Troubled(_, at, Trouble::Error(_)) => trace.get(at).copied(),
            _ => None,
        };
        let failed = error.is_some() && self.has_given_up(op.party());
        if error.is_some_and(Access::is_vital) && !failed && self.is_attached(op.party()) {
            self.note(Err("the handle goes on after a failure that leaves it in doubt".to_owned()));
        }
        if dead || failed {
            match op.party() {
                Party::Producer => self.lose_producer(),
                Party::Consumer => *lock(&self.consumer) = None,
            }
        }
        self.look();
        trace
    }

    fn control(&self, party: Party) -> &Control {
        match party {
            Party::Producer => &self.producing,
            Party::Consumer => &self.consuming,
        }
    }

    fn look(&self) {
        let Some(sink) = lock(&self.sink).clone() else { return };
        let verdict = lock(&sink).visit(&self.disk, &lock(&self.oracle));
        self.note(verdict);
    }

    fn note(&self, verdict: Result<(), String>) {
        if let Err(violation) = verdict {
            lock(&self.violation).get_or_insert(violation);
        }
    }

    fn open(&self, control: &Control) -> Device {
        if self.setting.mapped {
            let memory = TapMemory::new(&self.disk, control);
            Box::new(MappedDevice::over(memory, "simulated mapping", self.disk.geometry()))
        } else {
            Box::new(Tap::new(&self.disk, control))
        }
    }

    /// Judges an error of the library that ends an operation: some are legitimate, and so are those
    /// that the disk was made to give.
    fn refused(&self, op: Op, error: &Error) {
        let right = match error {
            Error::Retry => true,
            Error::Suspended => lock(&self.oracle).may_be_suspended(),
            Error::Device(_) => self.control(op.party()).has_failed(),
            _ => false,
        };
        if !right {
            self.note(Err(format!("{op:?}: {error}")));
        }
    }

    fn lose_producer(&self) {
        *lock(&self.producer) = None;
        lock(&self.ends).clear();
        lock(&self.oracle).producer_gone();
    }

    /// A dead process gets no result, whatever the call returned.
    fn lives(&self, party: Party) -> bool {
        !self.control(party).is_dead()
    }

    fn is_attached(&self, party: Party) -> bool {
        match party {
            Party::Producer => lock(&self.producer).is_some(),
            Party::Consumer => lock(&self.consumer).is_some(),
        }
    }

    /// Returns whether the handle refuses all further operations.
    fn has_given_up(&self, party: Party) -> bool {
        let facts = match party {
            Party::Producer => lock(&self.producer).as_ref().map(Producer::debug_info),
            Party::Consumer => lock(&self.consumer).as_ref().map(Consumer::debug_info),
        };
        matches!(facts, Some(Err(Error::Failed)))
    }
}
