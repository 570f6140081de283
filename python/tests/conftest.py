"""What the tests share."""

import pathlib
from typing import Iterator

import pytest

import blockring


@pytest.fixture
def ring(tmp_path: pathlib.Path) -> str:
    """The path of an empty ring of 64 KiB."""
    path = tmp_path / "ring"
    blockring.create(path, 64 << 10)
    return str(path)


@pytest.fixture
def producer(ring: str) -> Iterator[blockring.Producer]:
    with blockring.Producer(ring, "tests", "producer", durability="page-cache") as producer:
        yield producer


@pytest.fixture
def consumer(ring: str) -> Iterator[blockring.Consumer]:
    with blockring.Consumer(ring, "tests", "consumer", durability="page-cache") as consumer:
        yield consumer


def fill(producer: blockring.Producer, size: int = 1000) -> int:
    """Publishes items until there is no room, and returns their number."""
    number = 0
    while True:
        try:
            producer.push(b"x" * size)
        except blockring.Retry:
            producer.advance()
            return number
        number += 1


def drain(consumer: blockring.Consumer) -> "list[bytes]":
    """Takes and frees all items."""
    items = list(consumer.pending())
    if items:
        consumer.advance(items[-1].next)
    return [item.data for item in items]
