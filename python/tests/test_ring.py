"""Producer, consumer and control."""

import array
import errno
import json
import os
import pathlib
import pickle

import pytest
from conftest import drain, fill

import blockring
from blockring import Consumer, Control, Durability, Position, Producer, State


def test_published_items_arrive_in_order_and_once(producer: Producer, consumer: Consumer) -> None:
    with pytest.raises(blockring.Retry):
        consumer.pop()
    first = producer.push(b"first")
    end = producer.push_batch([b"second", b""])
    with pytest.raises(blockring.Retry):
        consumer.pop()
    producer.advance(first)
    assert consumer.pop().data == b"first"
    assert consumer.pop().data == b"first"
    assert producer.unpublished == int(end) - int(first)
    producer.advance()
    assert producer.unpublished == 0
    items = consumer.take()
    assert [item.data for item in items] == [b"first", b"second", b""]
    assert [item.position for item in items[1:]] == [item.next for item in items[:-1]]
    consumer.advance(items[0].next)
    assert consumer.pop().data == b"second"
    assert drain(consumer) == [b"second", b""]
    assert consumer.position == producer.position == end


def test_item_shows_what_it_is(producer: Producer, consumer: Consumer) -> None:
    producer.send(b"hello")
    item = consumer.pop()
    assert (bytes(item), len(item)) == (b"hello", 5)
    assert repr(item) == "Item(position=0, next=12, data=b'hello')"


@pytest.mark.parametrize(
    "item",
    [
        b"abcd",
        bytearray(b"abcd"),
        memoryview(b"abcd"),
        memoryview(b"a-b-c-d-")[::2],
        array.array("b", b"abcd"),
    ],
)
def test_anything_with_a_buffer_is_an_item(
    producer: Producer, consumer: Consumer, item: bytes
) -> None:
    producer.push(item)
    producer.push_batch((item, item))
    producer.push_some([item])
    producer.send(item)
    assert drain(consumer) == [b"abcd"] * 5


@pytest.mark.parametrize("item", ["text", 5, None, [b"list"], 1.5])
def test_other_values_are_refused_by_type(producer: Producer, item: object) -> None:
    for call in (producer.push, lambda item: producer.push_batch([item])):
        with pytest.raises(TypeError, match="an item is bytes-like, not"):
            call(item)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="where an iterable of items is expected"):
        producer.push_batch(b"one item")  # type: ignore[arg-type]
    assert producer.position == 0


def test_batch_of_any_iterable_is_all_or_nothing(producer: Producer, consumer: Consumer) -> None:
    producer.push_batch(str(number).encode() for number in range(3))
    fill(producer)
    before = producer.position
    with pytest.raises(blockring.Retry):
        producer.push_batch([b"x" * 40_000, b"y" * 20_000])
    assert producer.position == before
    drain(consumer)
    pushed, end = producer.push_some([b"x" * 40_000, b"y" * 20_000, b"z" * 20_000])
    producer.advance(end)
    assert pushed == 2
    assert [data[:1] for data in drain(consumer)] == [b"x", b"y"]
    assert producer.push_batch([]) == producer.position


def test_take_keeps_to_its_limits(producer: Producer, consumer: Consumer) -> None:
    producer.send([b"x" * 100] * 10)
    assert len(consumer.take(3)) == 3
    assert len(consumer.take(max_bytes=250)) == 2
    assert len(consumer.take(max_bytes=0)) == 1
    start = consumer.take(4)[-1].next
    assert len(consumer.take(start=start)) == 6
    assert consumer.pop(start).position == start == consumer.pop(int(start)).position
    assert consumer.take(0) == []
    drain(consumer)
    assert consumer.take() == []


def test_iteration_follows_the_ring(producer: Producer, consumer: Consumer) -> None:
    producer.send([str(number).encode() for number in range(600)])
    items = iter(consumer)
    for number in range(600):
        item = next(items)
        assert item.data == str(number).encode()
        consumer.advance(item.next)
    producer.send(b"later")
    assert next(items).data == b"later"
    # What was advanced over does not come again, and what was not does.
    assert [item.data for item in consumer.pending()] == [b"later"]
    pending = consumer.pending()
    assert drain(consumer) == [b"later"]
    assert list(pending) == []


