//! What the service manager is told of the forwarder.

use super::super::super::failure::Outcome;
use super::Engine;
use ring_program::ServiceManager;
use std::time::{Duration, Instant};

/// The shortest time between two looks whether the status has changed: each looks at all rings.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// The manager, and what it was told.
pub struct Told {
    manager: ServiceManager,
    status: String,
    next_status: Instant,
    /// Whether something may have changed since the last look at the status.
    is_status_old: bool,
    /// Time of the next sign of life, if the manager wants any.
    next_sign: Option<Instant>,
}

impl Told {
    pub fn new(manager: ServiceManager) -> Self {
        let now = Instant::now();
        let next_sign = manager.interval().map(|interval| now + interval);
        // The first status is that of `tell_ready`.
        let next_status = now + STATUS_PERIOD;
        Self { manager, status: String::new(), next_status, is_status_old: false, next_sign }
    }

    /// Returns the time of the next message, if it does not depend on what happens until then.
    pub fn next_time(&self) -> Option<Instant> {
        let status = self.is_status_old.then_some(self.next_status);
        self.next_sign.into_iter().chain(status).min()
    }

    /// Says that the configuration is read again.
    pub fn reloading(&self) {
        self.manager.reloading();
    }

    /// Says that the forwarder ends, and why.
    pub fn stopping(&self, status: &str) {
        self.manager.stopping(status);
    }
}

impl Engine<'_, '_> {
    /// Tells the manager that the forwarder serves, at the start and after a reload; `trouble` is
    /// the reason why a reload has changed nothing.
    pub fn tell_ready(&mut self, trouble: Option<&str>) {
        let status = trouble.map_or_else(|| self.status_line(), str::to_owned);
        self.told.manager.ready(&status);
        self.told.status = status;
    }

    /// Gives a sign of life and tells the status, as far as it is time. The engine's thread calls
    /// this between two waits.
    pub fn tell_what_is_due(&mut self, now: Instant) {
        let Told { manager, next_status, is_status_old, next_sign, .. } = &mut self.told;
        if !manager.is_there() {
            return;
        }
        if let (Some(next), Some(interval)) = (next_sign, manager.interval())
            && *next <= now
        {
            *next = now + interval;
            manager.alive();
        }
        *is_status_old = *next_status > now;
        if *is_status_old {
            return;
        }
        *next_status = now + STATUS_PERIOD;
        let status = self.status_line();
        if status != self.told.status {
            self.told.manager.status(&status);
            self.told.status = status;
        }
    }

    /// Returns the state of the forwarder in one line. The sink is not named: a server's address
    /// may hold a password.
    fn status_line(&self) -> String {
        let failing = self.rings.values().filter(|ring| ring.report.error.is_some()).count();
        let trouble = match self.first_error() {
            Some(error) if failing > 0 => format!(", {failing} not now: {error}"),
            _ => String::new(),
        };
        format!("forwarding {}{trouble}", self.ring_count())
    }

    /// Returns the number of rings, in words.
    pub fn ring_count(&self) -> String {
        match self.rings.len() {
            1 => "1 ring".to_owned(),
            count => format!("{count} rings"),
        }
    }
}

/// Returns the state of a forwarder that has ended by itself.
pub fn ended(outcome: &Outcome) -> String {
    match outcome {
        Ok(()) => "everything has arrived".to_owned(),
        Err(failure) => failure.words(),
    }
}
