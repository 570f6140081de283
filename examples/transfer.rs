//! Transfers between accounts, each of which is a file of its own.
//!
//! A transfer changes two files, and no rename does that in one step: a process that dies between
//! the two has made or destroyed money. So an order goes into a journal first. The journal hands it
//! over until both files have it, whatever dies in between, and each account remembers the number
//! of the last order that changed it: one that comes again changes nothing again.
//!
//! An order is a line `NUMBER FROM TO AMOUNT`, with numbers that grow. `accepted NUMBER` is the
//! answer once the order survives any crash. A client that was not answered sends its order again,
//! after the restart: it is answered, and applied once.
//!
//! ```text
//! $ cargo run --example transfer -- bank
//! 1 alice bob 30
//! accepted 1
//! 2 bob carol 10
//! accepted 2
//! ^D
//! $ head bank/accounts/*            # balance, and the last order in it
//! ```
//!
//! To see it survive, kill it while it works, start it again, and add up:
//!
//! ```text
//! $ seq 1 100000 | sed 's/$/ alice bob 1/' | cargo run --example transfer -- bank > /dev/null &
//! $ sleep 2; pkill -9 -x transfer; tail -n 2 bank/accounts/*
//! $ cargo run --example transfer -- bank < /dev/null; tail -n 2 bank/accounts/*
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

use ring_program::standard::Standard;
use shared_block_ring::{Decode, Encode, Journal, JournalOptions, OpenOptions, make_file};
use std::borrow::Cow;
use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Room for some ten thousand orders that are accepted and not applied.
const JOURNAL_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Order {
    number: u64,
    from: String,
    to: String,
    amount: u32,
}

impl Order {
    fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [number, from, to, amount] = words[..] else {
            return Err(format!("{line:?}: not NUMBER FROM TO AMOUNT"));
        };
        let account = |name: &str| {
            let fine = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if fine { Ok(name.to_owned()) } else { Err(format!("{name:?}: letters and digits")) }
        };
        let number = number.parse().map_err(|e| format!("{number}: {e}"))?;
        let amount = amount.parse().map_err(|e| format!("{amount}: {e}"))?;
        let (from, to) = (account(from)?, account(to)?);
        if from == to {
            return Err(format!("{line:?}: from one account to itself"));
        }
        Ok(Self { number, from, to, amount })
    }
}

impl Encode for Order {
    fn encode(&self) -> Cow<'_, [u8]> {
        let Self { number, from, to, amount } = self;
        Cow::Owned(format!("{number} {from} {to} {amount}").into_bytes())
    }
}

impl Decode<'_> for Order {
    type Error = String;

    fn decode(payload: &[u8]) -> Result<Self, String> {
        Self::parse(std::str::from_utf8(payload).map_err(|e| e.to_string())?)
    }
}

/// A folder with a file for each account: its balance, and the number of the last order in it.
#[derive(Clone)]
struct Accounts(PathBuf);

impl Accounts {
    fn read(&self, name: &str) -> io::Result<(i64, u64)> {
        let text = match fs::read_to_string(self.0.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
            text => text?,
        };
        let damaged = || io::Error::other(format!("the file of account {name} is damaged"));
        let (balance, last) = text.trim_end().split_once('\n').ok_or_else(damaged)?;
        Ok((balance.parse().map_err(|_| damaged())?, last.parse().map_err(|_| damaged())?))
    }

    /// Adds `amount`, unless the order has been here before: then all of this is over already, or
    /// the crash came behind the rename.
    fn change(&self, name: &str, amount: i64, number: u64) -> io::Result<()> {
        let (balance, last) = self.read(name)?;
        if number <= last {
            return Ok(());
        }
        // Names of accounts have no dot: this is none.
        let aside = self.0.join(format!("{name}.new"));
        let mut file = File::create(&aside)?;
        writeln!(file, "{}\n{number}", balance + amount)?;
        // The content before the name, and the name before the order leaves the journal.
        file.sync_all()?;
        fs::rename(&aside, self.0.join(name))?;
        File::open(&self.0)?.sync_all()
    }

    /// What the journal performs: at least once, and the same again any number of times.
    fn apply(&self, orders: &[Order]) -> io::Result<()> {
        for Order { number, from, to, amount } in orders {
            self.change(from, -i64::from(*amount), *number)?;
            self.change(to, i64::from(*amount), *number)?;
        }
        Ok(())
    }

    /// The number of the last order that has been applied.
    fn last(&self) -> io::Result<u64> {
        let mut last = 0;
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // What has a dot is an account's next file, half written perhaps.
            if !name.contains('.') {
                last = last.max(self.read(&name)?.1);
            }
        }
        Ok(last)
    }
}

fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    // An order whose answer goes nowhere is better not accepted.
    Standard::Output.check().map_err(|e| format!("standard output: {e}"))?;
    let accounts = Accounts(folder.join("accounts"));
    fs::create_dir_all(&accounts.0)?;
    let path = folder.join("journal");
    if !path.exists() {
        make_file(&path, JOURNAL_BYTES)?;
    }
    let refused = folder.join("refused");
    // An order that is no order: it was never accepted by this program.
    let mut options = JournalOptions::new(move |aside| {
        let mut file = File::options().append(true).create(true).open(&refused)?;
        writeln!(file, "{}: {:?}", aside.reason, String::from_utf8_lossy(&aside.bytes))?;
        file.sync_all()
    });
    // A disk that is full for a while is no reason to give an order up: no `limit`.
    options.max_retry_interval = options.retry_interval;
    let applied = accounts.clone();
    let journal = Journal::start(OpenOptions::default().open(&path)?, options, move |orders| {
        applied.apply(orders).inspect_err(|e| say(&e))
    })?;
    // What was accepted before a crash comes first; then the accounts know the last number.
    journal.ticket_for_all().sync(None)?;
    let mut last = accounts.last()?;
    let (input, mut output) = (io::stdin().lock(), io::stdout().lock());
    for line in input.lines() {
        match Order::parse(&line?) {
            Ok(order) => {
                if order.number > last {
                    journal.push(&order)?;
                    last = order.number;
                }
                writeln!(output, "accepted {}", order.number)?;
            }
            Err(e) => writeln!(output, "refused {e}")?,
        }
    }
    let everything = journal.ticket_for_all();
    everything.flush();
    everything.sync(None)?;
    Ok(())
}

/// Writes a message for people. A message that is not read, or cannot be, does not end the program.
fn say(what: &dyn Display) {
    let _ = writeln!(io::stderr(), "transfer: {what}");
}

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        say(&"usage: transfer FOLDER < orders");
        return ExitCode::from(2);
    };
    match run(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&e);
            ExitCode::FAILURE
        }
    }
}
