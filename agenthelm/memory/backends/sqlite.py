"""Values in an SQLite file, shared by the tasks, threads and processes of a machine."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from agenthelm._runtime.forks import Forked, between_forks
from agenthelm._runtime.retry import Clock, SystemClock
from agenthelm._runtime.workers import Workers
from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory.backends._integers import added
from agenthelm.memory.base import KeyValueBackend
from agenthelm.sqlite import enter_wal, make_private

__all__ = ["SqliteBackend"]

P = ParamSpec("P")
T = TypeVar("T")

_TABLE = """
CREATE TABLE IF NOT EXISTS memory_v1 (key TEXT PRIMARY KEY, value TEXT NOT NULL, expires REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS memory_v1_expires ON memory_v1 (expires) WHERE expires IS NOT NULL;
"""
_READ = "SELECT value FROM memory_v1 WHERE key = ? AND (expires IS NULL OR expires > ?)"
_WRITE = "INSERT OR REPLACE INTO memory_v1 (key, value, expires) VALUES (?, ?, ?)"
_SWEEP_EVERY = 60.0
_PAGE = 500  # well below the number of parameters that old builds of SQLite take


class SqliteBackend(KeyValueBackend, Forked):
    """Values in a file that several processes may share, forks of this one among them.

    The file is made on first use, readable by its owner only. A lapsed value is invisible from its moment on and is
    removed by a later write. Every call runs in the backend's own worker thread, one at a time. When the file is removed
    or replaced meanwhile, its values are gone, and later calls use the new one.

    Args:
        path: The file; ``~`` is the user's home. Missing folders are made.
        clock: What times to live are measured with; wall time, because processes have no other in common.
        busy: Seconds to wait for another process that is writing.
    """

    store = "sqlite"

    def __init__(self, path: str | Path, *, clock: Clock | None = None, busy: float = 5.0) -> None:
        self._path = Path(path).expanduser()
        self._clock = clock or SystemClock()
        self._busy = busy
        self._workers = Workers(1)
        # Threads of several loops may meet here, and one whose caller was cancelled natively may still be at work.
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._closed = False
        self._swept = -math.inf  # the first write sweeps too: a process that ends soon makes no other
        super().__init__()

    @property
    def location(self) -> str:
        return f"sqlite:///{self._path}"

    async def read(self, keys: Sequence[str]) -> list[str | None]:
        if len(keys) == 1:
            return await self._run(self._read_one, keys[0])
        return await self._run(self._read_many, keys)

    async def write(self, items: Mapping[str, str], ttl: float | None) -> None:
        await self._run(self._write, items, ttl)

    async def delete(self, keys: Sequence[str]) -> int:
        return await self._run(self._delete, keys)

    async def scan(self, prefix: str) -> list[str]:
        return await self._run(self._scan, prefix)

    async def swap(self, key: str, expected: str | None, new: str, *, ttl: float | None) -> bool:
        return await self._run(self._swap, key, expected, new, ttl)

    async def incr(self, key: str, amount: int, *, ttl: float | None) -> int:
        return await self._run(self._incr, key, amount, ttl)

    async def ping(self) -> None:
        await self._run(self._ping)

    async def aclose(self) -> None:
        await self._workers.run(self._close)

    def before_fork(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._workers.hop(lambda: self._guarded(function, *args, **kwargs))

    def _guarded(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with between_forks, self._lock:
            if self._closed:
                raise MemoryStoreError(f"the memory at {self.location} is closed; open another one")
            try:
                if self._connection is not None and self._moved():
                    self.before_fork()  # what is written through this connection, nobody reads
                if self._connection is None:
                    self._connection = self._open()
                return function(self._connection, *args, **kwargs)
            except (sqlite3.Error, OSError) as exc:
                if isinstance(exc, MemoryStoreError):
                    raise
                raise self._translated(exc) from exc

    def _open(self) -> sqlite3.Connection:
        make_private(self._path)
        self._file = self._path.stat()
        connection = sqlite3.connect(self._path, timeout=self._busy, isolation_level=None, check_same_thread=False)
        try:
            enter_wal(connection, timeout=self._busy)
            connection.execute("PRAGMA synchronous = NORMAL")  # a memory, not a journal: a power cut may take the last
            connection.executescript(_TABLE)
        except BaseException:
            connection.close()
            raise
        return connection

    def _moved(self) -> bool:
        """Whether the path names another file by now, or none."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - asked before every call, and half the price
        except FileNotFoundError:
            return True
        return self._file is None or not os.path.samestat(found, self._file)

    def _translated(self, error: Exception) -> MemoryStoreError:
        text = str(error)
        if "locked" in text or "busy" in text:
            advice = f"another process has been writing for {self._busy:g} s"
        elif "full" in text:
            advice = "the disk is full; nothing was written"
        elif "not a database" in text or "malformed" in text:
            advice = "the file is damaged; restore it, or move it away and start anew"
        elif "readonly" in text or "unable to open" in text or isinstance(error, OSError):
            advice = "check that its folder exists and can be written"
        else:
            advice = "nothing was written"
        return MemoryStoreError(f"the memory at {self.location} failed: {text} ({advice})")

    @contextmanager
    def _writing(self, connection: sqlite3.Connection) -> Iterator[float]:
        """One transaction that no other process can step into; yields the time."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            now = self._clock.wall()
            yield now
            if time.monotonic() - self._swept > _SWEEP_EVERY:
                connection.execute("DELETE FROM memory_v1 WHERE expires <= ?", (now,))
                self._swept = time.monotonic()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _read_one(self, connection: sqlite3.Connection, key: str) -> list[str | None]:
        row = connection.execute(_READ, (key, self._clock.wall())).fetchone()
        return [None if row is None else row[0]]

    def _read_many(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[str | None]:
        now = self._clock.wall()
        found: dict[str, str] = {}
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            marks = ",".join("?" * len(page))
            query = f"SELECT key, value FROM memory_v1 WHERE key IN ({marks}) AND (expires IS NULL OR expires > ?)"  # noqa: S608 - only question marks
            found.update(connection.execute(query, (*page, now)).fetchall())
        return [found.get(key) for key in keys]

    def _write(self, connection: sqlite3.Connection, items: Mapping[str, str], ttl: float | None) -> None:
        with self._writing(connection) as now:
            end = None if ttl is None else now + ttl
            connection.executemany(_WRITE, [(key, value, end) for key, value in items.items()])

    def _delete(self, connection: sqlite3.Connection, keys: Sequence[str]) -> int:
        with self._writing(connection) as now:
            count = 0
            for key in keys:
                row = connection.execute("DELETE FROM memory_v1 WHERE key = ? RETURNING expires", (key,)).fetchone()
                count += row is not None and (row[0] is None or row[0] > now)
            return count

    def _scan(self, connection: sqlite3.Connection, prefix: str) -> list[str]:
        query = "SELECT key FROM memory_v1 WHERE key >= ? AND (expires IS NULL OR expires > ?) ORDER BY key"
        keys: list[str] = []
        # Keys are ordered by their bytes, so those with the prefix stand together, and no pattern needs escaping.
        for (key,) in connection.execute(query, (prefix, self._clock.wall())):
            if not key.startswith(prefix):
                break
            keys.append(key)
        return keys

    def _swap(
        self, connection: sqlite3.Connection, key: str, expected: str | None, new: str, ttl: float | None
    ) -> bool:
        with self._writing(connection) as now:
            row = connection.execute(_READ, (key, now)).fetchone()
            if (None if row is None else row[0]) != expected:
                return False
            connection.execute(_WRITE, (key, new, None if ttl is None else now + ttl))
            return True

    def _incr(self, connection: sqlite3.Connection, key: str, amount: int, ttl: float | None) -> int:
        with self._writing(connection) as now:
            row = connection.execute(_READ, (key, now)).fetchone()
            total = added(None if row is None else row[0], amount, key=key)
            if row is None:
                connection.execute(_WRITE, (key, str(total), None if ttl is None else now + ttl))
            else:
                connection.execute("UPDATE memory_v1 SET value = ? WHERE key = ?", (str(total), key))
            return total

    def _ping(self, connection: sqlite3.Connection) -> None:
        connection.execute("SELECT 1 FROM memory_v1 LIMIT 1").fetchone()

    def _close(self) -> None:
        with between_forks, self._lock:
            self._closed = True
            self.before_fork()
