//! The engine: one thread that has the rings, reads them as far as memory allows, and frees what
//! has arrived.

mod end;
mod files;
mod lanes;
mod pump;
mod rings;
mod service;
mod watch;

pub use self::watch::Drain;
use super::super::address::Device;
use super::super::failure::{Failure, Outcome};
use super::folders::Folders;
use super::memory::Memory;
use super::opener::Opener;
use super::retry::Retry;
use super::ring::{Ring, RingReport};
use super::settings::Settings;
use super::sink::{self, Event, LaneId, Reporter, Sink};
use super::status::{Board, Status};
use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_program::{ServiceManager, Stop};
use serde::Serialize;
use service::{Told, ended};
use shared_block_ring::{ConsumerSet, Key, Occurrence};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// The time after which patterns are looked up even without news: a folder may not be watched.
const LOOK_UP: Duration = Duration::from_secs(30);

/// Tokens of the descriptors that the set watches.
const STOP: u32 = 0;
const WAKE: u32 = 1;
const HANGUP: u32 = 2;
const FOLDERS: u32 = 3;

/// Report at the end.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Items and their bytes that have arrived, of all rings.
    pub items: u64,
    pub bytes: u64,
    /// Most bytes of memory that items in flight have taken.
    pub peak_memory: u64,
    pub rings: BTreeMap<String, RingReport>,
}

/// The source of another configuration: reads it again.
pub type Reread<'a> = &'a dyn Fn() -> Result<Settings, Failure>;

pub struct Engine<'scope, 'env> {
    settings: Settings,
    set: ConsumerSet<Device>,
    rings: HashMap<u64, Ring>,
    /// Numbers of the rings, in the order of their names.
    names: BTreeMap<String, u64>,
    keys: HashMap<Key, u64>,
    lanes: HashMap<LaneId, u64>,
    /// Numbers of rings, lanes and attempts that were given.
    numbers: u64,
    sink: Box<dyn Sink>,
    reports: Sender<(LaneId, Event)>,
    events: Receiver<(LaneId, Event)>,
    wake: Arc<EventFd>,
    opener: Opener<'scope, 'env>,
    memory: Memory,
    /// Rings with items, in turn.
    hungry: VecDeque<u64>,
    /// Rings whose items have no memory now.
    starved: VecDeque<u64>,
    /// Rings of which something has arrived that is not freed yet.
    to_free: BTreeSet<u64>,
    /// The times of the next attempts.
    due: BTreeSet<(Instant, u64)>,
    /// The limit of open files.
    files: u64,
    /// Warnings about rings that wait for open files.
    few_files: Retry,
    /// Time of the next look for a ring that waits for open files.
    next_files: Instant,
    folders: Folders,
    next_look_up: Instant,
    /// Whether patterns were looked up before: what is found now has appeared since.
    has_looked_up: bool,
    /// Time of the next look at waits for acknowledgements.
    next_watch: Instant,
    /// Whether a ring has come to rest since the last wait: the set may know of items.
    is_unsettled: bool,
    /// The wait for everything to arrive, with `--drain`.
    drain: Option<Drain>,
    scratch: Vec<u8>,
    peak: u64,
    /// Warnings about rings that are left out, as they were logged last.
    odd: Vec<String>,
    /// Where scrapes find the state.
    board: Arc<Board>,
    /// Reports of rings that are not forwarded any more.
    former: Report,
    hangup: &'env Stop,
    stop: &'env Stop,
    /// The service manager.
    told: Told,
}

impl<'scope, 'env> Engine<'scope, 'env> {
    pub fn new(
        settings: Settings,
        drain: Option<Drain>,
        files: u64,
        scope: &'scope Scope<'scope, 'env>,
        stop: &'env Stop,
        hangup: &'env Stop,
        manager: ServiceManager,
    ) -> Result<Self, Failure> {
        let set_up = || Failure::io("cannot set up the wait for rings");
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(wake.map_err(std::io::Error::from).map_err(set_up())?);
        let folders = Folders::new().map_err(set_up())?;
        let mut set = ConsumerSet::new().map_err(set_up())?;
        for (token, fd) in [
            (STOP, stop.fd()),
            (WAKE, wake.as_fd()),
            (HANGUP, hangup.fd()),
            (FOLDERS, folders.fd()),
        ] {
            set.watch(token, fd).map_err(set_up())?;
        }
        let sink = sink::make(&settings.to, &settings.sinks)?;
        let (reports, events) = channel();
        Ok(Self {
            memory: Memory::new(settings.max_memory),
            drain,
            settings,
            set,
            rings: HashMap::new(),
            names: BTreeMap::new(),
            keys: HashMap::new(),
            lanes: HashMap::new(),
            numbers: 0,
            sink,
            reports,
            events,
            opener: Opener::new(scope, stop, Arc::clone(&wake)),
            board: Arc::new(Board::new(Arc::clone(&wake))),
            wake,
            hungry: VecDeque::new(),
            starved: VecDeque::new(),
            to_free: BTreeSet::new(),
            due: BTreeSet::new(),
            files,
            few_files: Retry::default(),
            next_files: Instant::now(),
            folders,
            next_look_up: Instant::now(),
            has_looked_up: false,
            next_watch: Instant::now(),
            is_unsettled: false,
            scratch: Vec::new(),
            peak: 0,
            odd: Vec::new(),
            former: Report::default(),
            hangup,
            stop,
            told: Told::new(manager),
        })
    }

