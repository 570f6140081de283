//! From a batch of items to groups of messages, each of which the stream takes whole or not at all.
//! Pure: no I/O.

use super::record::{Part, Record};
use crate::forward::sink::{Batch, Item};
use crate::oversize::OnTooLarge;
use bytes::Bytes;
use shared_block_ring::Position;
use std::time::SystemTime;
use uuid::Uuid;

/// Messages of a group: the server's limit for a batch.
pub const MAX_MESSAGES: usize = 1000;

/// Payload bytes of a group, unless one item alone is larger. The server keeps a batch twice until
/// it is committed, and more than this makes nothing faster.
const MAX_BYTES: usize = 4 << 20;

/// Bytes of the headers of a message, at most: those of a record (under 250) and of a batch (under
/// 200).
const HEADERS: usize = 512;

/// Rules for the messages of one ring.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub ring: Uuid,
    /// Largest message that the server takes, headers included.
    pub max_message: usize,
    pub on_too_large: OnTooLarge,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub payload: Bytes,
    pub record: Record,
    pub time: Option<SystemTime>,
}

/// Messages that are published at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub messages: Vec<Message>,
    /// Payload bytes of the messages.
    pub bytes: usize,
    /// Position behind the last item of the group, dropped ones included.
    pub next: Position,
    /// Items that were dropped: position and size.
    pub dropped: Vec<(Position, usize)>,
}

/// An item that the server does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the item at position {position} has {size} bytes, and the server takes {limit} at most: raise \
     max_payload in the server's configuration (and the stream's max_msg_size), or choose \
     --on-too-large split or drop"
)]
pub struct TooLarge {
    position: Position,
    size: usize,
    limit: usize,
}

/// Returns the groups of a batch, and the item that ends them early, if there is one. `present` are
/// parts of the first item that are in the stream already: they are left out.
pub fn groups(
    rules: &Rules,
    batch: &Batch,
    mut present: Option<Part>,
) -> (Vec<Group>, Option<TooLarge>) {
    let limit = rules.max_message.saturating_sub(HEADERS).max(1);
    let mut groups: Vec<Group> = Vec::new();
    for item in &batch.items {
        let size = item.range.len();
        let parts = size.div_ceil(limit).max(1);
        let known = present.take();
        if parts > 1 && rules.on_too_large == OnTooLarge::Drop {
            let group = last_or_new(&mut groups, 0, 0);
            group.dropped.push((item.position, size));
            group.next = item.next;
            continue;
        }
        // Parts of one item are in one group, so that no reader finds some of them.
        let too_many = parts > 1 && rules.on_too_large == OnTooLarge::Fail || parts > MAX_MESSAGES;
        // Parts of another size are in the stream: the server's limit was changed in between.
        let misfit = known.is_some_and(|known| known.of != parts);
        if too_many || misfit {
            return (groups, Some(TooLarge { position: item.position, size, limit }));
        }
        let group = last_or_new(&mut groups, parts, size);
        for number in known.map_or(0, |part| part.number)..parts {
            let start = item.range.start + number * limit;
            let end = item.range.end.min(start + limit);
            let part = (parts > 1).then_some(Part { number: number + 1, of: parts });
            group.messages.push(message(rules, batch.bytes.slice(start..end), item, part));
        }
        group.bytes += size;
        group.next = item.next;
    }
    (groups, None)
}

/// Returns the last group, or a new one if the last has no room for that much more.
fn last_or_new(groups: &mut Vec<Group>, messages: usize, bytes: usize) -> &mut Group {
    let has_room = groups.last().is_some_and(|group| {
        group.messages.len() + messages <= MAX_MESSAGES
            && (group.bytes + bytes <= MAX_BYTES || group.messages.is_empty())
    });
    if !has_room {
        groups.push(Group::default());
    }
    let last = groups.len() - 1;
    &mut groups[last]
}

