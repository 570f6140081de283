//! Every crash of every short program.
#![allow(clippy::unwrap_used, missing_docs)]

use Op::*;
use ring_simulation::{Bounds, Explorer, Op, Setting, Size};

#[test]
fn explore() {
    let n = |name: &str, d: u64| std::env::var(name).map_or(d, |t| t.parse().unwrap());
    let setting = Setting {
        mapped: n("M", 0) == 1,
        small: n("S", 40) as usize,
        large: n("B", 500) as usize,
        mutant: None,
    };
    let bounds = Bounds {
        lengths: [n("L", 4) as usize, n("L2", 0) as usize, n("L3", 0) as usize, 0],
        crash_points: n("MAX", 500_000),
    };
    let start = std::time::Instant::now();
    let small = Push(Size::Small);
    let large = Push(Size::Large);
    let mid = vec![Create, AttachProducer, large, AdvanceAll, AttachConsumer, ConsumeAll];
    let mut near = mid.clone();
    near.extend([large, AdvanceAll, small, AdvanceAll, small, AdvanceAll, ConsumeOne]);
    let mut full = near.clone();
    for _ in 0..30 {
        full.extend([small, AdvanceAll]);
    }
    let counts =
        Explorer::new(n("SECTORS", 6), setting, bounds).explore(&[vec![Create], mid, near, full]);
    match counts {
        Ok(counts) => println!("{counts:?} {:?}", start.elapsed()),
        Err(failure) => panic!("{failure}"),
    }
}
