"""Collects the items of a ring in a file, each exactly once, whatever dies and when: the consumer's side of shipper.py.

usage: collector.py RING FILE [SECONDS]

It ends after SECONDS without an item, or never. Each line of FILE begins with the position behind its item: what an item did, and how
far the collector has come, are one write. After a restart the collector cuts off a line that was not finished, reads the last
position, and frees everything before it: those items do not come again. Positions belong to one ring, so the first line names it.
"""

import asyncio
import os
import sys
from typing import BinaryIO, Optional

import blockring
from blockring import Consumer, Position


def resume(consumer: Consumer, file: BinaryIO) -> None:
    """Brings the ring to where the file is."""
    ring = f"ring {consumer.debug_info().uuid}".encode()
    text = file.read()
    whole = text.rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(whole)
    if not whole:
        if consumer.position != 0:
            raise SystemExit("collector: the file lacks items that the ring has freed")
        file.write(ring + b"\n")
        return
    lines = text[:whole].splitlines()
    if lines[0] != ring:
        raise SystemExit("collector: the file is of another ring")
    if len(lines) > 1:
        last = Position(lines[-1].split(b"\t")[0].decode())
        if last < consumer.position:
            raise SystemExit("collector: the file lacks items that the ring has freed")
        consumer.advance(last)


def write(consumer: Consumer, file: BinaryIO) -> None:
    """Writes what is there into the file, then frees it."""
    while True:
        items = consumer.take()
        if not items:
            return
        for item in items:
            # An item with a line's end in it would look like two.
            file.write(b"%d\t%s\n" % (item.next, item.data.replace(b"\n", b" ")))
        # Freed items cannot be had again, so the file must survive a power cut first.
        file.flush()
        os.fsync(file.fileno())
        consumer.advance(items[-1].next)


async def collect(ring: str, path: str, patience: Optional[float]) -> None:
    with Consumer(ring, "lines", "collector") as consumer:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with open(descriptor, "r+b") as file:
            resume(consumer, file)
            while True:
                try:
                    # Other tasks of a program run meanwhile.
                    await asyncio.wait_for(consumer.wait_async(), patience)
                except asyncio.TimeoutError:
                    return
                write(consumer, file)


def main() -> int:
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    patience = float(sys.argv[3]) if len(sys.argv) == 4 else None
    try:
        asyncio.run(collect(sys.argv[1], sys.argv[2], patience))
    except (blockring.Error, OSError) as error:
        print(f"collector: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