fn message(rules: &Rules, payload: Bytes, item: &Item, part: Option<Part>) -> Message {
    let record = Record { ring: rules.ring, position: item.position, next: item.next, part };
    Message { payload, record, time: item.time }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Makes items of these sizes, from position 1000 on.
    fn batch(sizes: &[usize]) -> Batch {
        let (mut at, mut position, mut items) = (0, 1000_u64, Vec::new());
        for size in sizes {
            let next = position + 4 + (*size as u64).next_multiple_of(4);
            items.push(Item {
                range: at..at + size,
                position: Position::new(position).unwrap(),
                next: Position::new(next).unwrap(),
                time: None,
            });
            (at, position) = (at + size, next);
        }
        Batch { bytes: (0..at).map(|at| at.to_le_bytes()[0]).collect(), items }
    }

    fn rules(payload: usize, on_too_large: OnTooLarge) -> Rules {
        Rules { ring: Uuid::nil(), max_message: payload + HEADERS, on_too_large }
    }

    #[test]
    fn groups_hold_every_item_once_in_order_within_the_limits() {
        let sizes: Vec<usize> = (0..5000).map(|number| number * 37 % 40_000).collect();
        let batch = batch(&sizes);
        let (groups, too_large) = groups(&rules(1 << 20, OnTooLarge::Fail), &batch, None);
        assert_eq!(too_large, None);
        let mut items = batch.items.iter();
        for group in &groups {
            assert!(group.messages.len() <= MAX_MESSAGES && group.bytes <= MAX_BYTES);
            for message in &group.messages {
                let item = items.next().unwrap();
                assert_eq!(message.payload, batch.bytes.slice(item.range.clone()));
                assert_eq!(message.record.position, item.position);
                assert_eq!(message.record.part, None);
            }
            assert_eq!(group.next, group.messages.last().unwrap().record.next);
        }
        assert_eq!(items.next(), None);
    }

    #[test]
    fn groups_end_before_an_item_that_is_too_large() {
        let batch = batch(&[10, 101, 10]);
        let (groups, too_large) = groups(&rules(100, OnTooLarge::Fail), &batch, None);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].next, batch.items[1].position);
        let words = too_large.unwrap().to_string();
        assert!(words.starts_with("the item at position 1016 has 101 bytes"), "{words}");
    }

    #[test]
    fn groups_leave_dropped_items_out_and_name_them() {
        let batch = batch(&[101, 100]);
        let (groups, too_large) = groups(&rules(100, OnTooLarge::Drop), &batch, None);
        assert_eq!((groups.len(), too_large), (1, None));
        assert_eq!(groups[0].dropped, [(batch.items[0].position, 101)]);
        assert_eq!(groups[0].messages.len(), 1);
        assert_eq!(groups[0].next, batch.items[1].next);
    }

    #[test]
    fn groups_hold_the_parts_of_an_item_together() {
        let batch = batch(&[5, 250, 5]);
        let (groups, too_large) = groups(&rules(100, OnTooLarge::Split), &batch, None);
        assert_eq!((groups.len(), too_large), (1, None));
        let sizes: Vec<_> = groups[0].messages.iter().map(|part| part.payload.len()).collect();
        assert_eq!(sizes, [5, 100, 100, 50, 5]);
        let parts = [1, 2, 3].map(|number| Some(Part { number, of: 3 }));
        for (message, part) in groups[0].messages[1..4].iter().zip(parts) {
            assert_eq!(message.record.part, part);
            assert_eq!(message.record.position, batch.items[1].position);
        }
    }

    #[test]
    fn groups_leave_out_parts_that_are_in_the_stream() {
        let batch = batch(&[250]);
        let rules = rules(100, OnTooLarge::Split);
        let (found, _) = groups(&rules, &batch, Some(Part { number: 2, of: 3 }));
        assert_eq!(found[0].messages.len(), 1);
        assert_eq!(found[0].messages[0].payload, batch.bytes.slice(200..));
        let (found, misfit) = groups(&rules, &batch, Some(Part { number: 2, of: 4 }));
        assert!(found.is_empty() && misfit.is_some());
    }

    #[test]
    fn groups_refuse_an_item_with_more_parts_than_a_batch_has_messages() {
        let (groups, too_large) =
            groups(&rules(1, OnTooLarge::Split), &batch(&[MAX_MESSAGES + 1]), None);
        assert!(groups.is_empty() && too_large.is_some());
    }
}
