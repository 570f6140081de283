//! Writes of several queues at once, compared with the oracle: their answers, and the ring after
//! them, are those of some order in which each queue keeps its own.
#![allow(clippy::unwrap_used)]

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use ring_simulation::oracle::states::random_ring;
use ring_simulation::oracle::{Ring, writes};
use ring_test_support::executor_disk::{Disk, open};
use ring_test_support::worker_disk::{Direct, Payload, Place};
use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;

/// Rings that are tried, each with other writes.
const CASES: usize = 1000;

/// Writes of which a case chooses.
const CHOICE: usize = 60;

/// Queues at most, and requests of each.
const QUEUES: usize = 4;
const REQUESTS: usize = 3;

/// A write, and whether it was carried out.
struct Answered {
    first: usize,
    bytes: Vec<u8>,
    done: bool,
}

/// Orders that are looked at until one explains what was answered.
#[derive(Default)]
struct Search {
    /// States from which no order leads to the end: requests taken of each queue, and the ring.
    dead: HashSet<(Vec<usize>, Vec<u8>)>,
    judged: u64,
}

impl Search {
    fn finds_an_order(
        &mut self,
        ring: &Ring,
        taken: &mut Vec<usize>,
        queues: &[Vec<Answered>],
        end: &[u8],
    ) -> bool {
        if taken.iter().zip(queues).all(|(taken, queue)| *taken == queue.len()) {
            return ring.bytes == end;
        }
        let state = (taken.clone(), ring.bytes.clone());
        if self.dead.contains(&state) {
            return false;
        }
        for (number, queue) in queues.iter().enumerate() {
            let Some(next) = queue.get(taken[number]) else { continue };
            self.judged += 1;
            let judged = ring.judge(next.first, &next.bytes);
            if judged.is_ok() != next.done {
                continue;
            }
            let mut after = ring.clone();
            if let Ok(judged) = judged {
                after.becomes(judged);
            }
            taken[number] += 1;
            let found = self.finds_an_order(&after, taken, queues, end);
            taken[number] -= 1;
            if found {
                return true;
            }
        }
        self.dead.insert(state);
        false
    }
}

#[test]
fn writes_of_several_queues_are_decided_in_some_order_of_them() {
    let mut random = SmallRng::seed_from_u64(11);
    let (mut done, mut refused, mut judged, mut mixed) = (0u64, 0u64, 0u64, 0u64);
    for case in 0..CASES {
        let (_, ring) = random_ring(&mut random, case);
        let mut writes = Vec::new();
        writes::all(&ring, &mut |first, bytes| writes.push((first, bytes.to_vec())));
        let writes: Vec<_> = writes.sample(&mut random, CHOICE).cloned().collect();
        // Half of them are such as the oracle grants now, so that their effects meet.
        let granted: Vec<_> =
            writes.iter().filter(|(first, bytes)| ring.judge(*first, bytes).is_ok()).collect();
        let disk = Disk::of(&ring);
        let file = open(&disk.path);
        let flusher =
            Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters))
                .unwrap();
        let direct = Direct::with_queues(disk, QUEUES, flusher);
        // The queues have started when nothing was in them: no write repeats another.
        direct.turn();
        // Writes of data then share flushes, and are answered later.
        direct.set_write_through(case.is_multiple_of(3));
        let mut places: Vec<Vec<(Place, usize, Vec<u8>)>> = vec![Vec::new(); QUEUES];
        for _ in 0..REQUESTS {
            for (number, queue) in places.iter_mut().enumerate() {
                let write =
                    if random.random() { granted.choose(&mut random).copied() } else { None };
                let Some((first, bytes)) = write.or_else(|| writes.choose(&mut random)) else {
                    continue;
                };
                let place = direct.put(number, 0, *first as u64, Payload::Write(bytes));
                queue.push((place, *first, bytes.clone()));
                if random.random_range(0..4) == 0 {
                    direct.round();
                }
            }
        }
        let is_answered = |(place, ..): &(Place, usize, Vec<u8>)| direct.status(*place).is_some();
        while !places.iter().flatten().all(is_answered) {
            direct.turn();
        }
        let answered = |(place, first, bytes): (Place, usize, Vec<u8>)| {
            let status = direct.status(place).unwrap();
            Answered { first, bytes, done: status == 0 }
        };
        let queues: Vec<Vec<_>> =
            places.into_iter().map(|queue| queue.into_iter().map(answered).collect()).collect();
        let mut end = vec![0; ring.bytes.len()];
        file.read_exact_at(&mut end, 0).unwrap();
        let carried_out = queues.iter().flatten().filter(|write| write.done).count() as u64;
        let all = queues.iter().map(Vec::len).sum::<usize>() as u64;
        (done, refused) = (done + carried_out, refused + all - carried_out);
        mixed += u64::from(end != ring.bytes);
        let mut search = Search::default();
        let found = search.finds_an_order(&ring, &mut vec![0; QUEUES], &queues, &end);
        assert!(found, "case {case}: no order of the queues has these answers and this ring");
        judged += search.judged;
    }
    println!(
        "{CASES} rings, {QUEUES} queues: {done} writes carried out, {refused} refused, {mixed} rings changed, {judged} judgements of the oracle"
    );
    assert!(done > 3_000 && refused > 3_000 && mixed > 800);
}
