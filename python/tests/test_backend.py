"""A ring of a backend, whose two ends are a guest's disk and a hand-over: the other side wakes this one.

BLOCKRING_BACKEND names the backend's program; scripts/test-python.sh sets it.
"""

import asyncio
import os
import pathlib
import signal
import subprocess
import threading
import time
from typing import Iterator, Tuple

import pytest
from conftest import drain, fill

import blockring
from blockring import Consumer, Producer


class Backend:
    def __init__(self, folder: pathlib.Path) -> None:
        self.disk, self.consumer = folder / "disk", folder / "consumer"
        self.command = [os.environ["BLOCKRING_BACKEND"], "--socket-path", str(self.disk)]
        self.command += ["--blk-file", str(folder / "ring"), "--size", "1M"]
        self.command += ["--consumer-socket", str(self.consumer)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def backend(tmp_path: pathlib.Path) -> Iterator[Backend]:
    backend = Backend(tmp_path)
    until = time.monotonic() + 30
    while not (backend.disk.exists() and backend.consumer.exists()):
        assert time.monotonic() < until and backend.process.poll() is None
        time.sleep(0.01)
    yield backend
    backend.stop()


@pytest.fixture
def ends(backend: Backend) -> Iterator[Tuple[Producer, Consumer]]:
    with Consumer(f"unix:{backend.consumer}") as consumer:
        with Producer(f"vhost-user:{backend.disk}", "logs", "guest") as producer:
            yield producer, consumer


def test_items_cross_the_backend(ends: Tuple[Producer, Consumer]) -> None:
    producer, consumer = ends
    lines = [b"%d" % number for number in range(1_000)]
    thread = threading.Thread(target=lambda: [producer.send(line) for line in lines])
    thread.start()
    received = []
    for item in consumer:
        received.append(item.data)
        consumer.advance(item.next)
        if len(received) == len(lines):
            break
    thread.join()
    assert received == lines


def test_wait_is_woken_without_a_timer(ends: Tuple[Producer, Consumer]) -> None:
    producer, consumer = ends
    slowest = 0.0
    for _ in range(20):
        sent = []

        def send() -> None:
            sent.append(time.monotonic())
            producer.send(b"item")

        timer = threading.Timer(0.02, send)
        timer.start()
        assert consumer.wait(30)
        slowest = max(slowest, time.monotonic() - sent[0])
        timer.join()
        assert drain(consumer) == [b"item"]
    # A wake-up that is lost would be noticed by the next look, after a second.
    assert slowest < 0.9


def test_event_loop_is_woken(ends: Tuple[Producer, Consumer]) -> None:
    producer, consumer = ends

    async def main() -> None:
        number = 0

        async def send() -> None:
            for each in range(200):
                await producer.send_async(b"%d" % each)
                if each % 20 == 0:
                    await asyncio.sleep(0.01)

        sending = asyncio.ensure_future(send())
        async for item in consumer:
            assert item.data == b"%d" % number
            consumer.advance(item.next)
            number += 1
            if number == 200:
                break
        await sending

    asyncio.run(asyncio.wait_for(main(), 60))


def test_producer_waits_for_room_in_a_guest(ends: Tuple[Producer, Consumer]) -> None:
    producer, consumer = ends
    fill(producer, 50_000)
    timer = threading.Timer(0.05, lambda: drain(consumer))
    timer.start()
    producer.send(b"x" * 200_000, 30)
    timer.join()
    assert [len(data) for data in drain(consumer)] == [200_000]


def test_backend_has_one_consumer(backend: Backend, ends: Tuple[Producer, Consumer]) -> None:
    with pytest.raises(blockring.RoleTaken) as raised:
        Consumer(f"unix:{backend.consumer}")
    assert raised.value.role == "consumer"


def test_consumer_outlives_the_backend(backend: Backend) -> None:
    with Consumer(f"unix:{backend.consumer}") as consumer:
        with Producer(f"vhost-user:{backend.disk}") as producer:
            producer.send(b"before")
            assert consumer.wait(30)
        backend.stop()
        assert drain(consumer) == [b"before"]
        backend.start()

        def send() -> None:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                try:
                    with Producer(f"vhost-user:{backend.disk}") as producer:
                        producer.send(b"after")
                        return
                except blockring.DeviceError:
                    time.sleep(0.05)

        thread = threading.Thread(target=send)
        thread.start()
        assert consumer.wait(30)
        assert drain(consumer) == [b"after"]
        thread.join()


def test_interrupt_ends_the_wait_for_a_backend(ends: Tuple[Producer, Consumer]) -> None:
    consumer = ends[1]
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        consumer.wait()
    assert time.monotonic() - start < 30
    timer.join()
