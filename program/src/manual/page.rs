//! Man pages: one of a program, and one of each of its commands.

use super::blocks::{Block, Blocks};
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The section of all pages: "User Commands".
const SECTION: &str = "1";

/// Writes a page of the command line and one of each of its commands into `folder`.
pub fn write_all(command: &Command, others: &[&str], date: &str, folder: &Path) -> io::Result<()> {
    let mut root = command.clone().disable_help_subcommand(true);
    root.build();
    let exit_status = blocks(&root).exit_status;
    let mut pages = Vec::new();
    collect(&root, &mut pages);
    let names: Vec<_> = pages.iter().map(|page| name_of(page)).collect();
    let version = root.get_version().unwrap_or_default();
    for (number, page) in pages.into_iter().enumerate() {
        // The program's page leads to all, and each other page to the program's.
        let own = if number == 0 { &names[1..] } else { &names[..1] };
        let own = own.iter().map(|name| format!("{name}({SECTION})"));
        let see_also: Vec<_> = own.chain(others.iter().map(|&other| other.to_owned())).collect();
        let source = format!("{} {version}", names[0]);
        let mut file = File::create(folder.join(format!("{}.{SECTION}", names[number])))?;
        write(page, &exit_status, &see_also, date, &source, &mut file)?;
    }
    Ok(())
}

/// Collects a command and the commands below it, at any depth.
fn collect<'a>(command: &'a Command, pages: &mut Vec<&'a Command>) {
    pages.push(command);
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, pages);
    }
}

fn name_of(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn write(
    command: &Command,
    exit_status: &[Block],
    see_also: &[String],
    date: &str,
    source: &str,
    file: &mut impl Write,
) -> io::Result<()> {
    let blocks = blocks(command);
    // What a short help leaves out belongs into a page.
    let command = command.clone().mut_args(|argument| argument.hide_short_help(false));
    let has_commands = command.has_subcommands();
    let man = Man::new(command).section(SECTION).date(date).source(source).manual("User Commands");
    man.render_title(file)?;
    man.render_name_section(file)?;
    man.render_synopsis_section(file)?;
    man.render_description_section(file)?;
    render(&blocks.description, false, file)?;
    if has_commands {
        man.render_subcommands_section(file)?;
    }
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    file.write_all(&with_single_spaces(&options))?;
    let own = &blocks.exit_status;
    section("EXIT STATUS", if own.is_empty() { exit_status } else { own }, file)?;
    section("EXAMPLES", &blocks.examples, file)?;
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(see_also.join(", "))]);
    roff.to_writer(file)
}

/// Replaces the two breaks and the empty line that `clap_mangen` puts in front of possible values:
/// formatters drop the breaks, and mandoc warns of them.
fn with_single_spaces(options: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(options).replace("\n.br\n\n.br\n", "\n.sp\n").into_bytes()
}

/// Returns the text behind the options of `--help`, in parts.
fn blocks(command: &Command) -> Blocks {
    let text = command.get_after_long_help().or_else(|| command.get_after_help());
    Blocks::new(&text.map(ToString::to_string).unwrap_or_default())
}

fn section(name: &str, blocks: &[Block], file: &mut impl Write) -> io::Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    let mut roff = Roff::new();
    roff.control("SH", [name]);
    roff.to_writer(file)?;
    render(blocks, true, file)
}

/// Renders parts of a text; `first` says whether they are the first ones of their section.
fn render(blocks: &[Block], mut first: bool, file: &mut impl Write) -> io::Result<()> {
    let mut roff = Roff::new();
    for block in blocks {
        match block {
            Block::Paragraph(text) => {
                if !first {
                    roff.control("PP", []);
                }
                roff.text([roman(text)]);
            }
            Block::Literal(lines) => match exit_codes(lines) {
                Some(codes) => {
                    for (code, words) in codes {
                        roff.control("TP", []);
                        roff.text([bold(code)]);
                        roff.text([roman(words)]);
                    }
                }
                None => literal(lines, first, &mut roff),
            },
        }
        first = false;
    }
    roff.to_writer(file)
}

fn literal(lines: &[String], first: bool, roff: &mut Roff) {
    if !first {
        roff.control("PP", []);
    }
    roff.control("RS", ["4"]);
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("RE", []);
}

/// Returns exit codes and their meaning, if that is what the lines are. A line that is indented
/// further goes on with the one before it.
fn exit_codes(lines: &[String]) -> Option<Vec<(String, String)>> {
    let mut codes: Vec<(String, String)> = Vec::new();
    for line in lines {
        if let Some(more) = line.strip_prefix(' ') {
            let (_, words) = codes.last_mut()?;
            words.push(' ');
            words.push_str(more.trim_start());
        } else {
            let (code, words) = line.split_once("  ")?;
            let _: u8 = code.parse().ok()?;
            codes.push((code.to_owned(), words.trim_start().to_owned()));
        }
    }
    Some(codes)
}

/// Returns the date of the pages, `YYYY-MM-DD`: a build that is to be repeated byte by byte sets
/// `SOURCE_DATE_EPOCH` (reproducible-builds.org), in seconds.
pub fn date() -> String {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let given = given.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let text = humantime::format_rfc3339(given.unwrap_or_else(SystemTime::now)).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn exit_codes_are_told_from_other_columns() {
        let codes = exit_codes(&lines("0   normal end\n17  an error\n    of many words")).unwrap();
        let words: Vec<_> = codes.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(words, [("0", "normal end"), ("17", "an error of many words")]);
        assert_eq!(exit_codes(&lines("PATH  a file")), None);
        assert_eq!(exit_codes(&lines("echo 1")), None);
        assert_eq!(exit_codes(&lines("  4  more")), None);
    }
}
