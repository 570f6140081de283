//! Runs of a search, and of searches that must fail.

use loom::model::Builder;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Number of operations of one execution at most: more than any of the models has, attaching
/// included.
const MAX_BRANCHES: usize = 20_000;

/// Bound on preemptions: how often a thread loses the processor though it could go on. Blocking,
/// and every stale value, are not counted.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// No bound: every interleaving.
    None,
    /// The bound of a usual run, and of a long one.
    Preemptions(usize, Option<usize>),
}

impl Bound {
    fn preemptions(self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Preemptions(_, long) if std::env::var_os("BLOCKRING_LONG").is_some() => long,
            Self::Preemptions(usual, _) => Some(usual),
        }
    }
}

/// Searches `model`, prints the number of executions, and returns how they ended: a test has to
/// check that what it is about has happened at all.
pub fn explore<O: Ord + Debug + Send + 'static>(
    bound: Bound,
    model: impl Fn() -> O + Send + Sync + 'static,
) -> BTreeSet<O> {
    let executions = Arc::new(AtomicU64::new(0));
    let outcomes = Arc::new(Mutex::new(BTreeSet::new()));
    let (counted, ended) = (Arc::clone(&executions), Arc::clone(&outcomes));
    let start = Instant::now();
    let mut builder = Builder::new();
    builder.max_branches = MAX_BRANCHES;
    builder.preemption_bound = bound.preemptions();
    let searched = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let outcome = model();
            ended.lock().unwrap().insert(outcome);
        });
    }));
    let outcomes = std::mem::take(&mut *outcomes.lock().unwrap());
    println!(
        "{}: {} interleavings ({}) in {:.1} s, ending in {outcomes:?}",
        std::thread::current().name().unwrap_or("?"),
        executions.load(Ordering::Relaxed),
        bound.preemptions().map_or("all".to_owned(), |most| format!("up to {most} preemptions")),
        start.elapsed().as_secs_f64(),
    );
    match searched {
        Ok(()) => outcomes,
        Err(panic) => resume_unwind(panic),
    }
}

/// Preemptions in the search of a mutant. A mutant that survives with fewer than the product is
/// searched with shows a missing test.
const MUTANT: Bound = Bound::Preemptions(2, Some(2));

/// Searches a mutant, which must fail with one of these words: otherwise it fails for another
/// reason, or survives.
pub fn caught<O: Ord + Debug + Send + 'static>(
    words: &[&str],
    mutant: impl Fn() -> O + Send + Sync + 'static,
) {
    let panic = catch_unwind(AssertUnwindSafe(|| explore(MUTANT, mutant)));
    let panic = panic.expect_err("the mutant lives");
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    assert!(words.iter().any(|word| message.contains(word)), "not what was looked for: {message}");
    println!("caught: {}", message.lines().next().unwrap_or_default());
}
