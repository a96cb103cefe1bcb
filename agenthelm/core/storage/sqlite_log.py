"""The writing side of the SQLite storage; lives on its writer thread."""

from __future__ import annotations

import functools
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from agenthelm._runtime.forks import Forked, between_forks
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.storage.codec import INDEXED_FIELDS
from agenthelm.core.storage.files import FileId, file_id
from agenthelm.core.storage.sqlite_schema import FRESH_BITS, connect, migrate, private_file, translated
from agenthelm.core.storage.writer import Append, Outcome, place
from agenthelm.exceptions import StalePositionError

__all__ = ["SqliteLog"]

_INSERT_EVENTS = ("INSERT INTO fresh VALUES", len(INDEXED_FIELDS) + 2, "")
_INSERT_RECORDS = ("INSERT INTO records VALUES", 3, "")
_MOVE_STREAMS = (
    "INSERT INTO streams (name, position, state, created_at, updated_at) VALUES",
    5,
    """ON CONFLICT (name) DO UPDATE SET
        position = excluded.position, state = coalesce(excluded.state, state), updated_at = excluded.updated_at""",
)
_REMEMBERED = 10_000
"""Streams whose positions are remembered, at most."""
_ROWS = 64
"""Rows of one statement, at most; SQLite binds 999 values in its oldest builds."""


class SqliteLog(Forked):
    """One connection that writes; opened with the first append, and again after a failure, a fork, or a new file."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._connection: sqlite3.Connection | None = None
        self._file: FileId | None = None
        self._positions: dict[str, int] = {}
        self._as_of: int | None = None
        super().__init__()

    def prepare(self) -> FileId | None:
        """Bring an existing file to the current schema; None when there is no file."""
        with between_forks, translated(self._path, verb="open"):
            if file_id(self._path) is None:
                return None
            self._open()
            return self._file

    def commit(self, appends: Sequence[Append]) -> list[Outcome]:
        """Write all appends in one transaction.

        Positions are checked before anything is written, so a stale append leaves nothing to take back; and when the
        transaction fails, the writer tries the appends one by one. That does what a savepoint per append would.
        """
        with between_forks, translated(self._path, verb="write"):
            connection = self._open()
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._learn(connection, appends)
                outcomes = _write(connection, appends, self._positions)
                connection.execute("COMMIT")
            except BaseException:
                self._close()  # rolls back; and a connection whose disk has failed is not to be trusted
                raise
        return outcomes

    def _learn(self, connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
        """Get the positions of the streams that are named; known ones hold until another connection has written."""
        (as_of,) = connection.execute("PRAGMA data_version").fetchone()
        if as_of != self._as_of or len(self._positions) > _REMEMBERED:
            self._positions.clear()
            self._as_of = as_of
        names = {entry.stream for append in appends for entry in append.entries}.union(*(a.expected for a in appends))
        if unknown := names - self._positions.keys():
            self._positions.update(dict.fromkeys(unknown, 0))
            asked = "SELECT name, position FROM streams WHERE name IN (SELECT value FROM json_each(?))"
            self._positions.update(connection.execute(asked, (json.dumps(sorted(unknown)),)).fetchall())

    def drop(self, stream: str) -> None:
        """Forget a stream."""
        with between_forks, translated(self._path, verb="write"):
            if file_id(self._path) is None:
                return
            connection = self._open()
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("DELETE FROM streams WHERE name = ?", (stream,))
                if stream == EVENTS:
                    connection.execute("DELETE FROM events")
                    connection.execute("DELETE FROM fresh")
                    connection.execute("DELETE FROM zones")
                else:
                    connection.execute("DELETE FROM records WHERE stream = ?", (stream,))
                connection.execute("COMMIT")
                self._positions.pop(stream, None)
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        with between_forks:
            self._close()

    def before_fork(self) -> None:
        """Close the connection; the next use opens another."""
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._as_of = None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and file_id(self._path) != self._file:
            self._close()  # the file was removed or replaced: what is written through this connection, nobody reads
        if self._connection is None:
            private_file(self._path)
            self._file = file_id(self._path)
            connection = connect(self._path, busy_timeout=self._busy_timeout, writing=True)
            try:
                migrate(connection, self._path)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


def _write(connection: sqlite3.Connection, appends: Sequence[Append], positions: dict[str, int]) -> list[Outcome]:
    events_before = positions.get(EVENTS, 0)
    events: list[tuple[Any, ...]] = []
    records: list[tuple[str, int, str]] = []
    moved: dict[str, str | None] = {}
    outcomes: list[Outcome] = []
    for append in appends:
        before = {entry.stream: positions.get(entry.stream, 0) for entry in append.entries}
        try:
            outcomes.append(place(append, positions))
        except StalePositionError as exc:
            outcomes.append(exc)
            continue
        for entry in append.entries:
            position = before[entry.stream]
            before[entry.stream] = position + 1
            moved[entry.stream] = entry.state if entry.state is not None else moved.get(entry.stream)
            if entry.stream == EVENTS:
                events.append((position, *_fields(entry.data), entry.text))
            else:
                records.append((entry.stream, position, entry.text))
    now = time.time()
    _insert(connection, _INSERT_EVENTS, events)
    _insert(connection, _INSERT_RECORDS, records)
    _insert(connection, _MOVE_STREAMS, [(name, positions[name], state, now, now) for name, state in moved.items()])
    if events_before >> FRESH_BITS != positions.get(EVENTS, 0) >> FRESH_BITS:
        # Many at once, because an index takes them for little more than the price of one.
        connection.execute("INSERT INTO events SELECT * FROM fresh")
        connection.execute("DELETE FROM fresh")
    return outcomes


def _insert(connection: sqlite3.Connection, into: tuple[str, int, str], rows: Sequence[tuple[Any, ...]]) -> None:
    """As ``executemany``, in few statements: each step of one lets go of the GIL, and getting it back may take long."""
    done = 0
    while done < len(rows):
        # Powers of two, so that SQLite compiles few statements.
        count = min(_ROWS, 1 << (len(rows) - done).bit_length() - 1)
        connection.execute(_statement(into, count), list(chain.from_iterable(rows[done : done + count])))
        done += count


@functools.cache
def _statement(into: tuple[str, int, str], rows: int) -> str:
    head, columns, tail = into
    row = f"({', '.join('?' * columns)})"
    return f"{head} {', '.join([row] * rows)} {tail}"


def _fields(data: Mapping[str, Any]) -> list[str | float | int | None]:
    """What the indexes hold of an event; what is no plain value is left to the JSON beside it."""
    values = [data.get(field) for field in INDEXED_FIELDS]
    return [value if isinstance(value, (str, int, float)) else None for value in values]
