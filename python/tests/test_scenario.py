"""Programs in Rust, C and Python on one ring, with kills of both ends: the scripted scenario in each pair of languages.

The programs in C and Rust are those that BLOCKRING_SCENARIO_C and BLOCKRING_SCENARIO_RUST name. scripts/test-python.sh sets both, and
fails where it has not got them.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import time
from typing import Dict, List, Optional

import pytest
from scenario import START, checksum_of, item

from blockring import Control

PROGRAMS: Dict[str, List[str]] = {
    "python": [sys.executable, str(pathlib.Path(__file__).with_name("scenario.py"))]
}
for language in ("c", "rust"):
    program = os.environ.get(f"BLOCKRING_SCENARIO_{language.upper()}")
    if program:
        PROGRAMS[language] = [program]

PAIRS = list(itertools.product(PROGRAMS, PROGRAMS))

# Some hundred items fit: neither end gets far without the other.
RING_BYTES = 64 << 10
ITEMS = 10_000
PATIENCE = 30


class End:
    """One end of the ring: a program that can be killed, and started again."""

    def __init__(self, language: str, *arguments: object) -> None:
        self.command = [*PROGRAMS[language], *map(str, arguments)]
        self.process = self.start()

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.process = self.start()

    def said(self) -> str:
        """What it prints, once it has ended well."""
        said = self.process.communicate(timeout=PATIENCE)[0]
        assert self.process.returncode == 0, self.command
        return said

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def run(language: str, *arguments: object) -> str:
    command = [*PROGRAMS[language], *map(str, arguments)]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE
    ).stdout


def checksum(items: int) -> str:
    value = START
    for number in range(items):
        value = checksum_of(value, item(number))
    return f"{value:016x}"


def wait_for(control: Control, items: int, ends: List[End]) -> None:
    """Waits until so many items were consumed."""
    until = time.monotonic() + PATIENCE
    while (control.debug_info().consumer_items or 0) < items:
        assert time.monotonic() < until, f"the ring stands still: {control.debug_info()}"
        for end in ends:
            assert not end.process.poll(), f"{end.command}: exit code {end.process.returncode}"
        time.sleep(0.0005)


def move(
    folder: pathlib.Path, producer: str, consumer: str, begin: int, to: int, kills: int
) -> None:
    """Moves items up to number `to` from one language to the other, with kills on the way."""
    ring, state = folder / "ring", folder / "state"
    suspend_at = begin + (to - begin) // 4
    ends = [
        End(producer, "produce", ring, to),
        End(consumer, "consume", ring, to, state, suspend_at),
    ]
    try:
        with Control(ring) as control:
            for kill in range(kills):
                wait_for(control, begin + (to - begin) * (kill + 1) // (kills + 2), ends)
                # The one, the other, and both.
                for end in (ends[:1], ends[1:], ends)[kill % 3]:
                    end.kill()
        assert ends[0].said() == f"produced {to}\n"
        assert ends[1].said() == f"consumed {to} {checksum(to)}\n"
    finally:
        for end in ends:
            end.stop()


@pytest.mark.parametrize(("producer", "consumer"), PAIRS)
def test_items_arrive_once_each_though_both_ends_are_killed(
    tmp_path: pathlib.Path, producer: str, consumer: str
) -> None:
    run(producer, "create", tmp_path / "ring", RING_BYTES)
    move(tmp_path, producer, consumer, 0, ITEMS, 6)


def test_languages_take_turns_on_one_ring(tmp_path: pathlib.Path) -> None:
    run("python", "create", tmp_path / "ring", RING_BYTES)
    step = 3_000
    for turn, (producer, consumer) in enumerate(PAIRS):
        move(tmp_path, producer, consumer, turn * step, (turn + 1) * step, 1)


@pytest.mark.parametrize("language", PROGRAMS)
def test_producer_of_an_older_ring_is_superseded_and_goes_on(
    tmp_path: pathlib.Path, language: str
) -> None:
    run("python", "create", tmp_path / "ring", RING_BYTES)
    assert run(language, "superseded", tmp_path / "ring") == "superseded\n"


@pytest.mark.parametrize("language", PROGRAMS)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("device", ["produce", "/no/such/ring", "1"]),
        ("format", ["consume", "zeros", "1", "state"]),
        ("role_taken", ["produce", "ring", "1"]),
    ],
)
def test_errors_have_one_name_in_all_languages(
    tmp_path: pathlib.Path, language: str, name: str, arguments: List[str]
) -> None:
    (tmp_path / "zeros").write_bytes(bytes(RING_BYTES))
    run("python", "create", tmp_path / "ring", RING_BYTES)
    holder: Optional[End] = None
    if name == "role_taken":
        # More than the ring takes: it holds the role as long as nobody consumes.
        holder = End("python", "produce", tmp_path / "ring", ITEMS)
        with Control(tmp_path / "ring") as control:
            while not control.debug_info().used:
                time.sleep(0.001)
    command = [*PROGRAMS[language], *arguments]
    failed = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    if holder is not None:
        holder.stop()
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"{name}: "), failed.stderr
