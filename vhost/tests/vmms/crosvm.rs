//! crosvm: `devices/src/virtio/vhost_user_frontend/mod.rs`. It does not connect again.

use super::script::Message::*;
use super::script::{Acknowledged, Base, COMMON, Message, Vmm};
use super::{kills, lives};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

/// The driver reads the configuration space field by field, and each read is a message.
const CONNECT: &[Message] = &[
    Owner,
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures,
    QueueNum,
    Config(0, 8),
    Config(12, 4),
    Config(20, 4),
    Config(32, 1),
    Config(34, 2),
];

const START: &[Message] =
    &[SetFeatures, Memory, Each(&[Num, Address, Base, Call, Kick, Enable(true)])];

const STOP: &[Message] = &[Each(&[Enable(false), GetBase])];

/// With `max-queue-size=256`.
pub const CROSVM: Vmm = Vmm {
    name: "crosvm",
    // All that concerns a disk, but no indirect descriptors.
    features: COMMON | 0xff_ffff,
    protocol: Protocol::CONFIG
        .union(Protocol::MQ)
        .union(Protocol::BACKEND_REQ)
        .union(Protocol::DEVICE_STATE)
        .union(Protocol::REPLY_ACK),
    acknowledged: Acknowledged::None,
    queues: 4,
    queue_size: 256,
    inflight_size: 256,
    connect: CONNECT,
    start: START,
    stop: Some(STOP),
    pause: Some((STOP, START)),
    reconnect: None,
    base: Base::Available,
};

#[test]
fn crosvm_is_served_through_its_life() {
    lives(&CROSVM);
}

#[test]
fn crosvm_finds_a_sound_disk_after_backends_were_killed() {
    kills::within_requests(&CROSVM);
}
