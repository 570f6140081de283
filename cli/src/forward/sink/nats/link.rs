//! The connection to the server, which all lanes share, and who keeps it.

use super::Event::Trouble as LaneTrouble;
use super::examine::examine;
use super::options::{Login, Settings};
use super::server_words::ServerWords;
use super::words::{Trouble, connecting};
use super::{Reporter, SinkError, retry, stop};
use async_nats::jetstream::{self, Context, stream::Config};
use async_nats::{Client, ConnectOptions, Event};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};

/// Time without a sign of the server after which it is asked for one. A connection that takes bytes
/// and answers nothing is given up at the third question.
const PING: Duration = Duration::from_secs(2);

/// Bound on connecting, with the handshake of TLS.
const CONNECT: Duration = Duration::from_secs(5);

/// Bound on the answer to a question about the stream.
const ANSWER: Duration = Duration::from_secs(5);

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Time between two log lines about one outage.
const REMINDER: Duration = Duration::from_secs(60);

/// Batches that a stream takes at once, by the server's default.
const BATCHES: usize = 50;

/// KiB of payload on their way at once. The server buffers 128 MiB for a stream, and drops what is
/// beyond.
const ROOM: usize = 64 << 10;

/// What the lanes know of the connection.
#[derive(Debug)]
pub struct Link {
    state: watch::Sender<State>,
    /// Notified when a lane wants another attempt after a refusal.
    again: Notify,
    server: Arc<ServerWords>,
    /// Whether the server and its stream were in order once.
    was_up: AtomicBool,
    pub batches: Semaphore,
    room: Semaphore,
}

#[derive(Debug, Clone)]
enum State {
    /// An attempt is under way; with the reason why the last one failed, if there was one.
    Down(Option<String>),
    Up(Arc<Up>),
    /// The server, the stream or the login is not as it must be.
    Refused(SinkError),
}

/// A connection to a server whose stream is in order.
#[derive(Debug)]
pub struct Up {
    /// Number of the connection: another one has another number.
    pub epoch: u64,
    pub client: Client,
    pub context: Context,
    pub config: Config,
}

impl Up {
    /// Returns the largest message that the server takes for the stream, headers included.
    pub fn max_message(&self) -> usize {
        let of_stream = usize::try_from(self.config.max_message_size).ok().filter(|max| *max > 0);
        self.client.max_payload().min(of_stream.unwrap_or(usize::MAX))
    }
}

impl Link {
    pub fn new() -> Self {
        Self {
            state: watch::Sender::new(State::Down(None)),
            again: Notify::new(),
            server: Arc::default(),
            was_up: AtomicBool::new(false),
            batches: Semaphore::new(BATCHES),
            room: Semaphore::new(ROOM),
        }
    }

    /// Asks for another attempt, if the last one ended with a refusal.
    pub fn try_again(&self) {
        let refused = |state: &mut State| {
            let refused = matches!(state, State::Refused(_));
            if refused {
                *state = State::Down(None);
            }
            refused
        };
        if self.state.send_if_modified(refused) {
            self.again.notify_one();
        }
    }

    /// Waits for a connection, or for the reason why there is none to wait for. Meanwhile `events`
    /// is told why there is none yet.
    pub async fn up(&self, events: &Reporter) -> Result<Arc<Up>, SinkError> {
        let mut state = self.state.subscribe();
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Up(up) => return Ok(up),
                State::Refused(error) => return Err(error),
                State::Down(None) => {}
                State::Down(Some(message)) => {
                    events.report(LaneTrouble { message, is_said: true });
                }
            }
            // The sender lives as long as this.
            if state.changed().await.is_err() {
                return Err(retry("the connection has ended".to_owned()));
            }
        }
    }

    /// Notes why there is no connection, or no suitable stream, for now.
    fn down(&self, words: &str) {
        self.state.send_if_modified(|state| match state {
            State::Down(Some(known)) if known == words => false,
            state => {
                *state = State::Down(Some(words.to_owned()));
                true
            }
        });
    }

    /// Adds to the words of a lane's failure what the server has said of late.
    pub fn explained(&self, subject: &str, words: String) -> String {
        match self.server.about(subject) {
            Some(said) => format!("{words}; the server says: {said}"),
            None => words,
        }
    }

    /// Waits until a connection is gone.
    pub async fn gone(&self, epoch: u64) {
        let mut state = self.state.subscribe();
        let is_there = |state: &State| matches!(state, State::Up(up) if up.epoch == epoch);
        let _ = state.wait_for(|state| !is_there(state)).await;
    }

    /// Waits for the server's room for that many payload bytes, which are given back on drop.
    pub async fn room(&self, bytes: usize) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let kibibytes = (bytes >> 10).clamp(1, ROOM);
        self.room.acquire_many(u32::try_from(kibibytes).ok()?).await.ok()
    }

    /// Tells the lanes that there is no use in waiting, until one of them asks for another attempt.
    async fn refuse(&self, message: String) {
        // A server or stream that was suitable before can become so again: it is tried again. One
        // that never was needs the user.
        let was_up = self.was_up.load(Ordering::Relaxed);
        let error = if was_up { retry(message) } else { stop(message) };
        self.state.send_replace(State::Refused(error));
        self.again.notified().await;
    }
}

