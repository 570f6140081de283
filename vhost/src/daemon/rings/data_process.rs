//! The data process: it serves the rings that the control process gives it, and can do nothing
//! else.

use crate::daemon::failure::{Failure, system};
use crate::daemon::handover::{DeskId, Handover, Reopening};
use crate::daemon::metrics::Observed;
use crate::daemon::ring;
use crate::daemon::rings::messages::{
    Begin, News, Number, Order, Reopen, Reopened, Report, Ring, VERSION,
};
use crate::daemon::rings::metrics::{Metrics, Registration};
use crate::daemon::sandbox::{self, Identity, Policy};
use crate::daemon::server::signaller;
use crate::daemon::service::{Service, Shared};
use crate::daemon::sockets::Listening;
use crate::data_path::flush_pool::FlushPool;
use crate::data_path::io_threads::{IoThreads, LOOK, OnPanic, RingNumber, Turns};
use crate::front_end::supervisor::{EndpointId, Supervisor};
use nix::unistd::{Gid, Uid};
use ring_os::{Limits, await_readable};
use ring_program::{LogFormat, scope};
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::handover::{receive, send};
use shared_block_ring::wait::wait_readable;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the control process may take to open a file again.
const REOPEN_PATIENCE: Duration = Duration::from_secs(2);

/// A ring that is served.
struct Served {
    service: Service,
    endpoint: EndpointId,
    desk: Option<DeskId>,
    /// Its place among the metrics, if they are offered.
    registration: Option<Registration>,
}

/// Everything that serves rings.
struct DataProcess {
    orders: Arc<OwnedFd>,
    files: Arc<Mutex<Files>>,
    shared: Shared,
    threads: Arc<IoThreads>,
    handover: Arc<Handover>,
    supervisor: Supervisor,
    rings: BTreeMap<Number, Served>,
    endpoints: BTreeMap<EndpointId, Number>,
    /// The threads that make rings durable which are served no more.
    ends: Vec<JoinHandle<()>>,
    /// What scrapes are answered from, if metrics are offered.
    metrics: Option<Metrics>,
}

/// Serves what comes by `orders`, until that is closed.
///
/// # Errors
///
/// Why it could not start or go on.
pub fn run(orders: OwnedFd) -> Result<(), Failure> {
    let talk = system("talk to the control process");
    let (begin, descriptors) = receive::<Begin>(orders.as_fd()).map_err(&talk)?;
    let Ok([files]) = <[OwnedFd; 1]>::try_from(descriptors) else {
        return Err(talk(io::ErrorKind::InvalidData.into()));
    };
    if begin.version != VERSION {
        let text = format!("its messages have version {}, {VERSION} is known here", begin.version);
        return Err(talk(io::Error::other(text)));
    }
    // It is called `exe` otherwise, as what it was started from.
    nix::sys::prctl::set_name(c"blockring-data").map_err(|e| system("take a name")(e.into()))?;
    if let Ok(format) = begin.log_format.parse::<LogFormat>() {
        format.choose();
    }
    // Before the sandbox, which does not let the process look at sockets.
    let metrics = Metrics::receive(orders.as_fd(), begin.metrics);
    let metrics = metrics.map_err(system("take the sockets of the metrics"))?;
    let shared = Shared { signaller: signaller()?, flushes: FlushPool::new() };
    let confined = confine(&begin)?;
    let orders = Arc::new(orders);
    let panicked: OnPanic = {
        let orders = Arc::clone(&orders);
        Arc::new(move |RingNumber(number)| {
            let why = "its code has panicked, which is a defect: see the log".to_owned();
            tell(&orders, &News::Ended(number, Some(why)));
        })
    };
    let threads = IoThreads::start(begin.workers, &begin.cpus, &panicked);
    let threads = threads.map_err(system("start the threads of the queues (--workers, --cpu)"))?;
    let handover = Handover::start().map_err(system("start a thread"))?;
    let supervisor = Supervisor::new().map_err(system("wait for front ends"))?;
    let mut process = DataProcess {
        orders,
        files: Arc::new(Mutex::new(Files { socket: files, tickets: 0 })),
        shared,
        threads: Arc::new(threads),
        handover: Arc::new(handover),
        supervisor,
        rings: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        ends: Vec::new(),
        metrics,
    };
    watch(&process.threads, &process.orders).map_err(system("start a thread"))?;
    tell(&process.orders, &News::Begun(confined.to_owned()));
    process.serve()
}

