"""A log in one JSON Lines file: one line per append, so an append over several streams is whole or absent.

A line says ``at`` (when), ``before`` (the streams that the line before it touched, and their positions then) and
``records``, or ``drop`` (a stream that was forgotten). The first line names the format. Thanks to ``before``, a line
that can't be read any more is still known by whose records it held.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agenthelm.core.storage.base import StreamInfo
from agenthelm.core.storage.file_lock import locked
from agenthelm.core.storage.writer import Append, Outcome, UnavailableError, place
from agenthelm.exceptions import CorruptRecordError, StalePositionError, StorageError

__all__ = ["JsonLog", "Stream", "View"]

_HEADER = b'{"format":"agenthelm-log","version":1}\n'
_MISSING = 2**64 - 1
_BLOCK = 1 << 16
_WORTH_COMPACTING = 1 << 20


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
        self.offsets.extend([_MISSING] * (position - len(self.offsets)))

    def check(self) -> None:
        """Refuse a journal that has lost a record."""
        if self.doubtful or _MISSING in self.offsets:
            lost = self.offsets.index(_MISSING) if _MISSING in self.offsets else len(self.offsets)
            raise CorruptRecordError(self.name, position=lost, detail="its line in the file is damaged")


class View:
    """A stream as it was when it was asked for; reads lines without any lock, as written lines never change."""

    def __init__(self, descriptor: int, stream: Stream) -> None:
        self._descriptor = descriptor
        self._stream = stream
        self.end = len(stream.offsets)
        self._offset = _MISSING
        self._records: list[dict[str, Any]] = []

    def data(self, position: int) -> dict[str, Any] | None:
        """The data of a record; None when its line can't be read."""
        offset = self._stream.offsets[position]
        if offset == _MISSING:
            return None
        if offset != self._offset:
            line = _parsed(_line_at(self._descriptor, offset), offset)
            self._offset, self._records = offset, [] if line is None else line.get("records", [])
        for record in self._records:
            if record["position"] == position and record["stream"] == self._stream.name:
                data: dict[str, Any] = record["data"]
                return data
        return None


