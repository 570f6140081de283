//! Keys, and what they do.

use super::draw::View;
use super::model::{Model, Sort};
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Whether the view goes on after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    GoOn,
    Quit,
}

/// Carries out a key.
pub fn press(key: KeyEvent, model: &mut Model, view: &mut View) -> Next {
    if key.kind == KeyEventKind::Release {
        return Next::GoOn;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => return Next::Quit,
        _ if view.filtering => filter(key.code, model, view),
        KeyCode::Char('q') => return Next::Quit,
        KeyCode::Esc | KeyCode::Backspace | KeyCode::Left if view.detail => view.detail = false,
        KeyCode::Esc => model.filter.clear(),
        KeyCode::Enter | KeyCode::Right => {
            // The filter may have changed since the last frame.
            select(0, model, view);
            view.detail = view.selected.is_some();
        }
        KeyCode::Up | KeyCode::Char('k') => select(-1, model, view),
        KeyCode::Down | KeyCode::Char('j') => select(1, model, view),
        KeyCode::PageUp => select(-10, model, view),
        KeyCode::PageDown => select(10, model, view),
        KeyCode::Char('/') => (view.filtering, view.detail) = (true, false),
        KeyCode::Char('R') => model.reversed = !model.reversed,
        KeyCode::Char(pressed) => {
            if let Some(sort) = Sort::ALL.into_iter().find(|sort| sort.name().1 == pressed) {
                model.sort = sort;
            }
        }
        _ => {}
    }
    Next::GoOn
}

fn filter(code: KeyCode, model: &mut Model, view: &mut View) {
    match code {
        KeyCode::Enter => view.filtering = false,
        KeyCode::Esc => {
            model.filter.clear();
            view.filtering = false;
        }
        KeyCode::Backspace => {
            model.filter.pop();
        }
        KeyCode::Char(c) if !c.is_control() => model.filter.push(c),
        _ => {}
    }
}

/// Moves the selection by that many rows.
fn select(by: isize, model: &Model, view: &mut View) {
    let rows = model.rows();
    let now = rows.iter().position(|(address, _)| Some(*address) == view.selected.as_deref());
    let next = now.unwrap_or(0).saturating_add_signed(by).min(rows.len().saturating_sub(1));
    view.selected = rows.get(next).map(|(address, _)| address.to_path_buf());
}
