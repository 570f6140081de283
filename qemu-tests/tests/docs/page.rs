//! Pages of the documentation: their code blocks, and the notes of tests in HTML comments directly
//! above them (CONTRIBUTING.md, "Blocks of the documents").

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use qemu_tests::binaries;
use std::path::Path;

/// The way in which a block is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    RunOnHost,
    RunInGuest,
    /// Run on a host with systemd and the packages.
    RunInstalled,
    /// Run by another test, or by a script.
    RunElsewhere,
    /// Read by the program that it is for, or by a parser.
    Checked,
    /// Compiled as a part of another test.
    Compiled,
    /// Output or a diagram: nobody copies it.
    Shown,
    NotRun,
}

/// What a comment says about the block below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// The reason why it is not run.
    pub not_run: Option<String>,
    /// The test that runs it.
    pub run_by: Option<String>,
    pub in_guest: bool,
    pub installed: bool,
    pub to_qmp: bool,
    /// It does not end by itself: it runs until the end of the page.
    pub goes_on: bool,
    /// It runs until this command of the host succeeds.
    pub until: Option<String>,
    /// It runs until its output has this text.
    pub until_it_says: Option<String>,
    /// Commands of the host that prepare it.
    pub first: Vec<String>,
    /// Commands of the guest that prepare it.
    pub first_in_guest: Vec<String>,
    /// Commands of the host that have to succeed after it.
    pub then: Vec<String>,
    /// Placeholders, and what a reader puts there.
    pub with: Vec<(String, String)>,
    /// The file that a reader makes of it.
    pub saved_as: Option<String>,
    /// The exit code of a block whose commands are to fail.
    pub exit_code: i32,
}

/// A code block.
#[derive(Debug, Clone)]
pub struct Block {
    /// The page and the line, for messages.
    pub place: String,
    pub language: String,
    pub text: String,
    pub notes: Notes,
}

impl Notes {
    /// Reads a comment: a note a line, `KEY` or `KEY: VALUE`.
    fn read(comment: &str, place: &str) -> Self {
        let mut notes = Self::default();
        for line in comment.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (key, value) = line.split_once(": ").unwrap_or((line, ""));
            let text = value.to_owned();
            match key {
                "not run" => notes.not_run = Some(text),
                "run by" => notes.run_by = Some(text),
                "in the guest" => notes.in_guest = true,
                "on an installed host" => notes.installed = true,
                "to QMP" => notes.to_qmp = true,
                "goes on" => notes.goes_on = true,
                "until" => notes.until = Some(text),
                "until it says" => notes.until_it_says = Some(text),
                "first" => notes.first.push(text),
                "first in the guest" => notes.first_in_guest.push(text),
                "then" => notes.then.push(text),
                "saved as" => notes.saved_as = Some(text),
                "exit code" => notes.exit_code = value.parse().unwrap(),
                "with" => {
                    let (placeholder, text) = value.split_once('=').unwrap();
                    notes.with.push((placeholder.to_owned(), text.to_owned()));
                }
                _ => panic!("{place}: no such note: {line}"),
            }
            let switches = ["in the guest", "on an installed host", "to QMP", "goes on"];
            let is_switch = switches.contains(&key);
            assert!(is_switch == value.is_empty(), "{place}: {line}");
        }
        notes
    }
}

impl Block {
    /// Returns how the block is tested.
    pub fn treatment(&self) -> Treatment {
        let notes = &self.notes;
        match self.language.as_str() {
            _ if notes.not_run.is_some() => Treatment::NotRun,
            _ if notes.run_by.is_some() => Treatment::RunElsewhere,
            "json" if notes.to_qmp => Treatment::RunInGuest,
            "json" | "toml" | "ini" | "yaml" | "xml" => Treatment::Checked,
            _ if notes.saved_as.is_some() => Treatment::Checked,
            "sh" | "console" if notes.in_guest => Treatment::RunInGuest,
            "sh" | "console" if notes.installed => Treatment::RunInstalled,
            "sh" | "console" => Treatment::RunOnHost,
            "rust" => Treatment::Compiled,
            "text" => Treatment::Shown,
            other => panic!("{}: no test knows the language '{other}' of a block", self.place),
        }
    }

    /// Returns its text with what a reader puts in the place of placeholders.
    pub fn text(&self) -> String {
        let replaced = |text: String, (from, to): &(String, String)| {
            assert!(text.contains(from), "{}: there is no {from}", self.place);
            text.replace(from, to)
        };
        self.notes.with.iter().fold(self.text.clone(), replaced)
    }
}

/// Returns the paths of all pages, from the root.
pub fn all() -> Vec<String> {
    let mut pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned).to_vec();
    let docs = std::fs::read_dir(binaries::workspace().join("docs")).unwrap();
    let names = docs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_page = |name: &String| Path::new(name).extension().is_some_and(|end| end == "md");
    pages.extend(names.filter(is_page).map(|name| format!("docs/{name}")));
    pages.sort();
    pages
}

/// Returns the blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let text = std::fs::read_to_string(binaries::workspace().join(page)).unwrap();
    let mut blocks = Vec::new();
    // A comment, until something else than a code block follows it.
    let mut comment = None;
    let mut block: Option<Block> = None;
    let mut html = String::new();
    for (event, range) in Parser::new(&text).into_offset_iter() {
        let place = format!("{page}:{}", text[..range.start].lines().count() + 1);
        match event {
            Event::Start(Tag::HtmlBlock) => html.clear(),
            Event::Html(line) => html.push_str(&line),
            Event::End(TagEnd::HtmlBlock) => {
                let inner = html.trim().strip_prefix("<!--").and_then(|s| s.strip_suffix("-->"));
                comment = inner.map(str::to_owned);
            }
            Event::Start(Tag::CodeBlock(kind)) => {
                let notes = comment.take().map(|comment| Notes::read(&comment, &place));
                let CodeBlockKind::Fenced(language) = kind else {
                    panic!("{place}: an indented block has no language: fence it (```sh, ```text)");
                };
                let (language, text) = (language.to_string(), String::new());
                block = Some(Block { place, language, text, notes: notes.unwrap_or_default() });
            }
            Event::Text(part) => {
                if let Some(block) = &mut block {
                    block.text.push_str(&part);
                }
            }
            Event::End(TagEnd::CodeBlock) => blocks.extend(block.take()),
            Event::Start(_) => comment = None,
            _ => {}
        }
    }
    blocks
}

/// Returns the commands of a script, each with the lines that continue it.
pub fn commands(script: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in script.lines() {
        let next = line.strip_suffix('\\').unwrap_or(line);
        match commands.last_mut() {
            Some(last) if goes_on => last.push_str(next.trim_start()),
            _ => commands.push(next.to_owned()),
        }
        goes_on = next.len() < line.len();
    }
    commands
}
