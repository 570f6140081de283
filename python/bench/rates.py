"""Items a second through a ring in a file, pushed and taken by this process.

usage: rates.py RING [SECONDS]

Prints a line of JSON for each way: its name, and items a second. Items have 64 bytes, and each 64 of them are published by one advance;
nothing is flushed. RING is made for this, in a file that must not exist; on a tmpfs it measures the code alone.
"""

import json
import os
import sys
import time
from typing import Callable

import blockring

ITEM = bytes(range(64))
BATCH = 64


def push_batch(producer: blockring.Producer) -> None:
    producer.push_batch([ITEM] * BATCH)
    producer.advance()


def push_each(producer: blockring.Producer) -> None:
    push = producer.push
    for _ in range(BATCH):
        push(ITEM)
    producer.advance()


def take(consumer: blockring.Consumer) -> int:
    items = consumer.take()
    for item in items:
        if len(item.data) != len(ITEM):
            raise SystemExit("rates.py: an item is not what was pushed")
    if items:
        consumer.advance(items[-1].next)
    return len(items)


def iterate(consumer: blockring.Consumer) -> int:
    number, end = 0, consumer.position
    for item in consumer.pending():
        if len(item.data) != len(ITEM):
            raise SystemExit("rates.py: an item is not what was pushed")
        number, end = number + 1, item.next
    consumer.advance(end)
    return number


def measure(
    path: str,
    seconds: float,
    push: Callable[[blockring.Producer], None],
    consume: Callable[[blockring.Consumer], int],
) -> "tuple[float, float]":
    """Returns items a second pushed, and taken: the other side's time counts for neither."""
    spent = [0.0, 0.0]
    items = 0
    kept = blockring.Durability.PAGE_CACHE
    with blockring.Producer(path, durability=kept) as producer, blockring.Consumer(
        path, durability=kept
    ) as consumer:
        while sum(spent) < seconds:
            start = time.perf_counter()
            for _ in range(16):
                push(producer)
            middle = time.perf_counter()
            taken = 0
            while taken < 16 * BATCH:
                taken += consume(consumer)
            spent[0] += middle - start
            spent[1] += time.perf_counter() - middle
            items += taken
    return items / spent[0], items / spent[1]


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    path, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    blockring.create(path, 8 << 20)
    try:
        pushed, taken = measure(path, seconds, push_batch, take)
        print(json.dumps({"way": "push_batch", "items_per_second": round(pushed)}))
        print(json.dumps({"way": "take", "items_per_second": round(taken)}))
        pushed, taken = measure(path, seconds, push_each, iterate)
        print(json.dumps({"way": "push", "items_per_second": round(pushed)}))
        print(json.dumps({"way": "iterate", "items_per_second": round(taken)}))
    finally:
        os.unlink(path)


if __name__ == "__main__":
    main()
