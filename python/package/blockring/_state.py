"""What is told about a ring."""

import enum
from dataclasses import dataclass
from typing import Optional

from ._blockring import Position


class State(enum.Enum):
    """Whether the producer may push."""

    RUNNING = "running"
    """The producer may push."""
    SUSPENDED = "suspended"
    """The consumer has suspended the ring, and the producer has acknowledged it."""


class Durability(str, enum.Enum):
    """The flushes that ``advance`` makes, and so what a power loss can take back.

    The death of any process takes back nothing, whichever it is.
    """

    FLUSH = "flush"
    """Items are flushed before the pointer that publishes them, and the pointer before ``advance``
    returns: nothing is taken back."""
    ORDERED = "ordered"
    """Half of the flushes. A power loss can take back the last ``advance``, and nothing else."""
    PAGE_CACHE = "page-cache"
    """Nothing is flushed: safe against the death of any process, not of the machine."""


@dataclass(frozen=True)
class DebugInfo:
    """The state of a ring as its sectors have it."""

    sector_size: int
    """Bytes in a sector."""
    total_sectors: int
    """Sectors on the device."""
    capacity: int
    """Bytes in the data area."""
    producer: Position
    """The producer's position: everything before it is published."""
    consumer: Position
    """The consumer's position: everything before it is consumed."""
    used: int
    """Bytes that are published and not consumed."""
    suspend: bool
    """The consumer's flag: whether the producer is to stop."""
    suspend_ack: bool
    """The producer's flag: whether it has stopped."""
    producer_items: Optional[int]
    """Items published since the ring was created, if the count is known."""
    consumer_items: Optional[int]
    """Items consumed since the ring was created, if the count is known."""
    producer_time_ns: Optional[int]
    """Time of the producer's last ``advance``, in nanoseconds since 1970."""
    consumer_time_ns: Optional[int]
    """Time of the consumer's last ``advance``, in nanoseconds since 1970."""
    producer_text: str
    """The text of sector 1, made printable."""
    consumer_text: str
    """The text of sector 2, made printable."""
    uuid: Optional[str]
    """The ring's UUID; ``None`` for a plain ring."""
