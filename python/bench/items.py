"""Moves items of 64 bytes through a ring, pushed and taken by this process, and prints items a second.

usage: items.py WAY RING MILLISECONDS

WAY is batch (push_batch and take, 64 items each) or each (push, and iteration; each 64 items are published and freed by one advance).
Nothing is flushed: with a ring in a file on a tmpfs this measures the code alone. scripts/bench.sh --measure languages runs it.
"""

import sys
import time
from typing import Callable, Dict

from blockring import Consumer, Durability, Producer

ITEM = bytes([7]) * 64
BATCH = 64


def batch(producer: Producer, consumer: Consumer) -> None:
    producer.push_batch([ITEM] * BATCH)
    producer.advance()
    items = consumer.take(BATCH)
    for item in items:
        if item.data != ITEM:
            raise SystemExit("items.py: an item is not what was pushed")
    consumer.advance(items[-1].next)


def each(producer: Producer, consumer: Consumer) -> None:
    push = producer.push
    for _ in range(BATCH):
        push(ITEM)
    producer.advance()
    for item in consumer.pending():
        if item.data != ITEM:
            raise SystemExit("items.py: an item is not what was pushed")
    consumer.advance(item.next)


WAYS: Dict[str, Callable[[Producer, Consumer], None]] = {"batch": batch, "each": each}


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[1] not in WAYS:
        raise SystemExit(__doc__)
    move, path, time_ns = WAYS[sys.argv[1]], sys.argv[2], int(sys.argv[3]) * 1_000_000
    kept = Durability.PAGE_CACHE
    with Producer(path, durability=kept) as producer, Consumer(path, durability=kept) as consumer:
        for _ in range(100):
            move(producer, consumer)
        items, start = 0, time.perf_counter_ns()
        while time.perf_counter_ns() - start < time_ns:
            for _ in range(16):
                move(producer, consumer)
            items += 16 * BATCH
        print(items * 1_000_000_000 // (time.perf_counter_ns() - start))


if __name__ == "__main__":
    main()
