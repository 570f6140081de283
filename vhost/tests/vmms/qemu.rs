//! QEMU 7.2.22 and 10.0.13: `hw/block/vhost-user-blk.c`, `hw/virtio/{vhost,vhost-user,virtio}.c`,
//! and what a proxy between the two and the backend has seen. Both send the same messages; they
//! differ in the answers that they ask for and in the size of queues.

use super::script::Message::*;
use super::script::{Acknowledged, Base, COMMON, DISK, IN_ORDER, Message, Vmm};
use super::{kills, lives};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

const CONNECT: &[Message] = &[
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures,
    QueueNum,
    MemSlots,
    Owner,
    GetFeatures,
    Each(&[MaskedCall, Err]),
];

const FIRST: &[Message] = &[
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures,
    QueueNum,
    MemSlots,
    Owner,
    GetFeatures,
    Each(&[MaskedCall, Err]),
    Config(0, 57),
];

/// `vhost_dev_prepare_inflight` sends the features, too.
const START: &[Message] = &[
    SetFeatures,
    Inflight,
    Each(&[Call]),
    SetFeatures,
    AddMemory,
    Each(&[Num, Base, Address, Kick]),
    Each(&[Enable(true)]),
];

const STOP: &[Message] = &[Each(&[Enable(false)]), Each(&[GetBase])];

pub const QEMU: Vmm = Vmm {
    name: "QEMU 7.2",
    // It masks what it does not know of a disk, `IN_ORDER` among it.
    features: COMMON | DISK,
    protocol: Protocol::all(),
    acknowledged: Acknowledged::None,
    queues: 4,
    queue_size: 128,
    inflight_size: 128,
    connect: FIRST,
    start: START,
    stop: Some(STOP),
    pause: Some((STOP, START)),
    reconnect: Some(CONNECT),
    base: Base::Used,
};

/// With `in_order=on`, without which it masks that feature, and the default `queue-size`: 10.0.13
/// gives the guest queues of 1024 all the same, and has the in-flight region made for
/// `queue-size`.
const QEMU_10: Vmm = Vmm {
    name: "QEMU 10.0",
    features: COMMON | DISK | IN_ORDER,
    acknowledged: Acknowledged::Enable,
    queue_size: 1024,
    ..QEMU
};

#[test]
fn qemu_is_served_through_its_life() {
    lives(&QEMU);
}

#[test]
fn qemu_loses_and_repeats_nothing_when_backends_are_killed() {
    kills::within_requests(&QEMU);
}

#[test]
fn qemu_finds_the_next_backend_when_one_is_killed_in_the_handshake() {
    kills::within_handshake(&QEMU);
}

#[test]
fn qemu_10_is_served_through_its_life() {
    lives(&QEMU_10);
}

#[test]
fn qemu_10_loses_and_repeats_nothing_when_backends_are_killed() {
    kills::within_requests(&QEMU_10);
}

#[test]
fn qemu_10_finds_the_next_backend_when_one_is_killed_in_the_handshake() {
    kills::within_handshake(&QEMU_10);
}
