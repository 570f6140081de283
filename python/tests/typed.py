"""All of the package as a program uses it, for mypy --strict: this file is checked, and not run."""

import logging
import pathlib
from typing import List, Optional, Tuple

import blockring
from blockring import Consumer, Control, DebugInfo, Durability, Item, Position, Producer, State
from blockring.logging import JsonFormatter, RingHandler


def produce(path: pathlib.Path) -> Position:
    blockring.create(path, 1 << 20, sector_size=512, plain=False, exist_ok=True)
    with Producer(
        path, "q", "c", durability=Durability.ORDERED, sector_size=512, timeout=1.0
    ) as producer:
        first: Position = producer.push(b"bytes")
        producer.push(bytearray(b"array"))
        end: Position = producer.push_batch([b"one", memoryview(b"two")])
        some: Tuple[int, Position] = producer.push_some(iter([b"three"]))
        producer.advance(first)
        producer.advance(int(end))
        producer.advance()
        producer.flush()
        sent: Position = producer.send([b"four"], timeout=None)
        producer.send(b"five", 0.5)
        room: bool = producer.wait(1.5, size=100)
        state: State = producer.state()
        info: DebugInfo = producer.debug_info()
        doubt: Tuple[Position, Position] = producer.in_doubt
        unpublished: int = producer.unpublished
        number: int = producer.fileno()
        again: bool = producer.arm()
        producer.check_presence()
        producer.close()
        print(some, sent, room, state, info.uuid, doubt, unpublished, number, again, producer.closed)
        return producer.position


def consume(address: str) -> Optional[int]:
    with Consumer(address, "q", "c", durability="flush", advance_every=4096) as consumer:
        item: Item = consumer.pop(Position("0"))
        data: bytes = item.data
        items: List[Item] = consumer.take(10, max_bytes=100, start=item.next)
        for item in consumer.pending():
            consumer.advance(item.next)
        for item in consumer:
            print(bytes(item), len(item), item.position, data, items)
            break
        ready: bool = consumer.wait(0.1, start=8)
        consumer.suspend()
        consumer.resume()
        state: State = consumer.state()
        consumer.flush()
        consumer.check_presence()
        print(ready, state, consumer.debug_info(), consumer.unchecked_bytes, consumer.closed)
        print(consumer.fileno(), consumer.arm(), consumer.position < 8, sorted([Position(8)]))
        return consumer.published_ns


async def both(producer: Producer, consumer: Consumer) -> None:
    await producer.wait_async(100)
    sent: Position = await producer.send_async([b"one"])
    await producer.send_async(b"two")
    await consumer.wait_async(start=sent)
    async for item in consumer:
        consumer.advance(item.next)


def control(address: str) -> None:
    with Control(address, sector_size=4096, timeout=2) as handle:
        handle.suspend()
        handle.resume()
        used: int = handle.debug_info().used
        print(handle.state() is State.SUSPENDED, used, handle.closed)


def log(address: str) -> None:
    handler = RingHandler(address, "logs", "web", level="INFO", when_full="wait", timeout=1)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    print(handler.dropped)


def errors(consumer: Consumer) -> None:
    try:
        consumer.pop()
    except (blockring.Retry, blockring.Suspended, blockring.Detached, blockring.Failed):
        pass
    except blockring.Superseded as error:
        print(error.side, error.ring, error.start, error.end, error.items)
    except blockring.TooLarge as error:
        print(error.needed, error.capacity)
    except blockring.InvalidAdvance as error:
        print(error.to, error.start, error.limit)
    except blockring.InvalidStart as error:
        print(error.start, error.consumer, error.producer)
    except blockring.RoleTaken as error:
        print(error.role, error.holder)
    except blockring.FormatError as error:
        if error.end is not None:
            consumer.advance(error.end)
    except blockring.DeviceError as error:
        print(error.errno, error.device, error.operation, error.sector)
    except blockring.Error as error:
        print(error.name, error.transient)
