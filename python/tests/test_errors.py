"""Each error of the library, as an exception."""

import errno
import inspect
import os
import pathlib
import pickle
import re

import pytest

import blockring
from blockring import Consumer, Control, Producer

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "python.md"


def classes() -> "dict[str, type[blockring.Error]]":
    found = (getattr(blockring, name) for name in blockring.__all__)
    return {
        cls.__name__: cls
        for cls in found
        if inspect.isclass(cls) and issubclass(cls, blockring.Error) and cls is not blockring.Error
    }


def test_table_of_the_documents_has_each_exception() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((name, cls.name) for name, cls in classes().items())


def test_names_are_those_of_the_library() -> None:
    source = (pathlib.Path(__file__).parents[2] / "src" / "error.rs").read_text()
    names = set(re.findall(r'=> "(\w+)",', source))
    # In Python items are bytes: there is nothing that an item could fail to decode as.
    assert {cls.name for cls in classes().values()} == names - {"undecodable"}


def test_transient_errors_are_two() -> None:
    assert {cls for cls in classes().values() if cls.transient} == {
        blockring.Retry,
        blockring.Suspended,
    }


def test_taken_role_names_its_holder(ring: str, producer: Producer) -> None:
    with pytest.raises(blockring.RoleTaken) as raised:
        Producer(ring)
    assert (raised.value.role, raised.value.holder) == ("producer", os.getpid())
    assert str(os.getpid()) in str(raised.value)


def test_item_that_never_fits_has_its_size(producer: Producer) -> None:
    with pytest.raises(blockring.TooLarge) as raised:
        producer.send(b"x" * 65536)
    assert (raised.value.needed, raised.value.capacity) == (65540, 125 * 512)
    assert isinstance(raised.value, ValueError)


def test_wrong_positions_are_named(producer: Producer, consumer: Consumer) -> None:
    producer.send([b"1234"] * 3)
    with pytest.raises(blockring.InvalidAdvance) as raised:
        producer.advance(4)
    error = raised.value
    assert error.to == 4 and error.start == error.limit == 24
    with pytest.raises(blockring.InvalidAdvance):
        consumer.advance(100)
    with pytest.raises(blockring.InvalidAdvance):
        consumer.advance(12)
    with pytest.raises(blockring.InvalidStart) as started:
        consumer.pop(100)
    where = started.value
    assert where.start == 100 and where.consumer == 0 and where.producer == 24
    with pytest.raises(ValueError, match="multiple of 4"):
        consumer.pop(3)


def test_missing_ring_is_an_os_error(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "none")
    with pytest.raises(OSError) as raised:
        Control(path)
    error = raised.value
    assert isinstance(error, blockring.DeviceError)
    assert (error.errno, error.strerror) == (errno.ENOENT, os.strerror(errno.ENOENT))
    assert (error.device, error.operation, error.sector) == (path, "open", None)
    assert str(error).startswith(f"{path}: cannot open: ")


def test_failed_read_names_its_sector(ring: str, producer: Producer) -> None:
    os.truncate(ring, 600)
    with pytest.raises(blockring.DeviceError) as raised:
        producer.debug_info()
    assert raised.value.operation == "read" and raised.value.sector is not None


def test_file_without_a_ring_is_a_format_error(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(1 << 16))
    with pytest.raises(blockring.FormatError, match="not a ring") as raised:
        Consumer(path)
    assert (raised.value.start, raised.value.end) == (None, None)
    with pytest.raises(blockring.FormatError, match="power of two"):
        Consumer(path, sector_size=1000)


def test_damaged_items_are_skipped_by_their_span(ring: str, producer: Producer) -> None:
    producer.send([b"damaged", b"too"])
    with open(ring, "r+b") as file:
        file.seek(3 * 512 + 5)
        file.write(b"?")
    with Consumer(ring) as consumer:
        for read in (consumer.pop, consumer.take, consumer.wait, lambda: list(consumer.pending())):
            with pytest.raises(blockring.FormatError, match="corrupt") as raised:
                read()
        assert raised.value.start == 0 and raised.value.end == 20
        assert raised.value.end is not None
        consumer.advance(raised.value.end)
        producer.send(b"whole")
        assert consumer.pop().data == b"whole"


def test_failed_handle_accepts_nothing_more(ring: str, producer: Producer) -> None:
    producer.send(b"item")
    os.truncate(ring, 0)
    producer.push(b"lost")
    with pytest.raises(blockring.Error):
        producer.advance()


def test_superseded_producer_goes_on_at_the_ring(ring: str) -> None:
    with Producer(ring) as producer:
        older = pathlib.Path(ring).read_bytes()
        producer.send([b"one", b"two"])
        with open(ring, "r+b") as file:
            file.write(older)
        producer.push(b"three")
        with pytest.raises(blockring.Superseded) as raised:
            producer.advance()
        error = raised.value
        assert (error.side, error.items) == ("producer", 3)
        assert error.ring == error.start == 0 and error.end == 28 and producer.position == 0
        producer.send(b"four")
        with Consumer(ring) as consumer:
            assert [item.data for item in consumer.pending()] == [b"four"]


def test_superseded_consumer_iterates_from_the_ring(ring: str, producer: Producer) -> None:
    producer.send([b"one", b"two"])
    older = pathlib.Path(ring).read_bytes()
    with Consumer(ring) as consumer:
        items = consumer.pending()
        consumer.advance([item.next for item in items][-1])
        with open(ring, "r+b") as file:
            file.write(older)
        producer.send([b"three", b"four"])
        with pytest.raises(blockring.Superseded) as raised:
            consumer.advance(next(items).next)
        assert raised.value.side == "consumer" and raised.value.ring == 0
        # What was read ahead was not this ring's, perhaps.
        assert [item.data for item in items] == [b"one", b"two", b"three", b"four"]


def test_exceptions_survive_pickling(ring: str, producer: Producer, tmp_path: pathlib.Path) -> None:
    for call in (lambda: Producer(ring), lambda: producer.advance(4), lambda: Control(tmp_path / "none")):
        with pytest.raises(blockring.Error) as raised:
            call()
        error, copy = raised.value, pickle.loads(pickle.dumps(raised.value))
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)
        assert getattr(copy, "errno", None) == getattr(error, "errno", None)
