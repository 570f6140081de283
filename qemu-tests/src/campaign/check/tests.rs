#![allow(clippy::unwrap_used)]
use super::*;

const RECIPE: Recipe = Recipe { seed: 11 };

fn size(run: u32, batch: u32) -> u32 {
    RECIPE.batch_size(run, batch)
}

/// Makes the batches of a run: `done` acknowledged ones, and `under_way` more.
fn producer(run: u32, done: u32, under_way: u32) -> Vec<Line> {
    let mut log = vec![Line::Run(run), Line::Attached];
    let mut number = 0;
    for batch in 0..done + under_way {
        log.push(Line::Push { batch, size: size(run, batch), number });
        number += size(run, batch);
        if batch < done {
            log.push(Line::Done(batch));
        }
    }
    log
}

/// Returns the items of one batch.
fn stamps(run: u32, batch: u32) -> Vec<Stamp> {
    let before: u32 = (0..batch).map(|batch| size(run, batch)).sum();
    let size = size(run, batch);
    (0..size).map(|index| Stamp { run, batch, index, size, number: before + index }).collect()
}

fn item(stamp: Stamp) -> Line {
    let bytes = RECIPE.item(stamp);
    Line::Item { stamp, length: bytes.len(), hash: hash(&bytes) }
}

/// Returns a consumer's run that is given these batches of these runs, and frees each item by
/// itself.
fn consumer(run: u32, batches: &[(u32, u32)]) -> Vec<Line> {
    let mut log = vec![Line::Run(run), Line::Attached];
    let items = batches.iter().flat_map(|&(run, batch)| stamps(run, batch));
    for (stamp, count) in items.zip(1..) {
        log.extend([item(stamp), Line::Free(count), Line::Freed(count)]);
    }
    log
}

fn ended(mut log: Vec<Line>) -> Vec<Line> {
    log.push(Line::End);
    log
}

fn judge(producers: &[Vec<Line>], consumers: &[Vec<Line>]) -> Result<Tally, Violation> {
    check(&Evidence { recipe: RECIPE, producers, consumers, power_cuts: false })
}

fn judge_cut(producers: &[Vec<Line>], consumers: &[Vec<Line>]) -> Result<Tally, Violation> {
    check(&Evidence { recipe: RECIPE, producers, consumers, power_cuts: true })
}

/// Returns a batch with at least three items, for what happens within one.
fn large_batch(run: u32) -> u32 {
    (1..100).find(|&batch| size(run, batch) >= 3).unwrap()
}

#[test]
fn sound_streams_pass_and_are_counted() {
    let producers = [producer(0, 2, 1), producer(1, 1, 1), vec![], producer(2, 2, 0)];
    let all = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)];
    let tally = judge(&producers, &[ended(consumer(0, &all))]).unwrap();
    assert_eq!((tally.visible, tally.invisible, tally.repeated), (1, 1, 0));
    let items: u32 = all.iter().map(|&(run, batch)| size(run, batch)).sum();
    assert_eq!(tally.delivered, u64::from(items));
    assert_eq!(tally.acknowledged, u64::from(items - size(0, 2)));
}

#[test]
fn consumer_that_died_may_get_again_what_it_had_not_freed() {
    let producers = [producer(0, 2, 0)];
    let first = consumer(0, &[(0, 0)]);
    let again = ended(consumer(1, &[(0, 0), (0, 1)]));
    let onward = ended(consumer(1, &[(0, 1)]));
    // The first item alone is freed in the first of these logs, and its `advance` was under way in
    // the second.
    for keep in [3, 4] {
        let died = first[..keep].to_vec();
        let tally = judge(&producers, &[died, again.clone()]).unwrap();
        assert_eq!(tally.repeated, 1, "{keep}");
    }
    let mut died = first.clone();
    died.pop();
    // All items were given, and the last `advance` had taken effect, or not.
    judge(&producers, &[died.clone(), onward.clone()]).unwrap();
    let last = stamps(0, 0).last().copied().unwrap();
    let mut from_last = vec![Line::Run(1), item(last), Line::Free(1), Line::Freed(1)];
    let more = consumer(2, &[(0, 1)]);
    judge(&producers, &[died.clone(), from_last.clone(), onward.clone()]).unwrap();
    from_last.extend(more[2..].iter().filter(|line| matches!(line, Line::Item { .. })).cloned());
    let count = u64::from(1 + size(0, 1));
    from_last.extend([Line::Free(count), Line::Freed(count), Line::End]);
    judge(&producers, &[died.clone(), from_last]).unwrap();
    // Nothing is left: the `advance` under way was the last one.
    judge(&[producer(0, 1, 0)], &[died, vec![Line::Run(1), Line::Attached, Line::End]]).unwrap();
}

