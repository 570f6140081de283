//! QEMU 7.2 and later: `hw/block/vhost-user-blk.c`, `hw/virtio/vhost.c`, `hw/virtio/vhost-user.c`.

use super::script::Message::*;
use super::script::{Base, COMMON, DISK, Message, Vmm};
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
    Config(0, 60),
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
    acknowledged: false,
    queues: 4,
    queue_size: 128,
    connect: FIRST,
    start: START,
    stop: Some(STOP),
    pause: Some((STOP, START)),
    reconnect: Some(CONNECT),
    base: Base::Used,
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
