#![allow(clippy::unwrap_used)]

use super::super::super::failure::Failure;
use super::super::super::sample::tests::sample;
use super::super::detail::page;
use super::super::keys::{Next, press};
use super::*;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::time::SystemTime;

fn view(colours: bool) -> View {
    View {
        palette: Palette { colours },
        selected: None,
        detail: false,
        filtering: false,
        offset: 0,
        interval: 1.0,
    }
}

fn model(count: u64) -> Model {
    let mut model = Model::default();
    for index in 0..count {
        let name = PathBuf::from(format!("unix:/run/blockring/guest-{index:03}.out"));
        model.add(name.clone());
        let mut sample = sample(0, 4 * index);
        sample.has_consumer = Some(index % 2 == 0);
        model.note(&name, Ok(sample), SystemTime::UNIX_EPOCH);
    }
    model
}

/// Returns the lines of the page that the view shows.
fn lines(model: &Model, view: &mut View, [width, height]: [u16; 2]) -> (Vec<String>, Buffer) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let drawn = terminal.draw(|frame| {
        let (area, buffer) = (frame.area(), frame.buffer_mut());
        match view.selected.clone().filter(|_| view.detail) {
            Some(address) => page(model, &address, view, area, buffer),
            None => list(model, view, area, buffer),
        }
    });
    let buffer = drawn.unwrap().buffer.clone();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    ((0..height).map(|y| line(y).trim_end().to_owned()).collect(), buffer)
}

fn keys(codes: &[KeyCode], model: &mut Model, view: &mut View) {
    for code in codes {
        let key = KeyEvent::new(*code, KeyModifiers::NONE);
        assert_eq!(press(key, model, view), Next::GoOn);
    }
}

#[test]
fn list_fits_eighty_columns() {
    let mut model = model(3);
    model.add("missing".into());
    let failure = Failure::Missing("missing: cannot open: No such file".to_owned());
    model.note(Path::new("missing"), Err(failure), SystemTime::UNIX_EPOCH);
    let (lines, _) = lines(&model, &mut view(true), [80, 8]);
    assert_eq!(
        lines,
        [
            "blockring top: 4 rings, 2 with warnings; by name; every 1 s",
            "RING                   STATE       IN B/s    OUT USED             OLDEST REFUSED",
            "missing                gone        cannot open: No such file",
            "…ockring/guest-000.out idle             0      0 [........]   0%       -       -",
            "…ockring/guest-001.out no consumer      0      0 [........]   1%    >10s       -",
            "…ockring/guest-002.out waiting          0      0 [........]   1%    >10s       -",
            "",
            "q quit  Enter details  / filter  nsiouar sort  R reverse  arrows select",
        ]
    );
}

#[test]
fn page_shows_all_of_a_long_reason() {
    let (mut model, mut view) = (model(0), view(true));
    model.add("missing".into());
    let reason: String = (100..160).map(|number| number.to_string()).collect();
    let failure = Failure::Missing(format!("missing: {reason}"));
    model.note(Path::new("missing"), Err(failure), SystemTime::UNIX_EPOCH);
    (view.selected, view.detail) = (Some("missing".into()), true);
    let (lines, _) = lines(&model, &mut view, [40, 12]);
    assert_eq!((&lines[2][..11], &lines[3][..11]), ("reason     ", "           "));
    assert_eq!(lines[2..9].iter().map(|line| &line[11..]).collect::<String>(), reason);
}

#[test]
fn selected_ring_is_always_in_sight() {
    let (mut model, mut view) = (model(100), view(true));
    for size in [[80, 24], [200, 50], [80, 5]] {
        for (key, name) in [(KeyCode::PageDown, "010"), (KeyCode::PageUp, "000")] {
            lines(&model, &mut view, size);
            keys(&[key], &mut model, &mut view);
            let (lines, buffer) = lines(&model, &mut view, size);
            let y = lines.iter().position(|line| line.contains(&format!("guest-{name}"))).unwrap();
            let y = u16::try_from(y).unwrap();
            assert!(buffer[(0, y)].modifier.contains(Modifier::REVERSED));
        }
    }
    keys(&[KeyCode::PageDown; 20], &mut model, &mut view);
    assert!(lines(&model, &mut view, [80, 24]).0.iter().any(|line| line.contains("guest-099")));
}

#[test]
fn state_is_told_without_colours_too() {
    let model = model(2);
    for colours in [true, false] {
        let (lines, buffer) = lines(&model, &mut view(colours), [80, 8]);
        assert!(lines[3].contains("no consumer"));
        let cell = &buffer[(0, 3)];
        assert_eq!(cell.fg == Color::Yellow, colours);
        assert_eq!(cell.modifier.contains(Modifier::BOLD), !colours);
    }
}

#[test]
fn keys_filter_sort_and_open_a_page() {
    let (mut model, mut view) = (model(12), view(true));
    lines(&model, &mut view, [80, 24]);
    keys(&[KeyCode::Char('/'), KeyCode::Char('0'), KeyCode::Char('1')], &mut model, &mut view);
    keys(&[KeyCode::Char('q'), KeyCode::Backspace, KeyCode::Enter], &mut model, &mut view);
    let (list, _) = lines(&model, &mut view, [80, 24]);
    assert!(list[0].contains("3 of 12 rings") && list[0].contains("filter 01"), "{}", list[0]);
    keys(&[KeyCode::Char('u')], &mut model, &mut view);
    assert!(lines(&model, &mut view, [80, 24]).0[2].contains("guest-011"));
    keys(&[KeyCode::Enter], &mut model, &mut view);
    let (list, _) = lines(&model, &mut view, [80, 24]);
    assert_eq!(list[0], "unix:/run/blockring/guest-001.out");
    assert!(list.iter().any(|line| line.starts_with("consumer   no process; at 0")), "{list:?}");
    assert!(list.iter().any(|line| line.starts_with("oldest, ms")), "{list:?}");
    keys(&[KeyCode::Esc, KeyCode::Esc], &mut model, &mut view);
    assert!(lines(&model, &mut view, [80, 24]).0[0].contains("12 rings"));
    let quit = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(press(quit, &mut model, &mut view), Next::Quit);
}

#[test]
fn page_is_that_of_a_ring_which_the_filter_leaves() {
    let (mut model, mut view) = (model(12), view(true));
    lines(&model, &mut view, [80, 24]);
    // No frame is drawn between these keys.
    let typed = [KeyCode::Char('/'), KeyCode::Char('1'), KeyCode::Char('1')];
    keys(&[&typed[..], &[KeyCode::Enter, KeyCode::Enter]].concat(), &mut model, &mut view);
    let (page, _) = lines(&model, &mut view, [80, 24]);
    assert_eq!(page[0], "unix:/run/blockring/guest-011.out");
}

#[test]
fn pages_of_every_size_are_drawn() {
    let model = model(30);
    for width in [1, 2, 20, 79, 300] {
        for height in [1, 2, 3, 10, 60] {
            let mut view = view(true);
            lines(&model, &mut view, [width, height]);
            view.detail = true;
            view.selected = model.addresses().next().cloned();
            lines(&model, &mut view, [width, height]);
        }
    }
}
