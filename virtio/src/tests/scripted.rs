//! A device that does what the test says, and notes whether it can still reach its queue when it is
//! stopped.

use super::device::View;
use crate::memory::DmaMemory;
use crate::queue::Layout;
use crate::transport::{Link, Seal};
use crate::{Disk, Error, ResumeError, Step, Transport};
use ring_os::Limits;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Behaviour of the device when the driver looks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answers {
    /// The device comes back, and answers no request.
    #[default]
    Nothing,
    /// The device comes back, and answers the oldest request.
    Oldest,
    /// The device does not come back.
    NotThere,
}

/// Script of the device, and a record of its calls.
#[derive(Debug, Default)]
struct State {
    answers: Answers,
    refuses_to_start: bool,
    does_not_stop: bool,
    has_indirect: bool,
    resumed: u32,
    stopped: u32,
    /// Value that the device has found in its memory when it was stopped; `None` if it was given
    /// no memory.
    last_word: Option<u64>,
}

/// The test's hand on the device.
#[derive(Debug, Clone, Default)]
pub struct Scripted(Arc<Mutex<State>>);

/// A value that the device writes into the queue's memory when it starts, and looks for when it is
/// stopped.
const MARK: u64 = 0x0123_4567_89ab_cdef;

impl Scripted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn device(&self) -> ScriptedDevice {
        ScriptedDevice { script: self.clone(), memory: None }
    }

    pub fn set(&self, answers: Answers) {
        self.state().answers = answers;
    }

    pub fn refuse_to_start(&self) {
        self.state().refuses_to_start = true;
    }

    #[cfg(not(miri))]
    pub fn never_stop(&self) {
        self.state().does_not_stop = true;
    }

    pub fn offer_indirect(&self) {
        self.state().has_indirect = true;
    }

    pub fn resumed(&self) -> u32 {
        self.state().resumed
    }

    pub fn stopped(&self) -> u32 {
        self.state().stopped
    }

    /// Whether the memory was still the queue's when the device was stopped.
    pub fn reached_its_memory(&self) -> bool {
        self.state().last_word == Some(MARK)
    }
}

pub struct ScriptedDevice {
    script: Scripted,
    memory: Option<(View, Layout)>,
}

impl ScriptedDevice {
    /// A word of the queue's memory that the queue does not use.
    fn mark(&self) -> Option<&AtomicU64> {
        let (view, layout) = self.memory.as_ref()?;
        Some(&view.words(layout.end - 8, 1)[0])
    }
}

impl Transport for ScriptedDevice {
    fn disk(&self) -> Disk {
        Disk {
            bytes: 1 << 20,
            sector_size: 512,
            read_only: false,
            flush: true,
            indirect: self.script.state().has_indirect,
            event_idx: false,
        }
    }
    fn into_link(self, _: Seal) -> Box<dyn Link> {
        Box::new(self)
    }
}

impl Link for ScriptedDevice {
    fn allocate(&self, bytes: u64) -> Result<DmaMemory, Error> {
        Ok(DmaMemory::anonymous(bytes))
    }

    unsafe fn start(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        _: &Limits<'_>,
    ) -> Result<(), Error> {
        self.memory = Some((View::of(memory), layout));
        self.mark().unwrap().store(MARK, Ordering::Relaxed);
        if self.script.state().refuses_to_start { Err(Error::NeedsReset) } else { Ok(()) }
    }

    fn stop(&mut self) -> Result<(), Error> {
        let last_word = self.mark().map(|mark| mark.load(Ordering::Relaxed));
        let mut state = self.script.state();
        state.stopped += 1;
        state.last_word = last_word;
        if state.does_not_stop { Err(Error::NoReset) } else { Ok(()) }
    }

    fn notify(&self) -> Result<(), Error> {
        Ok(())
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn acknowledge(&self) {}

    fn pass_on(&self) {}

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn present(&self) -> Result<(), Error> {
        Ok(())
    }

    unsafe fn resume(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        base: u16,
        _: &Limits<'_>,
    ) -> Result<(), ResumeError> {
        let mut state = self.script.state();
        if state.answers == Answers::NotThere {
            let refused = ErrorKind::ConnectionRefused.into();
            return Err(ResumeError::Later(Step::Connect.failed()(refused)));
        }
        state.resumed += 1;
        if state.answers == Answers::Oldest {
            // The entry is as it was, all zero, and so is the head of the first request.
            let used: &[AtomicU16] = memory.words(layout.used, 2);
            used[1].store(base.wrapping_add(1), Ordering::Release);
        }
        Ok(())
    }
}
