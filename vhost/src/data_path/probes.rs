//! Static probes (USDT) of the provider `blockring`, for tracers such as bpftrace.
//!
//! Where nobody looks each is a `nop`, beside the arguments that have to be in registers for it.
//! `docs/observability.md` documents them.

use crate::data_path::guard::Reason;
use crate::data_path::request::Kind;
use probe::probe;
use shared_block_ring::Position;

/// A request was taken from the queue of that number, in the chain that begins at `head`.
#[inline]
pub fn request_begin(queue: usize, head: u16, kind: Kind, sector: u64, bytes: u64) {
    probe!(blockring, request_begin, queue, head, kind, sector, bytes);
}

/// The request was answered with that status byte.
#[inline]
pub fn request_end(queue: usize, head: u16, status: u8) {
    probe!(blockring, request_end, queue, head, status);
}

/// A request at that sector, in units of 512 bytes, was refused.
pub fn refusal(reason: Reason, sector: u64) {
    probe!(blockring, refusal, reason.index(), sector);
}

/// The guest's position is now this one.
#[inline]
pub fn publish(position: Position) {
    probe!(blockring, publish, position.get());
}

/// A sleeping process on the host was woken.
pub fn wake() {
    probe!(blockring, wake);
}

/// A flush begins to make the region durable, on a thread of its own.
pub fn flush_begin() {
    probe!(blockring, flush_begin);
}

/// That has ended, with this error of the operating system or with 0.
pub fn flush_end(error: i32) {
    probe!(blockring, flush_end, error);
}
