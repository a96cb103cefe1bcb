"""A log in one JSON Lines file: one line per append, so an append over several streams is whole or absent."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agenthelm._runtime.forks import Forked
from agenthelm.core.storage.base import StreamInfo
from agenthelm.core.storage.file_lock import locked
from agenthelm.core.storage.files import file_id, sync
from agenthelm.core.storage.json_index import MISSING, Index, Stream
from agenthelm.core.storage.json_lines import (
    HEADER,
    blocks,
    dumps,
    line_at,
    line_of,
    lines,
    open_file,
    parsed,
    same_file,
    sync_folder,
    write_all,
)
from agenthelm.core.storage.writer import Append, AppendResult, place
from agenthelm.exceptions import StalePositionError, StorageError

__all__ = ["JsonLog"]

_WORTH_COMPACTING = 1 << 20
"""Files smaller than this are left alone."""


class View:
    """A stream as it was when it was asked for; reads lines without any lock, as written lines never change."""

    def __init__(self, descriptor: int, stream: Stream) -> None:
        self._descriptor = descriptor
        self._stream = stream
        self.end: int = len(stream.offsets)
        self._offset = MISSING
        self._data: dict[int, dict[str, Any]] = {}

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    def data(self, position: int) -> dict[str, Any] | None:
        """The data of a record; None when its line can't be read."""
        offset = self._stream.offsets[position]
        if offset == MISSING:
            return None
        if offset != self._offset:
            line = parsed(line_at(self._descriptor, offset), offset) or {}
            ours = [record for record in line.get("records", ()) if record["stream"] == self._stream.name]
            self._offset, self._data = offset, {record["position"]: record["data"] for record in ours}
        return self._data.get(position)


