//! `blockring suspend` and `blockring resume`.

use super::address::{Address, Device, seconds};
use super::failure::{Failure, Outcome};
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Control, Error, State, Stop};
use std::time::Duration;

#[derive(clap::Args)]
struct Change {
    #[command(flatten)]
    address: Address,
    /// Wait until the producer has acknowledged it
    #[arg(long)]
    wait: bool,
    /// Wait at most this long
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<Duration>,
}

/// Ask the producer to stop
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  blockring suspend ring.img                     ask, and go on
  blockring suspend --wait --timeout 5 ring.img  and wait until nothing more is published")]
pub struct Suspend {
    #[command(flatten)]
    change: Change,
}

/// Let the producer go on
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  blockring resume ring.img
  blockring resume --wait unix:vm1.out           and wait until the producer has heard it")]
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
        let mut control = Control::open(self.address.open(Role::Control)?)?;
        let stop = Stop::on_signal().map_err(Failure::io("cannot set up signals"))?;
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
                Err(e) => return Err(e.into()),
            }
        }
        while self.wait && control.state()? != wanted {
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