/// State of the client's connection, as its events tell.
#[derive(Debug, Clone, Copy, Default)]
struct Connection {
    epoch: u64,
    is_up: bool,
}

/// Connects, and keeps the lanes informed. Never ends.
pub async fn keep(link: &Link, settings: &Settings) {
    let mut outage = Outage::default();
    let connection = watch::Sender::new(Connection::default());
    let client = loop {
        match connect(settings, connection.clone(), Arc::clone(&link.server)).await {
            Ok(client) => break client,
            Err(Trouble::Passing(words)) => outage.goes_on(link, &words).await,
            Err(Trouble::Lasting(words)) => link.refuse(words).await,
        }
    };
    let context = jetstream::new(client.clone());
    let mut events = connection.subscribe();
    loop {
        let up = tokio::time::timeout(REMINDER, events.wait_for(|now| now.is_up)).await;
        let Some(Ok(now)) = up.ok().map(|found| found.map(|now| *now)) else {
            outage.goes_on(link, &format!("no connection to {}", settings.address)).await;
            continue;
        };
        match examine(&client, &context, settings).await {
            Ok(config) => {
                outage.ends(&settings.address);
                link.was_up.store(true, Ordering::Relaxed);
                let (client, context) = (client.clone(), context.clone());
                let up = Up { epoch: now.epoch, client, context, config };
                link.state.send_replace(State::Up(Arc::new(up)));
                let is_over = |other: &Connection| !other.is_up || other.epoch != now.epoch;
                let _ = events.wait_for(is_over).await;
                outage.begins(link, &settings.address);
            }
            Err(Trouble::Passing(words)) => outage.goes_on(link, &words).await,
            Err(Trouble::Lasting(words)) => link.refuse(words).await,
        }
    }
}

/// Connects once. The client then connects again by itself, for ever.
async fn connect(
    settings: &Settings,
    connection: watch::Sender<Connection>,
    server: Arc<ServerWords>,
) -> Result<Client, Trouble> {
    let unusable = |option: &'static str| {
        move |error: std::io::Error| Trouble::Lasting(format!("the file of {option}: {error}"))
    };
    let mut options = ConnectOptions::new()
        .name("blockring forward")
        .ping_interval(PING)
        .connection_timeout(CONNECT)
        .request_timeout(Some(ANSWER))
        .require_tls(settings.require_tls)
        // Subjects are validated once for each ring.
        .skip_subject_validation(true)
        .reconnect_delay_callback(pause)
        .event_callback(move |event| {
            note(&connection, &server, event);
            std::future::ready(())
        });
    options = match &settings.login {
        Login::Anonymous => options,
        Login::Credentials(path) => {
            options.credentials_file(path).await.map_err(unusable("--credentials"))?
        }
        Login::Nkey(path) => options.nkey(first_line(path).map_err(unusable("--nkey"))?),
        Login::Password { user, file } => options.user_and_password(
            user.clone(),
            first_line(file).map_err(unusable("--password-file"))?,
        ),
    };
    if let Some(file) = &settings.tls_ca {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((cert, key)) = &settings.tls_identity {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    options
        .connect(settings.address.as_str())
        .await
        .map_err(|error| connecting(&error, &settings.address))
}

/// Returns the first line of a file, without its end.
fn first_line(path: &std::path::Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Returns the pause before an attempt to connect, by its number.
fn pause(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => LONGEST_PAUSE.min(Duration::from_millis(5 << doublings)),
    }
}

fn note(connection: &watch::Sender<Connection>, server: &ServerWords, event: Event) {
    match event {
        Event::Connected => connection.send_modify(|now| {
            *now = Connection { epoch: now.epoch + 1, is_up: true };
        }),
        Event::Disconnected | Event::Closed => connection.send_modify(|now| now.is_up = false),
        // Such as a subject that the user may not publish to.
        Event::ServerError(error) => server.note(&error.to_string()),
        other => log::debug!("{other}"),
    }
}

/// Time without a server or a stream, and what was logged about it.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    last_line: Option<Instant>,
    attempts: usize,
}

impl Outage {
    fn begins(&mut self, link: &Link, address: &str) {
        let words = format!("the connection to {address} is lost");
        log::warn!("{words}: items stay in their rings until it is back");
        link.down(&words);
        let now = Some(Instant::now());
        *self = Self { since: now, last_line: now, attempts: 0 };
    }

    /// Logs the reason now and then, and waits before the next attempt.
    async fn goes_on(&mut self, link: &Link, words: &str) {
        link.down(words);
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.last_line.is_none_or(|line| line.elapsed() >= REMINDER) {
            self.last_line = Some(Instant::now());
            let so_far = match since.elapsed().as_secs() {
                0 => String::new(),
                seconds => format!("for {seconds} s; "),
            };
            log::warn!("{words} ({so_far}trying again, items stay in their rings)");
        }
        self.attempts += 1;
        tokio::time::sleep(pause(self.attempts + 4)).await;
    }

    fn ends(&mut self, address: &str) {
        if let Some(since) = self.since {
            log::warn!("connected to {address} again, after {} s", since.elapsed().as_secs());
        }
        *self = Self::default();
    }
}
