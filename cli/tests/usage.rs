//! Help texts of `blockring`, its man pages and completions, and its refusals of arguments.
#![allow(clippy::unwrap_used)]

use crate::common::scene::Scene;
use ring_test_support::manual::Manual;
use ring_test_support::{assert_fails, assert_ok};

#[test]
fn bad_number_of_seconds_is_refused_with_its_option() {
    let scene = Scene::with_ring("64K");
    let commands: [&[&str]; 8] = [
        &["ctl", "drain", "--timeout"],
        &["consume", "--timeout"],
        &["produce", "--timeout"],
        &["suspend", "--timeout"],
        &["resume", "--timeout"],
        &["journal", "--exec", "true", "--timeout"],
        &["journal", "--exec", "true", "--retry"],
        &["bench", "--seconds"],
    ];
    for command in commands {
        let option = command[command.len() - 1];
        for value in ["NaN", "inf", "1e20", "-1", "soon"] {
            let output = scene.run(&[command, &[value, "ring"]].concat(), b"");
            assert_fails(&output, 2, &format!("'{value}' for '{option} <S>': it takes a number"));
        }
    }
    for value in ["0", "1e-12"] {
        let output = scene.run(&["bench", "--seconds", value, "ring"], b"");
        assert_fails(&output, 2, "for '--seconds <S>': it takes a number of seconds larger than 0");
    }
    // However short it is, the bench has the ring to itself.
    assert_ok(&scene.run(&["bench", "--seconds", "1e-9", "ring"], b""));
    assert_ok(&scene.run(&["suspend", "--timeout", "1e9", "ring"], b""));
}

#[test]
fn help_names_what_a_command_takes_and_needs() {
    let scene = Scene::new();
    let text = |arguments: &[&str]| {
        let output = scene.run(arguments, b"");
        assert_ok(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(text(&["-V"]), concat!("blockring ", env!("CARGO_PKG_VERSION"), "\n"));
    for command in ["journal", "repair"] {
        let help = text(&[command, "--help"]);
        assert!(help.contains("serial:NAME"), "{help}");
        for address in ["unix:", "vhost-user:", "pci:"] {
            assert!(!help.contains(address), "{command}: {address}");
            let address = format!("{address}0000:00:04.0");
            let more: &[&str] = if command == "journal" { &["--exec", "true"] } else { &[] };
            let output = scene.run(&[&[command, &address], more].concat(), b"");
            assert_fails(&output, 1, "backend");
        }
    }
    assert!(text(&["consume", "--help"]).contains("unix:PATH"));
    for command in ["suspend", "resume"] {
        assert!(text(&[command, "--help"]).contains("--wait waits for a producer"));
    }
    assert!(text(&["bench", "--help"]).contains("blockring consume --follow unix:ring.out"));
    assert!(text(&["consume", "--help"]).contains("frees all of them, the undamaged ones"));
}

#[test]
fn suspend_without_a_producer_stays_a_request() {
    let scene = Scene::with_ring("64K");
    assert_ok(&scene.run(&["suspend", "ring"], b""));
    assert_fails(&scene.run(&["resume", "ring"], b""), 1, "not acknowledged");
    let waiting = scene.run(&["resume", "--wait", "--timeout", "0.05", "ring"], b"");
    assert_fails(&waiting, 3, "not acknowledged");
}

#[test]
fn number_and_sector_size_are_refused_with_what_the_option_takes() {
    let scene = Scene::with_ring("64K");
    let commands: [(&[&str], &str); 7] = [
        (&["consume", "--count"], "it takes a whole number"),
        (&["consume", "--spin-us"], "it takes a whole number"),
        (&["bench", "--batch"], "it takes a whole number larger than 0"),
        (
            &["journal", "--exec", "true", "--aside", "aside", "--limit"],
            "it takes a whole number larger than 0",
        ),
        (&["create", "--sector-size"], "it takes a power of two from 512 to 65536"),
        (&["check", "--sector-size"], "it takes a power of two from 512 to 65536"),
        (&["create", "--size"], "not a size such as 65536, 512K, 8M or 1G"),
    ];
    for (command, words) in commands {
        for value in ["many", "-1", "1.5"] {
            let option = format!("{}={value}", command[command.len() - 1]);
            let arguments = [&command[..command.len() - 1], &[&option, "ring"]].concat();
            assert_fails(&scene.run(&arguments, b""), 2, words);
        }
    }
    for value in ["0", "1000", "256", "131072", "99999999999"] {
        let output = scene.run(&["create", "--sector-size", value, "ring"], b"");
        assert_fails(&output, 2, "it takes a power of two from 512 to 65536");
    }
}

fn manual() -> Manual {
    Manual::of(env!("CARGO_BIN_EXE_blockring"), "generate")
}

#[test]
fn pages_and_completions_have_each_command_and_option() {
    let manual = manual();
    assert!(manual.commands().len() > 10, "{:?}", manual.commands());
    manual.expect_all_that_help_lists(&["EXIT STATUS", "SEE ALSO"]);
    let actions =
        ["list", "show", "stats", "add", "remove", "drain", "suspend", "resume", "reload"];
    let actions = actions.map(|action| format!("ctl-{action}"));
    for command in manual.commands().into_iter().chain(actions) {
        assert!(manual.page(&format!("blockring-{command}")).contains(" EXAMPLES "), "{command}");
    }
    let page = manual.page("blockring-produce");
    for words in [
        "blockring-produce - Push standard input, or what other programs send, into a ring",
        "tail -F /var/log/app.log | blockring produce serial:logs",
        "4 the ring is suspended",
        "Form of messages and log: text, or one JSON object a line",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
}

#[test]
fn pages_and_completions_are_sound() {
    manual().expect_sound_files();
}

#[test]
fn bash_completes_commands_options_and_values() {
    let manual = manual();
    let all = manual.completed(&[""]);
    assert!(manual.commands().iter().all(|command| all.contains(command)), "{all:?}");
    assert!(!all.contains(&"generate".to_owned()), "{all:?}");
    assert_eq!(manual.completed(&["pro"]), ["produce"]);
    assert_eq!(manual.completed(&["produce", "--on-f"]), ["--on-full"]);
    assert_eq!(manual.completed(&["produce", "--on-full", ""]), ["wait", "fail", "drop"]);
    assert_eq!(manual.completed(&["produce", "--on-full", "d"]), ["drop"]);
    // bash offers files itself where the function offers nothing.
    assert_eq!(manual.completed(&["check", "ring.i"]), [""; 0]);
}

#[test]
fn pages_that_cannot_be_written_are_an_error() {
    let scene = Scene::new();
    scene.write("file", "");
    let output = scene.run(&["generate", "file"], b"");
    assert_fails(&output, 1, "cannot write man pages and completions below file: ");
    assert_fails(&scene.run(&["generate"], b""), 2, "<DIRECTORY>");
}
