"""A handler that sends log records into a ring, as lines of JSON."""

import json
import logging
import os
import time
from typing import Optional, Union

from . import Durability, Producer, Superseded

__all__ = ["JsonFormatter", "RingHandler"]

# What every record has; anything else was given by ``extra``.
_USUAL = set(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON of a record.

    Its fields are ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``process`` and
    ``thread``; where there are such, ``exception`` and ``stack``; and what the program has given by
    ``extra``. A value that JSON has not is there as its ``str``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without a line feed."""
        # Seconds and microseconds of one number: a rounded second would be another one.
        seconds, micros = divmod(int(record.created * 1_000_000), 1_000_000)
        fields = {key: value for key, value in vars(record).items() if key not in _USUAL}
        fields["time"] = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06}Z"
        fields["level"] = record.levelname
        fields["logger"] = record.name
        fields["message"] = record.getMessage()
        fields["process"] = record.process
        fields["thread"] = record.threadName
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class RingHandler(logging.Handler):
    """Sends each record into a ring, as one item: a line of JSON, or what ``setFormatter`` makes.

    It is the ring's producer, and so the only such handler of that ring. ``address``, ``queue``,
    ``client``, ``durability`` and ``sector_size`` are those of ``Producer``; nothing is flushed
    unless ``durability`` asks for it, so that a record costs microseconds.

    Where the ring is full or suspended a record is dropped at once, and counted in ``dropped``.
    With ``when_full="wait"`` the program waits first: ``timeout`` seconds at most, or for ever.
    Other errors go to ``handleError``, as with any handler: the program goes on.

    A child that was forked cannot send into its parent's ring: ``handleError`` gets its records.
    Give it a ring and a handler of its own.
    """

    def __init__(
        self,
        address: "Union[str, os.PathLike[str]]",
        queue: str = "",
        client: str = "",
        *,
        level: Union[int, str] = logging.NOTSET,
        when_full: str = "drop",
        timeout: Optional[float] = None,
        durability: str = Durability.PAGE_CACHE,
        sector_size: Optional[int] = None,
    ) -> None:
        if when_full not in ("drop", "wait"):
            raise ValueError(f'when_full: "drop" or "wait", not {when_full!r}')
        super().__init__(level)
        self.formatter = JsonFormatter()
        self.dropped = 0
        self._timeout = 0.0 if when_full == "drop" else timeout
        self._producer = Producer(
            address, queue, client, durability=durability, sector_size=sector_size
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace")
            try:
                self._send(line)
            except Superseded:
                # The producer goes on behind the ring's items, and this is not one of them.
                self._send(line)
        except Exception:
            self.handleError(record)

    def _send(self, line: bytes) -> None:
        before = self._producer.position
        try:
            self._producer.send(line, self._timeout)
        except TimeoutError:
            # What was pushed before the ring was suspended goes out with the next record.
            if self._producer.position == before:
                self.dropped += 1

    def flush(self) -> None:
        """Has the records made durable, if ``durability`` asks for it."""
        if not self._producer.closed:
            self._producer.flush()

    def close(self) -> None:
        """Closes the ring."""
        self._producer.close()
        super().close()
