//! Man pages and shell completions of a program, written from the definition of its command line.
//!
//! A hidden `blockring generate DIRECTORY`, or `--generate DIRECTORY` of a program without
//! commands, writes them. It is no part of the documented command line, so that pages and
//! completions do not mention it.

mod blocks;
mod page;

use clap::{Arg, Command, Parser, value_parser};
use clap_complete::{Shell, generate_to};
use std::fs::{create_dir_all, rename};
use std::io;
use std::path::{Path, PathBuf};

/// The name of the hidden command or option, and of its value.
const GENERATE: &str = "generate";

/// What a command line asks for.
pub enum Asked<T> {
    /// The program itself, with these arguments.
    Run(T),
    /// Man pages and completions, below this directory.
    Pages(PathBuf),
}

impl<T: Parser> Asked<T> {
    /// Parses the arguments of this process.
    ///
    /// # Errors
    ///
    /// The arguments are wrong, or ask for help or the version.
    pub fn parse() -> Result<Self, clap::Error> {
        let mut command = with_generate(T::command());
        let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
        let asked = match matches.subcommand() {
            Some((GENERATE, below)) => below,
            _ => &matches,
        };
        if let Ok(Some(directory)) = asked.try_get_one::<PathBuf>(GENERATE) {
            return Ok(Self::Pages(directory.clone()));
        }
        let arguments = T::from_arg_matches_mut(&mut matches);
        arguments.map(Self::Run).map_err(|error| error.format(&mut command))
    }
}

/// Adds the hidden command, or the hidden option, which needs none of those that are required.
fn with_generate(command: Command) -> Command {
    let directory = Arg::new(GENERATE).value_name("DIRECTORY").value_parser(value_parser!(PathBuf));
    if command.has_subcommands() {
        let about = "Write man pages and shell completions below DIRECTORY, such as /usr/share";
        let directory = directory.required(true);
        command.subcommand(Command::new(GENERATE).hide(true).about(about).arg(directory))
    } else {
        command.arg(directory.long(GENERATE).hide(true).exclusive(true))
    }
}

/// Writes the man pages of a command line and its completions for bash, zsh and fish into the
/// folders below `directory` in which systems look for them below `/usr/share`.
///
/// `others` are the programs that the pages refer to, such as `qemu(1)`. The pages' date is that of
/// `SOURCE_DATE_EPOCH`, or today.
///
/// # Errors
///
/// A folder or a file cannot be made.
pub fn write(command: &Command, others: &[&str], directory: &Path) -> io::Result<()> {
    let folder = |path: &str| {
        let folder = directory.join(path);
        create_dir_all(&folder).map(|()| folder)
    };
    page::write_all(command, others, &page::date(), &folder("man/man1")?)?;
    let name = command.get_name();
    for (shell, path, file) in [
        (Shell::Bash, "bash-completion/completions", name.to_owned()),
        (Shell::Zsh, "zsh/site-functions", format!("_{name}")),
        (Shell::Fish, "fish/vendor_completions.d", format!("{name}.fish")),
    ] {
        let folder = folder(path)?;
        let made = generate_to(shell, &mut command.clone(), name, &folder)?;
        rename(made, folder.join(file))?;
    }
    Ok(())
}
