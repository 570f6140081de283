//! The rings, from their configuration to their end, and whoever waits for that.

use crate::daemon::failure::{Failure, system};
use crate::daemon::prepared::Prepared;
use crate::daemon::rings::folder::{Configured, Folder};
use crate::daemon::rings::member::{Kept, Member, State};
use crate::daemon::rings::messages::{Begin, News, Number, Order, Reopen};
use crate::daemon::rings::plane::Plane;
use crate::daemon::rings::varlink::{Answer, CallError, ClientId};
use crate::daemon::rings::waits::{Drain, Inquiry, Reload, Suspension};
use crate::daemon::settings::Settings;
use crate::daemon::sockets::Inherited;
use nix::unistd::{Uid, geteuid};
use ring_metrics::Bound;
use serde_json::json;
use shared_block_ring::Error;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::Limits;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Deaths of the data process in this time, at most.
const DEATHS: (usize, Duration) = (5, Duration::from_secs(60));

/// Why a ring is served no more that keeps others from being served.
const HANGS: &str = "a thread waits in the kernel for its disk, or for memory of its front end's: it is not served until it is \
                     added again, and the other rings are served by another process";

/// How long a ring of the folder is waited for that a process holds at the start: the data process
/// of a daemon that was killed needs a moment to end.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The pause before such a ring is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Rings that are prepared at a time.
const MOST_PREPARED: usize = 32;

/// A ring that was prepared on a thread of its own, or could not be.
pub type Outcome = (Number, Result<Option<Prepared>, Failure>);

/// The rings and the data process.
pub struct Manager {
    pub(super) folder: Folder,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) names: BTreeMap<Number, String>,
    pub(super) plane: Plane,
    begin: Begin,
    /// The sockets of the metrics, for each data process. Their files are removed at the end.
    metrics: Vec<Bound>,
    /// What data processes are started from.
    program: PathBuf,
    /// The data process that takes the rings over when the present one has ended, and who waits for
    /// that.
    successor: Option<(Plane, ClientId)>,
    /// Who waits until that one serves the rings.
    upgraded: Option<ClientId>,
    deaths: VecDeque<Instant>,
    next: Number,
    /// Rings that wait to be prepared, and how many are being.
    unprepared: VecDeque<(Number, Settings, Duration)>,
    preparing: usize,
    prepared: (Sender<Outcome>, Receiver<Outcome>),
    prepared_event: OwnedFd,
    /// Who waits for the start or the end of a ring.
    pub(super) waiting: BTreeMap<Number, Vec<ClientId>>,
    /// What a ring that ends is followed by.
    pub(super) followers: BTreeMap<String, Configured>,
    pub(super) inquiries: Vec<Inquiry>,
    pub(super) drains: Vec<Drain>,
    pub(super) suspensions: Vec<Suspension>,
    pub(super) reload: Option<Reload>,
    /// Answers that are due.
    pub(super) answers: Vec<(ClientId, Answer)>,
    user: Uid,
}

impl Manager {
    /// Makes a manager without rings, whose data process runs and answers scrapes on `metrics`.
    ///
    /// # Errors
    ///
    /// The data process cannot be started.
    pub fn new(folder: Folder, begin: Begin, metrics: Vec<Bound>) -> Result<Self, Failure> {
        // The program that this process is, whatever has become of its file.
        let program = PathBuf::from("/proc/self/exe");
        let mut plane = Plane::start(&program, &begin, &metrics)?;
        plane.order(Order::AnswerScrapes, Vec::new());
        let user = begin.identity.map_or_else(geteuid, |(user, _)| Uid::from_raw(user));
        Ok(Self {
            folder,
            members: BTreeMap::new(),
            names: BTreeMap::new(),
            plane,
            begin,
            metrics,
            program,
            successor: None,
            upgraded: None,
            deaths: VecDeque::new(),
            next: 1,
            unprepared: VecDeque::new(),
            preparing: 0,
            prepared: channel(),
            prepared_event: new_event().map_err(|e| system("make an event")(e.into()))?,
            waiting: BTreeMap::new(),
            followers: BTreeMap::new(),
            inquiries: Vec::new(),
            drains: Vec::new(),
            suspensions: Vec::new(),
            reload: None,
            answers: Vec::new(),
            user,
        })
    }

