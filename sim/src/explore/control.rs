//! What befalls one side's accesses to the disk: its process dies, the other side runs in between, a step of the protocol is left out.

use crate::explore::mutant::{Last, Mutant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs the other side in between.
type Hook = Box<dyn FnOnce() + Send>;

/// Called after every change of the disk.
type Observer = Arc<dyn Fn() + Send + Sync>;

/// An access, as the trace of an operation has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Changes nothing.
    Read,
    /// Of sectors from `first` on.
    Write { first: u64, sectors: usize },
    /// Orders what is before it.
    Flush,
}

impl Access {
    /// Whether nothing may be acknowledged any more once it has failed: a flush, or the write of a pointer.
    pub fn is_vital(self) -> bool {
        matches!(self, Self::Flush | Self::Write { first: ..=2, .. })
    }
}

/// What goes wrong at an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The process dies. Of a write under way, so many sectors are written.
    Death(usize),
    /// The access fails, and the process goes on. Of a write, so many sectors are written all the same.
    Error(usize),
}

/// How an access is to go.
pub enum Way {
    /// As asked.
    On,
    /// Only so many sectors of it, then an error.
    Fail(usize),
    /// Not at all, and nobody is told.
    Skip,
}

/// One side's.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    trace: Vec<Access>,
    trouble: Option<(usize, Trouble)>,
    hook: Option<(usize, Hook)>,
    /// The process is dead: nothing of it reaches the disk any more.
    dead: bool,
    /// Trouble has come.
    failed: bool,
    observer: Option<Observer>,
    mutant: Option<Mutant>,
    operation: &'static str,
    flushes: u32,
}

impl Plan {
    /// What the present operation has written last.
    fn last(&self) -> Last {
        let write = self.trace.iter().rev().find_map(|access| match access {
            Access::Write { first, .. } => Some(*first),
            Access::Read | Access::Flush => None,
        });
        match write {
            None => Last::Nothing,
            Some(..=2) => Last::Pointer,
            Some(_) => Last::Data,
        }
    }
}

impl Control {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        // Nothing in here panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation begins.
    pub fn begin(&self, operation: &'static str) {
        let mut plan = self.plan();
        plan.trace.clear();
        (plan.operation, plan.flushes, plan.failed) = (operation, 0, false);
    }

    /// The operation has ended: what was to befall it is over. Its accesses, and whether the process died in it.
    pub fn end(&self) -> (Vec<Access>, bool) {
        let mut plan = self.plan();
        (plan.trouble, plan.hook) = (None, None);
        (std::mem::take(&mut plan.trace), std::mem::take(&mut plan.dead))
    }

    /// Has `trouble` befall access number `at`.
    pub fn arrange(&self, at: usize, trouble: Trouble) {
        self.plan().trouble = Some((at, trouble));
    }

    /// Whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.plan().dead
    }

    /// Whether something has befallen the present operation.
    pub fn has_failed(&self) -> bool {
        self.plan().failed
    }

    /// Has `hook` run in front of access number `at`.
    pub fn interpose(&self, at: usize, hook: impl FnOnce() + Send + 'static) {
        self.plan().hook = Some((at, Box::new(hook)));
    }

    /// Has `observer` called after every change; or nobody.
    pub fn observe(&self, observer: Option<Observer>) {
        self.plan().observer = observer;
    }

    /// Has the side be wrong.
    pub fn mutate(&self, mutant: Option<Mutant>) {
        self.plan().mutant = mutant;
    }

    /// The mutant, if the present operation is one that it spoils.
    pub fn mutant_in(&self, operation: &str) -> Option<Mutant> {
        let plan = self.plan();
        plan.mutant.filter(|_| plan.operation == operation)
    }

    /// The mutant.
    pub fn mutant(&self) -> Option<Mutant> {
        self.plan().mutant
    }

    /// In front of an access.
    pub fn enter(&self, access: Access) -> Way {
        let number = self.plan().trace.len();
        let hook = self.plan().hook.take_if(|(at, _)| *at == number);
        if let Some((_, hook)) = hook {
            hook();
        }
        let mut plan = self.plan();
        plan.trace.push(access);
        if plan.dead {
            return Way::Fail(0);
        }
        let trouble = plan.trouble.take_if(|(at, _)| *at == number);
        plan.failed |= trouble.is_some();
        match trouble.map(|(_, trouble)| trouble) {
            Some(Trouble::Death(written)) => {
                plan.dead = true;
                Way::Fail(written)
            }
            Some(Trouble::Error(written)) => Way::Fail(written),
            None if access == Access::Flush => {
                let nth = plan.flushes;
                plan.flushes += 1;
                let skipped = match plan.mutant {
                    Some(Mutant::NoFlush { operation, nth: skipped }) => {
                        (operation, skipped) == (plan.operation, nth)
                    }
                    Some(Mutant::NoFlushBehind(last)) => {
                        ["push", "advance"].contains(&plan.operation) && plan.last() == last
                    }
                    _ => false,
                };
                if skipped { Way::Skip } else { Way::On }
            }
            None => Way::On,
        }
    }

    /// Behind a change.
    pub fn changed(&self) {
        let observer = self.plan().observer.clone();
        if let Some(observer) = observer {
            observer();
        }
    }
}
