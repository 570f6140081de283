//! A new pointer sector of the guest.

use super::slot::{self, Claim, Found, find};
use super::{Known, Refusal, Ring, number, other, sector_of};
use shared_block_ring::format::Side;

impl Ring {
    /// Returns the guest's state after it has stored this pointer sector.
    pub(super) fn pointer(&self, bytes: &[u8], new: &[u8]) -> Result<Known, Refusal> {
        let host = self.position(bytes, other(self.guest));
        if !host.is_multiple_of(4) {
            return Err("host_corrupt");
        }
        if new[8] != 1 && new[8] != 2 {
            return Err("pointer_flag");
        }
        let to = number(&new[..8]);
        if !to.is_multiple_of(4) {
            return Err("pointer_misaligned");
        }
        let from = self.known.position;
        let (producer, consumer) = self.pair(bytes, from);
        if consumer > producer || producer - consumer > self.capacity() {
            return Err("host_corrupt");
        }
        if to < from {
            return Err("pointer_backwards");
        }
        let limit = if self.guest == Side::Producer {
            u128::from(consumer) + u128::from(self.capacity())
        } else {
            u128::from(producer)
        };
        if u128::from(to) > limit || to > 1 << 63 {
            return Err("pointer_beyond");
        }
        let claim = self.slots(bytes, new, to)?;
        let published = if self.guest == Side::Producer { to } else { producer };
        let starts = |from, to| self.items(bytes, from, to, published);
        let Some(claim) = claim else {
            starts(from, to)?;
            return Ok(Known { position: to, flag: new[8], claim: Claim::from_here(to) });
        };
        let mine = self.known.claim;
        let true_count = if (claim.base, claim.since_base) == (mine.base, mine.since_base) {
            Some(mine.items + starts(from, to)?.len() as u64)
        } else if claim.since_base && (from..=to).contains(&claim.base) {
            let mut places = starts(from, to)?;
            places.push(to);
            let base = places.iter().position(|&place| place == claim.base);
            Some((places.len() - 1 - base.ok_or("item_count")?) as u64)
        } else if self.guest == Side::Producer || !claim.possible(to) {
            return Err("item_count");
        } else {
            // The host may have written this at any time.
            match find(self.uuid.unwrap(), self.sector(bytes, 1), host) {
                Found::Broken => return Err("host_corrupt"),
                Found::Slot(told) if told.base == claim.base || told.base_free(claim) => {
                    if told.since_base != claim.since_base {
                        return Err("item_count");
                    }
                    starts(from, to)?;
                    let behind = starts(to, host)?.len() as u64;
                    Some(told.items.checked_sub(behind).ok_or("item_count")?)
                }
                Found::Slot(_) | Found::Nothing => {
                    starts(from, to)?;
                    None
                }
            }
        };
        if true_count.is_some_and(|count| count != claim.items) {
            return Err("item_count");
        }
        Ok(Known { position: to, flag: new[8], claim })
    }

    /// Returns what the slot of the new position claims.
    fn slots(&self, bytes: &[u8], new: &[u8], to: u64) -> Result<Option<Claim>, Refusal> {
        if new[9..128].iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let Some(uuid) = self.uuid else { return Err("pointer_extension") };
        if new[9..16].iter().chain(&new[112..128]).any(|&byte| byte != 0) {
            return Err("pointer_extension");
        }
        let old = self.sector(bytes, sector_of(self.guest));
        let present = number(&old[..8]);
        let changed: Vec<usize> =
            [16, 64].into_iter().filter(|&at| old[at..at + 48] != new[at..at + 48]).collect();
        let speaks = |sector: &[u8], at: usize, position: u64| {
            slot::decode(uuid, &sector[at..at + 48]).is_some_and(|(of, _)| of == position)
        };
        let kept = match changed[..] {
            // Left by a writer that died before it stored the position.
            [] => to == present || speaks(new, 16, to) || speaks(new, 64, to),
            [at] => speaks(new, at, to) && !speaks(old, at, present),
            _ => false,
        };
        if !kept {
            return Err("pointer_extension");
        }
        match find(uuid, new, to) {
            Found::Slot(claim) => Ok(Some(claim)),
            Found::Nothing => Ok(None),
            Found::Broken => Err("pointer_extension"),
        }
    }

    /// Returns the starts of the items between two positions, if one ends exactly at the second.
    pub fn items(
        &self,
        bytes: &[u8],
        from: u64,
        to: u64,
        published: u64,
    ) -> Result<Vec<u64>, Refusal> {
        let mut starts = Vec::new();
        let mut at = u128::from(from);
        while at < u128::from(to) {
            let place = self.place(u64::try_from(at).unwrap());
            let length = u128::from(number(&bytes[place..place + 4]));
            starts.push(u64::try_from(at).unwrap());
            at += 4 + length;
            while at % 4 != 0 {
                at += 1;
            }
            if at > u128::from(published) {
                return Err("item_framing");
            }
        }
        if at == u128::from(to) { Ok(starts) } else { Err("item_framing") }
    }
}