#[test]
fn freed_item_must_not_come_again() {
    let producers = [producer(0, 2, 0)];
    let consumers = [consumer(0, &[(0, 0)]), ended(consumer(1, &[(0, 0), (0, 1)]))];
    let again = judge(&producers, &consumers).unwrap_err();
    assert_eq!(again, Violation::Again(Place(stamps(0, 0)[0])));
}

#[test]
fn acknowledged_item_must_come() {
    let lost = |producers: &[_], batches: &[_], run, batch| {
        let violation = judge(producers, &[ended(consumer(0, batches))]).unwrap_err();
        assert_eq!(violation, Violation::Lost { run, batch });
    };
    lost(&[producer(0, 2, 0)], &[(0, 0)], 0, 1);
    lost(&[producer(0, 2, 0)], &[], 0, 0);
    lost(&[producer(0, 1, 0), producer(1, 1, 0)], &[(1, 0)], 0, 0);
    lost(&[producer(0, 1, 0), producer(1, 1, 0), producer(2, 1, 0)], &[(0, 0), (2, 0)], 1, 0);
    // A batch under way may be missing, but not when the next one of the same run is there.
    lost(&[producer(0, 1, 2)], &[(0, 0), (0, 2)], 0, 1);
}

#[test]
fn batch_comes_whole_or_not_at_all() {
    let batch = large_batch(0);
    let producers = [producer(0, batch, 1), producer(1, 1, 0)];
    let before: Vec<_> = (0..batch).map(|batch| (0, batch)).collect();
    let part = &stamps(0, batch)[..2];
    let mut log = consumer(0, &before);
    log.extend(part.iter().copied().map(item));
    let count = u64::from(part[1].number) + 1;
    log.extend([Line::Free(count), Line::Freed(count)]);
    let at_the_end = judge(&producers[..1], &[ended(log.clone())]).unwrap_err();
    assert_eq!(at_the_end, Violation::Partial { last: Place(part[1]), next: Place(part[1]) });
    let next = stamps(1, 0)[0];
    log.push(item(next));
    let within = judge(&producers, &[ended(log)]).unwrap_err();
    assert_eq!(within, Violation::Partial { last: Place(part[1]), next: Place(next) });
    // The beginning is missing.
    let mut log = consumer(0, &before);
    log.push(item(part[1]));
    assert!(matches!(judge(&producers, &[ended(log)]), Err(Violation::Partial { .. })));
    let mut log = vec![Line::Run(0)];
    let late = stamps(0, 0).last().copied().filter(|stamp| stamp.index > 0);
    let late = late.unwrap_or_else(|| stamps(0, batch)[1]);
    log.push(item(late));
    assert!(matches!(judge(&producers, &[ended(log)]), Err(Violation::Order { .. })));
}

#[test]
fn invented_or_torn_item_is_a_violation() {
    let producers = [producer(0, 1, 0)];
    let deliver = |line: Line| judge(&producers, &[vec![Line::Run(0), line, Line::End]]);
    let good = stamps(0, 0)[0];
    let Line::Item { length, hash, .. } = item(good) else { unreachable!() };
    for wrong in [
        Stamp { run: 9, ..good },
        Stamp { batch: 1, ..good },
        Stamp { size: good.size + 1, ..good },
        Stamp { number: good.number + 1, ..good },
        Stamp { index: good.size, number: good.size, ..good },
    ] {
        assert_eq!(deliver(item(wrong)), Err(Violation::NeverPushed(Place(wrong))));
    }
    let torn = Err(Violation::Torn(Place(good)));
    assert_eq!(deliver(Line::Item { stamp: good, length, hash: hash ^ 1 }), torn);
    assert_eq!(deliver(Line::Item { stamp: good, length: length + 1, hash }), torn);
    assert_eq!(deliver(Line::Scrap(3)), Err(Violation::Scrap(3)));
}

