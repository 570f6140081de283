//! The rings, from their configuration to their end, and whoever waits for that.

use crate::daemon::failure::{Failure, system};
use crate::daemon::prepared::Prepared;
use crate::daemon::rings::folder::{Configured, Folder};
use crate::daemon::rings::member::{Kept, Member, State};
use crate::daemon::rings::messages::{Begin, News, Number, Order, Reopen};
use crate::daemon::rings::plane::Plane;
use crate::daemon::rings::preparations::Preparations;
use crate::daemon::rings::reexec::KeptSockets;
use crate::daemon::rings::room::Room;
use crate::daemon::rings::varlink::{Answer, CallError, ClientId};
use crate::daemon::rings::waits::{Drain, Inquiry, Reload, Suspension};
use nix::unistd::{Uid, geteuid};
use ring_metrics::Bound;
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Why a ring is served no more that keeps others from being served.
const HANGS: &str = "a thread waits in the kernel for its disk, or for memory of its front end's: it is not served until it is \
                     added again, and the other rings are served by another process";

/// The rings and the data process.
pub struct Manager {
    pub(super) folder: Folder,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) names: BTreeMap<Number, String>,
    pub(super) plane: Plane,
    pub(super) begin: Begin,
    room: Room,
    /// The sockets of the metrics, for each data process. Their files are removed at the end.
    pub(super) metrics: Vec<Bound>,
    /// What data processes are started from.
    pub(super) program: PathBuf,
    /// Where this program lay when it was started, and the next one is to be found.
    pub(super) installed: PathBuf,
    /// The data process that takes the rings over when the present one has ended, and who waits for
    /// that.
    pub(super) successor: Option<(Plane, ClientId)>,
    /// Who waits until that one serves the rings.
    pub(super) upgraded: Option<ClientId>,
    /// The program that this process becomes when the data process has ended, and who waits for
    /// that.
    pub(super) next_program: Option<(PathBuf, ClientId)>,
    /// A service manager has passed sockets to this process.
    pub(super) has_passed_sockets: bool,
    /// The data process has ended, and no other is started.
    pub(super) leaves: bool,
    pub(super) deaths: VecDeque<Instant>,
    next: Number,
    preparations: Preparations,
    /// Who waits for the start or the end of a ring.
    pub(super) waiting: BTreeMap<Number, Vec<ClientId>>,
    /// What follows rings that are to end: another one of the name, or nothing.
    pub(super) followers: BTreeMap<String, Option<Configured>>,
    pub(super) inquiries: Vec<Inquiry>,
    pub(super) drains: Vec<Drain>,
    pub(super) suspensions: Vec<Suspension>,
    pub(super) reload: Option<Reload>,
    /// Answers that are due.
    pub(super) answers: Vec<(ClientId, Answer)>,
}

