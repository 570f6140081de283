//! `blockring ctl`: the control socket of a backend that serves many rings.

mod configuration;
mod trouble;
mod varlink;
mod words;

use super::address::{Named, PATIENCE, seconds};
use super::failure::{Failure, Outcome};
use super::output::{print, require_output};
use super::passed;
use clap::Subcommand;
use clap::builder::{OsStringValueParser, TypedValueParser};
use configuration::text_of;
use ring_os::{Limits, SocketKind, dial};
use ring_program::Stop;
use serde::Serialize;
use serde_json::{Value, json};
use shared_block_ring::device::shown;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use trouble::Conversation;
use varlink::{Answer, Message, Parameters, Patience};

/// The interface of the methods.
const INTERFACE: &str = "io.blockring.Rings";

/// The socket, unless something else is named.
const SOCKET: &str = "/run/blockring/control";

/// The variable of the environment that names another socket.
const VARIABLE: &str = "BLOCKRING_CONTROL";

/// The help of `--socket`. Its default is read when the command runs.
const SOCKET_HELP: &str = "\
The control socket, PATH or unix:PATH [default: BLOCKRING_CONTROL of the environment, or \
/run/blockring/control]";

/// Manage the rings of a backend that serves many of them
#[derive(clap::Args)]
#[command(
    disable_help_subcommand = true,
    after_help = "\
The backend is a vhost-device-blockring with --config DIR and --control unix:PATH; the ring NAME has
its configuration in DIR/NAME.toml. Its options --control-user and --control-group say who may use
the socket.

add is done when the ring is served, remove when everything is durable and the ring's sockets are
gone, drain when the consumer has taken everything; reload adds, removes and changes rings as DIR
has them now; upgrade has all rings served by another process. These wait as long as that takes.
The others give up after 5 seconds without an answer (exit code 3). A signal ends every wait (exit
code 1); the backend may still do what it was asked.

The exit code is 0 if it is done, 3 if a wait has timed out, and 1 if the backend has no such ring,
refuses, cannot be reached, or has rings that a reload could not serve.

