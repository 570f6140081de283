#!/usr/bin/env python3
"""What a JetStream server takes for batches, questions and connections, as docs/scaling.md has it.

usage: bench/jetstream/costs.py SERVER FOLDER [always]

SERVER is a nats-server, FOLDER a place for its store, and "always" its sync_interval. Batches are
sent ahead of their acknowledgements, for many subjects of one stream. "of a processor" is the
server's own time, which other programs on the machine hardly change.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

RECORD = (
    b"NATS/1.0\r\nBlockring-Ring: 7d444840-9dc0-11d1-b245-5ffdce74fad2\r\nBlockring-Position: 123456\r\n"
    b"Blockring-Next: 123460\r\nBlockring-Time: 2026-01-01T00:00:00.000000000Z\r\n"
)
# Messages of a batch, batches, and how many are sent ahead.
LOADS = [(1, 20000, 200), (2, 300, 40), (10, 300, 40), (100, 100, 40), (1000, 40, 8)]


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = self.socket.makefile("rb")
        self.answers.readline()
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB _I.r 1\r\nPING\r\n')
        while self.answers.readline() != b"PONG\r\n":
            pass

    def ask(self, subject, body):
        self.socket.sendall(b"PUB %s _I.r %d\r\n%s\r\n" % (subject, len(body), body))

    def answer(self):
        while True:
            words = self.answers.readline().split()
            if words[0] == b"PING":
                self.socket.sendall(b"PONG\r\n")
                continue
            body = self.answers.read(int(words[-1]) + 2)
            assert b'"error"' not in body, body
            return body

    def pipelined(self, count, ahead, send):
        sent = 0
        for done in range(count):
            while sent < min(count, done + ahead):
                send(sent)
                sent += 1
            self.answer()


def batch(number, messages, subject):
    parts = []
    for index in range(1, messages + 1):
        headers = RECORD
        if messages > 1:
            headers += b"Nats-Batch-Id: b%d\r\nNats-Batch-Sequence: %d\r\n" % (number, index)
        if 1 < index == messages:
            headers += b"Nats-Batch-Commit: 1\r\n"
        headers += b"\r\n"
        reply = b" _I.r" if index == messages else b""
        sizes = b"%d %d" % (len(headers), len(headers) + 100)
        parts.append(b"HPUB %s%s %s\r\n%s%s\r\n" % (subject, reply, sizes, headers, b"x" * 100))
    return b"".join(parts)


def processor_time(pid):
    words = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    lines = open(f"/proc/{pid}/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def measure(what, count, pid, work):
    before, start = processor_time(pid), time.monotonic()
    work()
    wall, own = time.monotonic() - start, processor_time(pid) - before
    print(f"{what:<28} {count / wall:>9.0f}/s {own / count * 1e6:>9.0f} us of a processor each")


def main():
    server, folder = sys.argv[1:3]
    sync = "always" if sys.argv[3:] == ["always"] else '"2m"'
    store = tempfile.mkdtemp(dir=folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = os.path.join(store, "nats.conf")
    with open(config, "w") as file:
        file.write(f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: '{store}/js', sync_interval: {sync} }}\n")
    running = subprocess.Popen([server, "-c", config], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                client = Client(port)
                break
            except ConnectionError:
                time.sleep(0.1)
        stream = {"name": "S", "subjects": ["s.>"], "storage": "file", "retention": "limits", "discard": "new"}
        client.ask(b"$JS.API.STREAM.CREATE.S", json.dumps(stream | {"allow_atomic": True}).encode())
        client.answer()
        number = 0
        for messages, count, ahead in LOADS:
            texts = [batch(number + one, messages, b"s.r%d" % (one % ahead)) for one in range(count)]
            number += count
            work = lambda: client.pipelined(count, ahead, lambda one: client.socket.sendall(texts[one]))
            measure(f"batches of {messages}", count, running.pid, work)
        question = lambda one: client.ask(b"$JS.API.STREAM.MSG.GET.S", b'{"last_by_subj":"s.r%d"}' % (one % 100))
        measure("last messages of a subject", 3000, running.pid, lambda: client.pipelined(3000, 200, question))
        before, clients = memory(running.pid), []
        measure("connections", 1000, running.pid, lambda: clients.extend(Client(port) for _ in range(1000)))
        print(f"memory of a connection       {(memory(running.pid) - before) / 1000:.0f} KiB")
    finally:
        running.kill()
        running.wait()
        shutil.rmtree(store)


main()
