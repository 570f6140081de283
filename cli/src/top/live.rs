//! The view on a terminal: looks, keys and signals in one wait.

use super::super::failure::{Failure, Outcome};
use super::Watch;
use super::detail;
use super::draw::{Palette, View, list};
use super::input::Input;
use super::keys::{Next, press};
use super::terminal::{Frames, Terminal};
use crossterm::event::Event;
use ratatui::Terminal as Screen;
use ratatui::backend::CrosstermBackend;
use ring_program::Stop;
use ring_program::standard::Standard;
use shared_block_ring::wait::wait_readable;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// The least time between two frames, unless a key was pressed: a thousand rings are looked at one
/// after the other.
const FRAME: Duration = Duration::from_millis(50);

/// The pause between two looks whether the shell has given the terminal back.
const AWAY: Duration = Duration::from_millis(200);

fn lost() -> impl FnOnce(io::Error) -> Failure {
    Failure::io("cannot use the terminal")
}

/// Returns whether the view is to end after an operation on the terminal.
///
/// # Errors
/// That of the operation, if the terminal is there and the program was not asked to stop.
fn is_over(done: io::Result<()>, keys: &Input) -> Result<bool, Failure> {
    match done {
        Ok(()) => Ok(false),
        // The program was asked to stop.
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(_) if keys.is_gone() => Ok(true),
        Err(e) => Err(lost()(e)),
    }
}

/// Runs the view until it is to end.
pub fn run(mut watch: Watch, stop: &Stop, interval: Duration) -> Outcome {
    let (input, output) = (Standard::Input.fd(), Standard::Output.fd());
    if !input.is_terminal() || !output.is_terminal() {
        let text =
            "standard input and output have to be a terminal (--once and --json work without one)";
        return Err(Failure::Refused(text.to_owned()));
    }
    let no_signals = || Failure::io("cannot set up signals");
    stop.add(libc::SIGQUIT).map_err(no_signals())?;
    let resized = Stop::on([libc::SIGWINCH]).map_err(no_signals())?;
    let continued = Stop::on([libc::SIGCONT]).map_err(no_signals())?;
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut view = View {
        palette: Palette { colours },
        selected: None,
        detail: false,
        filtering: false,
        offset: 0,
        interval: interval.as_secs_f64(),
    };
    let (columns, lines) = crossterm::terminal::size().map_err(lost())?;
    if columns == 0 || lines == 0 {
        let text = "the terminal does not tell its size (stty cols 80 rows 24 sets it)";
        return Err(Failure::Refused(text.to_owned()));
    }
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    let taken = Terminal::take(copy(input).map_err(lost())?, copy(output).map_err(lost())?);
    let taken = taken.map_err(lost())?;
    let frames = Frames::new(output, stop.fd())?;
    let mut screen = Screen::new(CrosstermBackend::new(frames)).map_err(lost())?;
    let keys = Input::start(input).map_err(lost())?;
    let mut next = Instant::now();
    let (mut drawn_at, mut is_new) = (None, true);
    // Whether a shell may have the terminal, since this process was stopped.
    let mut is_away = false;
    'view: while !stop.requested() && !keys.is_gone() {
        let now = Instant::now();
        if now >= next {
            next = now + interval;
            let closely = view.selected.as_ref().filter(|_| view.detail);
            watch.look(closely);
        }
        if is_away && !taken.is_in_background() {
            // The shell has left nothing of the last frame.
            let again = taken.take_again().and_then(|()| screen.resize(screen.size()?.into()));
            if is_over(again, &keys)? {
                break;
            }
            (is_away, is_new, drawn_at) = (false, true, None);
        }
        let frame = drawn_at.map_or(now, |at: Instant| at + FRAME);
        let due = if is_away { now + AWAY } else { frame };
        if !is_new || now < due {
            let until = if is_new || is_away { due.min(next) } else { next };
            let looks = watch.sampler.ready();
            let fds = [stop.fd(), keys.ready(), resized.fd(), continued.fd(), looks];
            let left = until.saturating_duration_since(now);
            wait_readable(&fds, Some(left)).map_err(lost())?;
            is_away |= continued.take();
            let size = resized.take();
            let seen = watch.take()?;
            is_new |= size || seen;
            for event in keys.take() {
                (is_new, drawn_at) = (true, None);
                let detail = view.detail;
                let event = match event {
                    Ok(event) => event,
                    Err(_) if keys.is_gone() => break 'view,
                    Err(e) => return Err(lost()(e)),
                };
                if let Event::Key(key) = event
                    && press(key, &mut watch.model, &mut view) == Next::Quit
                {
                    return Ok(());
                }
                if view.detail && !detail {
                    // The page shows what only a closer look finds.
                    next = Instant::now();
                }
            }
            continue;
        }
        (drawn_at, is_new) = (Some(now), false);
        let drawn = screen.draw(|frame| {
            let (area, buffer) = (frame.area(), frame.buffer_mut());
            match view.selected.clone().filter(|_| view.detail) {
                Some(address) => detail::page(&watch.model, &address, &view, area, buffer),
                None => list(&watch.model, &mut view, area, buffer),
            }
        });
        if is_over(drawn.map(drop), &keys)? {
            break;
        }
    }
    // The library does this, too, and complains if the terminal is gone, unless that is known.
    let _ = screen.show_cursor();
    Ok(())
}
