"""What a JSON Lines log holds: for each stream, where its records are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agenthelm.core.storage.base import StreamInfo
from agenthelm.core.storage.json_lines import HEADER, check_header, joined, may_be_several, parsed
from agenthelm.exceptions import CorruptRecordError

__all__ = ["MISSING", "Index", "Stream"]

MISSING = 2**64 - 1
"""The offset of a record whose line can't be read."""


@dataclass(slots=True, eq=False)
class Stream:
    """Where a stream's records are: the offset of the line that holds each one."""

    name: str
    created_at: float
    updated_at: float
    state: str | None = None
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    doubtful: bool = False
    """Unreadable lines follow its last record, and nobody can say whose they were."""

    @property
    def info(self) -> StreamInfo:
        return StreamInfo(self.name, len(self.offsets), self.state, self.created_at, self.updated_at)

    def place(self, position: int, offset: int) -> None:
        """Note a record; positions it jumps over are missing, one it repeats is replaced."""
        self.reach(position)
        if position < len(self.offsets):
            self.offsets[position] = offset
        else:
            self.offsets.append(offset)
        self.doubtful = False

    def reach(self, position: int) -> None:
        self.offsets.extend([MISSING] * (position - len(self.offsets)))

    def check(self) -> None:
        """Refuse a journal that has lost a record."""
        if self.doubtful or MISSING in self.offsets:
            lost = self.offsets.index(MISSING) if MISSING in self.offsets else len(self.offsets)
            raise CorruptRecordError(self.name, position=lost, detail="its line in the file is damaged")


class Index:
    """The streams of a file, as far as it was read.

    Attributes:
        size: The end of the last readable line; beyond it there is nothing, or a torn tail.
        streams: By name, in the order of their creation.
        last: What the last line touched, and the positions since.
        damaged: Whether records are missing: unreadable lines lie before readable ones, or lines are gone.
        skipped: How many lines were left out.
        alive: How many records there are.
        dead: How many records of dropped streams the file still holds.
    """

    def __init__(self, path: Path, *, skipped: int = 0) -> None:
        self._path = path
        self._torn = (0, 0)
        self._merged = False  # whether what waits for a good line may be more lines than it seems
        self.size: int = 0
        self.streams: dict[str, Stream] = {}
        self.last: dict[str, int] = {}
        self.damaged: bool = False
        self.skipped: int = skipped
        self.alive: int = 0
        self.dead: int = 0

    def feed(self, source: Iterable[bytes]) -> None:
        """Take in what the file holds from `size` on.

        Raises:
            StorageError: It is no log of ours.
        """
        held = 0
        self._merged = False
        rest = b""
        offset = self.size
        for block in joined(source):
            *whole, rest = (rest + block).split(b"\n")
            for raw in whole:
                held = self._take(raw, offset, held)
                offset += len(raw) + 1
        if rest and not offset and not HEADER.startswith(rest):
            check_header(rest, self._path)
        if rest and offset and parsed(rest, offset) is not None:  # whole, and only its line break is missing
            held = self._take(rest, offset, held)
            offset, rest = offset + len(rest) + 1, b""
        torn = (self.size, offset + len(rest) - self.size)
        if torn[1] and torn != self._torn:  # each torn tail is counted once
            self.skipped += 1
        self._torn = torn

    def holds(self, record: Mapping[str, Any], offset: int) -> bool:
        """Whether a record in the line at an offset is one of a stream that lives."""
        stream = self.streams.get(record["stream"])
        position: int = record["position"]
        return stream is not None and position < len(stream.offsets) and stream.offsets[position] == offset

    def _take(self, raw: bytes, offset: int, unreadable: int) -> int:
        """Index one line; returns how many unreadable ones wait for a good one to follow."""
        if offset == 0:
            check_header(raw, self._path)
        else:
            line = parsed(raw, offset)
            if line is None:
                self._merged = self._merged or may_be_several(raw)
                return unreadable + 1
            if unreadable:
                self._pass_over(unreadable)
            self._note(line, offset)
        self.size = offset + len(raw) + 1
        return 0

    def _pass_over(self, unreadable: int) -> None:
        """Conclude from the line that follows whose records the unreadable ones held; see `_note`."""
        self.skipped += unreadable
        self.damaged = True
        if unreadable > 1 or self._merged:  # of the last one it is known; the others may have been anybody's
            for stream in self.streams.values():
                stream.doubtful = True
        self._merged = False

    def _note(self, line: Mapping[str, Any], offset: int) -> None:
        for name, position in line["before"].items():
            stream = self._stream(name, line["at"])
            if position > len(stream.offsets):  # it was in the line before, which is gone, or says something else now
                self.damaged = True
                stream.reach(position)
        self.last = {}
        if "drop" in line:
            gone = self.streams.pop(line["drop"], None)
            if gone is not None:
                self.dead += len(gone.offsets)
                self.alive -= len(gone.offsets)
            return
        for record in line["records"]:
            stream = self._stream(record["stream"], line["at"])
            stream.place(record["position"], offset)
            stream.updated_at = line["at"]
            stream.state = record.get("state", stream.state)
            self.last[stream.name] = record["position"] + 1
        self.alive += len(line["records"])

    def _stream(self, name: str, now: float) -> Stream:
        stream = self.streams.get(name)
        if stream is None:
            stream = self.streams[name] = Stream(name, now, now)
        return stream
