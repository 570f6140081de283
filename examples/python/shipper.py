"""Sends the lines of standard input into a ring, each as an item: the producer's side of collector.py.

usage: shipper.py RING

RING is an address as blockring takes it, such as serial:logs in a guest. What one read brings is one batch: after a crash all of
its lines are there, or none. Where the ring is full the program waits, and so does the one that writes to it.

    journalctl -f | python3 shipper.py serial:logs
"""

import os
import sys
from typing import Iterator, List

import blockring

# Enough for a batch to cost little more than one line; a larger one would hold the first line up.
CHUNK = 64 * 1024


def batches(descriptor: int, size: int) -> Iterator[List[bytes]]:
    """The lines of a file, as many at a time as ``size`` bytes of it have. A last line needs no line feed."""
    rest = b""
    while True:
        chunk = os.read(descriptor, size)
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk and rest:
            lines.append(rest)
        if lines:
            yield lines
        if not chunk:
            return


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with blockring.Producer(sys.argv[1], "lines", "shipper") as producer:
            # Lines of one letter take four times their size in the ring, and a batch must leave room for the next.
            size = min(CHUNK, producer.debug_info().capacity // 8)
            for lines in batches(sys.stdin.fileno(), size):
                producer.send(lines)
    except blockring.Error as error:
        print(f"shipper: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
