//! Cloud Hypervisor v53 and later: `virtio-devices/src/vhost_user/{mod,blk,vu_common_ctrl}.rs`.

use super::script::Message::*;
use super::script::{Acknowledged, Base, COMMON, DISK, IN_ORDER, Message, Vmm};
use super::{kills, lives};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

const CONNECT: &[Message] =
    &[Owner, GetFeatures, GetProtocolFeatures, SetProtocolFeatures, QueueNum, Config(0, 60)];

/// It does not ask for the protocol features again.
const RECONNECT: &[Message] = &[Owner, GetFeatures, SetProtocolFeatures];

const START: &[Message] = &[
    SetFeatures,
    Memory,
    Each(&[Num]),
    Inflight,
    Each(&[Address, Base, Call, Kick]),
    Each(&[Enable(true)]),
];

/// Version 53, and a guest whose driver does not know `IN_ORDER`: the base is the available index.
pub const V53: Vmm = Vmm {
    name: "Cloud Hypervisor v53",
    features: COMMON | DISK,
    protocol: Protocol::all(),
    acknowledged: Acknowledged::All,
    queues: 4,
    queue_size: 128,
    inflight_size: 128,
    connect: CONNECT,
    start: START,
    stop: Some(&[Each(&[Enable(false), GetBase])]),
    pause: Some((&[Each(&[Enable(false)])], &[Each(&[Enable(true)])])),
    reconnect: Some(RECONNECT),
    base: Base::Available,
};

/// From commit 5b68d7694 on, with a driver that takes `IN_ORDER`, and no in-flight region.
const IN_ORDER_DRIVER: Vmm = Vmm {
    name: "Cloud Hypervisor after v53, driver with IN_ORDER",
    features: COMMON | DISK | IN_ORDER,
    protocol: Protocol::all().difference(Protocol::INFLIGHT_SHMFD),
    base: Base::InOrder,
    ..V53
};

#[test]
fn cloud_hypervisor_is_served_through_its_life() {
    lives(&V53);
}

#[test]
fn cloud_hypervisor_loses_and_repeats_nothing_when_backends_are_killed() {
    kills::within_requests(&V53);
}

#[test]
fn cloud_hypervisor_finds_the_next_backend_when_one_is_killed_in_the_handshake() {
    kills::within_handshake(&V53);
}

#[test]
fn cloud_hypervisor_with_in_order_is_served_through_its_life() {
    lives(&IN_ORDER_DRIVER);
}

#[test]
fn cloud_hypervisor_with_in_order_loses_and_repeats_nothing_when_backends_are_killed() {
    kills::within_requests(&IN_ORDER_DRIVER);
}
