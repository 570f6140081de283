//! What arrives, whatever happens on the way.

use super::super::options::NatsOptions;
use super::driver::{BATCH, Driver, Ring, STREAM, context, failure, options, read, sink, talk};
use crate::oversize::OnTooLarge;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use ring_test_support::nats::{Fault, NatsServer, Proxy};
use shared_block_ring::Position;
use std::collections::HashSet;
use std::time::Duration;

/// Returns sizes up to 2 KiB, and now and then one of up to 64 KiB.
fn sizes(count: usize, seed: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |number| {
        let random = (number + seed).wrapping_mul(2_654_435_761) >> 7;
        20 + if number % 50 == 7 { random % 65_000 } else { random % 2000 }
    })
}

fn rings(names: &[&str], items: usize) -> Vec<Ring> {
    let ring = |(at, name): (usize, &&str)| Ring::new(name, at as u128 + 1, sizes(items, at));
    names.iter().enumerate().map(ring).collect()
}

#[test]
fn items_of_several_rings_arrive_once_in_order() {
    let server = NatsServer::start("");
    let mut driver = Driver::new(rings(&["a", "b", "c"], 2000));
    driver.finish(&mut sink(&server.address(), options()));
    assert_eq!(driver.failures, Vec::<String>::new());
    driver.verify(&server.address());
}

#[test]
fn items_arrive_once_whatever_fails_between_the_forwarder_and_the_server() {
    let server = NatsServer::start("");
    let proxy = Proxy::start(server.port);
    let mut driver = Driver::new(rings(&["a", "b", "c", "d"], 1500));
    let mut sink = sink(&proxy.address(), options());
    for number in 0..24 {
        driver.advance(&mut sink, 150);
        proxy.strike(match number % 4 {
            0 => Fault::Close,
            1 => Fault::HalfClose,
            2 => Fault::LoseAnswers,
            _ => Fault::Delay(Duration::from_millis(2)),
        });
    }
    driver.finish(&mut sink);
    driver.verify(&server.address());
}

#[test]
fn items_arrive_once_through_crashes_of_the_server() {
    let mut server = NatsServer::start("");
    let mut driver = Driver::new(rings(&["a", "b"], 1500));
    let mut sink = sink(&server.address(), options());
    for _ in 0..5 {
        driver.advance(&mut sink, 300);
        server.restart();
    }
    driver.finish(&mut sink);
    driver.verify(&server.address());
}

#[test]
fn items_arrive_once_whichever_forwarder_goes_on_without_any_window() {
    let mut server = NatsServer::start("");
    talk(async {
        let config = Config {
            name: STREAM.to_owned(),
            subjects: vec!["vm.>".to_owned()],
            duplicate_window: Duration::from_millis(100),
            allow_atomic_publish: true,
            ..Config::default()
        };
        context(&server.address()).await.create_stream(config).await.unwrap();
    });
    let mut driver = Driver::new(rings(&["a", "b"], 1500));
    for number in 0..10 {
        let mut sink = sink(&server.address(), options());
        driver.advance(&mut sink, 250);
        driver.forget();
        drop(sink);
        if number == 5 {
            server.restart();
        }
    }
    driver.finish(&mut sink(&server.address(), options()));
    driver.verify(&server.address());
}

#[test]
fn second_forwarder_of_a_ring_is_told_and_doubles_nothing() {
    let server = NatsServer::start("");
    // More than are on their way at once.
    let mut first = Driver::new(rings(&["a"], 1500));
    let mut sink_of_first = sink(&server.address(), options());
    first.advance(&mut sink_of_first, 1);
    let mut second = Driver::new(rings(&["a"], 1500));
    second.finish(&mut sink(&server.address(), options()));
    first.finish(&mut sink_of_first);
    first.verify(&server.address());
    let words = first.failures.join("\n");
    assert!(words.contains("another forwarder publishes to vm.a.log"), "{words:?}");
}

#[test]
fn lane_goes_on_behind_what_another_forwarder_delivered() {
    let server = NatsServer::start("");
    let mut driver = Driver::new(rings(&["a"], 700));
    driver.advance(&mut sink(&server.address(), options()), 300);
    // A forwarder that knows nothing of these acknowledgements.
    let mut driver = Driver::new(rings(&["a"], 700));
    driver.finish(&mut sink(&server.address(), options()));
    driver.verify(&server.address());
}

#[test]
fn ring_made_anew_starts_behind_the_items_of_the_old_one() {
    let server = NatsServer::start("");
    for uuid in [1, 2] {
        let mut driver = Driver::new(vec![Ring::new("a", uuid, sizes(50, 0))]);
        driver.finish(&mut sink(&server.address(), options()));
        driver.verify(&server.address());
    }
    assert_eq!(read(&server.address(), STREAM).len(), 100);
}