    /// Runs until it is asked to stop, or, to drain, until everything has arrived.
    pub fn run(&mut self, reread: Reread<'_>) -> Outcome {
        let mut occurrences = Vec::new();
        self.do_what_is_due();
        self.tell_ready(None);
        loop {
            self.do_what_is_due();
            let pause = self.pause();
            self.is_unsettled = false;
            let waited = self.set.wait(Some(pause), &mut occurrences);
            waited.map_err(Failure::io("cannot wait for the rings"))?;
            let mut is_asked = false;
            for occurrence in occurrences.drain(..) {
                match occurrence {
                    Occurrence::Readable(STOP) => is_asked = true,
                    Occurrence::Readable(HANGUP) => {
                        self.hangup.take();
                        self.reread(reread);
                    }
                    Occurrence::Readable(FOLDERS) => {
                        self.folders.take();
                        self.next_look_up = Instant::now();
                    }
                    Occurrence::Readable(_) => self.drain_wake(),
                    other => self.note(other),
                }
            }
            if is_asked {
                return self.finish();
            }
            self.take_outcomes();
            self.take_events();
            self.free();
            self.pump();
            self.let_go();
            self.board.leave(|| self.status());
            if let Some(outcome) = self.outcome() {
                self.told.stopping(&ended(&outcome));
                return outcome;
            }
        }
    }

    /// Returns the place where scrapes find the state.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    fn status(&self) -> Status {
        let rings = self.rings.values().map(|ring| (ring.name.clone(), ring.status()));
        Status {
            rings: rings.collect(),
            memory: self.memory.used(),
            memory_limit: self.memory.limit(),
            spare_files: self.spare_files().unwrap_or(0),
        }
    }

    fn drain_wake(&self) {
        // Empty only after a spurious wake-up.
        let _ = self.wake.read();
    }

    /// Notes what the set reports of a ring.
    fn note(&mut self, occurrence: Occurrence) {
        let (Occurrence::Items(key)
        | Occurrence::Failed(key, _)
        | Occurrence::Away(key)
        | Occurrence::Back(key)) = &occurrence
        else {
            return;
        };
        let Some(&number) = self.keys.get(key) else { return };
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let shown = ring.spec.shown();
        if let Occurrence::Failed(_, error) = occurrence {
            return self.ring_failed(number, &Failure::about(shown)(error));
        }
        let Some(opened) = ring.opened() else { return };
        match occurrence {
            Occurrence::Items(_) => {
                opened.is_resting = false;
                if opened.is_ready() {
                    self.hungry.push_back(number);
                }
            }
            Occurrence::Away(_) => {
                opened.is_away = true;
                log::info!("{shown}: the backend is gone, and searched for");
            }
            Occurrence::Back(_) => {
                opened.is_away = false;
                log::info!("{shown}: the backend is there again");
            }
            _ => {}
        }
    }

    /// Returns the longest time to wait for the next thing.
    fn pause(&self) -> Duration {
        let watchful = self.drain.is_some() || self.rings.values().any(|ring| ring.is_leaving);
        let is_over = self.drain.is_some() && self.rings.is_empty();
        if !self.hungry.is_empty() || (self.is_unsettled && watchful) || is_over {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let due = self.due.first().map(|(due, _)| *due);
        let times = [due, self.next_watch(), self.told.next_time()].into_iter().flatten();
        let until = times.fold(self.next_look_up, Instant::min);
        until.saturating_duration_since(now)
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        if self.next_look_up <= now {
            self.next_look_up = now + LOOK_UP;
            self.look_up();
        }
        while let Some(&(due, number)) = self.due.first()
            && due <= now
        {
            self.due.remove(&(due, number));
            self.attempt(number);
        }
        self.watch(now);
        self.tell_what_is_due(now);
    }

    /// Returns the next number, which no ring, lane or attempt had before.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn reporter(&self, lane: LaneId) -> Reporter {
        Reporter::new(lane, self.reports.clone(), Arc::clone(&self.wake))
    }
}