/// Becomes another user and applies the sandbox. Returns how far the file system is restricted.
fn confine(begin: &Begin) -> Result<&'static str, Failure> {
    if let Some((uid, gid)) = begin.identity {
        let identity = Identity { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) };
        identity.assume().map_err(Failure::Identity)?;
    }
    let files = if begin.confined {
        // Without any file, and with as many descriptors as it may have.
        sandbox::apply(&Policy::default()).map_err(Failure::Sandbox)?
    } else {
        log::warn!("no sandbox: for debugging only");
        "not restricted"
    };
    ring_program::stderr::release();
    Ok(files)
}

/// Tells of each ring in whose turn a thread hangs, from a thread that ends with the process.
fn watch(threads: &Arc<IoThreads>, orders: &Arc<OwnedFd>) -> io::Result<()> {
    let (threads, orders) = (Arc::downgrade(threads), Arc::clone(orders));
    let watch = move || {
        let mut turns = Turns::default();
        while let Some(threads) = threads.upgrade() {
            for RingNumber(number) in threads.hanging(&mut turns) {
                tell(&orders, &News::Hangs(number));
            }
            drop(threads);
            std::thread::sleep(LOOK);
        }
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch).map(drop)
}

fn tell(orders: &OwnedFd, news: &News) {
    // A control process that is gone is noticed by its orders.
    if let Err(e) = send(orders.as_fd(), news, &[]) {
        log::debug!("cannot tell the control process: {e}");
    }
}

impl DataProcess {
    fn serve(&mut self) -> Result<(), Failure> {
        let wait = system("wait for orders and front ends");
        loop {
            let now = Instant::now();
            let left = self.supervisor.deadline().map(|at| at.saturating_duration_since(now));
            let orders = Arc::clone(&self.orders);
            let ready = wait_readable(&[orders.as_fd(), self.supervisor.fd()], left);
            if ready.map_err(&wait)? == Some(0) {
                match receive::<Order>(orders.as_fd()) {
                    Ok((Order::Yield, _)) => return self.end(Served::let_go),
                    Ok((order, descriptors)) => self.obey(order, descriptors)?,
                    // The control process has ended.
                    Err(_) => return self.end(Served::end),
                }
            }
            self.turn()?;
        }
    }

    /// Handles what has happened at the sockets for front ends.
    fn turn(&mut self) -> Result<(), Failure> {
        let ended = self.supervisor.turn().map_err(system("wait for front ends"))?;
        for (endpoint, end) in ended {
            if let Some(number) = self.endpoints.remove(&endpoint) {
                self.release(number, end.err().map(|e| e.to_string()));
            }
        }
        Ok(())
    }

