#![allow(clippy::unwrap_used, clippy::float_cmp)]

use super::super::super::sample::tests::sample;
use super::*;
use shared_block_ring::Position;

/// A sample of a ring of 1000 bytes, that many seconds after the first.
fn at(second: u64, consumer: u64, producer: u64) -> Sample {
    let mut sample = sample(consumer, producer);
    sample.at += Duration::from_secs(second);
    sample.producer_ns = Some((1000 + second) * 1_000_000_000);
    sample.earlier = (producer > 0).then(|| (Position::new(producer - 4).unwrap(), 1_000_000_000));
    sample
}

fn noted(samples: Vec<Sample>) -> Ring {
    let mut ring = Ring::default();
    for sample in samples {
        ring.note(Ok(sample), SystemTime::UNIX_EPOCH);
    }
    ring
}

#[test]
fn rates_are_those_between_two_looks() {
    let ring = noted(vec![at(0, 0, 100), at(2, 40, 300)]);
    let rates = ring.rates();
    assert_eq!((rates.bytes_in, rates.bytes_out), (100.0, 20.0));
    assert_eq!((rates.items_in, rates.items_out), (Some(25.0), Some(5.0)));
    assert_eq!(ring.history.len(), 2);
    assert_eq!(noted(vec![at(0, 0, 100)]).rates().bytes_in, 0.0, "one look tells no rate");
}

#[test]
fn ring_that_was_made_anew_begins_anew() {
    let mut other = at(2, 0, 300);
    other.uuid = Some("another".to_owned());
    for second in [at(1, 0, 48), other] {
        let ring = noted(vec![at(0, 0, 100), second]);
        assert_eq!((ring.history.len(), ring.rates().bytes_in), (1, 0.0));
    }
}

#[test]
fn age_is_what_was_seen_and_at_least_what_was_there_before() {
    let seconds = |ring: &Ring| ring.oldest.map(|(age, older)| (age.as_secs(), older));
    let first = at(0, 0, 100);
    assert_eq!(seconds(&noted(vec![at(0, 8, 8)])), None);
    // Items before the first look are as old as the earlier slot says, or older.
    let mut samples = vec![first, at(10, 0, 200), at(20, 0, 300)];
    assert_eq!(seconds(&noted(samples.clone())), Some((1019, true)));
    // The oldest item now came between the first two looks.
    samples.push(at(30, 100, 400));
    assert_eq!(seconds(&noted(samples)), Some((1029, false)));
}

#[test]
fn age_in_a_ring_without_times_is_that_since_the_look_that_found_the_item() {
    let silent = |second, consumer, producer| Sample {
        producer_ns: None,
        earlier: None,
        ..at(second, consumer, producer)
    };
    let seconds = |ring: &Ring| ring.oldest.map(|(age, older)| (age.as_secs(), older));
    let mut samples = vec![silent(0, 0, 100), silent(10, 0, 200)];
    assert_eq!(seconds(&noted(samples.clone())), Some((10, true)));
    samples.push(silent(25, 100, 200));
    assert_eq!(seconds(&noted(samples)), Some((15, false)));
}

#[test]
fn history_is_bounded() {
    let samples = (0..400).map(|second| at(second, 0, 4 * second)).collect();
    assert_eq!(noted(samples).history.len(), HISTORY);
}

#[test]
fn new_refusals_are_kept_with_their_reasons() {
    let refusing = |second, beyond: u64, framing: u64| {
        let backend = serde_json::json!({"refused": {"beyond_free": beyond, "framing": framing}});
        Sample { backend: Some(backend), ..at(second, 0, 0) }
    };
    let ring = noted(vec![refusing(0, 7, 0), refusing(1, 7, 0), refusing(2, 9, 1)]);
    let kept: Vec<_> = ring.refusals.iter().map(|one| (&*one.reason, one.count)).collect();
    assert_eq!(kept, [("framing", 1), ("beyond_free", 2)]);
    assert_eq!((ring.refused(), ring.rates().refusals), (Some(10), 3.0));
    assert_eq!(state::of(&ring), ("refusing", Alarm::Warning));
    assert_eq!(noted(vec![at(0, 0, 0)]).refused(), None);
}