    /// Readable when a ring was prepared.
    pub fn prepared_fd(&self) -> BorrowedFd<'_> {
        self.prepared_event.as_fd()
    }

    /// Whether every ring has come to where it was going.
    pub fn is_settled(&self) -> bool {
        let is_under_way = |member: &Member| {
            matches!(member.state, State::Preparing | State::Starting(_) | State::Ending(_))
        };
        !self.members.values().any(is_under_way)
    }

    /// Begins to serve a ring, once no other process does, which is waited for with `patience`. It is
    /// in `members` afterwards, whatever becomes of it.
    pub fn add(&mut self, name: &str, configured: Configured, patience: Duration) -> Number {
        let number = self.next;
        self.next += 1;
        let Configured { text, settings } = configured;
        self.names.insert(number, name.to_owned());
        let (known, state) = (settings.as_ref().ok().cloned(), State::Preparing);
        let member = Member { number, text, settings: known, state };
        self.members.insert(name.to_owned(), member);
        let settings = match settings {
            Ok(settings) => settings,
            Err(why) => {
                self.fail(number, &why);
                return number;
            }
        };
        self.unprepared.push_back((number, settings, patience));
        self.prepare_more();
        number
    }

    /// Prepares rings, each on a thread of its own: a disk that is slow to give space is no other
    /// ring's.
    fn prepare_more(&mut self) {
        while self.preparing < MOST_PREPARED
            && let Some((number, settings, patience)) = self.unprepared.pop_front()
        {
            let (sender, user) = (self.prepared.0.clone(), self.user);
            let event = self.prepared_event.try_clone();
            let prepare = move || {
                let outcome = prepare(&settings, user, patience);
                // Nobody waits any more at the end of the process.
                let _ = sender.send((number, outcome));
                if let Ok(event) = event {
                    let _ = nix::unistd::write(&event, &1u64.to_ne_bytes());
                }
            };
            match thread::Builder::new().name("prepare".to_owned()).spawn(prepare) {
                Ok(_) => self.preparing += 1,
                Err(e) => self.fail(number, &system("start a thread")(e).to_string()),
            }
        }
    }

    /// Begins to end a ring.
    ///
    /// # Errors
    ///
    /// It cannot be ended now.
    pub fn remove(&mut self, name: &str) -> Result<Option<Number>, CallError> {
        let Some(member) = self.members.get_mut(name) else {
            return Err(CallError::no_such_ring(name));
        };
        let number = member.number;
        match std::mem::replace(&mut member.state, State::Preparing) {
            State::Serving(kept) => {
                member.state = State::Ending(kept);
                self.plane.order(Order::Release(number), Vec::new());
                Ok(Some(number))
            }
            State::Failed(_) => {
                self.forget(number);
                Ok(None)
            }
            state => {
                member.state = state;
                Err(CallError::refused(format!("{name} is just being started or ended")))
            }
        }
    }

    fn forget(&mut self, number: Number) {
        if let Some(name) = self.names.remove(&number) {
            self.members.remove(&name);
            self.progress(&name, None);
            if let Some(next) = self.followers.remove(&name) {
                self.add(&name, next, Duration::ZERO);
            }
        }
    }

    /// Takes the rings that were prepared.
    pub fn take_prepared(&mut self) {
        let _ = nix::unistd::read(&self.prepared_event, &mut [0; 8]);
        while let Ok((number, outcome)) = self.prepared.1.try_recv() {
            match outcome {
                Ok(Some(prepared)) => self.start(number, prepared),
                Ok(None) => self.fail(number, "it was asked to stop"),
                Err(e) => self.fail(number, &e.to_string()),
            }
            self.preparing -= 1;
        }
        self.prepare_more();
    }

    fn start(&mut self, number: Number, mut prepared: Prepared) {
        let Some(name) = self.names.get(&number) else { return };
        let Some(member) = self.members.get_mut(name) else { return };
        prepared.keep();
        let Some(settings) = &member.settings else { return };
        let kept = Kept::new(prepared, settings);
        match kept.order(number, name) {
            Ok((order, descriptors)) => {
                member.state = State::Starting(kept);
                self.plane.order(order, descriptors);
            }
            Err(e) => self.fail(number, &system("duplicate a descriptor")(e).to_string()),
        }
    }

    /// Serves a ring no more, for this reason.
    fn fail(&mut self, number: Number, why: &str) {
        let Some(name) = self.names.get(&number).cloned() else { return };
        log::error!("{name}: {why}");
        if let Some(member) = self.members.get_mut(&name) {
            member.state = State::Failed(why.to_owned());
        }
        self.tell_waiting(number, &Err(CallError::refused(why)));
        self.progress(&name, Some(why.to_owned()));
    }

    fn tell_waiting(&mut self, number: Number, answer: &Answer) {
        let clients = self.waiting.remove(&number).unwrap_or_default();
        self.answers.extend(clients.into_iter().map(|client| (client, answer.clone())));
    }

    /// Takes what the data process has told.
    ///
    /// # Errors
    ///
    /// It has died too often.
    pub fn take_news(&mut self) -> Result<(), Failure> {
        loop {
            match self.plane.news() {
                Ok(Some(news)) => self.learn(news),
                Ok(None) => return Ok(()),
                Err(_) => return self.replace_plane(),
            }
        }
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Serving(number) => {
                let Some(name) = self.names.get(&number).cloned() else { return };
                let Some(member) = self.members.get_mut(&name) else { return };
                match std::mem::replace(&mut member.state, State::Preparing) {
                    State::Starting(kept) => member.state = State::Serving(kept),
                    state => member.state = state,
                }
                let path = member.settings.as_ref().map(|settings| settings.ring.display());
                log::info!(
                    "serving {name}{}",
                    path.map_or_else(String::new, |at| format!(": {at}"))
                );
                self.tell_waiting(number, &Ok(json!({})));
                self.progress(&name, None);
            }
            News::Refused(number, why) => self.fail(number, &why),
            News::Ended(number, why) => self.ended(number, why),
            News::Suspended(number, outcome) => self.suspended(number, &outcome),
            News::Report(number, report) => self.reported(number, &report),
            News::Hangs(number) => self.hangs(number),
            News::Begun(_) => {}
        }
    }

    fn ended(&mut self, number: Number, why: Option<String>) {
        let Some(name) = self.names.get(&number).cloned() else { return };
        let Some(member) = self.members.get_mut(&name) else { return };
        match std::mem::replace(&mut member.state, State::Preparing) {
            State::Ending(kept) => {
                let why = why.or(kept.finish().err().map(|e| e.to_string()));
                // Its sockets are removed before that is answered.
                drop(kept);
                self.forget_answered(number, &name, why);
            }
            State::Starting(kept) | State::Serving(kept) => {
                // What is left of it there ends, too.
                self.plane.order(Order::Release(number), Vec::new());
                drop(kept);
                self.fail(number, &why.unwrap_or_else(|| "it has ended".to_owned()));
            }
            state => member.state = state,
        }
    }

    /// Serves a ring no more that keeps a thread from serving others, and has another data process
    /// serve those: nothing else frees the thread.
    fn hangs(&mut self, number: Number) {
        self.fail(number, HANGS);
        self.plane.kill();
    }

    fn forget_answered(&mut self, number: Number, name: &str, why: Option<String>) {
        if let Some(why) = &why {
            log::error!("{name}: {why}");
        } else {
            log::info!("{name}: ended, everything answered is durable");
        }
        let answer = match why {
            None => Ok(json!({})),
            Some(why) => Err(CallError::refused(format!("it is served no more, but: {why}"))),
        };
        self.tell_waiting(number, &answer);
        self.forget(number);
    }

    /// Starts another data process in the place of one that has died.
    fn start_another(&mut self) -> Result<Plane, Failure> {
        let now = Instant::now();
        self.deaths.push_back(now);
        let (most, period) = DEATHS;
        while self.deaths.front().is_some_and(|at| now.duration_since(*at) > period) {
            self.deaths.pop_front();
        }
        if self.deaths.len() > most {
            return Err(Failure::Died);
        }
        log::error!("the data process has died: another one is started");
        Plane::start(&self.program, &self.begin, &self.metrics)
    }

    /// Has the rings served by a data process of the program that this one's path leads to now.
    ///
    /// # Errors
    ///
    /// There is no such program, or it cannot take the rings over: the present process goes on.
    pub(super) fn upgrade(&mut self, client: ClientId) -> Result<(), CallError> {
        if self.successor.is_some() {
            return Err(CallError::refused("another data process takes over already"));
        }
        let program = std::env::current_exe().map_err(|e| CallError::refused(e.to_string()))?;
        // A file that was replaced is named so.
        let name = program.as_os_str().as_bytes();
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        let program = PathBuf::from(OsStr::from_bytes(name));
        let next = Plane::start(&program, &self.begin, &self.metrics);
        let next = next.map_err(|e| CallError::refused(format!("{}: {e}", program.display())))?;
        self.program = program;
        self.successor = Some((next, client));
        self.plane.order(Order::Yield, Vec::new());
        Ok(())
    }

    /// Has another data process serve the rings in the place of one that has ended.
    fn replace_plane(&mut self) -> Result<(), Failure> {
        let next = match self.successor.take() {
            Some((next, client)) => {
                self.upgraded = Some(client);
                next
            }
            None => self.start_another()?,
        };
        let old = std::mem::replace(&mut self.plane, next);
        match old.finish() {
            Ok(status) if status.success() => log::info!("another data process serves the rings"),
            Ok(status) => log::error!("the data process before this one has ended: {status}"),
            Err(e) => log::error!("cannot wait for the data process before this one: {e}"),
        }
        let all: Vec<_> = self.names.iter().map(|(number, name)| (*number, name.clone())).collect();
        for (number, name) in all {
            let Some(member) = self.members.get_mut(&name) else { continue };
            match std::mem::replace(&mut member.state, State::Preparing) {
                State::Starting(kept) | State::Serving(kept) => match kept.order(number, &name) {
                    Ok((order, descriptors)) => {
                        member.state = State::Starting(kept);
                        self.plane.order(order, descriptors);
                    }
                    Err(e) => self.fail(number, &system("duplicate a descriptor")(e).to_string()),
                },
                // What was answered is in the ring's file; whether it is durable, nobody can say.
                State::Ending(kept) => {
                    drop(kept);
                    let why = "the data process has died while the ring was made durable";
                    self.forget_answered(number, &name, Some(why.to_owned()));
                }
                state => member.state = state,
            }
        }
        // Behind the rings: no scrape finds a part of them.
        self.plane.order(Order::AnswerScrapes, Vec::new());
        self.repeat_questions();
        Ok(())
    }

    /// Tells the data process whether a ring's file is at its path.
    pub fn displaced(&mut self, number: Number, displaced: bool) {
        self.plane.order(Order::Displaced(number, displaced), Vec::new());
    }

    /// The number of threads that drive queues.
    pub fn threads(&self) -> usize {
        if self.begin.cpus.is_empty() { self.begin.workers } else { self.begin.cpus.len() }
    }

    /// Takes an answer that is due.
    pub fn take_answer(&mut self) -> Option<(ClientId, Answer)> {
        if self.is_settled()
            && let Some(client) = self.upgraded.take()
        {
            self.answers.push((client, Ok(json!({}))));
        }
        self.answers.pop()
    }

    /// Opens a file for the data process.
    ///
    /// # Errors
    ///
    /// It has died.
    pub fn open_file(&self) -> io::Result<()> {
        self.plane.open_file(|Reopen { number, writing, .. }| -> io::Result<File> {
            let member = self.names.get(number).and_then(|name| self.members.get(name));
            let kept = member.and_then(Member::kept).ok_or(io::ErrorKind::NotFound)?;
            kept.reopen(*writing)
        })
    }

    /// Ends the data process, which makes all rings durable.
    ///
    /// # Errors
    ///
    /// A ring could not be made durable, or is lost; the log says which.
    pub fn finish(self) -> Result<(), Failure> {
        let status = self.plane.finish().map_err(system("wait for the data process"))?;
        let mut outcome = if status.success() { Ok(()) } else { Err(Failure::DataProcess(status)) };
        for member in self.members.values() {
            if let Some(Err(e)) = member.kept().map(Kept::finish) {
                log::error!("{e}");
                outcome = outcome.and(Err(e));
            }
        }
        outcome
    }
}

/// Opens everything that a ring needs.
fn prepare(
    settings: &Settings,
    user: Uid,
    patience: Duration,
) -> Result<Option<Prepared>, Failure> {
    let none = |inherited: Inherited| {
        Err(io::Error::other(format!("{inherited}: a ring of many makes its sockets itself")))
    };
    let prepared = patiently(patience, || Prepared::new(settings, &none, &Limits::default()))?;
    if let Some(prepared) = &prepared {
        prepared.try_reopen(settings, user)?;
    }
    Ok(prepared)
}

/// Takes something, which is waited for with `patience` where another process holds it.
///
/// # Errors
///
/// Those of `take`.
pub fn patiently<T>(
    patience: Duration,
    mut take: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let start = Instant::now();
    loop {
        match take() {
            Err(e) if is_held(&e) && start.elapsed() < patience => thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// Whether another process has the ring, or listens at one of its sockets.
fn is_held(failure: &Failure) -> bool {
    match failure {
        Failure::Ring { source, .. } => matches!(source, Error::RoleTaken { .. }),
        Failure::Socket { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
        _ => false,
    }
}
