//! Rings whose file and sockets a client of the control socket passes.
#![allow(clippy::unwrap_used)]

use crate::common::rings::{Rings, answer, data_process, ends_well};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen,
    sendmsg, socket,
};
use serde_json::{Value, json};
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::{CreateOptions, MappedDevice, create};
use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Makes a listening socket of sequential packets.
fn packets(path: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let made = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    bind(made.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&made, Backlog::new(4).unwrap()).unwrap();
    made
}

/// Makes a ring in a file without a name.
fn ring() -> File {
    let geometry = Geometry::new(SectorSize::new(512).unwrap(), 128).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(geometry.total_bytes()).unwrap();
    let device = MappedDevice::new(file.try_clone().unwrap(), "ring", geometry).unwrap();
    create(&device, CreateOptions::default()).unwrap();
    file
}

/// Calls with descriptors, in two pieces, the first of which has them.
fn call(rings: &Rings, parameters: &Value, descriptors: &[&OwnedFd]) -> Value {
    let stream = UnixStream::connect(rings.scene.path("control")).unwrap();
    let call = json!({ "method": "io.blockring.Rings.Add", "parameters": parameters });
    let bytes = format!("{call}\0").into_bytes();
    let raw: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let (first, rest) = bytes.split_at(7);
    let rights = [ControlMessage::ScmRights(&raw)];
    for (part, control) in [(first, &rights[..]), (rest, &[])] {
        let part = [IoSlice::new(part)];
        sendmsg::<()>(stream.as_raw_fd(), &part, control, MsgFlags::empty(), None).unwrap();
    }
    answer(stream)
}

/// The sockets of a ring of that name, where its own would be.
fn sockets(rings: &Rings, name: &str) -> [OwnedFd; 2] {
    let folder = rings.folder(name);
    fs::create_dir_all(&folder).unwrap();
    [UnixListener::bind(folder.join("s")).unwrap().into(), packets(&folder.join("c"))]
}

const ALL: [&str; 3] = ["ring", "socket", "consumer_socket"];

fn places(keys: &[&str]) -> Value {
    keys.iter().enumerate().map(|(place, key)| ((*key).to_owned(), json!(place))).collect()
}

#[test]
fn ring_of_passed_descriptors_is_served_over_upgrades_and_leaves_them_to_their_maker() {
    let rings = Rings::new(&["own"]);
    let daemon = rings.start(&["--socket-mode", "0666"]);
    let open = || fs::read_dir(format!("/proc/{}/fd", daemon.0.id())).unwrap().count();
    let before = open();
    let (file, [guests, consumers]) = (OwnedFd::from(ring()), sockets(&rings, "passed"));
    let parameters = json!({ "name": "passed", "configuration": "", "descriptors": places(&ALL) });
    let added = call(&rings, &parameters, &[&file, &guests, &consumers]);
    assert!(added.get("error").is_none(), "{added}");
    let shown = rings.done("Show", &json!({ "name": "passed" }));
    assert!(shown["ring"]["path"].as_str().unwrap().starts_with("/proc/self/fd/"), "{shown}");
    rings.carries("passed", &mut rings.guest("passed"), "an item");
    for whole in [false, true, true] {
        let served_by = data_process(&daemon);
        rings.done("Upgrade", &json!({ "whole": whole }));
        assert_ne!(data_process(&daemon), served_by);
        rings.carries("passed", &mut rings.guest("passed"), "an item after an upgrade");
    }
    rings.done("Remove", &json!({ "name": "passed" }));
    // Nothing but what the next program has for itself.
    assert!(open() <= before + 1, "{} descriptors, then {}", before, open());
    for socket in ["s", "c"] {
        assert!(rings.folder("passed").join(socket).exists(), "its maker removes it");
    }
    let again = call(&rings, &parameters, &[&file, &guests, &consumers]);
    assert!(again.get("error").is_none(), "{again}");
    rings.carries("passed", &mut rings.guest("passed"), "an item after all");
    ends_well(daemon);
}

#[test]
fn descriptors_that_do_not_fit_are_refused_and_closed() {
    let rings = Rings::new(&["own"]);
    let daemon = rings.start(&[]);
    let file = OwnedFd::from(ring());
    let [guests, consumers] = sockets(&rings, "vm");
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let path = rings.folder("vm").join("other").display().to_string();
    let text = |option: &str| format!("{option} = {path:?}\nguest = \"producer\"\n");
    let all = places(&ALL);
    for (name, text, places, descriptors, wanted) in [
        ("vm", "", &places(&["ring"]), [&file, &writer, &writer], "says nothing about"),
        ("vm", "", &all, [&file, &consumers, &guests], "not a UNIX stream socket"),
        ("vm", "", &all, [&file, &writer, &consumers], "passed"),
        ("vm", &text("blk-file"), &all, [&file, &guests, &consumers], "one of them is enough"),
        ("vm", &text("socket-path"), &all, [&file, &guests, &consumers], "socket-path"),
        ("vm", &text("consumer-socket"), &all, [&file, &guests, &consumers], "consumer-socket"),
        ("vm", "", &all, [&writer, &guests, &consumers], "/proc/self/fd/"),
        ("own", "", &all, [&file, &guests, &consumers], "there already"),
    ] {
        let parameters = json!({ "name": name, "configuration": text, "descriptors": places });
        let refused = call(&rings, &parameters, &descriptors);
        assert_eq!(refused["error"], "io.blockring.Rings.Refused", "{refused}");
        let reason = refused["parameters"]["reason"].as_str().unwrap();
        assert!(reason.contains(wanted), "{reason:?} lacks {wanted:?}");
    }
    let parameters = json!({ "name": "own", "descriptors": all });
    let refused = call(&rings, &parameters, &[&file, &guests, &consumers]).to_string();
    assert!(refused.contains("go with a `configuration`"), "{refused}");
    // What could not be added leaves nothing.
    assert_eq!(rings.states(), [("own".to_owned(), "serving".to_owned())]);
    // The other end hears of the end: the daemon has closed its own.
    drop(writer);
    assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
    ends_well(daemon);
}
