//! Firecracker 1.16: `src/vmm/src/devices/virtio/{vhost_user.rs,block/vhost_user/device.rs}`. It
//! does not connect again, and its device cannot be reset.

use super::script::Message::*;
use super::script::{Acknowledged, Base, COMMON, Message, Vmm};
use super::{kills, lives};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

const CONNECT: &[Message] =
    &[Owner, GetFeatures, GetProtocolFeatures, SetProtocolFeatures, Config(0, 60)];

const START: &[Message] =
    &[SetFeatures, Memory, Each(&[Num]), Each(&[Address, Base, Call, Kick, Enable(true)])];

/// With `"cache_type": "Writeback"`.
pub const WRITEBACK: Vmm = Vmm {
    name: "Firecracker 1.16",
    features: COMMON | 1 << VIRTIO_BLK_F_FLUSH,
    protocol: Protocol::CONFIG,
    acknowledged: Acknowledged::None,
    queues: 1,
    queue_size: 256,
    inflight_size: 256,
    connect: CONNECT,
    start: START,
    stop: None,
    pause: None,
    reconnect: None,
    base: Base::Available,
};

/// With the default of `cache_type`: each write is durable when it is answered.
pub const UNSAFE: Vmm = Vmm { name: "Firecracker 1.16, \"Unsafe\"", features: COMMON, ..WRITEBACK };

#[test]
fn firecracker_is_served_through_its_life() {
    lives(&WRITEBACK);
    lives(&UNSAFE);
}

#[test]
fn firecracker_finds_a_sound_disk_after_backends_were_killed() {
    kills::within_requests(&WRITEBACK);
    kills::within_requests(&UNSAFE);
}
