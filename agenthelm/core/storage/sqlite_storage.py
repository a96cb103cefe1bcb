"""The storage for production: one SQLite file, shared commits, indexed queries."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TypeVar

from agenthelm._runtime.forks import Forked, between_forks
from agenthelm._runtime.groups import shielded
from agenthelm._runtime.workers import Workers
from agenthelm.core.storage.base import BaseStorage, Record, StoredRecord, StreamInfo, Where
from agenthelm.core.storage.codec import entries, state_of
from agenthelm.core.storage.files import FileId, file_id
from agenthelm.core.storage.sqlite_log import SqliteLog
from agenthelm.core.storage.sqlite_query import Page, find_records, find_streams
from agenthelm.core.storage.sqlite_schema import connect_reading, translated
from agenthelm.core.storage.writer import Append, Writer
from agenthelm.exceptions import ConfigError, StorageClosedError

__all__ = ["SqliteStorage"]

T = TypeVar("T")

_READERS = 4


class SqliteStorage(BaseStorage):
    """A log in one SQLite file (WAL, ``synchronous=FULL``), safe for several tasks, event loops and processes.

    Appends of concurrent runs share commits: one writer thread, started with the first append, gathers them. Reads go
    through connections of their own in worker threads and wait for no writer. Filters on an event's run, agent, tool,
    outcome, kind, session, namespace, time, duration or cost take milliseconds on a million events; others work too, and
    read the whole stream.

    The file and its folder are made when the first append needs them, readable by their owner only. When the file is
    removed or replaced meanwhile, the runs whose journals went with it can go no further, and later ones use the new one.

    Args:
        path: The file.
        busy_timeout: Seconds to wait for another process that is writing, before an append fails.

    Raises:
        ConfigError: The path names no file.
    """

    def __init__(self, path: str | PathLike[str], *, busy_timeout: float = 10.0) -> None:
        self._path = Path(path).expanduser().absolute()
        if str(path) in ("", ":memory:"):
            raise ConfigError("SqliteStorage needs a file; for a log in memory use InMemoryStorage()", setting="path")
        self._busy_timeout = busy_timeout
        self._log = SqliteLog(self._path, busy_timeout=busy_timeout)
        self._writer = Writer(self._log, name=str(self._path))
        self._readers = _Readers(self._path, busy_timeout=busy_timeout)
        self._workers = Workers(_READERS)
        self._prepared: FileId | None = None
        self._skipped = 0
        weakref.finalize(self, self._writer.stop)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    async def append(self, records: Sequence[Record], expected: Mapping[str, int] | None = None) -> dict[str, int]:
        """Append records in one commit, shared with whoever else appends; see `BaseStorage.append`."""
        positions: dict[str, int] = await self._writer.submit(Append(entries(records), expected or {}))
        return positions

    async def read(
        self,
        stream: str,
        *,
        where: Where | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        after: int | None = None,
    ) -> list[StoredRecord]:
        """Read a stream; see `BaseStorage.read`.

        A page of events by indexed fields comes in the same time from a million events as from a thousand. That does
        not hold where several conditions are each common and hardly ever meet.
        """
        page = Page(stream, where or {}, limit, newest_first, after)
        nothing: tuple[list[StoredRecord], int] = ([], 0)
        found, skipped = await self._query(lambda connection: find_records(connection, page), nothing)
        self._skipped += skipped
        return found

    async def streams(
        self,
        *,
        where: Mapping[str, str] | None = None,
        prefix: str = "",
        limit: int | None = None,
        newest_first: bool = True,
    ) -> list[StreamInfo]:
        """List streams; see `BaseStorage.streams`."""
        state = state_of(where)
        return await self._query(
            lambda connection: find_streams(
                connection, state=state, prefix=prefix, limit=limit, newest_first=newest_first
            ),
            [],
        )

    async def drop(self, stream: str) -> None:
        """Forget a stream with all its records; SQLite uses their room again."""
        await self._writer.submit(lambda: self._log.drop(stream))

    async def aclose(self) -> None:
        """Write what was submitted, close the file, end the thread."""
        self._writer.stop()
        await shielded(self._workers.hop, self._shut)

    @property
    def skipped(self) -> int:
        """How many unreadable events were left out of reads so far."""
        return self._skipped

    def _shut(self) -> None:
        self._writer.join()
        self._readers.close()

    async def _query(self, question: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        if self._writer.closed:
            raise StorageClosedError(f"{self._path} was closed")

        def answer(file: FileId) -> tuple[T] | None:
            with between_forks, translated(self._path, verb="read"):
                if file_id(self._path) != file:
                    return None
                try:
                    with self._readers.borrowed(file) as connection:
                        return (question(connection),)
                except UnicodeEncodeError:  # a name or a value that UTF-8 can't hold, so nothing is found by it
                    return (nothing,)

        while True:
            if self._prepared is None:  # an older file is migrated before it is read
                self._prepared = await self._writer.submit(self._log.prepare)
            if self._prepared is None:
                return nothing
            answered = await self._workers.run(answer, self._prepared)
            if answered is not None:
                return answered[0]
            self._prepared = None  # the file was removed or replaced


class _Readers(Forked):
    """Connections for reading one file: as many as there are reads at once, kept for the next ones."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._idle: list[tuple[FileId, sqlite3.Connection]] = []
        self._guard = threading.Lock()
        self._closed = False
        super().__init__()

    @contextmanager
    def borrowed(self, file: FileId) -> Iterator[sqlite3.Connection]:
        connection, lasting = self._kept(file), True
        if connection is None:
            connection, lasting = connect_reading(self._path, busy_timeout=self._busy_timeout)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._guard:
            if lasting and not self._closed:
                self._idle.append((file, connection))
                return
        connection.close()

    def close(self) -> None:
        self._closed = True
        with between_forks:
            self._let_go()

    def before_fork(self) -> None:
        self._let_go()

    def _kept(self, file: FileId) -> sqlite3.Connection | None:
        while True:
            with self._guard:
                if not self._idle:
                    return None
                known, connection = self._idle.pop()
            if known == file:
                return connection
            connection.close()

    def _let_go(self) -> None:
        with self._guard:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()
