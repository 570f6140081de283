"""Waits, threads, signals and forks."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Callable

import pytest
from conftest import drain, fill

import blockring
from blockring import Consumer, Producer


def later(seconds: float, call: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(seconds, call)
    thread.daemon = True
    thread.start()
    return thread


def test_wait_ends_with_an_item_or_its_time(producer: Producer, consumer: Consumer) -> None:
    start = time.monotonic()
    assert not consumer.wait(0)
    assert not consumer.wait(-1)
    assert not consumer.wait(0.05)
    assert time.monotonic() - start >= 0.05
    later(0.05, lambda: producer.send(b"item"))
    assert consumer.wait()
    assert consumer.wait(0)
    assert not consumer.wait(0, start=consumer.pop().next)
    assert consumer.wait(float("inf"))
    with pytest.raises(ValueError, match="timeout"):
        consumer.wait(float("nan"))


def test_wait_for_room_ends_with_it(producer: Producer, consumer: Consumer) -> None:
    assert producer.wait(0, 60_000)
    fill(producer)
    assert producer.wait(0, 100) and not producer.wait(0.02, 10_000)
    later(0.05, lambda: drain(consumer))
    assert producer.wait(30, 10_000)
    with pytest.raises(blockring.TooLarge):
        producer.wait(0, 1 << 20)


def test_send_waits_for_room_and_sends_all_or_nothing(
    producer: Producer, consumer: Consumer
) -> None:
    fill(producer)
    before = producer.position
    with pytest.raises(TimeoutError, match="full"):
        producer.send([b"x" * 10_000] * 2, timeout=0.02)
    with pytest.raises(TimeoutError):
        producer.send(b"x" * 10_000, 0)
    assert producer.position == before and producer.unpublished == 0
    later(0.05, lambda: drain(consumer))
    assert producer.send([b"x" * 10_000] * 2) == producer.position
    assert len(drain(consumer)) == 2


def test_send_says_what_a_suspend_has_kept_back(producer: Producer, consumer: Consumer) -> None:
    consumer.suspend()
    # The producer has not looked yet: the batch is pushed, and not published.
    with pytest.raises(TimeoutError):
        producer.send(b"kept back", timeout=0.02)
    assert producer.unpublished == 16
    with pytest.raises(TimeoutError):
        producer.send(b"refused", timeout=0.02)
    assert producer.unpublished == 16
    consumer.resume()
    producer.send(b"next")
    assert drain(consumer) == [b"kept back", b"next"]


def test_iteration_waits_for_what_comes(producer: Producer, consumer: Consumer) -> None:
    def send() -> None:
        for number in range(50):
            producer.send(str(number).encode())
            time.sleep(0.001)

    later(0.01, send)
    for number, item in zip(range(50), consumer):
        assert item.data == str(number).encode()
        consumer.advance(item.next)


def test_threads_share_a_producer(producer: Producer, consumer: Consumer) -> None:
    def send(name: bytes) -> None:
        for number in range(500):
            producer.send([name + b" %d" % number, name + b" and %d" % number])

    threads = [threading.Thread(target=send, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    lines = []
    for item in consumer:
        lines.append(item.data)
        if len(lines) % 100 == 0:
            consumer.advance(item.next)
        if len(lines) == 3000:
            break
    for thread in threads:
        thread.join()
    for name in (b"a", b"b", b"c"):
        numbers = [line.split(b" ")[-1] for line in lines if line.startswith(name)]
        assert numbers == [str(number // 2).encode() for number in range(1000)]


def test_wait_lets_other_threads_use_the_handle(producer: Producer, consumer: Consumer) -> None:
    waiting = threading.Thread(target=consumer.wait)
    waiting.start()
    time.sleep(0.02)
    assert consumer.debug_info().used == 0
    producer.send(b"item")
    waiting.join(30)
    assert not waiting.is_alive()


def test_closing_ends_the_wait_of_another_thread(consumer: Consumer) -> None:
    outcome = []

    def wait() -> None:
        try:
            consumer.wait()
        except blockring.Detached as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.02)
    consumer.close()
    thread.join(30)
    assert len(outcome) == 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda producer, consumer: consumer.wait(),
        lambda producer, consumer: next(iter(consumer)),
        lambda producer, consumer: fill(producer) and producer.wait(None, 1_000),
        lambda producer, consumer: fill(producer) and producer.send(b"x" * 1_000),
    ],
    ids=["items", "iteration", "room", "send"],
)
def test_interrupt_ends_a_wait(
    producer: Producer, consumer: Consumer, wait: "Callable[[Producer, Consumer], object]"
) -> None:
    later(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        wait(producer, consumer)
    assert producer.unpublished == 0


def test_signal_whose_handler_returns_goes_on_waiting(
    producer: Producer, consumer: Consumer
) -> None:
    seen = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        later(0.02, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        later(0.06, lambda: producer.send(b"item"))
        assert consumer.wait(30)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_descriptor_serves_other_loops(producer: Producer, consumer: Consumer) -> None:
    poll = select.poll()
    poll.register(consumer, select.POLLIN)
    later(0.05, lambda: producer.send(b"item"))
    while not consumer.wait(0):
        if not consumer.arm():
            assert poll.poll(30_000)
    assert consumer.pop().data == b"item"


def test_forked_child_cannot_use_its_parents_handles(
    ring: str, producer: Producer, consumer: Consumer
) -> None:
    producer.send(b"before")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for call in (lambda: producer.send(b"child"), consumer.pop, consumer.wait):
                try:
                    call()
                    os._exit(2)
                except blockring.Detached:
                    pass
            assert producer.closed
            producer.close()
            del producer, consumer
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The child has not given up the roles of its parent.
    with pytest.raises(blockring.RoleTaken):
        Producer(ring)
    producer.send(b"after")
    assert drain(consumer) == [b"before", b"after"]


def test_child_that_ends_as_a_program_leaves_the_roles(ring: str) -> None:
    program = """if True:
        import os, sys, blockring
        producer = blockring.Producer(sys.argv[1])
        if os.fork() == 0:
            sys.exit()  # with all that Python does at its end
        os.wait()
        try:
            blockring.Producer(sys.argv[1])
        except blockring.RoleTaken:
            print("still held")
    """
    said = subprocess.run([sys.executable, "-c", program, ring], stdout=subprocess.PIPE, check=True)
    assert said.stdout == b"still held\n"


def test_ten_thousand_attachments_leave_nothing_behind(ring: str) -> None:
    def cycles(number: int) -> "tuple[int, int]":
        for _ in range(number):
            with Producer(ring, durability="page-cache") as producer:
                with Consumer(ring, durability="page-cache") as consumer:
                    producer.send(b"item")
                    consumer.wait(0)
                    consumer.fileno()
                    consumer.advance(next(consumer.pending()).next)
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return len(os.listdir("/proc/self/fd")), pages

    # Until Python's own memory has grown to what it needs.
    descriptors, pages = cycles(500)
    later_descriptors, later_pages = cycles(4_500)
    assert later_descriptors == descriptors
    assert later_pages <= pages + 256


def test_exceptions_leave_nothing_behind(ring: str, producer: Producer) -> None:
    def attempts() -> int:
        for _ in range(50):
            with pytest.raises(blockring.RoleTaken):
                Producer(ring)
            with pytest.raises(TypeError):
                producer.push("text")  # type: ignore[arg-type]
        return len(os.listdir("/proc/self/fd"))

    assert attempts() == attempts()
