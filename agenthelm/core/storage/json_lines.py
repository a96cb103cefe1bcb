"""The lines of a JSON Lines log, and the few system calls that reading and writing them takes.

A line says ``at`` (when), ``before`` (the streams that the line before it touched, and their positions then) and
``records``, or ``drop`` (a stream that was forgotten). The first line names the format. Thanks to ``before``, a line
that can't be read any more is still known by whose records it held.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agenthelm.core.storage.files import file_id, sync
from agenthelm.core.storage.writer import Append, UnavailableError

__all__ = [
    "HEADER",
    "blocks",
    "check_header",
    "dumps",
    "joined",
    "line_at",
    "line_of",
    "lines",
    "may_be_several",
    "open_file",
    "parsed",
    "same_file",
    "sync_folder",
    "write_all",
]

HEADER = b'{"format":"agenthelm-log","version":1}\n'
BLOCK = 1 << 16


def check_header(raw: bytes, path: Path) -> None:
    """Refuse a file that is no log of ours.

    Raises:
        StorageError: It is something else, or newer than this version of AgentHelm.
    """
    line = None
    with suppress(ValueError):
        line = json.loads(raw)
    if not isinstance(line, dict) or line.get("format") != "agenthelm-log":
        raise UnavailableError(f"{path} is no AgentHelm log; name another file")
    if line.get("version") != 1:
        raise UnavailableError(f"{path} was written by a newer AgentHelm (format {line.get('version')}); upgrade")


def dumps(line: Mapping[str, Any]) -> bytes:
    """A line from its parts."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def line_of(now: float, before: Mapping[str, int], append: Append, positions: dict[str, int]) -> bytes:
    """The line of an append whose streams are at these positions, which are moved on."""
    records = []
    for entry in append.entries:
        position = positions[entry.stream]
        positions[entry.stream] = position + 1
        state = "" if entry.state is None else f',"state":{json.dumps(entry.state)}'
        records.append(f'{{"stream":{json.dumps(entry.stream)},"position":{position}{state},"data":{entry.text}}}')
    head = f'{{"at":{now},"before":{json.dumps(before, separators=(",", ":"))},"records":['
    return (head + ",".join(records) + "]}\n").encode()


def parsed(raw: bytes, offset: int) -> dict[str, Any] | None:
    """A line that has the shape of one, or None. No stream has more records than the file has bytes so far."""
    end = offset + len(raw)
    try:
        line = json.loads(raw)
        positions = [*line["before"].values()]
        for record in line["records"] if "drop" not in line else ():
            if not isinstance(record["data"], dict) or not isinstance(record["stream"], str):
                return None
            positions.append(record["position"])
        if any(type(position) is not int or not 0 <= position <= end for position in positions):
            return None
        line["at"] + 0.0
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    else:
        return line  # type: ignore[no-any-return]


def may_be_several(raw: bytes) -> bool:
    """Whether a line that can't be read may have been several, because the damage took line breaks as well."""
    return b"\0" in raw or b'{"at":' in raw[1:]


def open_file(path: Path, *, create: bool) -> tuple[int, bool]:
    """Open a file; returns the descriptor, and whether it can be written through."""
    if create and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        sync_folder(path.parent)
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), True
    except OSError as exc:
        if create or exc.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still is what the path names."""
    ours = os.fstat(descriptor)
    return file_id(path) == (ours.st_dev, ours.st_ino)


def write_all(descriptor: int, block: bytes, offset: int) -> None:
    """Write a block at an offset, in as many steps as the system takes."""
    rest = memoryview(block)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def blocks(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    """A part of a file, piece by piece."""
    while start < end and (block := os.pread(descriptor, min(BLOCK, end - start), start)):
        yield block
        start += len(block)


def joined(source: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks, those without a line break put to the next one that has one: a line over many of them is copied once."""
    pieces: list[bytes] = []
    for block in source:
        pieces.append(block)
        if b"\n" in block:
            yield b"".join(pieces)
            pieces = []
    if pieces:
        yield b"".join(pieces)


def lines(descriptor: int, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """The whole lines in a part of a file, and their offsets."""
    rest = b""
    for block in joined(blocks(descriptor, start, end)):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line, start
            start += len(line) + 1


def line_at(descriptor: int, offset: int) -> bytes:
    """The line that begins at an offset, without its line break."""
    size = 4096
    while True:
        block = os.pread(descriptor, size, offset)
        end = block.find(b"\n")
        if end >= 0 or len(block) < size:
            return block if end < 0 else block[:end]
        size *= 4
