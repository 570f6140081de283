//! The traits that users of the public types rely on: a change that takes one away breaks programs,
//! and fails to compile here first.

use ring_os::{Allocation, Limits, Mapping, Memory, Pauses, Prefault, SocketKind};
use std::fmt::Debug;
use std::hash::Hash;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

fn is_thread_safe<T: Debug + Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + 'static>() {}
fn is_value<T: Debug + Copy + Eq + Hash>() {}

#[test]
fn public_types_cross_threads() {
    is_thread_safe::<Allocation>();
    is_thread_safe::<Limits<'static>>();
    is_thread_safe::<Mapping>();
    is_thread_safe::<Pauses>();
    is_thread_safe::<Prefault>();
    is_thread_safe::<SocketKind>();
}

#[test]
fn plain_values_can_be_copied_compared_and_hashed() {
    is_value::<Prefault>();
    is_value::<SocketKind>();
}

#[test]
fn memory_can_be_a_trait_object() {
    fn shared(memory: Arc<dyn Memory + Sync>) -> Box<dyn Memory> {
        Box::new(memory)
    }
    let memory = shared(Arc::new(Mapping::anonymous(4096).expect("memory")));
    memory.write(0, b"hello");
    assert_eq!(memory.load_u64(0).to_le_bytes(), *b"hello\0\0\0");
}