impl Manager {
    /// Makes a manager without rings, with `room` for some and `sockets` that they need not make,
    /// whose data process runs and answers scrapes on `metrics`.
    ///
    /// # Errors
    ///
    /// The data process cannot be started.
    pub fn new(
        folder: Folder,
        begin: Begin,
        room: Room,
        metrics: Vec<Bound>,
        sockets: KeptSockets,
    ) -> Result<Self, Failure> {
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
            room,
            metrics,
            program,
            installed: std::env::current_exe().map_err(system("find this program"))?,
            successor: None,
            upgraded: None,
            next_program: None,
            has_passed_sockets: false,
            leaves: false,
            deaths: VecDeque::new(),
            next: 1,
            preparations: Preparations::new(user, sockets).map_err(system("make an event"))?,
            waiting: BTreeMap::new(),
            followers: BTreeMap::new(),
            inquiries: Vec::new(),
            drains: Vec::new(),
            suspensions: Vec::new(),
            reload: None,
            answers: Vec::new(),
        })
    }

    /// Readable when a ring was prepared.
    pub fn prepared_fd(&self) -> BorrowedFd<'_> {
        self.preparations.fd()
    }

    /// Whether every ring has come to where it was going.
    pub fn is_settled(&self) -> bool {
        let is_under_way = |member: &Member| {
            matches!(member.state, State::Preparing | State::Starting(_) | State::Ending(_))
        };
        !self.members.values().any(is_under_way)
    }

    /// Begins to serve a ring, once no other process does, which is waited for with `patience`. It
    /// is in `members` afterwards, whatever becomes of it.
    pub fn add(&mut self, name: &str, configured: Configured, patience: Duration) -> Number {
        let number = self.next;
        self.next += 1;
        let Configured { text, settings, added, passed } = configured;
        let settings = settings.and_then(|settings| {
            self.expect_room()?;
            // The bytes of a ring whose file names no size are known, and checked, in `start`.
            let bytes = self.bytes_beside(number);
            self.room.expect_memory(bytes, settings.size.unwrap_or(0)).map(|()| settings)
        });
        self.names.insert(number, name.to_owned());
        let (known, state) = (settings.as_ref().ok().cloned(), State::Preparing);
        let member = Member { number, text, added, passed, settings: known, state };
        self.members.insert(name.to_owned(), member);
        let settings = match settings {
            Ok(settings) => settings,
            Err(why) => {
                self.fail(number, &why);
                return number;
            }
        };
        self.preparations.begin(number, settings, patience);
        self.take_prepared();
        number
    }

    /// Checks that there is room for one more ring. A ring that ends leaves its place to another,
    /// unless one of its name is to follow it; its descriptors count until it has ended.
    ///
    /// # Errors
    ///
    /// The limit that is reached, in words.
    pub(super) fn expect_room(&self) -> Result<(), String> {
        let count = |counts: fn(&State) -> bool| {
            self.members.values().filter(|member| counts(&member.state)).count()
        };
        let open = count(|state| !matches!(state, State::Failed(_)));
        let gone = self.members.iter().filter(|(name, member)| {
            matches!(member.state, State::Ending(_)) && !self.is_followed(name)
        });
        self.room.expect_one(open - gone.count(), open)
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

    /// Whether another ring of that name is served once this one has ended.
    fn is_followed(&self, name: &str) -> bool {
        self.followers.get(name).is_some_and(Option::is_some)
    }

    /// Ends a ring, and has `next` follow it. One that is being started ends once it is.
    pub(super) fn replace(&mut self, name: &str, next: Option<Configured>) {
        self.followers.insert(name.to_owned(), next);
        self.give_way(name);
    }

    /// Begins to end a ring that another one is to follow, or nothing.
    fn give_way(&mut self, name: &str) {
        if self.followers.contains_key(name) {
            // One that is being started or ended comes here again.
            let _ = self.remove(name);
        }
    }

    fn forget(&mut self, number: Number) {
        if let Some(name) = self.names.remove(&number) {
            self.members.remove(&name);
            match self.followers.remove(&name).flatten() {
                Some(next) => {
                    self.add(&name, next, Duration::ZERO);
                }
                None => self.progress(&name, None),
            }
        }
    }

    /// Takes the rings that were prepared.
    pub fn take_prepared(&mut self) {
        for (number, outcome) in self.preparations.take() {
            match outcome {
                Ok(prepared) => self.start(number, prepared),
                Err(e) => self.fail(number, &e.to_string()),
            }
        }
    }

    /// Bytes of the other rings that are served, or are to be.
    fn bytes_beside(&self, number: Number) -> u64 {
        let others = self.members.iter().filter(|(_, member)| member.number != number);
        // The place of a ring that ends is its follower's, if it has one.
        let stays = others.filter(|(name, member)| {
            !matches!(member.state, State::Ending(_)) || self.is_followed(name)
        });
        stays.map(|(_, member)| member.bytes()).sum()
    }

    fn start(&mut self, number: Number, mut prepared: Prepared) {
        let Some(name) = self.names.get(&number) else { return };
        let bytes = self.bytes_beside(number);
        if let Err(why) = self.room.expect_memory(bytes, prepared.opened.geometry.total_bytes()) {
            return self.fail(number, &why);
        }
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
    pub(super) fn fail(&mut self, number: Number, why: &str) {
        let Some(name) = self.names.get(&number).cloned() else { return };
        log::error!("{name}: {why}");
        // The client that adds a ring is told that it has failed, and no failed ring is listed.
        let mut was_added = false;
        if let Some(member) = self.members.get_mut(&name) {
            was_added = member.added && self.waiting.contains_key(&number);
            member.state = State::Failed(why.to_owned());
        }
        self.tell_waiting(number, &Err(CallError::refused(why)));
        if was_added {
            return self.forget(number);
        }
        self.progress(&name, Some(why.to_owned()));
        self.give_way(&name);
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
                    // It was taken over in order to be ended.
                    state => {
                        member.state = state;
                        return;
                    }
                }
                let path = member.settings.as_ref().map(|settings| settings.ring.display());
                log::info!(
                    "serving {name}{}",
                    path.map_or_else(String::new, |at| format!(": {at}"))
                );
                self.tell_waiting(number, &Ok(json!({})));
                self.progress(&name, None);
                self.give_way(&name);
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

    /// Tells the data process whether a ring's file is at its path.
    pub fn displaced(&mut self, number: Number, displaced: bool) {
        self.plane.order(Order::Displaced(number, displaced), Vec::new());
    }

    /// The number of threads that drive queues.
    pub fn threads(&self) -> usize {
        self.begin.threads()
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
    pub fn finish(mut self) -> Result<(), Failure> {
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