    fn obey(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        match order {
            Order::Serve(number, ring) => {
                let taken = scope::within(number, || self.take_in(number, *ring, descriptors));
                let news = match taken {
                    Ok(()) => News::Serving(number),
                    Err(e) => {
                        scope::forget_name(number);
                        News::Refused(number, e.to_string())
                    }
                };
                tell(&self.orders, &news);
            }
            Order::Release(number) => {
                let endpoint = self.rings.get(&number).map(|served| served.endpoint);
                match endpoint {
                    None => tell(&self.orders, &News::Ended(number, None)),
                    Some(endpoint) => {
                        let wait = system("wait for front ends");
                        if self.supervisor.leave(endpoint).map_err(wait)? {
                            self.endpoints.remove(&endpoint);
                            self.release(number, None);
                        }
                    }
                }
            }
            Order::Suspend(number, suspend) => {
                let outcome = match self.rings.get(&number) {
                    Some(served) => served.service.backend.suspend(suspend),
                    None => Err("it is not served".to_owned()),
                };
                tell(&self.orders, &News::Suspended(number, outcome));
            }
            Order::Report(number) => {
                if let Some(served) = self.rings.get(&number) {
                    let report = Box::new(served.report());
                    tell(&self.orders, &News::Report(number, report));
                }
            }
            Order::Displaced(number, displaced) => {
                if let Some(served) = self.rings.get(&number) {
                    served.service.condition.set_displaced(displaced);
                }
            }
            Order::AnswerScrapes => {
                let threads = self.threads.count();
                if let Some(metrics) = &mut self.metrics {
                    metrics.start(threads).map_err(system("start a thread"))?;
                }
            }
            // It ends the loop that this is called by.
            Order::Yield => {}
        }
        Ok(())
    }

    fn take_in(
        &mut self,
        number: Number,
        ring: Ring,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let missing = || system("take a ring over")(io::ErrorKind::InvalidData.into());
        scope::set_name(number, &ring.name);
        let mut descriptors = descriptors.into_iter();
        let file = File::from(descriptors.next().ok_or_else(missing)?);
        let entrance = descriptors.next().ok_or_else(missing)?;
        let entrance = Listening::inherited(entrance, ring.entrance);
        let page = File::from(descriptors.next().ok_or_else(missing)?);
        let sector_size = SectorSize::new(ring.sector_size).map_err(|_| missing())?;
        let geometry = Geometry::new(sector_size, ring.sectors).map_err(|_| missing())?;
        let path = ring.terms.path.display().to_string();
        let content = ring::adopt(file, geometry, &ring.terms);
        let content = content.map_err(|source| Failure::Ring { path, source })?;
        let mut service = Service::new(content, ring.terms, page, &self.shared)?;
        let metrics = self.metrics.as_ref();
        let observed = metrics.map(|_| Observed::new(&service, ring.name)).transpose()?;
        let duplicate = system("duplicate a descriptor");
        let desk = match (ring.consumers, descriptors.next()) {
            (Some((name, admitted)), Some(socket)) => {
                let files = Arc::clone(&self.files);
                let reopen: Reopening =
                    Box::new(move |writing| reopen_there(&files, number, writing));
                let estate = service.estate(admitted.into(), reopen).map_err(&duplicate)?;
                let orders = Arc::clone(&self.orders);
                let failed = move || {
                    let why = "nobody can connect to its consumer socket any more".to_owned();
                    tell(&orders, &News::Ended(number, Some(why)));
                };
                let listening = Listening::inherited(socket, name);
                let desk = self.handover.add(listening, estate, failed);
                Some(desk.map_err(system("serve a consumer socket"))?)
            }
            _ => None,
        };
        let listening = entrance.fd().try_clone().map_err(&duplicate)?;
        let endpoint = service.endpoint(listening, entrance.name().to_owned());
        let endpoint = endpoint.map_err(system("make an event"))?;
        let endpoint = self.supervisor.add(endpoint).map_err(system("wait for a front end"))?;
        self.threads.serve(RingNumber(number), Arc::clone(&service.worker));
        self.endpoints.insert(endpoint, number);
        let registration = metrics.zip(observed).map(|(metrics, observed)| metrics.add(observed));
        self.rings.insert(number, Served { service, endpoint, desk, registration });
        Ok(())
    }

