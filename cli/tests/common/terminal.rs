//! The program on a terminal of tmux.

use crate::common::scene::Scene;
use ring_test_support::assert_ok;
use ring_test_support::process::eventually_or;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A terminal: a tmux server of its own, which ends with this.
pub struct Terminal<'a> {
    scene: &'a Scene,
    /// The server's socket: one that ends may still have its own.
    socket: String,
}

impl<'a> Terminal<'a> {
    /// Runs a shell script in a terminal of that size; `$RING` is the program.
    pub fn new(scene: &'a Scene, size: [&str; 2], script: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket = format!("tmux-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let terminal = Self { scene, socket };
        scene.write("script", script);
        let [columns, lines] = size;
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            columns,
            "-y",
            lines,
            "sh script; exec cat",
        ]);
        terminal
    }

    /// Carries out a command of tmux, and returns what it printed.
    pub fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-u", "-S", &self.socket])
            .args(arguments)
            .current_dir(self.scene.path("."))
            .env("RING", env!("CARGO_BIN_EXE_blockring"))
            .env("TERM", "xterm-256color")
            .env_remove("TMUX")
            .env_remove("NO_COLOR")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .expect("tmux (scripts/setup.sh installs it)");
        assert_ok(&output);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the lines that the terminal shows.
    pub fn lines(&self) -> Vec<String> {
        self.tmux(&["capture-pane", "-p"]).lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Returns whether the other screen is shown, and whether the cursor is.
    pub fn screen(&self) -> String {
        self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim().to_owned()
    }

    /// Sends a key.
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Waits until the terminal shows what the condition asks for, and returns its lines.
    pub fn until(&self, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        let is_shown = || {
            lines = self.lines();
            is_so(&lines)
        };
        eventually_or(is_shown, || self.lines().join("\n"));
        lines
    }

    /// Waits until the terminal shows the words, and returns its lines.
    pub fn until_shown(&self, words: &str) -> Vec<String> {
        self.until(|lines| lines.iter().any(|line| line.contains(words)))
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let mut command = Command::new("tmux");
        command.args(["-S", &self.socket, "kill-server"]).current_dir(self.scene.path("."));
        let _ = command.stderr(Stdio::null()).status();
    }
}
