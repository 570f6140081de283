"""A crash-safe queue on a block device, with one producer and one consumer.

Published items survive the death of the producer, of the consumer and of the machine. They arrive
in order, at least once, each with a position by which a receiver recognises an item that it has
handled already. A ring lies in a file, on a disk, or with a backend that hands it over from a
virtual machine; programs in Rust, C and Python share it.

    import blockring

    blockring.create("ring", 8 << 20)

    with blockring.Producer("ring", "logs", "web-1") as producer:
        producer.send([b"first", b"second"])  # one batch: both survive any crash, or none is there

    with blockring.Consumer("ring", "logs", "collector") as consumer:
        for item in consumer.pending():
            print(item.data)
            consumer.advance(item.next)  # dealt with: its space is free

An address is a path, ``serial:NAME``, ``unix:PATH`` or ``vhost-user:PATH``.

Every exception about a ring is an ``Error``. ``Retry`` and ``Suspended`` say that the other side
has to move first: no call waits but those that say so (``send``, ``wait``, iteration). Ctrl-C ends
a wait.

Threads share a handle: calls take turns, and one that waits lets others in. A call that may read or
write the device gives up the interpreter's lock meanwhile. A process that was forked does not share
its parent's handles: in the child their calls raise ``Detached``.

``blockring.logging`` has a handler that sends log records.
"""

import os
from types import TracebackType
from typing import TYPE_CHECKING, AsyncIterator, Iterable, Optional, Type, Union

from . import _blockring
from ._blockring import Control, ConsumerCore, Item, Items, Position, ProducerCore, create
from ._errors import (
    Detached,
    DeviceError,
    Error,
    Failed,
    FormatError,
    InvalidAdvance,
    InvalidStart,
    Retry,
    RoleTaken,
    Superseded,
    Suspended,
    TooLarge,
)
from ._loops import Waiters
from ._state import DebugInfo, Durability, State

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

__all__ = [
    "Consumer",
    "Control",
    "DebugInfo",
    "Detached",
    "DeviceError",
    "Durability",
    "Error",
    "Failed",
    "FormatError",
    "InvalidAdvance",
    "InvalidStart",
    "Item",
    "Items",
    "Position",
    "Producer",
    "Retry",
    "RoleTaken",
    "State",
    "Superseded",
    "Suspended",
    "TooLarge",
    "create",
]

# A child has copies of its parent's handles, and must not use them.
os.register_at_fork(after_in_child=_blockring._forked)


class Producer(ProducerCore):
    """The only producer of a ring.

    ``push`` adds an item that the consumer does not see yet, and ``advance`` publishes everything
    before a position at once: several pushes before one ``advance`` are an atomic batch. ``send``
    does both, and waits where the ring is full.

    ``queue`` and ``client`` go into the text of the ring's first pointer sector, for people who
    look at it. ``durability`` says what ``advance`` flushes (see ``Durability``). ``sector_size``
    is for a ring in a file that was not made with 512; a device has its own. A backend has
    ``timeout`` seconds to answer.

    As a context manager it closes the ring at the end: what was pushed and not advanced over is
    gone then.
    """

    def __init__(
        self,
        address: "Union[str, os.PathLike[str]]",
        queue: str = "",
        client: str = "",
        *,
        durability: str = Durability.FLUSH,
        sector_size: Optional[int] = None,
        timeout: float = 5.0,
    ) -> None:
        self._waiters = Waiters()
        self._open(address, queue, client, durability, sector_size, timeout)

    async def send_async(self, items: "Union[Buffer, Iterable[Buffer]]") -> Position:
        """Does as ``send``, and lets other tasks run while it waits.

        A cancelled call has published nothing and pushed nothing, with the one exception that
        ``send`` names. Only waiting is asynchronous: the event loop stands still during the flushes
        of an ``advance``, as long as the device takes.
        """
        batch = list(_each(items))
        end = None
        while True:
            try:
                if end is None:
                    end = self.push_batch(batch)
                self._publish(end)
                return end
            except (Retry, Suspended):
                await self._waiters.wait(self)

    async def wait_async(self, size: int = 0) -> None:
        """Waits until there is room for an item of ``size`` bytes and the ring is not suspended."""
        while not self.wait(0, size):
            await self._waiters.wait(self)

    def close(self) -> None:
        """Gives up the role, and closes the ring. What was pushed and not advanced over is gone.

        Every later call raises ``Detached``, but another ``close``; so do the tasks that wait.
        """
        super().close()
        self._waiters.wake()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        exception: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


class Consumer(ConsumerCore):
    """The only consumer of a ring.

    ``pop`` looks at an item, ``take`` at many, and ``advance`` frees them once they have been dealt
    with: after a crash in between they are delivered again, never lost.

    Iterating goes over all items, and waits where the ring is empty, as it does with ``async for``;
    ``pending()`` goes over those that are there. It starts at the first item that was not advanced
    over, and frees nothing itself. Up to 64 KiB are read ahead.

    ``advance_every`` has ``advance`` keep its pointer back until so many bytes can be freed at
    once, which makes it cheap: what was advanced over since is delivered again after a crash. For
    the other arguments see ``Producer``. As a context manager it closes the ring at the end.
    """

    def __init__(
        self,
        address: "Union[str, os.PathLike[str]]",
        queue: str = "",
        client: str = "",
        *,
        durability: str = Durability.FLUSH,
        sector_size: Optional[int] = None,
        timeout: float = 5.0,
        advance_every: int = 0,
    ) -> None:
        self._waiters = Waiters()
        self._open(address, queue, client, durability, sector_size, timeout, advance_every)

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Goes over all items, as ``iter`` does, and lets other tasks run while it waits.

        An iteration that ends, by a cancellation or otherwise, loses nothing: the next one starts
        at the first item that was not advanced over.
        """
        items = self.pending()
        while True:
            for item in items:
                yield item
            await self._waiters.wait(self)

    async def wait_async(self, *, start: Union[Position, int, None] = None) -> None:
        """Waits until there is an item at ``start``, or behind all that was advanced over."""
        while not self.wait(0, start=start):
            await self._waiters.wait(self)

    def close(self) -> None:
        """Writes the pointer that was kept back, gives up the role, and closes the ring.

        Every later call raises ``Detached``, but another ``close``; so do the tasks that wait.
        """
        try:
            super().close()
        finally:
            self._waiters.wake()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        exception: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


def _each(items: "Union[Buffer, Iterable[Buffer]]") -> "Iterable[Buffer]":
    try:
        return [memoryview(items).tobytes()]  # type: ignore[arg-type]
    except TypeError:
        return items  # type: ignore[return-value]


# Nobody has to know which file a class is in.
for _name in __all__:
    if globals()[_name].__module__ in ("blockring._errors", "blockring._state"):
        globals()[_name].__module__ = __name__
