//! Control over one side's accesses to the disk: its process dies, the other side runs in between,
//! a step of the protocol is left out.

use crate::explore::mutant::{Last, Mutant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs the other side between two accesses.
type Hook = Box<dyn FnOnce() + Send>;

/// Called after every change of the disk.
type Observer = Arc<dyn Fn() + Send + Sync>;

/// An access in the trace of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A read.
    Read,
    /// A write of sectors from `first` on.
    Write { first: u64, sectors: usize },
    /// A flush.
    Flush,
}

impl Access {
    /// Returns whether nothing may be acknowledged any more once this access has failed: a flush,
    /// or the write of a pointer.
    pub fn is_vital(self) -> bool {
        matches!(self, Self::Flush | Self::Write { first: ..=2, .. })
    }
}

/// Trouble at an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The process dies. Of a write, this many sectors are written.
    Death(usize),
    /// The access fails, and the process goes on. Of a write, this many sectors are written all the
    /// same.
    Error(usize),
}

/// Verdict on an access.
pub enum Way {
    /// The access is carried out.
    On,
    /// This many sectors are written, then the access fails.
    Fail(usize),
    /// The access is left out, and reported as done.
    Skip,
}

/// Control over one side.
#[derive(Clone, Default)]
pub struct Control(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    trace: Vec<Access>,
    trouble: Option<(usize, Trouble)>,
    hook: Option<(usize, Hook)>,
    /// Whether the process is dead: none of its accesses reaches the disk any more.
    dead: bool,
    /// Whether the trouble has occurred.
    failed: bool,
    observer: Option<Observer>,
    mutant: Option<Mutant>,
    operation: &'static str,
    flushes: u32,
}

impl Plan {
    /// The last write of the present operation.
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
        // No panic can leave this state half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation.
    pub fn begin(&self, operation: &'static str) {
        let mut plan = self.plan();
        plan.trace.clear();
        (plan.operation, plan.flushes, plan.failed) = (operation, 0, false);
    }

    /// Ends the operation and its trouble. Returns its accesses, and whether the process died in
    /// it.
    pub fn end(&self) -> (Vec<Access>, bool) {
        let mut plan = self.plan();
        (plan.trouble, plan.hook) = (None, None);
        (std::mem::take(&mut plan.trace), std::mem::take(&mut plan.dead))
    }

    /// Plans `trouble` for access number `at`.
    pub fn arrange(&self, at: usize, trouble: Trouble) {
        self.plan().trouble = Some((at, trouble));
    }

    /// Returns whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.plan().dead
    }

    /// Returns whether the trouble of the present operation has occurred.
    pub fn has_failed(&self) -> bool {
        self.plan().failed
    }

    /// Plans a run of `hook` in front of access number `at`.
    pub fn interpose(&self, at: usize, hook: impl FnOnce() + Send + 'static) {
        self.plan().hook = Some((at, Box::new(hook)));
    }

    /// Sets the observer that is called after every change of the disk.
    pub fn observe(&self, observer: Option<Observer>) {
        self.plan().observer = observer;
    }

    /// Sets the side's mutation.
    pub fn mutate(&self, mutant: Option<Mutant>) {
        self.plan().mutant = mutant;
    }

    /// Returns the mutation, if it applies to the present operation.
    pub fn mutant_in(&self, operation: &str) -> Option<Mutant> {
        let plan = self.plan();
        plan.mutant.filter(|_| plan.operation == operation)
    }

    /// Returns the mutation.
    pub fn mutant(&self) -> Option<Mutant> {
        self.plan().mutant
    }

    /// Called in front of an access.
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

    /// Called behind a change.
    pub fn changed(&self) {
        let observer = self.plan().observer.clone();
        if let Some(observer) = observer {
            observer();
        }
    }
}