Examples:
  blockring ctl list
  blockring ctl --socket /run/rings/control show web
  blockring ctl drain --timeout 30 web && blockring ctl remove web
  blockring ctl list --json | jq -r '.rings[] | select(.state == \"failed\") | .name'"
)]
pub struct Ctl {
    #[arg(long, global = true, value_name = "PATH", help = SOCKET_HELP, value_parser = OsStringValueParser::new().try_map(|text: OsString| socket(&text)))]
    socket: Option<PathBuf>,
    /// Print one JSON object, the parameters of the backend's answer, also if the command fails
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show all rings: state, guest, used bytes, front end, and what is wrong
    #[command(after_help = "Examples:\n  blockring ctl list")]
    List,
    /// Show one ring with its sockets and counters
    #[command(after_help = "Examples:\n  blockring ctl show web")]
    Show {
        /// Name of the ring
        name: String,
    },
    /// Show the counters of one ring or of all
    #[command(after_help = "Examples:\n  blockring ctl stats\n  blockring ctl stats --json web")]
    Stats {
        /// Name of the ring
        name: Option<String>,
    },
    /// Have the backend serve one more ring, and wait until it does
    #[command(after_help = "\
Without --file the backend reads the ring's configuration from its own folder. The text of a file is
sent to the backend, which looks up the paths in it. With --pass it gets open descriptors in the
place of some of these paths: of the ring, of the listening socket for front ends, or of that for
consumers. The backend must have the right to open the ring's file again. This program's parent
opens them, as a shell does in the last example.

Examples:
  blockring ctl add web
  blockring ctl add --file web.toml web
  blockring ctl add --file web.toml --pass ring=9 web 9<>/srv/web.ring")]
    Add {
        /// Name of the ring
        name: String,
        /// Configuration of the ring, in place of NAME.toml in the backend's folder
        #[arg(long, value_name = "CONFIG.toml")]
        file: Option<PathBuf>,
        /// Descriptor to pass: `ring=FD`, `socket=FD` or `consumer-socket=FD`, in the place of
        /// blk-file, socket-path or consumer-socket in the configuration
        #[arg(long, value_name = "WHAT=FD", requires = "file", value_parser = to_pass)]
        pass: Vec<(&'static str, RawFd)>,
    },
    /// Have the backend end its service of a ring, and wait until everything is durable
    #[command(after_help = "Examples:\n  blockring ctl remove web")]
    Remove {
        /// Name of the ring
        name: String,
    },
    /// Wait until the consumer of a ring has taken everything
    #[command(after_help = "Examples:\n  blockring ctl drain --timeout 30 web")]
    Drain {
        /// Name of the ring
        name: String,
        /// Longest wait, in seconds (exit code 3)
        #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
        timeout: Option<Duration>,
    },
    /// Ask the guest of a ring to stop publishing
    #[command(after_help = "Examples:\n  blockring ctl suspend web")]
    Suspend {
        /// Name of the ring
        name: String,
    },
    /// Let the suspended guest of a ring go on
    #[command(after_help = "Examples:\n  blockring ctl resume web")]
    Resume {
        /// Name of the ring
        name: String,
    },
    /// Have a new process, of the backend that is installed now, serve all rings
    #[command(after_help = "\
Guests wait as long as a restart of a backend takes. --whole needs longer, since all rings are
opened anew: it keeps the backend's process number, its listening sockets, and rings that were
added, reads the folder of configurations again, and closes all other connections to the control
socket.

Examples:
  blockring ctl upgrade
  blockring ctl upgrade --whole")]
    Upgrade {
        /// Also replace the backend's control process, which reads the configurations
        #[arg(long)]
        whole: bool,
    },
    /// Have the backend read its folder of configurations again
    #[command(after_help = "Examples:\n  blockring ctl reload")]
    Reload,
}

/// What a backend has answered; empty after an error.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub struct Report(Parameters);

/// What can be passed: its name on the command line, and in a call.
const PASSED: [(&str, &str); 3] =
    [("ring", "ring"), ("socket", "socket"), ("consumer-socket", "consumer_socket")];

/// Returns what is passed, by its name in a call, and the number of its descriptor.
fn to_pass(text: &str) -> Result<(&'static str, RawFd), &'static str> {
    let (what, number) = text.split_once('=').ok_or("it takes WHAT=FD")?;
    let (_, key) = PASSED
        .iter()
        .find(|(name, _)| *name == what)
        .ok_or("WHAT is ring, socket or consumer-socket")?;
    let number = number.parse().map_err(|_| "FD is the number of an open descriptor")?;
    Ok((key, number))
}

/// Returns the path of a socket.
fn socket(text: &OsStr) -> Result<PathBuf, &'static str> {
    match Named::from(text) {
        Named::Path(path) | Named::Unix(path) if !path.as_os_str().is_empty() => Ok(path),
        _ => Err("it takes PATH or unix:PATH"),
    }
}

impl Ctl {
    pub fn run(self, stop: &Stop, report: &mut Report) -> Outcome {
        require_output()?;
        let socket = match self.socket {
            Some(socket) => socket,
            None => default_socket()?,
        };
        let (method, parameters) = self.action.call(stop)?;
        let descriptors = self.action.passed()?;
        let conversation = Conversation { socket: &socket, action: &self.action.words() };
        let message = varlink::encode(&format!("{INTERFACE}.{method}"), &parameters);
        let message = Message { bytes: &message, descriptors: &descriptors };
        let answer = converse(&conversation, &message, self.action.limit(), stop)?;
        let (text, outcome) = self.action.read(&conversation, &answer)?;
        report.0 = answer;
        // The report's own, in every report.
        for key in ["exit_code", "error"] {
            report.0.remove(key);
        }
        if let Some(text) = text.filter(|_| !self.json) {
            print(&text, Some(stop))?;
        }
        outcome
    }
}

/// Returns the socket where no option names one.
fn default_socket() -> Result<PathBuf, Failure> {
    match std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) {
        None => Ok(SOCKET.into()),
        Some(text) => socket(&text).map_err(|takes| {
            Failure::Usage(format!("{VARIABLE} of the environment is '{}': {takes}", shown(&text)))
        }),
    }
}

/// Makes a call, and returns the parameters of the answer.
fn converse(
    conversation: &Conversation<'_>,
    message: &Message<'_>,
    limit: Option<Duration>,
    stop: &Stop,
) -> Result<Parameters, Failure> {
    let interrupts = [stop.fd()];
    let limits = Limits::within(PATIENCE).or_on(&interrupts);
    let connection = dial(conversation.socket, SocketKind::Stream, &limits)
        .map_err(|e| conversation.unreachable(&e))?;
    let patience = Patience { limit, stop: stop.fd() };
    let answer = varlink::call(&connection, message, &patience)
        .and_then(|bytes| varlink::decode(&bytes))
        .map_err(|trouble| conversation.broken(&trouble, limit))?;
    match answer {
        Answer::Done(parameters) => Ok(parameters),
        Answer::Failed { error, parameters } => Err(conversation.refused(&error, &parameters)),
    }
}

