#!/usr/bin/env python3
"""Prints which crates the programs contain, with their licences and the texts of those, from cargo's metadata."""

import json
import pathlib
import re
import subprocess
import sys

PROGRAMS = ["blockring", "vhost-device-blockring"]
TARGET = "x86_64-unknown-linux-gnu"
NAMES = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)

metadata = json.loads(
    subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}


def is_linked(package):
    """A procedural macro runs in the compiler, and is no part of the program."""
    return not any("proc-macro" in target["kind"] for target in package["targets"])


found = set()
left = [id for id, package in packages.items() if package["name"] in PROGRAMS and package["source"] is None]
while left:
    id = left.pop()
    if id in found or not is_linked(packages[id]):
        continue
    found.add(id)
    for dependency in nodes[id]["deps"]:
        if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
            left.append(dependency["pkg"])

crates = sorted((packages[id] for id in found if packages[id]["source"]), key=lambda crate: (crate["name"], crate["version"]))
texts = {}
print("The programs contain these crates:\n")
for crate in crates:
    name = f"{crate['name']} {crate['version']}"
    print(f"{name}: {crate['license'] or 'see its text below'} ({crate['repository'] or 'crates.io'})")
    folder = pathlib.Path(crate["manifest_path"]).parent
    files = [file for pattern in ("*", "*/*") for file in folder.glob(pattern)]
    for file in sorted(files):
        if file.is_file() and NAMES.match(file.name) and file.suffix not in (".rs", ".py", ".h"):
            text = file.read_text(errors="replace").strip()
            texts.setdefault(text, []).append(f"{name}, {file.relative_to(folder)}")
if not crates or not texts:
    sys.exit("third-party.py: found no crates, or no text of a licence")
for text, users in texts.items():
    print(f"\n\n{'=' * 78}\n" + "\n".join(users) + f"\n{'-' * 78}\n{text}")
