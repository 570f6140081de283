//! The man pages and completions that a program writes, compared with what its `--help` says.

use super::assert_ok;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice;

/// The man pages and completions of a program, in a folder of their own.
#[derive(Debug)]
pub struct Manual {
    program: PathBuf,
    name: String,
    directory: tempfile::TempDir,
}

impl Manual {
    /// Has the program write them: `option` is what it takes in front of the folder.
    pub fn of(program: &str, option: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut generate = Command::new(program);
        generate.arg(option).arg(directory.path()).env("SOURCE_DATE_EPOCH", "86400");
        assert_ok(&generate.output().unwrap());
        let program = PathBuf::from(program);
        let name = program.file_name().unwrap().to_str().unwrap().to_owned();
        Self { program, name, directory }
    }

    /// Returns a file's text.
    pub fn text(&self, path: &str) -> String {
        let path = self.directory.path().join(path);
        read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Returns a page as it is shown, on one line, in which no word is broken.
    pub fn page(&self, name: &str) -> String {
        let path = format!("man/man1/{name}.1");
        let shown = run("mandoc", &["-Tutf8", "-Owidth=1000"], &self.directory.path().join(path));
        // Bold is a character over itself, italics are an underscore under it.
        let mut plain = String::new();
        for c in shown.chars() {
            if c == '\u{8}' {
                plain.pop();
            } else {
                plain.push(c);
            }
        }
        plain.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn help(&self, command: &[String]) -> String {
        let output = Command::new(&self.program).args(command).arg("--help").output().unwrap();
        assert_ok(&output);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the commands that `--help` lists.
    pub fn commands(&self) -> Vec<String> {
        self.commands_below(&[])
    }

    fn commands_below(&self, command: &[String]) -> Vec<String> {
        let help = self.help(command);
        let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = list.take_while(|line| !line.is_empty());
        let commands = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        commands.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
    }

    /// Returns the long options that a command's `--help` lists.
    fn options(&self, command: &[String]) -> Vec<String> {
        let help = self.help(command);
        let heads = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        let words = heads.flat_map(str::split_whitespace).filter(|word| word.starts_with("--"));
        words.map(str::to_owned).collect()
    }

    /// Checks that each command, at any depth, and each option is in its page and in the
    /// completions of each shell, and that the pages lead to each other.
    pub fn expect_all_that_help_lists(&self, sections: &[&str]) {
        let bash = self.text(&format!("bash-completion/completions/{}", self.name));
        let zsh = self.text(&format!("zsh/site-functions/_{}", self.name));
        let fish = self.text(&format!("fish/vendor_completions.d/{}.fish", self.name));
        let mut pages = 0;
        let mut commands = vec![Vec::new()];
        while let Some(command) = commands.pop() {
            pages += 1;
            self.expect_page(&command, &[&bash, &zsh, &fish], sections);
            if let Some((name, above)) = command.split_last() {
                let above = above.last().unwrap_or(&self.name);
                assert!(bash.contains(&format!("{above},{name})")), "bash: {command:?}");
                assert!(zsh.contains(&format!("({name})\n")), "zsh: {command:?}");
                assert!(fish.contains(&format!(" -a \"{name}\"")), "fish: {command:?}");
            }
            let below = self.commands_below(&command).into_iter();
            commands.extend(below.map(|name| [&command[..], &[name]].concat()));
        }
        let folder = self.directory.path().join("man/man1").read_dir().unwrap();
        assert_eq!(folder.count(), pages, "pages of what --help does not list");
    }

    fn expect_page(&self, command: &[String], completions: &[&str; 3], sections: &[&str]) {
        let name = [slice::from_ref(&self.name), command].concat().join("-");
        let page = self.page(&name);
        for section in sections.iter().chain(&["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"]) {
            assert!(page.contains(&format!(" {section} ")), "{name}: {section}\n{page}");
        }
        assert!(page.contains("1970-01-02"), "{name}: another date\n{page}");
        if !command.is_empty() {
            assert!(page.contains(&format!("{}(1)", self.name)), "{name}\n{page}");
            let programs = self.page(&self.name);
            assert!(programs.contains(&format!("{name}(1)")), "{programs}");
        }
        for option in self.options(command) {
            assert!(page.contains(&format!("{option} ")), "{name}: {option}\n{page}");
            let [bash, zsh, fish] = completions;
            let bash_has = |end: &str| bash.contains(&format!("{option}{end}"));
            assert!(bash_has(" ") || bash_has("\""), "bash, {name}: {option}");
            let zsh_has = |form: &str| zsh.contains(&format!("{option}{form}"));
            assert!(zsh_has("[") || zsh_has("=["), "zsh, {name}: {option}");
            let long = option.trim_start_matches('-');
            assert!(fish.contains(&format!(" -l {long} ")), "fish, {name}: {option}");
        }
    }

    /// Checks that mandoc warns of nothing in a page, and that each shell can parse its
    /// completions.
    pub fn expect_sound_files(&self) {
        for page in self.directory.path().join("man/man1").read_dir().unwrap() {
            let said = run("mandoc", &["-Tlint", "-W", "warning"], &page.unwrap().path());
            assert_eq!(said, "");
        }
        for (shell, folder) in [
            ("bash", "bash-completion/completions"),
            ("zsh", "zsh/site-functions"),
            ("fish", "fish/vendor_completions.d"),
        ] {
            for file in self.directory.path().join(folder).read_dir().unwrap() {
                run(shell, &["-n"], &file.unwrap().path());
            }
        }
    }

    /// Returns what bash offers in the place of the last word, which may be empty.
    pub fn completed(&self, words: &[&str]) -> Vec<String> {
        // As bash calls the function of `complete -F`, which the second line names.
        const COMPLETE: &str = r#"
            source "$1"; shift
            function=$(complete -p "$1" | sed 's/.* -F \([^ ]*\) .*/\1/')
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            "$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}""#;
        let script = format!("bash-completion/completions/{}", self.name);
        let output = Command::new("bash")
            .args(["--norc", "-c", COMPLETE, "bash"])
            .arg(self.directory.path().join(script))
            .arg(&self.name)
            .args(words)
            .current_dir(self.directory.path())
            .output()
            .unwrap();
        assert_ok(&output);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// Runs a program on a file, and returns its standard output.
fn run(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e} (scripts/setup.sh installs it)"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {}: {text} {output:?}", file.display());
    text
}