#[test]
fn wrong_order_is_a_violation() {
    let swapped = [ended(consumer(0, &[(0, 1), (0, 0)]))];
    let lost = Violation::Lost { run: 0, batch: 0 };
    assert_eq!(judge(&[producer(0, 2, 0)], &swapped), Err(lost));
    let back = [ended(consumer(0, &[(0, 0), (0, 1), (0, 0)]))];
    assert!(matches!(judge(&[producer(0, 2, 0)], &back), Err(Violation::Order { .. })));
    // The second time round something else is in the place of what was not freed.
    let producers = [producer(0, 2, 0)];
    let first = vec![Line::Run(0), item(stamps(0, 0)[0])];
    let other = ended(consumer(1, &[(0, 1)]));
    assert!(matches!(judge(&producers, &[first, other]), Err(Violation::Order { .. })));
}

#[test]
fn impossible_errors_and_logs_are_violations() {
    let failed = || Line::Failed("cannot write".to_owned());
    let end = [ended(consumer(0, &[]))];
    let at = |log: &[Line]| judge(&[log.to_vec()], &end);
    assert!(matches!(at(&[Line::Run(0), failed()]), Err(Violation::Failed(_))));
    let in_consumer = judge(&[], &[vec![Line::Run(0), failed()], end[0].clone()]);
    assert!(matches!(in_consumer, Err(Violation::Failed(_))));
    assert!(matches!(at(&[Line::Attached]), Err(Violation::Log { .. })));
    assert!(matches!(at(&[Line::Run(0), Line::Done(0)]), Err(Violation::Log { .. })));
    let gap = Line::Push { batch: 1, size: 1, number: 0 };
    assert!(matches!(at(&[Line::Run(0), gap]), Err(Violation::Log { .. })));
    assert!(matches!(judge(&[], &[consumer(0, &[])]), Err(Violation::Log { .. })), "no end");
    let unfreed = vec![Line::Run(0), item(stamps(0, 0)[0]), Line::End];
    assert!(matches!(judge(&[producer(0, 1, 0)], &[unfreed]), Err(Violation::Left { .. })));
    let too_much = vec![Line::Run(0), item(stamps(0, 0)[0]), Line::Free(2), Line::End];
    assert!(matches!(judge(&[producer(0, 1, 0)], &[too_much]), Err(Violation::Log { .. })));
}

#[test]
fn power_cut_takes_back_only_what_was_in_flight_and_not_freed() {
    let producers = [producer(0, 1, 1), producer(1, 1, 0)];
    // The second batch was given whole, nothing of it was freed, and it is gone after the cut.
    let mut cut = consumer(0, &[(0, 0)]);
    cut.extend(stamps(0, 1).into_iter().map(item));
    let after = ended(consumer(1, &[(1, 0)]));
    let tally = judge_cut(&producers, &[cut.clone(), after.clone()]).unwrap();
    assert_eq!((tally.taken_back, tally.invisible), (size(0, 1).into(), 1));
    assert!(matches!(
        judge(&producers, &[cut.clone(), after.clone()]),
        Err(Violation::Order { .. })
    ));
    // It is still there.
    let there = ended(consumer(1, &[(0, 1), (1, 0)]));
    assert_eq!(judge_cut(&producers, &[cut.clone(), there]).unwrap().visible, 1);
    // It is gone, and nothing follows.
    let nothing = vec![Line::Run(1), Line::End];
    judge_cut(&producers[..1], &[cut.clone(), nothing]).unwrap();
    // Acknowledged, it must not be gone; nor when it was freed.
    let acknowledged = [producer(0, 2, 0), producer(1, 1, 0)];
    let gone = judge_cut(&acknowledged, &[cut, after.clone()]).unwrap_err();
    assert!(matches!(gone, Violation::Order { .. }), "{gone}");
    let freed = [consumer(0, &[(0, 0), (0, 1)]), consumer(1, &[(0, 1)]), after];
    assert!(matches!(judge_cut(&producers, &freed), Err(Violation::Again(_))));
}
