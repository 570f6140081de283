//! `examples/guest-journal-to-jetstream.sh`: a guest's journal in a JetStream stream.

use super::journal::speaking_guest;
use qemu_tests::scene::{LONG, SOON, Scene};
use qemu_tests::{Daemon, Disk, GuestBuilder, Packages, Result, binaries, wait_until};
use ring_test_support::nats::NatsServer;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

/// Returns the number of messages in the stream of the example; 0 while there is none.
fn messages(server: &NatsServer) -> u64 {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let ask = "CONNECT {\"verbose\":false}\r\nSUB answer 1\r\n\
               PUB $JS.API.STREAM.INFO.JOURNALS answer 0\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("MSG answer ") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    let size = line.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
    let mut answer = vec![0; size];
    reader.read_exact(&mut answer).unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    answer["state"]["messages"].as_u64().unwrap_or(0)
}

/// Returns a command for the example behind `words`, which finds the programs.
fn example(scene: &Scene, server: &NatsServer, words: &[&str]) -> Result<Command> {
    let folder = binaries::programs()?.blockring();
    let folder = folder.parent().unwrap().display().to_string();
    let script = binaries::workspace().join("examples/guest-journal-to-jetstream.sh");
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(script).arg("web").arg(server.address()).arg(scene.dir());
    command.env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap_or_default()));
    Ok(command)
}

/// Starts the example, and again whenever it has failed, in namespaces that end with it.
fn start(scene: &Scene, server: &NatsServer) -> Result<Daemon> {
    let again = "until \"$@\"; do sleep 0.1; done";
    let words = ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", again, "sh"];
    let command = example(scene, server, &[&["unshare"], &words[..]].concat())?;
    let mut example = Daemon::spawn("example", command, scene.dir())?;
    example.wait_for_path(&scene.path("web.sock"), SOON)?;
    Ok(example)
}

#[test]
fn example_ends_when_one_of_its_programs_has_ended() -> Result<()> {
    let (server, scene) = (NatsServer::start(""), Scene::new(&[]));
    let mut first = Daemon::spawn("first", example(&scene, &server, &["bash"])?, scene.dir())?;
    let answers = || scene.blockring(&["health", "unix:web.out"]).status.success();
    assert!(wait_until(SOON, answers), "{}", first.stderr());
    // The second backend finds the ring served.
    let mut second = Daemon::spawn("second", example(&scene, &server, &["bash"])?, scene.dir())?;
    assert_eq!(second.wait(SOON)?.code(), Some(1));
    assert!(second.stderr().contains("in use"), "{}", second.stderr());
    assert!(answers(), "{}", first.stderr());
    assert_eq!(first.terminate(SOON)?.code(), Some(0));
    assert!(!answers() && !scene.path("web.sock").exists());
    Ok(())
}

#[test]
fn journal_of_a_guest_is_in_jetstream_once_over_a_kill_of_all_that_forwards_it() -> Result<()> {
    let server = NatsServer::start("");
    let scene = Scene::new(&[]);
    let disk = speaking_guest(scene.dir(), &Packages::make("1")?, "journal")?;
    let example = start(&scene, &server)?;
    let socket = Disk::vhost_user(scene.path("web.sock")).reconnecting();
    let guest = GuestBuilder::new().processors(2).memory_mib(384).system(&disk).disk(socket);
    let guest = guest.boot()?;
    let has = |count: u64| wait_until(LONG, || messages(&server) >= count);
    assert!(has(200), "{} messages\n{}", messages(&server), example.stderr());
    drop(example);
    let example = start(&scene, &server)?;
    let before = messages(&server);
    assert!(has(before + 200), "{before} messages\n{}", example.stderr());
    guest.check("systemctl stop speaker; journalctl --sync")?;
    let count = || -> Result<u64> {
        let text = guest.check("journalctl --quiet --output=export | grep -ac ^__CURSOR=")?;
        Ok(text.trim().parse().unwrap())
    };
    let mut last = (0, 0);
    let is_complete = wait_until(LONG, || {
        last = (count().unwrap(), messages(&server));
        last.0 == last.1
    });
    assert!(is_complete, "{} entries, {} messages\n{}", last.0, last.1, example.stderr());
    guest.power_off()
}