    /// Ends the service of a ring whose front end is gone, and tells of it.
    fn release(&mut self, number: Number, why: Option<String>) {
        let Some(mut served) = self.rings.remove(&number) else { return };
        let (threads, handover) = (Arc::clone(&self.threads), Arc::clone(&self.handover));
        let orders = Arc::clone(&self.orders);
        let end = move || {
            let outcome = scope::within(number, || served.end(number, &threads, &handover));
            scope::forget_name(number);
            tell(&orders, &News::Ended(number, why.or(outcome.err().map(|e| e.to_string()))));
        };
        self.ends.retain(|thread| !thread.is_finished());
        // On a thread of its own: a disk that is slow to make the ring durable is no other ring's.
        match std::thread::Builder::new().name("end".to_owned()).spawn(end) {
            Ok(thread) => self.ends.push(thread),
            Err(e) => {
                let why = format!("it was not made durable: no thread for that can be made: {e}");
                tell(&self.orders, &News::Ended(number, Some(why)));
            }
        }
    }

    /// Lets all front ends go, and then has each ring end by `end`.
    fn end(
        &mut self,
        end: impl Fn(&mut Served, Number, &IoThreads, &Handover) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // A scrape that comes from here on waits for the next process, which has the same sockets.
        self.metrics = None;
        self.shared.signaller.retire();
        let wait = system("wait for front ends");
        self.supervisor.leave_all().map_err(&wait)?;
        while !self.supervisor.is_empty() {
            let now = Instant::now();
            let left = self.supervisor.deadline().map(|at| at.saturating_duration_since(now));
            wait_readable(&[self.supervisor.fd()], left).map_err(&wait)?;
            self.supervisor.turn().map_err(&wait)?;
        }
        for thread in self.ends.drain(..) {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
        let mut first = Ok(());
        for (number, mut served) in std::mem::take(&mut self.rings) {
            let end = || {
                let outcome = end(&mut served, number, &self.threads, &self.handover);
                outcome.inspect_err(|e| log::error!("{e}"))
            };
            first = first.and(scope::within(number, end));
        }
        first
    }
}

impl Served {
    /// Ends everything that serves the ring, and makes it durable.
    fn end(
        &mut self,
        number: Number,
        threads: &IoThreads,
        handover: &Handover,
    ) -> Result<(), Failure> {
        let ended = self.let_go(number, threads, handover);
        self.service.finish().and(ended)
    }

    /// Ends everything that serves the ring. What was answered is in the ring, and as durable as
    /// the guest has asked for.
    fn let_go(
        &mut self,
        number: Number,
        threads: &IoThreads,
        handover: &Handover,
    ) -> Result<(), Failure> {
        self.registration = None;
        threads.release(RingNumber(number));
        let durable = self.service.worker.end_flushes();
        let durable = durable.map_err(system("make the region durable"));
        durable.and(self.desk.take().map_or(Ok(()), |desk| handover.remove(desk)))
    }

    fn report(&self) -> Report {
        let Service { counters, condition, .. } = &self.service;
        let fault = condition.fault().map(|fault| fault.words().to_owned());
        let front_end = counters.has_front_end();
        let info = self.service.info();
        let used = info.as_ref().map(|info| info.used);
        let suspended = info.map(|info| info.suspend);
        Report { front_end, used, suspended, fault, counters: counters.to_json() }
    }
}

/// The socket by which the control process opens files again, for one at a time.
struct Files {
    socket: OwnedFd,
    tickets: u64,
}

/// Has the control process open a ring's file again, for an open file description of its own.
fn reopen_there(files: &Mutex<Files>, number: Number, writing: bool) -> io::Result<File> {
    let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
    files.tickets += 1;
    let ticket = files.tickets;
    send(files.socket.as_fd(), &Reopen { number, writing, ticket }, &[])?;
    let limits = Limits::within(REOPEN_PATIENCE);
    loop {
        await_readable(files.socket.as_fd(), &limits).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => io::Error::other("the control process does not answer"),
            _ => e,
        })?;
        let (reopened, descriptors) = receive::<Reopened>(files.socket.as_fd())?;
        // The answer to an earlier request may have come too late.
        if reopened.ticket == ticket {
            return match descriptors.into_iter().next() {
                Some(file) => Ok(file.into()),
                None => Err(io::Error::other(reopened.why.unwrap_or_default())),
            };
        }
    }
}
