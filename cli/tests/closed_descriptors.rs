//! Standard descriptors that are closed at the start, or open in the other direction.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use ring_test_support::assert_fails;

/// Every command that reports on standard output.
const REPORTS: [&str; 8] = [
    "consume ring",
    "diagnostics ring",
    "diagnostics --json ring",
    "check ring",
    "repair ring",
    "repair --write ring",
    "bench --seconds 0.01 ring",
    "bind 00:04.0",
];

#[test]
fn closed_output_is_refused_before_anything_is_done() {
    let scene = Scene::with_lines(3);
    let before = scene.read("ring");
    for command in REPORTS {
        for output in [">&-", "1< /dev/null", "0>&- >&- "] {
            let failed = scene.shell(&format!("$RING {command} {output}"));
            assert_fails(&failed, 1, "standard output cannot be written");
        }
    }
    assert!(scene.read("ring") == before, "the ring was changed");
    assert_eq!(scene.rest(), "1\n2\n3\n");
}

#[test]
fn dev_null_is_accepted_as_output() {
    let scene = Scene::with_lines(3);
    for output in ["> /dev/null", "1<> /dev/null"] {
        scene.succeed(&format!("$RING check ring {output}"));
    }
    scene.succeed("$RING consume ring > /dev/null");
    assert_eq!(scene.rest(), "");
}

#[test]
fn closed_standard_error_is_refused_where_the_report_goes_there() {
    let scene = Scene::with_lines(3);
    let before = scene.read("ring");
    for command in ["consume --json ring", "produce --json ring", "journal --json --exec true ring"]
    {
        // Only the exit code can tell.
        let failed = scene.shell(&format!("echo x | $RING {command} 2>&-"));
        assert_eq!(failed.status.code(), Some(1), "{command}");
    }
    assert!(scene.read("ring") == before, "the ring was changed");
}

#[test]
fn message_is_not_written_into_a_ring_on_a_closed_descriptor() {
    let scene = Scene::with_lines(3);
    for closed in ["2>&-", "0<&- 2>&-", "0<&- >&- 2>&-"] {
        // A message for standard error each: the ring's file must not be descriptor 2.
        for command in
            ["produce --timeout x ring", "suspend --nothing ring", "consume --timeout 0 ring/"]
        {
            let failed = scene.shell(&format!("RUST_LOG=trace $RING {command} {closed}"));
            assert!(matches!(failed.status.code(), Some(1 | 2)), "{command}: {}", failed.status);
        }
    }
    scene.succeed("RUST_LOG=trace $RING produce ring < /dev/null 2>&- >&-");
    scene.succeed("$RING check ring");
    assert_eq!(scene.rest(), "1\n2\n3\n");
}
