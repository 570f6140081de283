"""Waiting in an event loop of asyncio."""

import asyncio
import weakref
from typing import Optional, Protocol, Set


class _Handle(Protocol):
    def fileno(self) -> int: ...

    def arm(self) -> bool: ...


class Waiters:
    """The tasks that wait for the other side of one ring, in one event loop."""

    def __init__(self) -> None:
        self._tasks: "Set[asyncio.Future[None]]" = set()
        self._watched: Optional[int] = None
        self._loop: "Optional[weakref.ref[asyncio.AbstractEventLoop]]" = None

    async def wait(self, handle: _Handle) -> None:
        """Returns when it is time to look at the ring again."""
        loop = asyncio.get_running_loop()
        if self._tasks and (self._loop is None or self._loop() is not loop):
            raise RuntimeError("a task of another event loop waits for this ring")
        if handle.arm():
            # Other tasks have their turn all the same, and a cancellation has its effect.
            await asyncio.sleep(0)
            return
        task = loop.create_future()
        if self._watched is None:
            self._watched, self._loop = handle.fileno(), weakref.ref(loop)
            loop.add_reader(self._watched, self.wake)
        self._tasks.add(task)
        try:
            await task
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._unwatch()

    def wake(self) -> None:
        """Has all tasks look at the ring again."""
        # The descriptor stays readable until it is armed again.
        self._unwatch()
        for task in self._tasks:
            if not task.done():
                task.set_result(None)

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        loop = None if self._loop is None else self._loop()
        if watched is not None and loop is not None and not loop.is_closed():
            loop.remove_reader(watched)
