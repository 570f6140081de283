"""Waiting in an event loop."""

import asyncio
import itertools
from typing import Any, Coroutine

import pytest
from conftest import drain, fill

import blockring
from blockring import Consumer, Producer


def run(main: "Coroutine[Any, Any, None]") -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_items_arrive_in_order(producer: Producer, consumer: Consumer) -> None:
    async def send() -> None:
        for number in range(2_000):
            await producer.send_async([str(number).encode(), b"x" * 100])

    async def main() -> None:
        sender = asyncio.ensure_future(send())
        number = 0
        async for item in consumer:
            expected = b"x" * 100 if number % 2 else str(number // 2).encode()
            assert item.data == expected
            number += 1
            if number % 50 == 0:
                consumer.advance(item.next)
            if number == 4_000:
                break
        await sender

    run(main())


def test_wait_leaves_the_loop_to_others(producer: Producer, consumer: Consumer) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        waiting = asyncio.ensure_future(consumer.wait_async())
        while ticks < 20:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        producer.send(b"item")
        await waiting
        fill(producer)
        room = asyncio.ensure_future(producer.wait_async(10_000))
        await asyncio.sleep(0.01)
        assert not room.done()
        drain(consumer)
        await room
        ticking.cancel()

    run(main())


def test_tasks_wait_for_one_ring(producer: Producer, consumer: Consumer) -> None:
    async def main() -> None:
        waits = [asyncio.ensure_future(consumer.wait_async()) for _ in range(5)]
        await asyncio.sleep(0.02)
        waits[0].cancel()
        await asyncio.sleep(0)
        producer.send(b"item")
        await asyncio.gather(*waits[1:])
        assert waits[0].cancelled()
        drain(consumer)

    run(main())
    # In another loop, the same handle.
    run(main())


def test_closing_ends_the_waits(consumer: Consumer) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(consumer.wait_async())
        await asyncio.sleep(0.01)
        consumer.close()
        with pytest.raises(blockring.Detached):
            await waiting

    run(main())



async def until(number: int, coroutine: "Coroutine[Any, Any, Any]") -> bool:
    """Runs a coroutine, and cancels it at its await with that number. Returns whether it has ended."""

    class Steps:
        def __await__(self) -> Any:
            for step in itertools.count():
                try:
                    wanted = coroutine.send(None)
                except StopIteration:
                    return True
                if step == number:
                    try:
                        coroutine.throw(asyncio.CancelledError())
                    except asyncio.CancelledError:
                        return False
                    raise AssertionError("it has gone on after a cancellation")
                yield wanted

    return bool(await Steps())


def test_cancelled_send_has_sent_nothing(producer: Producer, consumer: Consumer) -> None:
    async def main() -> None:
        for number in itertools.count():
            fill(producer)
            before = producer.position
            asyncio.get_running_loop().call_later(0.02, drain, consumer)
            if await until(number, producer.send_async([b"a" * 9_000, b"b" * 9_000])):
                assert [item[:1] for item in drain(consumer)] == [b"a", b"b"]
                break
            assert producer.position == before and producer.unpublished == 0
            await asyncio.sleep(0.03)
        assert number

    run(main())


def test_cancelled_iteration_loses_nothing(producer: Producer, consumer: Consumer) -> None:
    async def main() -> None:
        got = []

        async def follow() -> None:
            async for item in consumer:
                got.append(item.data)
                consumer.advance(item.next)
                await asyncio.sleep(0)
                if item.data == b"last":
                    return

        for number in range(30):
            producer.send([b"%d" % number, b"%d" % number])
            asyncio.get_running_loop().call_later(0.005, producer.send, b"later %d" % number)
            await until(number % 7, follow())
            await asyncio.sleep(0.01)
        producer.send(b"last")
        await follow()
        expected = [[b"%d" % number] * 2 + [b"later %d" % number] for number in range(30)]
        assert got == [line for lines in expected for line in lines] + [b"last"]

    run(main())


def test_timeout_of_a_wait_loses_nothing(producer: Producer, consumer: Consumer) -> None:
    async def main() -> None:
        for attempt in range(50):
            loop = asyncio.get_running_loop()
            loop.call_later(0.001 * (attempt % 5), producer.send, b"%d" % attempt)
            while True:
                try:
                    await asyncio.wait_for(consumer.wait_async(), 0.002)
                    break
                except asyncio.TimeoutError:
                    pass
            assert drain(consumer) == [b"%d" % attempt]

    run(main())


def test_suspended_send_keeps_its_batch_once(producer: Producer, consumer: Consumer) -> None:
    async def main() -> None:
        consumer.suspend()
        task = asyncio.ensure_future(producer.send_async(b"one"))
        await asyncio.sleep(0.02)
        assert not task.done() and producer.unpublished == 8
        consumer.resume()
        await task
        assert drain(consumer) == [b"one"]

    run(main())
