//! The map of a ring: what lies where in its data area.

use serde::Serialize;
use shared_block_ring::format::Geometry;

/// The state of a run of bytes of the data area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Free: the next items go there.
    Free,
    /// Published, and not consumed.
    Published,
    /// Written, with a slot for it, and not published: the producer's pointer is not behind it yet.
    Pending,
    /// Published, and not what the producer wrote.
    Damaged,
    /// Unknown, since a pointer is damaged.
    Unknown,
}

impl State {
    /// All states, in the order in which a legend has them.
    pub const ALL: [Self; 5] =
        [Self::Published, Self::Pending, Self::Damaged, Self::Free, Self::Unknown];

    /// Returns the name, as it is in the table, in JSON and in the picture's classes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Published => "published",
            Self::Pending => "pending",
            Self::Damaged => "damaged",
            Self::Unknown => "unknown",
        }
    }
}

/// A run of bytes of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First byte on the device.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// State of the bytes.
    pub state: State,
    /// The position of the first byte; for free space that of the byte that will lie there.
    pub position: Option<u64>,
}

/// The positions that decide what lies where.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// The consumer's position.
    pub consumer: u64,
    /// The producer's position, not before the consumer's.
    pub producer: u64,
    /// The end of what is pending; the producer's position if nothing is.
    pub pending: u64,
    /// The published bytes that are damaged: from here up to the producer's position.
    pub damaged_from: u64,
}

/// Returns the extents of the whole data area, in the device's order.
pub fn extents(geometry: Geometry, marks: Option<Marks>) -> Vec<Extent> {
    let capacity = geometry.capacity().get();
    let Some(Marks { consumer, producer, pending, damaged_from }) = marks else {
        let (offset, state) = (geometry.data_start(), State::Unknown);
        return vec![Extent { offset, bytes: capacity, state, position: None }];
    };
    let end = consumer.saturating_add(capacity);
    let damaged_from = damaged_from.clamp(consumer, producer);
    let pending = pending.clamp(producer, end);
    let runs = [
        (consumer, damaged_from, State::Published),
        (damaged_from, producer, State::Damaged),
        (producer, pending, State::Pending),
        (pending, end, State::Free),
    ];
    let mut found = Vec::new();
    for (from, to, state) in runs {
        let mut position = from;
        for run in geometry.extents(from, to.saturating_sub(from)) {
            if run.len > 0 {
                let (offset, bytes) = (run.offset, run.len);
                found.push(Extent { offset, bytes, state, position: Some(position) });
                position += run.len;
            }
        }
    }
    found.sort_by_key(|extent| extent.offset);
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use shared_block_ring::format::SectorSize;

    fn geometry() -> Geometry {
        Geometry::new(SectorSize::DEFAULT, 7).unwrap()
    }

    fn marks(consumer: u64, producer: u64) -> Marks {
        Marks { consumer, producer, pending: producer, damaged_from: producer }
    }

    fn names(marks: Marks) -> Vec<(u64, u64, &'static str)> {
        let found = extents(geometry(), Some(marks));
        found.iter().map(|extent| (extent.offset, extent.bytes, extent.state.name())).collect()
    }

    #[test]
    fn extents_split_at_the_wrap_point() {
        // 2048 bytes of data area behind 1536.
        assert_eq!(names(marks(0, 0)), [(1536, 2048, "free")]);
        assert_eq!(names(marks(0, 2048)), [(1536, 2048, "published")]);
        assert_eq!(
            names(marks(2000, 2100)),
            [(1536, 52, "published"), (1588, 1948, "free"), (3536, 48, "published")]
        );
    }

    #[test]
    fn extents_name_what_is_pending_and_what_is_damaged() {
        let marks = Marks { consumer: 100, producer: 500, pending: 600, damaged_from: 300 };
        assert_eq!(
            names(marks),
            [
                (1536, 100, "free"),
                (1636, 200, "published"),
                (1836, 200, "damaged"),
                (2036, 100, "pending"),
                (2136, 1448, "free"),
            ]
        );
        let unknown = extents(geometry(), None);
        assert_eq!((unknown.len(), unknown[0].bytes, unknown[0].state), (1, 2048, State::Unknown));
    }

    proptest! {
        #[test]
        fn extents_cover_the_data_area_once(
            consumer in 0u64..1 << 40, used in 0u64..=2048, pending in 0u64..4096, damaged in 0u64..4096,
        ) {
            let producer = consumer + used;
            let (pending, damaged_from) = (producer + pending, consumer + damaged);
            let marks = Marks { consumer, producer, pending, damaged_from };
            let mut at = 1536;
            for extent in extents(geometry(), Some(marks)) {
                prop_assert_eq!(extent.offset, at);
                prop_assert!(extent.bytes > 0);
                at += extent.bytes;
            }
            prop_assert_eq!(at, 1536 + 2048);
        }
    }
}
