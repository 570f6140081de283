"""The handler of log records."""

import json
import logging
import os
import pathlib
import threading
import time
from typing import Iterator

import pytest
from conftest import drain

from blockring import Consumer
from blockring.logging import RingHandler

log = logging.getLogger("tests.ring")


@pytest.fixture
def handler(ring: str) -> Iterator[RingHandler]:
    handler = RingHandler(ring, "logs", "tests")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    yield handler
    log.removeHandler(handler)
    handler.close()


def test_records_arrive_as_lines_of_json(handler: RingHandler, consumer: Consumer) -> None:
    log.info("%s of %d", "two", 3, extra={"request": 7, "path": pathlib.Path("/x")})
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("it\nfailed: \udcff ü")
    log.warning("where", stack_info=True)
    first, second, third = (json.loads(line) for line in drain(consumer))
    assert first == {
        "time": first["time"],
        "level": "INFO",
        "logger": "tests.ring",
        "message": "two of 3",
        "process": os.getpid(),
        "thread": threading.current_thread().name,
        "request": 7,
        "path": "/x",
    }
    assert time.strptime(first["time"][:19], "%Y-%m-%dT%H:%M:%S") and first["time"].endswith("Z")
    assert second["message"] == "it\nfailed: \udcff ü"
    assert second["exception"].endswith("KeyError: 'missing'")
    assert "test_logging.py" in third["stack"]


def test_formatter_of_the_program_is_used(handler: RingHandler, consumer: Consumer) -> None:
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log.error("bad")
    handler.flush()
    assert drain(consumer) == [b"ERROR bad"]


def test_full_ring_drops_records_and_counts_them(handler: RingHandler, consumer: Consumer) -> None:
    start = time.monotonic()
    for _ in range(1_000):
        log.info("x" * 200)
    assert time.monotonic() - start < 10
    arrived = len(drain(consumer))
    assert arrived and handler.dropped == 1_000 - arrived
    log.info("again")
    assert len(drain(consumer)) == 1


def test_full_ring_can_be_waited_for(ring: str, consumer: Consumer) -> None:
    handler = RingHandler(ring, when_full="wait")
    lines: "list[bytes]" = []

    def collect() -> None:
        while len(lines) < 1_000:
            consumer.wait(30)
            lines.extend(drain(consumer))

    thread = threading.Thread(target=collect)
    thread.start()
    for number in range(1_000):
        handler.handle(logging.makeLogRecord({"msg": f"{number} {'x' * 200}"}))
    thread.join(30)
    assert [json.loads(line)["message"].split()[0] for line in lines] == [str(n) for n in range(1_000)]
    assert handler.dropped == 0
    handler.close()
    patient = RingHandler(ring, when_full="wait", timeout=0.01)
    for _ in range(300):
        patient.handle(logging.makeLogRecord({"msg": "x" * 400}))
        if patient.dropped:
            break
    assert patient.dropped == 1
    patient.close()
    with pytest.raises(ValueError, match="when_full"):
        RingHandler(ring, when_full="never")


def test_program_goes_on_without_its_ring(
    handler: RingHandler, capsys: "pytest.CaptureFixture[str]"
) -> None:
    handler.close()
    handler.flush()
    log.error("nobody hears")
    assert "Detached" in capsys.readouterr().err


def test_record_that_cannot_be_sent_is_reported(
    handler: RingHandler, consumer: Consumer, capsys: "pytest.CaptureFixture[str]"
) -> None:
    handler.handle(logging.makeLogRecord({"msg": "x" * 70_000}))
    assert "TooLarge" in capsys.readouterr().err
    handler.handle(logging.makeLogRecord({"msg": "wrong", "args": (1,)}))
    assert "TypeError" in capsys.readouterr().err
    log.info("next")
    assert len(drain(consumer)) == 1


def test_suspended_ring_keeps_what_was_pushed(handler: RingHandler, consumer: Consumer) -> None:
    consumer.suspend()
    log.info("pushed")
    log.info("dropped")
    assert handler.dropped == 1
    consumer.resume()
    log.info("next")
    assert [json.loads(line)["message"] for line in drain(consumer)] == ["pushed", "next"]


def test_logging_from_a_forked_child_disturbs_nobody(
    handler: RingHandler, consumer: Consumer
) -> None:
    child = os.fork()
    if child == 0:
        logging.raiseExceptions = False
        log.info("child")
        logging.shutdown()
        os._exit(0)
    os.waitpid(child, 0)
    log.info("parent")
    assert [json.loads(line)["message"] for line in drain(consumer)] == ["parent"]
