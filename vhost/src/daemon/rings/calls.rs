//! The calls of the control socket.

use crate::daemon::rings::folder::is_name;
use crate::daemon::rings::manager::Manager;
use crate::daemon::rings::member::{Member, State};
use crate::daemon::rings::messages::{Number, Order, Report};
use crate::daemon::rings::passed::PassedDescriptors;
use crate::daemon::rings::varlink::{
    Answer, Call, CallError, ClientId, expect_rights, no_such_method,
};
use crate::daemon::rings::waits::{Drain, Inquiry, Question, Reload, Suspension};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The time between two looks at a ring that drains.
const DRAIN_PAUSE: Duration = Duration::from_millis(20);

/// Questions that the data process has not answered, at most: it may be stopped, while clients come
/// and go.
const MOST_INQUIRIES: usize = 128;

/// The pause before a change of `suspend` is tried again, and how long it is.
const SUSPEND_PAUSE: Duration = Duration::from_millis(10);
const SUSPEND_PATIENCE: Duration = Duration::from_secs(5);

impl Manager {
    /// Carries out a call, which is answered now or later.
    pub fn call(&mut self, mut call: Call) {
        let client = call.client;
        let descriptors = std::mem::take(&mut call.descriptors);
        let outcome = self.carry_out(&call, descriptors);
        if let Some(answer) = outcome.transpose() {
            self.answers.push((client, answer));
        }
    }

