//! `blockring suspend` and `blockring resume`.

use super::address::{Address, Device, seconds};
use super::failure::{Failure, Outcome};
use super::signals::stop_on_signal;
use ring_program::Stop;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Control, Error, State};
use std::time::Duration;

#[derive(clap::Args)]
struct Change {
    #[command(flatten)]
    address: Address,
    /// Wait until the producer has acknowledged the request
    #[arg(long)]
    wait: bool,
    /// Longest wait, in seconds, for the backend's answer, and with --wait for the producer (exit
    /// code 3)
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    timeout: Option<Duration>,
}

/// What both requests have in common, for their help.
const REQUEST: &str = "\
A request is complete once the producer has acknowledged it, and only an attached producer does
that. Without a producer the request stays in the ring for the next one. Until it is acknowledged,
the opposite request is refused with exit code 1. --wait waits for a producer to attach and to
acknowledge; --timeout limits that wait (exit code 3).";

/// Ask the producer of a ring to stop publishing
#[derive(clap::Args)]
#[command(after_help = format!("\
{REQUEST}

Examples:
  blockring suspend ring.img                     ask, and do not wait
  blockring suspend --wait --timeout 5 ring.img  ask, and wait until nothing more is published"))]
pub struct Suspend {
    #[command(flatten)]
    change: Change,
}

/// Let the producer of a suspended ring go on
#[derive(clap::Args)]
#[command(after_help = format!("\
{REQUEST}

Examples:
  blockring resume ring.img
  blockring resume --wait unix:vm1.out           resume, and wait until the producer acknowledges"))]
pub struct Resume {
    #[command(flatten)]
    change: Change,
}

impl Suspend {
    pub fn run(self) -> Outcome {
        self.change.run(State::Suspended)
    }
}

impl Resume {
    pub fn run(self) -> Outcome {
        self.change.run(State::Running)
    }
}

impl Change {
    fn run(&self, wanted: State) -> Outcome {
        let stop = stop_on_signal()?;
        let device = self.address.open(Role::Control, &stop, self.timeout)?;
        let about = Failure::about(self.address.name());
        let mut control = Control::open(device).map_err(&about)?;
        let mut wait = Wait::new(Side::Producer, self.timeout);
        let change: fn(&mut Control<Device>) -> Result<(), Error> = match wanted {
            State::Suspended => Control::suspend,
            State::Running => Control::resume,
        };
        loop {
            match change(&mut control) {
                Ok(()) => break,
                Err(Error::Retry) if self.wait => self.pause(&mut wait, &control, &stop)?,
                Err(Error::Retry) => {
                    let text = "the producer has not acknowledged the previous change yet (--wait waits for it)";
                    return Err(Failure::Refused(text.to_owned()));
                }
                Err(e) => return Err(about(e)),
            }
        }
        while self.wait && control.state().map_err(&about)? != wanted {
            self.pause(&mut wait, &control, &stop)?;
        }
        Ok(())
    }

    fn pause(&self, wait: &mut Wait, control: &Control<Device>, stop: &Stop) -> Outcome {
        match wait.pause(control.device(), &[stop.fd()]).map_err(Error::from)? {
            Woken::Elapsed => Ok(()),
            Woken::Readable(_) => {
                Err(Failure::Refused("asked to stop before the producer acknowledged".to_owned()))
            }
            Woken::TimedOut => {
                let seconds = self.timeout.unwrap_or_default().as_secs_f64();
                Err(Failure::TimedOut {
                    seconds,
                    what: "the producer has not acknowledged".to_owned(),
                })
            }
        }
    }
}
