//! Conversations of no sense, over descriptors of every kind.

use crate::common::daemon::Scene;
use crate::{connect, ends_well, works};
use arbitrary::{Arbitrary, Unstructured};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use ring_simulation::conversation::Conversation;

fn lead(scene: &Scene, input: &[u8]) {
    let conversation = Conversation::arbitrary(&mut Unstructured::new(input)).unwrap();
    conversation.lead(connect(scene));
}

#[test]
fn conversations_of_no_sense_leave_the_daemon_serving() {
    let scene = Scene::new();
    let daemon = scene.start(&[]);
    for seed in 0..200 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut input = vec![0; random.random_range(20..600)];
        random.fill_bytes(&mut input);
        let outcome = std::panic::catch_unwind(|| lead(&scene, &input));
        assert!(outcome.is_ok(), "with seed {seed}");
    }
    works(&scene);
    ends_well(daemon);
}
