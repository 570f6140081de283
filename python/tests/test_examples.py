"""The programs of examples/python."""

import pathlib
import random
import signal
import subprocess
import sys
import time

import blockring

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "python"


def start(name: str, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.Popen(command, **options)  # type: ignore[call-overload,no-any-return]


def test_lines_arrive_once_though_the_collector_is_killed(
    ring: str, tmp_path: pathlib.Path
) -> None:
    lines = [b"line %d %s" % (number, b"x" * (number % 90)) for number in range(20_000)]
    shipper = start("shipper.py", ring, stdin=subprocess.PIPE)
    assert shipper.stdin is not None
    writer = subprocess.Popen(
        [sys.executable, "-c", "for n in range(20000): print('line', n, 'x' * (n % 90))"],
        stdout=shipper.stdin,
    )
    shipper.stdin.close()
    output = str(tmp_path / "collected")
    for _ in range(8):
        collector = start("collector.py", ring, output)
        time.sleep(random.uniform(0.1, 0.3))
        collector.send_signal(signal.SIGKILL)
        collector.wait()
    last = start("collector.py", ring, output, "1")
    assert (writer.wait(60), shipper.wait(60), last.wait(60)) == (0, 0, 0)
    head, *rest = pathlib.Path(output).read_bytes().splitlines()
    assert head.startswith(b"ring ")
    assert [line.split(b"\t", 1)[1] for line in rest] == lines


def test_last_line_needs_no_line_feed(ring: str) -> None:
    shipper = start("shipper.py", ring, stdin=subprocess.PIPE)
    shipper.communicate(b"one\n\ntwo")
    assert shipper.returncode == 0
    with blockring.Consumer(ring) as consumer:
        assert [item.data for item in consumer.pending()] == [b"one", b"", b"two"]


def test_interrupted_collector_leaves_the_rest(ring: str, tmp_path: pathlib.Path) -> None:
    collector = start("collector.py", ring, str(tmp_path / "collected"))
    with blockring.Producer(ring) as producer:
        producer.send(b"one")
        while producer.debug_info().used:
            time.sleep(0.01)
    collector.send_signal(signal.SIGINT)
    assert collector.wait(30) == 130


def test_measurement_works(ring: str) -> None:
    program = pathlib.Path(__file__).parents[1] / "bench" / "items.py"
    for way in ("batch", "each"):
        command = [sys.executable, str(program), way, ring, "10"]
        assert int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) > 0


def test_mistakes_end_with_a_message(tmp_path: pathlib.Path) -> None:
    for name, arguments, code, words in [
        ("shipper.py", [], 2, b"usage: shipper.py"),
        ("collector.py", [], 2, b"usage: collector.py"),
        ("shipper.py", [str(tmp_path / "none")], 1, b"cannot open"),
        ("collector.py", [str(tmp_path / "none"), str(tmp_path / "x")], 1, b"cannot open"),
    ]:
        program = start(name, *arguments, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert words in program.communicate()[1] and program.returncode == code