class JsonLog(Forked):
    """The file and an index of it in memory; used by the writer thread and by readers' threads."""

    def __init__(self, path: Path, *, lock_timeout: float) -> None:
        self._path = path
        self._lock_timeout = lock_timeout
        self._guard = threading.Lock()
        self._descriptor = -1
        self._writable = False
        self._shrinks = True
        self._index = Index(path)
        super().__init__()

    @property
    def skipped(self) -> int:
        """How many torn or damaged lines were left out."""
        return self._index.skipped

    def commit(self, appends: Sequence[Append]) -> list[AppendResult]:
        """Write all appends with one write and one fsync."""
        with self._guard, self._opened(exclusive=True):
            streams = self._index.streams
            names = {entry.stream for a in appends for entry in a.entries}.union(*(a.expected for a in appends))
            positions = {name: len(streams[name].offsets) for name in names if name in streams}
            now, last = time.time(), self._index.last
            results: list[AppendResult] = []
            written: list[bytes] = []
            for append in appends:
                starts = {entry.stream: positions.get(entry.stream, 0) for entry in append.entries}
                try:
                    touched = place(append, positions)
                except StalePositionError as exc:
                    results.append(exc)
                    continue
                results.append(touched)
                if touched:
                    written.append(line_of(now, last, append, starts))
                    last = touched
            self._write(written)
            return results

    def drop(self, stream: str) -> None:
        """Forget a stream; its room is given back once dropped records outnumber the others."""
        with self._guard:
            if file_id(self._path) is None:
                return
            with self._opened(exclusive=True):
                index = self._index
                if stream in index.streams:
                    self._write([dumps({"at": time.time(), "before": index.last, "drop": stream})])
                self._give_back()

    @contextmanager
    def view(self, stream: str, *, whole: bool) -> Iterator[View | None]:
        """The records of a stream; None when there are none.

        Raises:
            CorruptRecordError: ``whole`` was asked for, and a record is missing.
        """
        with self._guard:
            found = self._view(stream, whole=whole) if file_id(self._path) else None
        try:
            yield found
        finally:
            if found is not None:
                found.close()

    def infos(self) -> list[StreamInfo]:
        """All streams, in the order of their creation."""
        with self._guard:
            if file_id(self._path) is None:
                return []
            with self._opened(exclusive=False):
                return [stream.info for stream in self._index.streams.values()]

    def close(self) -> None:
        """Let go of the file."""
        with self._guard:
            self._close()

    def in_child(self) -> None:
        """Let go of the file: whoever inherits its descriptor shares a lock with its parent."""
        self._guard = threading.Lock()
        self._close()

    def _view(self, stream: str, *, whole: bool) -> View | None:
        with self._opened(exclusive=False):
            known = self._index.streams.get(stream)
            if known is None:
                return None
            if whole:
                known.check()
            # A descriptor of its own, so that the file can be closed or replaced meanwhile.
            return View(os.dup(self._descriptor), known)

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
                    self._index = Index(self._path, skipped=self._index.skipped)
                    self._descriptor, self._writable = open_file(self._path, create=exclusive)
                with locked(self._descriptor, self._path, exclusive=exclusive, timeout=self._lock_timeout):
                    if same_file(self._descriptor, self._path):
                        self._catch_up()
                        if exclusive:
                            self._repair()
                        yield
                        return
                self._close()  # another process has put a shorter file in its place, or removed it
        except StorageError:
            raise
        except OSError as exc:
            self._close()
            verb = "write" if exclusive else "read"
            raise StorageError(f"can't {verb} {self._path}: {exc.strerror or exc}") from exc

    def _catch_up(self) -> None:
        """Index what other processes have appended."""
        size = os.fstat(self._descriptor).st_size
        if size < self._index.size - 1:  # somebody has cut the file; -1: the last line may lack its line break
            self._index = Index(self._path, skipped=self._index.skipped)
        if size > self._index.size:
            self._index.feed(blocks(self._descriptor, self._index.size, size))

    def _repair(self) -> None:
        """Cut off what a writer that died has left behind its last whole line."""
        size = os.fstat(self._descriptor).st_size
        if size > self._index.size:
            os.ftruncate(self._descriptor, self._index.size)
        elif size < self._index.size:  # an editor has taken the last line break away
            write_all(self._descriptor, b"\n", size)

    def _write(self, written: Sequence[bytes]) -> None:
        if not written:
            return
        start = self._index.size
        block = b"".join(written if start else [HEADER, *written])
        try:
            write_all(self._descriptor, block, start)
            sync(self._descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, start)
            raise
        self._index.feed([block])

    def _give_back(self) -> None:
        """Shrink the file if that is worth it, and possible: what was dropped is forgotten in any case."""
        index = self._index
        if not self._shrinks or index.damaged or index.dead <= index.alive or index.size <= _WORTH_COMPACTING:
            return
        try:
            if os.fstat(self._descriptor).st_nlink == 1:  # else whoever uses another name of it would keep the old file
                self._compact(Path(os.path.realpath(self._path)))
        except OSError:  # no room for a copy, or a file that is mounted in its place
            self._shrinks = False

    def _compact(self, path: Path) -> None:
        """Write the living records to a new file and put it in the place of the old one; the next use opens that."""
        new = path.with_name(f"{path.name}.compacting")
        new.unlink(missing_ok=True)  # whoever wrote it has died: nobody else does while the log is locked
        try:
            descriptor, _ = open_file(new, create=True)
            with os.fdopen(descriptor, "wb") as out:
                old = os.fstat(self._descriptor)
                os.fchown(descriptor, old.st_uid, old.st_gid)  # root may prune what a service writes
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
                out.write(HEADER)
                before: dict[str, int] = {}
                for raw, offset in lines(self._descriptor, len(HEADER), self._index.size):
                    line = json.loads(raw)
                    alive = [record for record in line.get("records", ()) if self._index.holds(record, offset)]
                    if alive:
                        out.write(dumps({"at": line["at"], "before": before, "records": alive}))
                        before = {record["stream"]: record["position"] + 1 for record in alive}
                out.flush()
                sync(out.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
