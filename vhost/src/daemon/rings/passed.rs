//! Descriptors that a client of the control socket passes for a ring that it adds.

use crate::daemon::sockets::{Purpose, Received, Source, assumed, require};
use ring_program::sockets::PassedSockets;
use serde_json::Value;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// The keys of a call by which it says what each descriptor is.
const KEYS: [&str; 3] = ["ring", "socket", "consumer_socket"];

/// The descriptors of one ring, in the order of [`KEYS`]. A clone is the same descriptors.
#[derive(Debug, Clone, Default)]
pub struct PassedDescriptors([Option<Arc<OwnedFd>>; 3]);

impl PassedDescriptors {
    /// Sorts the descriptors that came with a call. `places` is an object whose values are the
    /// places of the descriptors in their order, from 0 on.
    ///
    /// # Errors
    ///
    /// The first descriptor, or place, that does not fit, in words.
    pub fn sort(places: &Value, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        let mut descriptors: Vec<_> = descriptors.into_iter().map(Some).collect();
        let mut passed = Self::default();
        let places = match places {
            Value::Null => &serde_json::Map::new(),
            places => places.as_object().ok_or("`descriptors` is no object")?,
        };
        for (key, place) in places.iter().filter(|(_, place)| !place.is_null()) {
            let known = KEYS.iter().position(|known| known == key);
            let known = known.ok_or_else(|| format!("`descriptors` has no `{key}`"))?;
            let place = place.as_u64().and_then(|place| usize::try_from(place).ok());
            let descriptor = place.and_then(|place| descriptors.get_mut(place)?.take());
            let descriptor = descriptor.ok_or_else(|| {
                format!("`{key}` is not the place of a descriptor that came with the call")
            })?;
            passed.0[known] = Some(Arc::new(descriptor));
        }
        if descriptors.iter().any(Option::is_some) {
            return Err("a descriptor came that `descriptors` says nothing about".to_owned());
        }
        let [_, guest, consumer] = &passed.0;
        for (socket, purpose) in [(guest, Purpose::Guest), (consumer, Purpose::Consumer)] {
            let checked = socket.as_ref().map_or(Ok(()), |socket| require(socket, Some(purpose)));
            checked.map_err(|e| format!("the socket that was passed: {e}"))?;
        }
        Ok(passed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Takes descriptors in the order of [`numbered`](Self::numbered).
    pub fn of(descriptors: [Option<OwnedFd>; 3]) -> Self {
        Self(descriptors.map(|descriptor| descriptor.map(Arc::new)))
    }

    /// The descriptors, for another program of this process.
    pub fn numbered(&self) -> [Option<BorrowedFd<'_>>; 3] {
        self.0.each_ref().map(|descriptor| descriptor.as_ref().map(|descriptor| descriptor.as_fd()))
    }

    /// The sockets, as those of a service manager are described.
    pub fn described(&self) -> PassedSockets {
        let [_, guest, consumer] = &self.0;
        let purposes = [(guest, Purpose::Guest), (consumer, Purpose::Consumer)];
        let there = purposes.into_iter().filter(|(socket, _)| socket.is_some());
        assumed(&there.map(|(_, purpose)| purpose).collect::<Vec<_>>())
    }

    /// A path that leads to the ring in this process, if the ring was passed.
    pub fn ring_path(&self) -> Option<PathBuf> {
        let [ring, ..] = &self.0;
        Some(format!("/proc/self/fd/{}", ring.as_ref()?.as_raw_fd()).into())
    }

    /// The source of front ends, or of consumers, if it was passed.
    pub fn source(&self, purpose: Purpose) -> Option<Source> {
        let [_, guest, consumer] = &self.0;
        let socket = match purpose {
            Purpose::Guest => guest,
            Purpose::Consumer => consumer,
            Purpose::Metrics => return None,
        };
        Some(Source::Received(Received { socket: Arc::clone(socket.as_ref()?), purpose }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use std::fs::File;
    use std::os::unix::net::UnixListener;

    #[test]
    fn descriptors_are_what_the_call_says() {
        let dir = tempfile::tempdir().unwrap();
        let socket = || OwnedFd::from(UnixListener::bind(dir.path().join("s")).unwrap());
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        let (first, second) = (socket(), file());
        let number = second.as_raw_fd();
        let passed =
            PassedDescriptors::sort(&json!({ "ring": 1, "socket": 0 }), vec![first, second])
                .unwrap();
        assert_eq!(passed.ring_path().unwrap(), PathBuf::from(format!("/proc/self/fd/{number}")));
        assert!(passed.source(Purpose::Guest).is_some());
        assert!(passed.source(Purpose::Consumer).is_none());
        assert_eq!(passed.described().all.len(), 1);
        assert!(PassedDescriptors::sort(&Value::Null, Vec::new()).unwrap().ring_path().is_none());
        for (places, count, wanted) in [
            (json!({ "ring": 1 }), 1, "not the place"),
            (json!({ "ring": 0, "consumer_socket": 0 }), 1, "not the place"),
            (json!({ "ring": "0" }), 1, "not the place"),
            (json!({ "disk": 0 }), 1, "has no `disk`"),
            (json!([0]), 1, "no object"),
            (json!({ "ring": 0 }), 2, "says nothing about"),
            (Value::Null, 1, "says nothing about"),
            (json!({ "socket": 0 }), 1, "socket"),
        ] {
            let descriptors = (0..count).map(|_| file()).collect();
            let error = PassedDescriptors::sort(&places, descriptors).unwrap_err();
            assert!(error.contains(wanted), "{places}: {error}");
        }
    }
}
