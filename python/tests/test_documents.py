"""The blocks of the documents, run as they are written."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def documented(page: str, words: str) -> str:
    """The one block of a page with these words. Its name is what the test of all pages looks for."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if words in block)
    return str(block)


def run(block: str) -> str:
    """Runs a block as a program of its own, and returns what it prints."""
    command = [sys.executable, "-W", "error", "-c", block]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout.decode()


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: "pytest.MonkeyPatch") -> None:
    monkeypatch.chdir(tmp_path)


def test_first_programs_do_what_the_page_says() -> None:
    run(documented("docs/python.md", "blockring.create("))
    assert run(documented("docs/python.md", "pending()")) == "first\nsecond\n"
    assert run(documented("docs/python.md", "pending()")) == ""


def test_readme_does_what_it_says() -> None:
    assert run(documented("python/README.md", "pending()")) == "b'first'\nb'second'\n"


def test_event_loop_of_the_page_receives() -> None:
    run(documented("docs/python.md", "blockring.create("))
    assert run(documented("docs/python.md", "async for")) == "first\nsecond\nthird\n"


def test_logging_of_the_page_sends() -> None:
    run(documented("docs/python.md", "blockring.create("))
    run(documented("docs/python.md", "RingHandler"))
    assert '"order": 7' in run(documented("docs/python.md", "pending()"))


def test_waiting_of_the_page_ends() -> None:
    run(documented("docs/python.md", "blockring.create("))
    assert run(documented("docs/python.md", "selectors")) == "first\nsecond\n"


def test_errors_of_the_page_are_caught() -> None:
    run(documented("docs/python.md", "blockring.create("))
    assert "Errno" not in run(documented("docs/python.md", "except blockring.DeviceError"))
