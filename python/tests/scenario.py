"""The scripted scenario, the same in each language, so that they can be mixed on one ring.

  scenario.py create FILE BYTES
  scenario.py produce ADDRESS TO
  scenario.py consume ADDRESS TO STATE [SUSPEND_AT]
  scenario.py superseded FILE

Item n is the decimal text of n, a colon, and (7 n mod 101) times the letter 'a' + n mod 26. A failure is "NAME: text" on standard
error, and exit code 1.
"""

import contextlib
import os
import pathlib
import sys
import time
from typing import Optional

import blockring
from blockring import Consumer, Position, Producer, State

BATCH = 64
# Far longer than any wait of a test takes.
PATIENCE = 60.0


class Failure(Exception):
    """What the scenario itself finds wrong."""


def item(number: int) -> bytes:
    return b"%d:" % number + bytes([ord("a") + number % 26]) * (number * 7 % 101)


def checksum_of(checksum: int, data: bytes) -> int:
    """FNV-1a, of 64 bits, over the length in four bytes and the data."""
    for byte in len(data).to_bytes(4, "little") + data:
        checksum = (checksum ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return checksum


START = 0xCBF29CE484222325


def produce(address: str, to: int) -> None:
    with Producer(address, "scenario", "python") as producer:
        info = producer.debug_info()
        if info.producer_items is None and info.producer != 0:
            raise Failure("the ring does not count its items")
        number = info.producer_items or 0
        while number < to:
            end = min(number + BATCH, to)
            producer.send([item(each) for each in range(number, end)], PATIENCE)
            number = end
    print(f"produced {to}")


class Progress:
    """What was consumed: the number of items, the position, and the checksum of all of it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.number, self.position, self.checksum = 0, Position(0), START
        with contextlib.suppress(FileNotFoundError):
            number, position, checksum = path.read_text().split()
            self.number, self.position = int(number), Position(position)
            self.checksum = int(checksum, 16)

    def store(self) -> None:
        """Whenever this process is killed, the old state or the new one is there."""
        new = self.path.with_name(self.path.name + ".new")
        with open(new, "w") as file:
            file.write(f"{self.number}\n{self.position}\n{self.checksum:016x}\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.path)


def suspend_and_resume(consumer: Consumer) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(blockring.Retry):
            consumer.suspend()
            break
        time.sleep(0.001)
    while consumer.state() is not State.SUSPENDED:
        if time.monotonic() > end:
            raise Failure("the ring is not suspended")
        time.sleep(0.001)
    consumer.resume()


def consume(address: str, to: int, path: pathlib.Path, suspend_at: Optional[int]) -> None:
    progress = Progress(path)
    with Consumer(address, "scenario", "python") as consumer:
        if consumer.position < progress.position:
            consumer.advance(progress.position)
        while progress.number < to:
            if progress.number == suspend_at:
                suspend_and_resume(consumer)
            before_suspend = suspend_at is not None and progress.number < suspend_at < to
            until = suspend_at if before_suspend and suspend_at is not None else to
            items = consumer.take(until - progress.number, start=progress.position)
            for each in items:
                if each.data != item(progress.number):
                    raise Failure("an item is not what was pushed")
                progress.checksum = checksum_of(progress.checksum, each.data)
                progress.number, progress.position = progress.number + 1, each.next
            if items:
                progress.store()
                consumer.advance(progress.position)
            elif not consumer.wait(PATIENCE, start=progress.position):
                raise Failure("no item has come")
    print(f"consumed {to} {progress.checksum:016x}")


def superseded(path: pathlib.Path) -> None:
    with Producer(path, "scenario", "python") as producer:
        older = path.read_bytes()
        producer.send(b"item")
        with open(path, "r+b") as file:
            file.write(older)
        # A position that was read may be used again for a short time.
        time.sleep(0.05)
        try:
            producer.send(b"item")
        except blockring.Superseded:
            print("superseded")
        else:
            raise Failure("the older ring was not noticed")
        producer.send(b"item")


def main() -> int:
    role, *arguments = sys.argv[1:] or [""]
    try:
        if role == "create" and len(arguments) == 2:
            blockring.create(arguments[0], int(arguments[1]))
        elif role == "produce" and len(arguments) == 2:
            produce(arguments[0], int(arguments[1]))
        elif role == "consume" and len(arguments) in (3, 4):
            suspend_at = int(arguments[3]) if len(arguments) == 4 else None
            consume(arguments[0], int(arguments[1]), pathlib.Path(arguments[2]), suspend_at)
        elif role == "superseded" and len(arguments) == 1:
            superseded(pathlib.Path(arguments[0]))
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except blockring.Error as error:
        print(f"{error.name}: {error}", file=sys.stderr)
        return 1
    except (Failure, OSError) as error:
        print(f"scenario: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