    /// Returns the answer; nothing where it comes later.
    fn carry_out(
        &mut self,
        call: &Call,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Value>, CallError> {
        let Call { client, method, parameters, .. } = call;
        let client = *client;
        let name = || {
            let name = parameters["name"].as_str();
            name.ok_or_else(|| CallError::refused(format!("{method} needs a `name`")))
        };
        match method.as_str() {
            "List" => self.inquire(client, Question::List, None),
            "Stats" => match parameters["name"].as_str() {
                None => self.inquire(client, Question::Stats, None),
                Some(name) => self.inquire(client, Question::Stats, Some(name)),
            },
            "Show" => {
                let name = name()?;
                self.inquire(client, Question::Show(name.to_owned()), Some(name))
            }
            "Add" | "Remove" | "Drain" | "Suspend" | "Resume" | "Reload" | "Upgrade" => {
                expect_rights(call)?;
                if self.next_program.is_some() {
                    return Err(CallError::refused(
                        "another program is about to follow: try again",
                    ));
                }
                match method.as_str() {
                    "Add" => {
                        let passed =
                            PassedDescriptors::sort(&parameters["descriptors"], descriptors);
                        let passed = passed.map_err(CallError::refused)?;
                        self.add_ring(client, name()?, parameters["configuration"].as_str(), passed)
                    }
                    "Remove" => match self.remove(name()?)? {
                        Some(number) => Ok(self.wait_for(number, client)),
                        None => Ok(Some(json!({}))),
                    },
                    "Drain" => self.drain(client, name()?, &parameters["timeout_ms"]),
                    "Suspend" => self.suspend(client, name()?, true),
                    "Resume" => self.suspend(client, name()?, false),
                    "Upgrade" if parameters["whole"] == true => {
                        self.upgrade_whole(client).map(|()| None)
                    }
                    "Upgrade" => self.upgrade(client).map(|()| None),
                    _ => self.reload(Some(client)),
                }
            }
            _ => Err(no_such_method(method)),
        }
    }

    fn wait_for(&mut self, number: Number, client: ClientId) -> Option<Value> {
        self.waiting.entry(number).or_default().push(client);
        None
    }

    fn served(&self, name: &str) -> Result<Number, CallError> {
        let member = self.members.get(name).ok_or_else(|| CallError::no_such_ring(name))?;
        if member.is_served() {
            Ok(member.number)
        } else {
            Err(CallError::refused(format!("{name} is not served")))
        }
    }

    fn add_ring(
        &mut self,
        client: ClientId,
        name: &str,
        text: Option<&str>,
        passed: PassedDescriptors,
    ) -> Result<Option<Value>, CallError> {
        let configured = match text {
            Some(_) if !is_name(name) => Err(format!("{name:?} cannot be a ring's name")),
            Some(text) => Ok(self.folder.added(text.to_owned(), passed)),
            None if !passed.is_empty() => {
                Err("descriptors go with a `configuration`, and not with a file of the folder"
                    .to_owned())
            }
            None => self.folder.read_one(name),
        };
        let configured = configured.map_err(CallError::refused)?;
        if let Err(why) = &configured.settings {
            return Err(CallError::refused(why.clone()));
        }
        let is_failed = match self.members.get(name).map(|member| &member.state) {
            None => false,
            Some(State::Failed(_)) => true,
            Some(_) => return Err(CallError::refused(format!("{name} is there already"))),
        };
        self.expect_room().map_err(CallError::refused)?;
        if is_failed {
            self.remove(name)?;
        }
        let number = self.add(name, configured, Duration::ZERO);
        Ok(self.wait_for(number, client))
    }

    fn inquire(
        &mut self,
        client: ClientId,
        question: Question,
        name: Option<&str>,
    ) -> Result<Option<Value>, CallError> {
        if let Some(name) = name.filter(|name| !self.members.contains_key(*name)) {
            return Err(CallError::no_such_ring(name));
        }
        if self.inquiries.len() >= MOST_INQUIRIES {
            return Err(CallError::refused("the data process does not answer"));
        }
        let asked = self.members.iter().filter(|(ring, member)| {
            member.is_served() && name.is_none_or(|name| name == ring.as_str())
        });
        let missing: BTreeSet<_> = asked.map(|(_, member)| member.number).collect();
        for number in &missing {
            self.plane.order(Order::Report(*number), Vec::new());
        }
        let inquiry = Inquiry { client, question, missing, reports: BTreeMap::new() };
        if inquiry.missing.is_empty() {
            return self.findings(&inquiry).map(Some);
        }
        self.inquiries.push(inquiry);
        Ok(None)
    }

    fn findings(&self, inquiry: &Inquiry) -> Answer {
        let ring = |name: &str, member: &Member| {
            let mut ring = member.to_json(name);
            let report = inquiry.reports.get(&member.number);
            ring["used"] = report.and_then(|report| report.used).into();
            ring["front_end"] = report.map(|report| report.front_end).into();
            ring["suspended"] = report.and_then(|report| report.suspended).into();
            ring["fault"] = report.and_then(|report| report.fault.clone()).into();
            ring
        };
        let counters = |member: &Member| {
            inquiry.reports.get(&member.number).map(|report| report.counters.clone())
        };
        match &inquiry.question {
            Question::List => {
                let rings = self.members.iter().map(|(name, member)| ring(name, member));
                Ok(json!({ "rings": rings.collect::<Vec<_>>() }))
            }
            Question::Show(name) => {
                let member = self.members.get(name);
                let member = member.ok_or_else(|| CallError::no_such_ring(name))?;
                Ok(json!({ "ring": ring(name, member), "counters": counters(member) }))
            }
            Question::Stats => {
                let known = self.members.iter().filter_map(|(name, member)| {
                    Some(json!({ "name": name, "counters": counters(member)? }))
                });
                Ok(json!({ "rings": known.collect::<Vec<_>>() }))
            }
        }
    }

    pub(super) fn reported(&mut self, number: Number, report: &Report) {
        for inquiry in &mut self.inquiries {
            if inquiry.missing.remove(&number) {
                inquiry.reports.insert(number, report.clone());
            }
        }
        self.close_inquiries();
        let answer = match &report.fault {
            Some(fault) => Err(CallError::refused(fault.clone())),
            None if report.used == Some(0) => Ok(json!({})),
            None => return,
        };
        let ended = self.drains.extract_if(.., |drain| drain.number == number);
        self.answers.extend(ended.map(|drain| (drain.client, answer.clone())));
    }

    /// Answers the inquiries that nothing is missing for: a ring that has ended reports no more.
    pub(super) fn close_inquiries(&mut self) {
        let Self { inquiries, members, names, .. } = self;
        for inquiry in inquiries.iter_mut() {
            inquiry.missing.retain(|number| {
                names.get(number).and_then(|name| members.get(name)).is_some_and(Member::is_served)
            });
        }
        let (open, closed): (Vec<_>, Vec<_>) =
            std::mem::take(inquiries).into_iter().partition(|one| !one.missing.is_empty());
        self.inquiries = open;
        for inquiry in closed {
            let answer = self.findings(&inquiry);
            self.answers.push((inquiry.client, answer));
        }
    }

    /// Asks the next data process what the last one has not answered.
    pub(super) fn repeat_questions(&mut self) {
        self.close_inquiries();
        let now = Instant::now();
        for suspension in &mut self.suspensions {
            suspension.next = Some(now);
        }
    }

    fn drain(
        &mut self,
        client: ClientId,
        name: &str,
        timeout: &Value,
    ) -> Result<Option<Value>, CallError> {
        let number = self.served(name)?;
        let now = Instant::now();
        let until = match timeout {
            Value::Null => None,
            timeout => {
                let bad = || CallError::refused("timeout_ms is a number of milliseconds");
                let timeout = timeout.as_u64().ok_or_else(bad)?;
                now.checked_add(Duration::from_millis(timeout))
            }
        };
        self.drains.push(Drain { client, number, until, next: now });
        Ok(None)
    }

    fn suspend(
        &mut self,
        client: ClientId,
        name: &str,
        suspend: bool,
    ) -> Result<Option<Value>, CallError> {
        let number = self.served(name)?;
        let until = Instant::now() + SUSPEND_PATIENCE;
        self.plane.order(Order::Suspend(number, suspend), Vec::new());
        self.suspensions.push(Suspension { client, number, suspend, until, next: None });
        Ok(None)
    }

    pub(super) fn suspended(&mut self, number: Number, outcome: &Result<bool, String>) {
        let first = self.suspensions.iter().position(|wait| {
            // Orders are answered in their order.
            wait.number == number && wait.next.is_none()
        });
        let Some(index) = first else { return };
        let answer = match outcome {
            Ok(true) => Ok(json!({})),
            Ok(false) if Instant::now() < self.suspensions[index].until => {
                self.suspensions[index].next = Some(Instant::now() + SUSPEND_PAUSE);
                return;
            }
            Ok(false) => Err(CallError::timed_out("another process edits the ring's sector")),
            Err(why) => Err(CallError::refused(why.clone())),
        };
        let wait = self.suspensions.remove(index);
        self.answers.push((wait.client, answer));
    }

    /// Reads the folder again, and does what its files say now.
    ///
    /// # Errors
    ///
    /// The folder cannot be read, or is being read already.
    pub fn reload(&mut self, client: Option<ClientId>) -> Result<Option<Value>, CallError> {
        if self.reload.is_some() {
            return Err(CallError::refused("the folder's changes are under way already"));
        }
        let found = self.folder.read().map_err(CallError::refused)?;
        let mut reload = Reload {
            client,
            open: BTreeSet::new(),
            changes: Default::default(),
            failed: Vec::new(),
        };
        let gone: Vec<_> =
            self.members.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        let mut changed = Vec::new();
        for (name, configured) in found {
            match self.members.get(&name) {
                None => {
                    reload.changes[0].push(name.clone());
                    changed.push((name, configured));
                }
                Some(member) if member.text == configured.text && member.is_served() => {}
                // It was added a moment ago.
                Some(member) if member.text == configured.text && member.is_starting() => {
                    reload.open.insert(name);
                }
                // A file that is wrong now does not end a ring that is served.
                Some(_) if configured.settings.is_err() => {
                    let why = configured.settings.err().unwrap_or_default();
                    reload.failed.push((name, why));
                }
                Some(_) => {
                    reload.changes[2].push(name.clone());
                    changed.push((name, configured));
                }
            }
        }
        reload.changes[1].clone_from(&gone);
        reload.open.extend(gone.iter().cloned());
        reload.open.extend(changed.iter().map(|(name, _)| name.clone()));
        self.reload = Some(reload);
        for name in gone {
            self.replace(&name, None);
        }
        // In the order of their names: the first ones have room, if not all have.
        for (name, configured) in changed {
            if self.members.contains_key(&name) {
                self.replace(&name, Some(configured));
            } else {
                self.add(&name, configured, Duration::ZERO);
            }
        }
        self.close_reload();
        Ok(None)
    }

    /// Notes that a ring has come to where it was going, for a reading of the folder.
    pub(super) fn progress(&mut self, name: &str, failure: Option<String>) {
        let Some(reload) = &mut self.reload else { return };
        if self.followers.contains_key(name) || !reload.open.remove(name) {
            return;
        }
        if let Some(why) = failure {
            reload.changes.iter_mut().for_each(|names| names.retain(|other| other != name));
            reload.failed.push((name.to_owned(), why));
        }
        self.close_reload();
    }

    fn close_reload(&mut self) {
        if let Some(reload) = self.reload.take_if(|reload| reload.open.is_empty()) {
            let answer = reload.to_json();
            log::info!("the folder of the rings was read again: {answer}");
            self.answers.extend(reload.client.map(|client| (client, Ok(answer))));
        }
    }

    /// When [`look_again`](Self::look_again) has to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let drains = self.drains.iter().map(|drain| drain.next);
        let suspensions = self.suspensions.iter().filter_map(|wait| wait.next);
        drains.chain(suspensions).min()
    }

    /// Does what is due because of the time.
    pub fn look_again(&mut self) {
        let now = Instant::now();
        let Self { drains, suspensions, plane, names, members, answers, .. } = self;
        drains.retain_mut(|drain| {
            let member = names.get(&drain.number).and_then(|name| members.get(name));
            let why = if !member.is_some_and(Member::is_served) {
                Some(CallError::refused("it is served no more"))
            } else if drain.until.is_some_and(|until| until <= now) {
                Some(CallError::timed_out("the consumer has not taken everything"))
            } else {
                None
            };
            if let Some(why) = why {
                answers.push((drain.client, Err(why)));
                return false;
            }
            if drain.next <= now {
                drain.next = now + DRAIN_PAUSE;
                plane.order(Order::Report(drain.number), Vec::new());
            }
            true
        });
        for wait in suspensions.iter_mut().filter(|wait| wait.next.is_some_and(|at| at <= now)) {
            wait.next = None;
            plane.order(Order::Suspend(wait.number, wait.suspend), Vec::new());
        }
    }
}