def test_position_stands_for_its_number(producer: Producer, consumer: Consumer) -> None:
    position = producer.push(b"1234")
    assert position == 8 and Position(8) == position and Position("8") == position
    assert (str(position), int(position), repr(position)) == ("8", 8, "Position(8)")
    assert Position(position) == position != Position(12) and position != "8"
    assert Position(0) < position < Position(12) and position >= 8 and position <= 9
    assert hash(position) == hash(8) and {position: 1}[Position(8)] == 1
    assert hash(Position((1 << 63) - 4)) == hash((1 << 63) - 4)
    assert range(20)[position] == 8
    assert pickle.loads(pickle.dumps(position)) == position
    assert json.dumps(int(position)) == "8"
    for wrong in (7, "7", "-8", "eight", ""):
        with pytest.raises(ValueError):
            Position(wrong)
    for wrong in (-8, 1 << 64):
        with pytest.raises(OverflowError):
            Position(wrong)
    with pytest.raises(TypeError):
        position < "9"  # type: ignore[operator]
    producer.advance(8)
    consumer.advance(Position("8"))


def test_suspended_ring_takes_nothing_until_it_is_resumed(
    ring: str, producer: Producer, consumer: Consumer
) -> None:
    with Control(ring) as control:
        assert control.state() is consumer.state() is producer.state() is State.RUNNING
        producer.push(b"before")
        consumer.suspend()
        with pytest.raises(blockring.Retry):
            consumer.resume()
        assert control.state() is State.RUNNING
        assert producer.state() is State.SUSPENDED
        assert control.state() is consumer.state() is State.SUSPENDED
        with pytest.raises(blockring.Suspended):
            producer.push(b"no")
        with pytest.raises(blockring.Suspended):
            producer.advance()
        control.resume()
        assert not producer.wait(0) or producer.state() is State.RUNNING
        producer.advance()
        control.suspend()
        assert producer.state() is State.SUSPENDED
    assert drain(consumer) == [b"before"]


def test_debug_info_has_both_sides(ring: str, producer: Producer, consumer: Consumer) -> None:
    producer.send([b"one", b"two"])
    consumer.advance(consumer.pop().next)
    for info in (producer.debug_info(), consumer.debug_info(), Control(ring).debug_info()):
        assert (info.sector_size, info.total_sectors) == (512, 128)
        assert (info.producer, info.consumer, info.used) == (Position(16), Position(8), 8)
        assert (info.producer_items, info.consumer_items) == (2, 1)
        assert not info.suspend and not info.suspend_ack
        assert "producer" in info.producer_text and "consumer" in info.consumer_text
        assert info.uuid is not None and len(info.uuid) == 36
    published = consumer.published_ns
    assert published is not None and published == info.producer_time_ns
    assert consumer.unchecked_bytes == 0


@pytest.mark.parametrize("durability", ["flush", Durability.ORDERED, Durability.PAGE_CACHE])
def test_handles_take_each_durability(ring: str, durability: str) -> None:
    with Producer(ring, durability=durability) as producer:
        producer.send(b"item")
        producer.push(b"more")
        producer.flush()
        assert producer.in_doubt == (Position(8), Position(8))
    with Consumer(ring, durability=durability, advance_every=1000) as consumer:
        consumer.advance(consumer.pop().next)
        assert consumer.debug_info().consumer == 0
        consumer.flush()
        assert consumer.debug_info().consumer == 8
    with pytest.raises(ValueError, match="durability"):
        Producer(ring, durability="always")


def test_closing_writes_what_was_kept_back(ring: str, producer: Producer) -> None:
    producer.send(b"item")
    with Consumer(ring, advance_every=1000) as consumer:
        consumer.advance(consumer.pop().next)
    assert producer.debug_info().consumer == 8
    consumer.close()
    assert consumer.closed
    for call in (consumer.pop, consumer.pending, consumer.flush, consumer.fileno, consumer.state):
        with pytest.raises(blockring.Detached):
            call()
    with pytest.raises(blockring.Detached):
        consumer.position