impl Action {
    /// Returns the method and its parameters.
    fn call(&self, stop: &Stop) -> Result<(&'static str, Parameters), Failure> {
        let (method, name) = match self {
            Self::List => ("List", None),
            Self::Show { name } => ("Show", Some(name)),
            Self::Stats { name } => ("Stats", name.as_ref()),
            Self::Add { name, .. } => ("Add", Some(name)),
            Self::Remove { name } => ("Remove", Some(name)),
            Self::Drain { name, .. } => ("Drain", Some(name)),
            Self::Suspend { name } => ("Suspend", Some(name)),
            Self::Resume { name } => ("Resume", Some(name)),
            Self::Upgrade { .. } => ("Upgrade", None),
            Self::Reload => ("Reload", None),
        };
        let mut parameters = Parameters::new();
        parameters.extend(name.map(|name| ("name".to_owned(), Value::from(name.as_str()))));
        match self {
            Self::Add { file: Some(file), pass, .. } => {
                parameters.insert("configuration".to_owned(), text_of(file, stop)?.into());
                let places = pass.iter().zip(0..).map(|((key, _), place)| (*key, place));
                let places: BTreeMap<&str, u32> = places.collect();
                if places.len() < pass.len() {
                    let why = "--pass names one of ring, socket and consumer-socket twice";
                    return Err(Failure::Usage(why.to_owned()));
                }
                if !places.is_empty() {
                    parameters.insert("descriptors".to_owned(), json!(places));
                }
            }
            Self::Upgrade { whole: true } => {
                parameters.insert("whole".to_owned(), true.into());
            }
            Self::Drain { timeout: Some(timeout), .. } => {
                parameters.insert("timeout_ms".to_owned(), milliseconds(*timeout).into());
            }
            _ => {}
        }
        Ok((method, parameters))
    }

    /// Takes the descriptors that go with the call.
    fn passed(&self) -> Result<Vec<OwnedFd>, Failure> {
        let Self::Add { pass, .. } = self else { return Ok(Vec::new()) };
        pass.iter().map(|(_, number)| passed::take_named(*number, "--pass")).collect()
    }

    /// Returns the longest wait for the answer.
    fn limit(&self) -> Option<Duration> {
        match self {
            Self::Add { .. } | Self::Remove { .. } | Self::Upgrade { .. } | Self::Reload => None,
            // The backend says itself that it has waited so long.
            Self::Drain { timeout, .. } => timeout.map(|timeout| timeout + PATIENCE),
            _ => Some(PATIENCE),
        }
    }

    /// Returns what is to be done, behind "cannot".
    fn words(&self) -> String {
        let of = |verb: &str, name: &str| format!("{verb} {}", shown(name));
        match self {
            Self::List => "list the rings".to_owned(),
            Self::Show { name } => of("show", name),
            Self::Stats { name: Some(name) } => of("show the counters of", name),
            Self::Stats { name: None } => "show the counters".to_owned(),
            Self::Add { name, .. } => of("add", name),
            Self::Remove { name } => of("remove", name),
            Self::Drain { name, .. } => of("drain", name),
            Self::Suspend { name } => of("suspend", name),
            Self::Resume { name } => of("resume", name),
            Self::Upgrade { .. } => "upgrade the backend".to_owned(),
            Self::Reload => "reload the configurations".to_owned(),
        }
    }

    /// Returns an answer in words, and how the command ends.
    fn read(
        &self,
        conversation: &Conversation<'_>,
        answer: &Parameters,
    ) -> Result<(Option<String>, Outcome), Failure> {
        let text = match self {
            Self::List => words::list(answer),
            Self::Show { .. } => words::show(answer),
            Self::Stats { .. } => words::stats(answer),
            Self::Reload => {
                let (text, failed) = words::reload(answer).map_err(|e| conversation.odd(&e))?;
                return Ok((Some(text), outcome_of_reload(failed)));
            }
            _ => return Ok((None, Ok(()))),
        };
        text.map(|text| (Some(text), Ok(()))).map_err(|e| conversation.odd(&e))
    }
}

fn outcome_of_reload(failed: usize) -> Outcome {
    let what = match failed {
        0 => return Ok(()),
        1 => "a ring has failed".to_owned(),
        _ => format!("{failed} rings have failed"),
    };
    Err(Failure::Refused(format!("{what}; the answer says why")))
}

/// Returns whole milliseconds, not fewer than the time has.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Returns the command that makes a backend listen at a socket.
fn how_to_listen(socket: &Path) -> String {
    format!("vhost-device-blockring --config DIR --control unix:{}", shown(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_a_path_with_or_without_its_kind() {
        for text in ["/run/c", "unix:/run/c"] {
            assert_eq!(socket(OsStr::new(text)), Ok(PathBuf::from("/run/c")));
        }
        for text in ["", "unix:", "serial:x", "vhost-user:/run/c", "pci:0000:00:04.0"] {
            assert!(socket(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn timeout_is_sent_in_whole_milliseconds() {
        for (nanoseconds, expected) in [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2)] {
            assert_eq!(milliseconds(Duration::from_nanos(nanoseconds)), expected);
        }
        assert_eq!(milliseconds(Duration::from_secs(30)), 30_000);
    }
}
