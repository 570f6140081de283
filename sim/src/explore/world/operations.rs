//! Operations of the two sides on the ring, and the promises that they make.

use super::{World, lock};
use crate::explore::item::{number_of, payload};
use crate::explore::oracle::Item;
use crate::explore::step::{Op, Party, Size};
use shared_block_ring::{Consumer, CreateOptions, Durability, Error, Producer, RingDevice, create};

impl World {
    pub(super) fn operate(&self, op: Op) {
        if !self.is_enabled(op) {
            return;
        }
        let result = match op {
            Op::Create => self.create(),
            Op::AttachProducer => self.attach_producer(),
            Op::Push(size) => self.push(&[size]),
            Op::Batch => self.push(&[Size::Small, Size::Large]),
            Op::AdvanceFirst => self.advance(0),
            Op::AdvanceAll => {
                let last = lock(&self.ends).len() - 1;
                self.advance(last)
            }
            Op::AttachConsumer => self.attach_consumer(),
            Op::Peek => self.take(usize::MAX, false),
            Op::ConsumeOne => self.take(1, true),
            Op::ConsumeAll => self.take(usize::MAX, true),
            Op::Suspend => self.suspend(true),
            Op::Resume => self.suspend(false),
            Op::KillProducer => {
                self.lose_producer();
                Ok(())
            }
            Op::KillConsumer => {
                *lock(&self.consumer) = None;
                Ok(())
            }
        };
        if let Err(error) = result {
            self.refused(op, &error);
        }
    }

    fn create(&self) -> Result<(), Error> {
        lock(&self.oracle).making();
        create(&self.open(&self.producing), CreateOptions::default())?;
        if self.lives(Party::Producer) {
            lock(&self.oracle).made();
        }
        Ok(())
    }

    fn attach_producer(&self) -> Result<(), Error> {
        let mut producer = Producer::attach(self.open(&self.producing), "queue", "producer")?;
        producer.set_durability(self.setting.durability);
        if self.lives(Party::Producer) {
            let verdict = lock(&self.oracle).producer_attached(producer.position());
            self.note(verdict);
            *lock(&self.producer) = Some(producer);
        }
        Ok(())
    }

    fn push(&self, sizes: &[Size]) -> Result<(), Error> {
        let mut producer = lock(&self.producer);
        let Some(producer) = producer.as_mut() else { return Ok(()) };
        let len = |size: Size| match size {
            Size::Small => self.setting.small,
            Size::Large => self.setting.large,
        };
        let numbers: Vec<u32> = sizes.iter().map(|_| lock(&self.oracle).number()).collect();
        let payloads: Vec<Vec<u8>> =
            numbers.iter().zip(sizes).map(|(&number, &size)| payload(number, len(size))).collect();
        let mut end = producer.position();
        let result = match &payloads[..] {
            [one] => producer.push(one),
            all => producer.push_batch(all),
        };
        let reached = match result {
            // A small ring may be asked for more than it ever holds.
            Err(Error::TooLarge { .. }) => return Ok(()),
            other => other?,
        };
        let mut items = Vec::new();
        for (&number, payload) in numbers.iter().zip(&payloads) {
            let framed = (payload.len() as u64 + 4).next_multiple_of(4);
            end = end.checked_add(framed).expect("a position");
            items.push(Item { number, end });
        }
        if end != reached {
            self.note(Err(format!("push answers {reached}, not {end}")));
        }
        if self.lives(Party::Producer) {
            lock(&self.oracle).pushed(&items);
            lock(&self.ends).push(reached);
        }
        // Some items are written before they are advanced over, as where more items have come
        // together than fit the staging memory.
        if sizes == [Size::Large] {
            producer.flush()?;
            if self.lives(Party::Producer) {
                lock(&self.oracle).flushed();
            }
        }
        Ok(())
    }

    fn advance(&self, index: usize) -> Result<(), Error> {
        let mut producer = lock(&self.producer);
        let Some(producer) = producer.as_mut() else { return Ok(()) };
        let end = lock(&self.ends)[index];
        // Where a look costs a request, a suspend is noticed later.
        let deaf = !producer.device().reads_are_free();
        let suspended = lock(&self.oracle).is_suspended() && !deaf;
        let news = lock(&self.oracle).advancing(end);
        let result = producer.advance(end);
        match (&result, news) {
            (Ok(()), _) if self.lives(Party::Producer) => {
                if suspended {
                    self.note(Err("an advance in a suspended ring".to_owned()));
                }
                match self.setting.durability {
                    Durability::Ordered => lock(&self.oracle).advanced_in_order(end),
                    // Nothing is taken back: what is asked of any other durability.
                    _ => lock(&self.oracle).advanced(end),
                }
                lock(&self.ends).drain(..=index);
            }
            (Err(Error::Suspended), Some(count)) => lock(&self.oracle).not_advancing(count),
            _ => {}
        }
        result
    }

    fn attach_consumer(&self) -> Result<(), Error> {
        let mut consumer = Consumer::attach(self.open(&self.consuming), "queue", "consumer")?;
        consumer.set_durability(self.setting.durability);
        if self.lives(Party::Consumer) {
            let verdict = lock(&self.oracle).consumer_attached(consumer.position());
            self.note(verdict);
            *lock(&self.consumer) = Some(consumer);
        }
        Ok(())
    }

    fn take(&self, most: usize, free: bool) -> Result<(), Error> {
        let mut consumer = lock(&self.consumer);
        let Some(consumer) = consumer.as_mut() else { return Ok(()) };
        let start = consumer.position();
        let promised = lock(&self.oracle).promised();
        let (mut at, mut numbers) = (start, Vec::new());
        while numbers.len() < most {
            match consumer.pop(at) {
                Ok(item) => {
                    let Some(number) = number_of(item.bytes) else {
                        self.note(Err(format!("the item at {at} was never pushed")));
                        return Ok(());
                    };
                    numbers.push(number);
                    at = item.next;
                }
                Err(Error::Retry) => break,
                Err(e) => return Err(e),
            }
        }
        let all = (numbers.len() < most).then_some(promised);
        let verdict = lock(&self.oracle).delivered(start, &numbers, all);
        self.note(verdict);
        if !free || numbers.is_empty() {
            return Ok(());
        }
        lock(&self.oracle).freeing(at);
        consumer.advance(at)?;
        if self.lives(Party::Consumer) {
            match self.setting.durability {
                Durability::Ordered => lock(&self.oracle).freed_in_order(at),
                _ => lock(&self.oracle).freed(at),
            }
        }
        Ok(())
    }

    fn suspend(&self, suspend: bool) -> Result<(), Error> {
        let mut consumer = lock(&self.consumer);
        let Some(consumer) = consumer.as_mut() else { return Ok(()) };
        let before = lock(&self.oracle).suspending(suspend);
        let result = if suspend { consumer.suspend() } else { consumer.resume() };
        match &result {
            Ok(()) if self.lives(Party::Consumer) => lock(&self.oracle).suspended(suspend),
            Err(Error::Retry) => lock(&self.oracle).not_suspending(before),
            _ => {}
        }
        result
    }
}