def test_iteration_ends_with_its_consumer(ring: str, producer: Producer) -> None:
    producer.send([b"first", b"read ahead"])
    consumer = Consumer(ring)
    items, pending = iter(consumer), consumer.pending()
    assert next(items).data == next(pending).data == b"first"
    consumer.close()
    for iterator in (items, pending):
        with pytest.raises(blockring.Detached):
            next(iterator)


def test_what_was_not_published_ends_with_its_producer(ring: str, consumer: Consumer) -> None:
    with Producer(ring) as producer:
        producer.send(b"kept")
        producer.push(b"gone")
    with Producer(ring) as producer:
        assert producer.position == 8
        assert drain(consumer) == [b"kept"]


def test_create_makes_no_ring_where_anything_is(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ring"
    blockring.create(path, 1 << 20, sector_size=4096)
    assert path.stat().st_size == 1 << 20
    with Producer(path, sector_size=4096) as producer:
        producer.send(b"kept")
        for size in (None, 1 << 20):
            blockring.create(path, size, sector_size=4096, exist_ok=True)
            with pytest.raises(blockring.DeviceError) as raised:
                blockring.create(path, size, sector_size=4096)
            assert raised.value.errno == errno.EEXIST
        assert producer.debug_info().used == 8
    used = tmp_path / "used"
    used.write_bytes(b"\0" * 5000 + b"a letter" + b"\0" * 60528)
    for exist_ok in (False, True):
        with pytest.raises(blockring.DeviceError, match="byte 5000 is not zero"):
            blockring.create(used, exist_ok=exist_ok)
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1 << 16))
    blockring.create(empty, plain=True)
    assert Control(empty).debug_info().uuid is None
    with pytest.raises(blockring.FormatError):
        blockring.create(tmp_path / "small", 512)
    assert not (tmp_path / "small").exists()
    with pytest.raises(blockring.DeviceError) as raised:
        blockring.create(tmp_path / "no" / "folder", 1 << 20)
    assert raised.value.errno == errno.ENOENT


def test_address_is_anything_that_names_a_ring(ring: str) -> None:
    with Control(pathlib.Path(ring)), Control(ring):
        pass
    with pytest.raises(blockring.DeviceError, match="serial:no-such"):
        Control("serial:no-such")
    with pytest.raises(blockring.DeviceError) as raised:
        Consumer("unix:/nonexistent", timeout=1)
    assert raised.value.errno == errno.ENOENT
    with pytest.raises(blockring.DeviceError) as raised:
        Producer("pci:0000:00:04.0")
    assert raised.value.errno in (errno.EACCES, errno.EPERM)
    with pytest.raises(TypeError):
        Control(5)  # type: ignore[arg-type]


def test_subclass_has_arguments_of_its_own(ring: str) -> None:
    class Numbered(Producer):
        def __init__(self, number: int, path: str) -> None:
            self.number = number
            super().__init__(path, "logs", client=f"web-{number}")

        def push_number(self) -> Position:
            return self.push(str(self.number).encode())

    with Numbered(7, ring) as producer:
        producer.push_number()
        producer.advance()
        assert "web-7" in producer.debug_info().producer_text
        with pytest.raises(RuntimeError, match="open already"):
            Producer.__init__(producer, ring + ".other")
    with Consumer(ring) as consumer:
        assert consumer.pop().data == b"7"

    class Forgetful(Producer):
        def __init__(self) -> None:
            pass

    forgetful = Forgetful()
    assert forgetful.closed
    with pytest.raises(blockring.Detached):
        forgetful.push(b"nowhere")


def test_ring_that_is_gone_is_reported(ring: str, producer: Producer, consumer: Consumer) -> None:
    producer.check_presence()
    os.unlink(ring)
    for check in (producer.check_presence, consumer.check_presence):
        with pytest.raises(blockring.DeviceError, match="removed") as raised:
            check()
        assert raised.value.errno == errno.ESTALE
    with pytest.raises(blockring.DeviceError, match="removed"):
        consumer.wait(30)