class JsonLog:
    """The file and an index of it in memory; used by the writer thread and by readers' threads."""

    def __init__(self, path: Path, *, lock_timeout: float) -> None:
        self._path = path
        self._lock_timeout = lock_timeout
        self._guard = threading.Lock()
        self._descriptor = -1
        self._writable = False
        self._forget()

    def _forget(self) -> None:
        self._size = 0
        """The end of the last line that is indexed; beyond it there is nothing, or a torn line."""
        self._torn = (0, 0)
        """Where the last torn tail that was counted began, and its length."""
        self._streams: dict[str, Stream] = {}
        self._last: dict[str, int] = {}
        self._damaged = False
        self._dead = 0
        self._alive = 0

    skipped = 0

    def commit(self, appends: Sequence[Append]) -> list[Outcome]:
        """Write all appends with one write and one fsync."""
        with self._guard, self._opened(exclusive=True):
            names = {entry.stream for append in appends for entry in append.entries}.union(
                *(a.expected for a in appends)
            )
            positions = {name: len(self._streams[name].offsets) for name in names if name in self._streams}
            now, last = time.time(), self._last
            outcomes: list[Outcome] = []
            lines: list[bytes] = []
            for append in appends:
                starts = {e.stream: positions.get(e.stream, 0) for e in append.entries}
                try:
                    touched = place(append, positions)
                except StalePositionError as exc:
                    outcomes.append(exc)
                    continue
                outcomes.append(touched)
                if touched:
                    lines.append(_line(now, last, append, starts))
                    last = touched
            self._write(lines)
            return outcomes

    def drop(self, stream: str) -> None:
        """Forget a stream; its room is given back once dropped records outnumber the others."""
        with self._guard:
            if not self._path.exists():
                return
            with self._opened(exclusive=True):
                if stream in self._streams:
                    line = {"at": time.time(), "before": self._last, "drop": stream}
                    self._write([_dumps(line)])
                if self._dead > self._alive and self._size > _WORTH_COMPACTING and not self._damaged:
                    self._compact()

    @contextmanager
    def view(self, stream: str, *, whole: bool) -> Iterator[View | None]:
        """The records of a stream; None when there are none.

        Raises:
            CorruptRecordError: ``whole`` was asked for, and a record is missing.
        """
        found: View | None = None
        with self._guard:
            if self._path.exists():
                with self._opened(exclusive=False):
                    known = self._streams.get(stream)
                    if known is not None:
                        if whole:
                            known.check()
                        # A descriptor of its own, so that the file can be closed or replaced meanwhile.
                        found = View(os.dup(self._descriptor), known)
        try:
            yield found
        finally:
            if found is not None:
                os.close(found._descriptor)

    def infos(self) -> list[StreamInfo]:
        """All streams, in the order of their creation."""
        with self._guard:
            if not self._path.exists():
                return []
            with self._opened(exclusive=False):
                return [stream.info for stream in self._streams.values()]

    def close(self) -> None:
        """Let go of the file."""
        with self._guard:
            self._close()

    def _close(self) -> None:
        if self._descriptor != -1:
            descriptor, self._descriptor = self._descriptor, -1
            with suppress(OSError):
                os.close(descriptor)

    @contextmanager
    def _opened(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the file locked against other processes, its index up to date."""
        try:
            while True:
                if exclusive and not self._writable:
                    self._close()
                if self._descriptor == -1:
                    self._forget()
                    self._descriptor, self._writable = _open(self._path, create=exclusive)
                with locked(self._descriptor, self._path, exclusive=exclusive, timeout=self._lock_timeout):
                    if not _same_file(self._descriptor, self._path):
                        self._close()  # another process has replaced it by a shorter one, or removed it
                        continue
                    self._catch_up()
                    if exclusive:
                        self._repair()
                    yield
                    return
        except StorageError:
            raise
        except OSError as exc:
            self._close()
            verb = "write" if exclusive else "read"
            raise StorageError(f"can't {verb} {self._path}: {exc.strerror or exc}") from exc

    def _write(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        start = self._size
        block = b"".join(([] if start else [_HEADER]) + list(lines))
        try:
            _write_all(self._descriptor, block, start)
            os.fsync(self._descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise
        self._index(block)

    def _repair(self) -> None:
        """Cut off what a writer that died has left behind its last whole line."""
        size = os.fstat(self._descriptor).st_size
        if size > self._size:
            os.ftruncate(self._descriptor, self._size)
        elif size < self._size:  # an editor has taken the last line break away
            _write_all(self._descriptor, b"\n", size)

    def _catch_up(self) -> None:
        """Index what other processes have appended."""
        size = os.fstat(self._descriptor).st_size
        if size < self._size - 1:  # somebody has cut the file; -1: the last line may lack its line break
            self._forget()
        if size > self._size:
            torn = self._index(_blocks(self._descriptor, self._size, size))
            if torn and (self._size, torn) != self._torn:
                self.skipped += 1
            self._torn = (self._size, torn)

    def _index(self, source: bytes | Iterable[bytes]) -> int:
        """Index lines from `_size` on; returns how many bytes at the end are torn."""
        held: list[int] = []
        rest = b""
        offset = self._size
        for block in [source] if isinstance(source, bytes) else source:
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                offset = self._take(line, offset, held)
        if rest and not offset and not _HEADER.startswith(rest):
            self._check_header(rest)
        if rest and offset and _parsed(rest, offset) is not None:  # whole, and only its line break is missing
            offset, rest = self._take(rest, offset, held), b""
        return offset + len(rest) - self._size

    def _take(self, raw: bytes, offset: int, held: list[int]) -> int:
        """Index one line; unreadable ones are held back until a good one follows."""
        end = offset + len(raw) + 1
        if offset == 0:
            self._check_header(raw)
        else:
            line = _parsed(raw, offset)
            if line is None:
                held.append(offset)
                return end
            self._note(line, offset, unreadable=len(held))
            held.clear()
        self._size = end
        return end

    def _note(self, line: Mapping[str, Any], offset: int, *, unreadable: int) -> None:
        if unreadable:
            self.skipped += unreadable
            self._damaged = True
            for name, position in line["before"].items():
                self._stream(name, line["at"]).reach(position)
            if unreadable > 1:
                for stream in self._streams.values():
                    stream.doubtful = True
        dropped = line.get("drop")
        if dropped is not None:
            gone = self._streams.pop(dropped, None)
            count = len(gone.offsets) if gone else 0
            self._dead, self._alive, self._last = self._dead + count, self._alive - count, {}
            return
        self._last = {}
        for record in line["records"]:
            stream = self._stream(record["stream"], line["at"])
            stream.place(record["position"], offset)
            stream.updated_at = line["at"]
            stream.state = record.get("state", stream.state)
            self._last[stream.name] = record["position"] + 1
        self._alive += len(line["records"])

    def _stream(self, name: str, now: float) -> Stream:
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Stream(name, now, now)
        return stream

    def _check_header(self, raw: bytes) -> None:
        line = None
        with suppress(ValueError):
            line = json.loads(raw)
        if not isinstance(line, dict) or line.get("format") != "agenthelm-log":
            raise UnavailableError(f"{self._path} is no AgentHelm log; name another file")
        if line.get("version") != 1:
            raise UnavailableError(
                f"{self._path} was written by a newer AgentHelm (format {line.get('version')}); upgrade"
            )

    def _compact(self) -> None:
        """Write the living records to a new file and put it in this one's place."""
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        with suppress(FileNotFoundError):
            new.unlink()
        descriptor, _ = _open(new, create=True)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as out:
                out.write(_HEADER)
                before: dict[str, int] = {}
                for raw, offset in _lines(self._descriptor, len(_HEADER), self._size):
                    line = json.loads(raw)
                    alive = [r for r in line.get("records", ()) if self._lives(r, offset)]
                    if alive:
                        out.write(_dumps({"at": line["at"], "before": before, "records": alive}))
                        before = {r["stream"]: r["position"] + 1 for r in alive}
            os.fsync(descriptor)
            new.replace(self._path)
            _sync_folder(self._path.parent)
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                new.unlink()
        self._close()

    def _lives(self, record: Mapping[str, Any], offset: int) -> bool:
        stream = self._streams.get(record["stream"])
        position: int = record["position"]
        return stream is not None and position < len(stream.offsets) and stream.offsets[position] == offset


def _dumps(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _line(now: float, before: Mapping[str, int], append: Append, positions: dict[str, int]) -> bytes:
    records = []
    for entry in append.entries:
        position = positions[entry.stream]
        positions[entry.stream] = position + 1
        state = "" if entry.state is None else f',"state":{json.dumps(entry.state)}'
        records.append(f'{{"stream":{json.dumps(entry.stream)},"position":{position}{state},"data":{entry.text}}}')
    head = f'{{"at":{now},"before":{json.dumps(before, separators=(",", ":"))},"records":['
    return (head + ",".join(records) + "]}\n").encode()


def _parsed(raw: bytes, offset: int) -> dict[str, Any] | None:
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


def _open(path: Path, *, create: bool) -> tuple[int, bool]:
    """Open a file; returns the descriptor, and whether it can be written through."""
    if create and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        _sync_folder(path.parent)
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), True
    except OSError as exc:
        if create or exc.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    ours = os.fstat(descriptor)
    try:
        theirs = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _write_all(descriptor: int, block: bytes, offset: int) -> None:
    rest = memoryview(block)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _blocks(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (block := os.pread(descriptor, min(_BLOCK, end - start), start)):
        yield block
        start += len(block)


def _lines(descriptor: int, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    rest = b""
    for block in _blocks(descriptor, start, end):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line, start
            start += len(line) + 1


def _line_at(descriptor: int, offset: int) -> bytes:
    size = 4096
    while True:
        block = os.pread(descriptor, size, offset)
        end = block.find(b"\n")
        if end >= 0 or len(block) < size:
            return block if end < 0 else block[:end]
        size *= 4
