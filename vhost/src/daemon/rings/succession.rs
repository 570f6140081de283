//! One data process that follows another: since that has died, or is to be upgraded.

use crate::daemon::failure::{Failure, system};
use crate::daemon::rings::folder::Configured;
use crate::daemon::rings::manager::Manager;
use crate::daemon::rings::member::{Kept, Member, State};
use crate::daemon::rings::messages::Order;
use crate::daemon::rings::plane::Plane;
use crate::daemon::rings::reexec::{self, Left};
use crate::daemon::rings::varlink::{CallError, ClientId};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Deaths of the data process in this time, at most.
const DEATHS: (usize, Duration) = (5, Duration::from_secs(60));

impl Manager {
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
        self.expect_no_upgrade()?;
        let program = self.installed.clone();
        let next = Plane::start(&program, &self.begin, &self.metrics);
        let next = next.map_err(|e| CallError::refused(format!("{}: {e}", program.display())))?;
        self.program = program;
        self.successor = Some((next, client));
        self.plane.order(Order::Yield, Vec::new());
        Ok(())
    }

    /// Ends the data process, and then has this process become the program that its path leads to
    /// now.
    ///
    /// # Errors
    ///
    /// That program does not accept the configuration, or this is no time for it: everything goes
    /// on as before.
    pub(super) fn upgrade_whole(&mut self, client: ClientId) -> Result<(), CallError> {
        self.expect_no_upgrade()?;
        if !self.is_settled() {
            let why = "a ring is just being started or ended: try again";
            return Err(CallError::refused(why));
        }
        if self.has_passed_sockets {
            let why = "the service manager has passed sockets to the daemon, which it alone passes to another program: restart the service";
            return Err(CallError::refused(why));
        }
        let lost = self
            .members
            .iter()
            .find_map(|(name, member)| Some((name, member.kept()?.finish().err()?)));
        if let Some((name, why)) = lost {
            return Err(CallError::refused(format!(
                "{name}: {why} (put it back under its name first)"
            )));
        }
        let program = self.installed.clone();
        reexec::check(&program).map_err(CallError::refused)?;
        log::info!("another program follows: {}", program.display());
        self.next_program = Some((program, client));
        self.plane.order(Order::Yield, Vec::new());
        Ok(())
    }

    fn expect_no_upgrade(&self) -> Result<(), CallError> {
        if self.successor.is_some() || self.next_program.is_some() {
            return Err(CallError::refused("another process takes over already"));
        }
        Ok(())
    }

    /// Returns the program that this process is to become, if the data process has ended for that,
    /// who waits for it, and what is left to it.
    pub fn follower(&mut self) -> Option<(PathBuf, ClientId, Left<'_>)> {
        if !self.leaves {
            return None;
        }
        let (program, client) = self.next_program.take()?;
        if let Err(e) = self.plane.finish() {
            log::error!("cannot wait for the data process: {e}");
        }
        // A ring whose file has changed starts anew, one whose file is gone ends: the sockets of both
        // are removed here.
        self.members.retain(|name, member| {
            let same = |found: Configured| found.text == member.text;
            let stays = member.added || self.folder.read_one(name).is_ok_and(same);
            if !stays && let Some(Err(e)) = member.kept().map(Kept::sync) {
                log::error!("{name}: cannot make it durable: {e}");
            }
            stays
        });
        let is_added = |member: &Member| member.added && member.kept().is_some();
        let added = self.members.iter().filter(|(_, member)| is_added(member));
        let rings =
            added.map(|(name, member)| (name.as_str(), &*member.text, &member.passed)).collect();
        let kept = self.members.values().filter_map(Member::kept);
        let sockets = kept.flat_map(Kept::sockets).collect();
        Some((program, client, Left { rings, sockets, ..Left::default() }))
    }

    /// Has another data process serve the rings in the place of one that has ended.
    pub(super) fn replace_plane(&mut self) -> Result<(), Failure> {
        if self.next_program.is_some() {
            self.leaves = true;
            return Ok(());
        }
        let next = match self.successor.take() {
            Some((next, client)) => {
                self.upgraded = Some(client);
                next
            }
            None => self.start_another()?,
        };
        let mut old = std::mem::replace(&mut self.plane, next);
        match old.finish() {
            Ok(status) if status.success() => log::info!("another data process serves the rings"),
            Ok(status) => log::error!("the data process before this one has ended: {status}"),
            Err(e) => log::error!("cannot wait for the data process before this one: {e}"),
        }
        let all: Vec<_> = self.names.iter().map(|(number, name)| (*number, name.clone())).collect();
        for (number, name) in all {
            let Some(member) = self.members.get_mut(&name) else { continue };
            let Some(order) = member.kept().map(|kept| kept.order(number, &name)) else { continue };
            let (order, descriptors) = match order {
                Ok(order) => order,
                Err(e) => {
                    self.fail(number, &system("duplicate a descriptor")(e).to_string());
                    continue;
                }
            };
            self.plane.order(order, descriptors);
            match std::mem::replace(&mut member.state, State::Preparing) {
                State::Serving(kept) => member.state = State::Starting(kept),
                // The next process makes it durable.
                State::Ending(kept) => {
                    member.state = State::Ending(kept);
                    self.plane.order(Order::Release(number), Vec::new());
                }
                state => member.state = state,
            }
        }
        // Behind the rings: no scrape finds a part of them.
        self.plane.order(Order::AnswerScrapes, Vec::new());
        self.repeat_questions();
        Ok(())
    }
}