#[test]
fn lane_stops_where_another_ring_has_its_subject() {
    let server = NatsServer::start("");
    // More than are on their way at once.
    let mut driver = Driver::new(vec![Ring::new("a", 1, sizes(2000, 0))]);
    let mut sink_of_one = sink(&server.address(), options());
    driver.advance(&mut sink_of_one, 1);
    let mut other = Driver::new(vec![Ring::new("a", 2, [30])]);
    other.finish(&mut sink(&server.address(), options()));
    driver.finish(&mut sink_of_one);
    // The one that came too late.
    let words = [driver.failures, other.failures].concat().join("\n");
    assert!(words.contains("another ring") && words.contains("--subject"), "{words}");
}

#[test]
fn large_items_are_refused_split_or_dropped() {
    let server = NatsServer::start("max_payload: 4096");
    let options = |on_too_large| NatsOptions { on_too_large, ..options() };
    let sizes = [10, 9000, 20];

    let words = failure(&server.address(), options(None), Ring::new("a", 1, sizes));
    assert!(words.starts_with("a: the item at position 16 has 9000 bytes"), "{words}");
    assert_eq!(read(&server.address(), STREAM).len(), 1);

    let mut driver = Driver::new(vec![Ring::new("b", 2, sizes)]);
    driver.finish(&mut sink(&server.address(), options(Some(OnTooLarge::Drop))));
    let whole: Vec<_> = read(&server.address(), STREAM).split_off(1);
    let sizes_found: Vec<_> = whole.iter().map(|(_, payload)| payload.len()).collect();
    assert_eq!(sizes_found, [10, 20]);

    let ring = Ring::new("c", 3, sizes);
    let expected = ring.expected();
    let mut driver = Driver::new(vec![ring]);
    driver.finish(&mut sink(&server.address(), options(Some(OnTooLarge::Split))));
    let messages = read(&server.address(), STREAM).split_off(3);
    let parts: Vec<_> = messages
        .iter()
        .filter_map(|(record, _)| record.part.map(|part| part.to_string()))
        .collect();
    assert_eq!(parts, ["1/3", "2/3", "3/3"]);
    let joined: Vec<u8> = messages[1..4].iter().flat_map(|(_, part)| part.to_vec()).collect();
    assert_eq!(joined, expected[1].1);
}

#[test]
fn full_stream_keeps_items_in_their_ring_until_there_is_room() {
    let server = NatsServer::start("");
    let config = |max_messages| Config {
        name: STREAM.to_owned(),
        subjects: vec!["vm.>".to_owned()],
        max_messages,
        discard: DiscardPolicy::New,
        allow_atomic_publish: true,
        ..Config::default()
    };
    talk(async { context(&server.address()).await.create_stream(config(300)).await.unwrap() });
    let mut driver = Driver::new(rings(&["a"], 900));
    let mut sink = sink(&server.address(), options());
    driver.advance(&mut sink, 150);
    assert!(read(&server.address(), STREAM).len() <= 300);
    talk(async { context(&server.address()).await.update_stream(config(-1)).await.unwrap() });
    driver.finish(&mut sink);
    driver.verify(&server.address());
}

#[test]
fn old_server_gets_every_item_at_least_once() {
    let mut server = NatsServer::start_old();
    let proxy = Proxy::start(server.port);
    let options = || NatsOptions { at_least_once: true, ..options() };
    let mut driver = Driver::new(rings(&["a", "b"], 1000));
    let mut sink = sink(&proxy.address(), options());
    for number in 0..6 {
        driver.advance(&mut sink, 200);
        if number == 3 {
            server.restart();
        } else {
            proxy.strike(Fault::LoseAnswers);
        }
    }
    driver.finish(&mut sink);
    let messages = read(&server.address(), STREAM);
    for ring in &driver.rings {
        let found: HashSet<_> = messages
            .iter()
            .filter(|(record, _)| record.ring == ring.facts.uuid)
            .map(|(record, payload)| (record.position, payload.clone()))
            .collect();
        assert_eq!(found, ring.expected().into_iter().collect(), "{}", ring.facts.name);
        // Items of one batch may arrive in any order; the next batch is sent after all of them.
        let expected = ring.expected();
        let index = |at: Position| expected.partition_point(|(position, _)| *position < at);
        let of_ring = messages.iter().filter(|(record, _)| record.ring == ring.facts.uuid);
        let mut seen = vec![false; expected.len()];
        for index in of_ring.map(|(record, _)| index(record.position)) {
            assert!(seen[..(index + 1).saturating_sub(BATCH)].iter().all(|seen| *seen), "{index}");
            seen[index] = true;
        }
    }
}
