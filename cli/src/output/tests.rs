#![allow(clippy::unwrap_used)]

use super::sink::{Halt, Sink};
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

const WHOLE: &dyn Fn(usize) -> usize = &|at| at;

fn appending(path: &Path) -> File {
    File::options().append(true).create(true).open(path).unwrap()
}

#[test]
fn sink_takes_back_the_part_that_it_wrote_last() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    std::fs::write(&path, "before\n").unwrap();
    let mut sink = Sink::new(appending(&path)).unwrap();
    for part in ["one\n", "tw"] {
        assert!(sink.write(part.as_bytes(), WHOLE, None, None).1.is_ok());
    }
    assert!(sink.cut(2).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"before\none\n");
    // Not what was there before.
    assert!(sink.cut(4).unwrap());
    assert!(!sink.cut(1).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"before\n");
}

#[test]
fn sink_takes_nothing_back_from_a_file_that_others_write_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let mut sink = Sink::new(appending(&path)).unwrap();
    let mut other = appending(&path);
    assert!(sink.write(b"one", WHOLE, None, None).1.is_ok());
    other.write_all(b"other").unwrap();
    assert!(!sink.cut(3).unwrap(), "it is not at the end");
    assert!(sink.write(b"two", WHOLE, None, None).1.is_ok());
    assert!(!sink.cut(4).unwrap(), "a part of it is not at the end");
    assert!(sink.cut(3).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"oneother");
}

#[test]
fn sink_leaves_no_hole_behind_what_it_takes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let mut file = File::create(&path).unwrap();
    let mut sink = Sink::new(file.as_fd()).unwrap();
    assert!(sink.write(b"one part", WHOLE, None, None).1.is_ok());
    assert!(sink.cut(5).unwrap());
    file.write_all(b"s").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"ones");
}

fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    let mut sink = Sink::new(writer.as_fd()).unwrap();
    let (_, halt) = sink.write(&vec![b'x'; 1 << 24], WHOLE, None, Some(Duration::ZERO));
    assert!(matches!(halt, Err(Halt::TimedOut(_))));
    (reader, writer)
}

#[test]
fn sink_ends_with_its_timeout_and_with_a_stop() {
    let (_reader, writer) = full_pipe();
    let mut sink = Sink::new(writer).unwrap();
    let (accepted, halt) = sink.write(b"more", WHOLE, None, Some(Duration::from_millis(1)));
    assert!(matches!((accepted, halt), (0, Err(Halt::TimedOut(_)))));
    let (stop, asked) = pipe().unwrap();
    drop(asked);
    let (accepted, halt) = sink.write(b"more", WHOLE, Some(stop.as_fd()), None);
    assert!(matches!((accepted, halt), (0, Err(Halt::Stopped))));
}

#[test]
fn sink_writes_whole_records_to_a_pipe_as_long_as_they_fit() {
    let (mut reader, writer) = pipe().unwrap();
    let mut sink = Sink::new(writer).unwrap();
    let records = |at: usize| at / 3000 * 3000;
    let (accepted, _) = sink.write(&vec![b'x'; 1 << 20], &records, None, Some(Duration::ZERO));
    assert!(accepted > 0 && accepted % 3000 == 0, "{accepted}");
    drop(sink);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), accepted);
}
