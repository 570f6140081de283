//! Verifying a ring offline.

use crate::device::BlockDevice;
use crate::error::Result;
use crate::format::Side;
use crate::handle::Handle;
use crate::rules::plausible;
use crate::window::Window;

/// What a sound ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sound {
    /// Items published and not consumed.
    pub items: u64,
    /// Bytes of their payload.
    pub bytes: u64,
}

/// Verifies identity, pointers, and the framing of every unconsumed item, without writing. An unsound ring is an
/// [`Error::Format`](crate::Error::Format) that names what is wrong with it.
pub fn check<D: BlockDevice>(device: D) -> Result<Sound> {
    let mut handle = Handle::open(device, "", "")?;
    let producer = handle.read_pointer(Side::Producer)?.position;
    let mut at = handle.read_pointer(Side::Consumer)?.position;
    plausible(producer, at, handle.geometry)?;
    let mut window = Window::empty();
    let mut sound = Sound::default();
    while at < producer {
        let header = window.load(&handle.device, at, producer)?;
        sound.items += 1;
        sound.bytes += u64::from(header.length);
        at = header.next;
    }
    Ok(sound)
}
