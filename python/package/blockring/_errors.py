"""The exceptions: one for each error of the library."""

import os
from typing import TYPE_CHECKING, ClassVar, Optional

if TYPE_CHECKING:
    from ._blockring import Position


def _restored(
    kind: "type[Error]", args: "tuple[object, ...]", attributes: "dict[str, object]"
) -> "Error":
    """Makes the exception that was pickled."""
    error = kind.__new__(kind)
    error.args = args
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


class Error(Exception):
    """Base class of all exceptions about rings.

    ``name`` is the error's name in every language that has the library. ``transient`` says that
    nothing has failed: the other side has to move first, and the same call succeeds later.
    """

    name: ClassVar[str] = "error"
    transient: ClassVar[bool] = False

    def __reduce__(self) -> "tuple[object, ...]":
        return _restored, (type(self), self.args, dict(vars(self)))


class Retry(Error):
    """No item to pop, no room to push, or a suspend or resume that is not acknowledged yet."""

    name = "retry"
    transient = True


class Suspended(Error):
    """The consumer has suspended the ring."""

    name = "suspended"
    transient = True


class Detached(Error):
    """The handle was closed, or belongs to the process that this one was forked from."""

    name = "detached"


class Failed(Error):
    """A flush or the write of a pointer has failed through this handle: it accepts nothing more.

    What was done last is in doubt. See to the device, then attach again.
    """

    name = "failed"


class Superseded(Error):
    """Another instance of this process has moved the ring, as after the restore of a snapshot.

    The handle has attached again, at ``ring``, and can be used. ``items`` items (``None``: unknown)
    between ``start`` and ``end`` cannot be accounted for: any of a producer's may be in the ring; a
    consumer's were freed by the other instance and are not delivered here. ``side`` is
    ``"producer"`` or ``"consumer"``.
    """

    name = "superseded"

    def __init__(
        self,
        message: str,
        *,
        side: str,
        ring: "Position",
        start: "Position",
        end: "Position",
        items: Optional[int] = None,
    ) -> None:
        super().__init__(message)
        self.side = side
        self.ring = ring
        self.start = start
        self.end = end
        self.items = items


class TooLarge(Error, ValueError):
    """An item or batch of ``needed`` bytes with framing, for which even an empty ring has no room.

    The ring's ``capacity`` is in bytes, too.
    """

    name = "too_large"

    def __init__(self, message: str, *, needed: int, capacity: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.capacity = capacity


class InvalidAdvance(Error, ValueError):
    """A position ``to`` that cannot be advanced to: it must lie between ``start`` and ``limit``."""

    name = "invalid_advance"

    def __init__(
        self, message: str, *, to: "Position", start: "Position", limit: "Position"
    ) -> None:
        super().__init__(message)
        self.to = to
        self.start = start
        self.limit = limit


class InvalidStart(Error, ValueError):
    """A position ``start`` to read from that is freed, or not published yet.

    Items lie between ``consumer`` and ``producer``.
    """

    name = "invalid_start"

    def __init__(
        self, message: str, *, start: "Position", consumer: "Position", producer: "Position"
    ) -> None:
        super().__init__(message)
        self.start = start
        self.consumer = consumer
        self.producer = producer


class RoleTaken(Error):
    """Another handle has the ``role`` (``"producer"`` or ``"consumer"``).

    ``holder`` is the process that has it, where that can be told.
    """

    name = "role_taken"

    def __init__(self, message: str, *, role: str, holder: Optional[int] = None) -> None:
        super().__init__(message)
        self.role = role
        self.holder = holder


class FormatError(Error):
    """The device holds no ring, or a damaged one.

    Where items between two positions are not what the producer wrote, ``start`` and ``end`` are
    those positions: ``consumer.advance(error.end)`` skips them. Otherwise they are ``None``.
    """

    name = "format"

    def __init__(
        self,
        message: str,
        *,
        start: Optional["Position"] = None,
        end: Optional["Position"] = None,
    ) -> None:
        super().__init__(message)
        self.start = start
        self.end = end


class DeviceError(Error, OSError):
    """An operation of the device has failed.

    ``errno`` and ``strerror`` are the operating system's (``None`` if it had no part in it),
    ``device`` is the device as it was named, ``operation`` completes the sentence "cannot …", and
    ``sector`` is the first of the transfer, if it was one.
    """

    name = "device"

    def __init__(
        self,
        message: str,
        *,
        errno: Optional[int] = None,
        device: str = "",
        operation: str = "",
        sector: Optional[int] = None,
    ) -> None:
        super().__init__(message)
        self.errno = errno
        self.strerror = None if errno is None else os.strerror(errno)
        self.device = device
        self.operation = operation
        self.sector = sector

    def __reduce__(self) -> "tuple[object, ...]":
        # The operating system's part is no attribute of Python's.
        system = {"errno": self.errno, "strerror": self.strerror}
        return _restored, (type(self), self.args, {**vars(self), **system})

    def __str__(self) -> str:
        return str(self.args[0])