#[test]
fn state_names_what_asks_for_attention() {
    let word = |change: fn(&mut Sample)| {
        let mut sample = at(0, 0, 400);
        change(&mut sample);
        state::of(&noted(vec![sample])).0
    };
    assert_eq!(word(|_| {}), "waiting");
    assert_eq!(word(|sample| sample.has_consumer = Some(false)), "no consumer");
    assert_eq!(word(|sample| sample.suspend = true), "suspending");
    assert_eq!(word(|sample| sample.suspended = true), "suspended");
    assert_eq!(word(|sample| sample.capacity = 440), "nearly full");
    assert_eq!(state::of(&noted(vec![at(0, 400, 400)])).0, "idle");
    assert_eq!(state::of(&noted(vec![at(0, 0, 100), at(1, 0, 200)])).0, "flowing");
    assert_eq!(state::of(&Ring::default()).0, "opening");
    let backend = Some(serde_json::json!({ "fault": "the file was moved" }));
    let ring = noted(vec![Sample { backend, ..at(0, 0, 100) }]);
    assert_eq!(
        (state::of(&ring), ring.fault()),
        (("fault", Alarm::Trouble), Some("the file was moved"))
    );
}

#[test]
fn ring_that_fails_keeps_its_place_and_the_time_of_its_failure() {
    let mut ring = noted(vec![at(0, 0, 100)]);
    let second = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    ring.note(Err(Failure::Missing("nothing there".to_owned())), second(5));
    ring.note(Err(Failure::Corrupt("bad pointer".to_owned())), second(9));
    let trouble = ring.trouble.clone().unwrap();
    assert_eq!(
        (trouble.word, &*trouble.reason, trouble.since),
        ("damaged", "bad pointer", second(5))
    );
    assert_eq!(state::of(&ring), ("damaged", Alarm::Trouble));
    ring.note(Ok(at(10, 0, 100)), second(10));
    assert_eq!(state::of(&ring).0, "waiting");
}

#[test]
fn rows_are_sorted_reversed_and_filtered() {
    let mut model = Model::default();
    for (name, used) in [("a", 0), ("b", 800), ("c", 400), ("unix:/run/d", 400)] {
        model.add(name.into());
        model.note(Path::new(name), Ok(at(0, 0, used)), SystemTime::UNIX_EPOCH);
    }
    let names = |model: &Model| -> Vec<String> {
        model.rows().iter().map(|(address, _)| address.display().to_string()).collect()
    };
    assert_eq!(names(&model), ["a", "b", "c", "unix:/run/d"]);
    model.sort = Sort::Used;
    assert_eq!(names(&model), ["b", "c", "unix:/run/d", "a"]);
    model.reversed = true;
    assert_eq!(names(&model), ["a", "unix:/run/d", "c", "b"]);
    model.filter = "run".to_owned();
    assert_eq!(names(&model), ["unix:/run/d"]);
    assert_eq!((model.count(), model.alarms()), (4, 0));
}

#[test]
fn ring_that_is_gone_for_long_is_forgotten_unless_it_was_named() {
    let second = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    let mut model = Model::default();
    for name in ["named", "matched", "there"] {
        model.add(name.into());
        model.note(Path::new(name), Ok(at(0, 0, 4)), second(0));
    }
    for name in ["named", "matched"] {
        model.note(Path::new(name), Err(Failure::Missing("gone".to_owned())), second(10));
    }
    let named = BTreeSet::from([PathBuf::from("named")]);
    model.forget(&named, second(3000));
    assert_eq!(model.count(), 3);
    model.forget(&named, second(3610));
    assert_eq!(model.addresses().collect::<Vec<_>>(), [Path::new("named"), Path::new("there")]);
}
