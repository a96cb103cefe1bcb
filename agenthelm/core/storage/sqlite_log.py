"""The writing side of the SQLite storage; lives on its writer thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agenthelm._runtime.forks import Forked, between_forks
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.storage.files import FileId, file_id
from agenthelm.core.storage.sqlite_batch import Batch, open_inbox
from agenthelm.core.storage.sqlite_schema import (
    connect,
    is_current,
    may_only_read,
    migrate,
    private_file,
    translated,
)
from agenthelm.core.storage.writer import Append, AppendResult, UnavailableError

__all__ = ["SqliteLog"]

_REMEMBERED = 10_000
"""Streams whose positions are remembered, at most."""
_MANY = 16
"""From so many appends on they are one statement, because the event loop they come from is likely to be busy meanwhile.
Fewer cost less in several statements."""


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
        """Bring an existing file to the current schema; None when there is no file.

        One that may only be read is read as it is, if it has that schema already.

        Raises:
            StorageError: It can't be opened, is of another version, or is something else.
        """
        with between_forks, translated(self._path, verb="open"):
            file = file_id(self._path)
            if file is None:
                return None
            try:
                self._open()
            except sqlite3.OperationalError as exc:
                if not may_only_read(exc):
                    raise
                if not is_current(self._path, busy_timeout=self._busy_timeout):
                    raise UnavailableError(
                        f"can't read {self._path}: an older AgentHelm wrote it, and to migrate it takes leave to write: "
                        "let somebody open it who may, or copy it"
                    ) from exc
                return file
            return self._file

    def commit(self, appends: Sequence[Append]) -> list[AppendResult]:
        """Write all appends in one transaction.

        A stale append is left out before anything is written, so it leaves nothing to take back; and when the transaction
        fails, the writer tries the appends one by one. That does what a savepoint per append would.
        """
        with between_forks, translated(self._path, verb="write"):
            connection = self._open()
            try:
                batch = self._at_once(connection, appends)
                if batch is None:
                    connection.execute("BEGIN IMMEDIATE")
                    batch = Batch(appends, self._learned(connection, appends))
                    batch.write(connection)
                    connection.execute("COMMIT")
            except BaseException:
                self._close()  # rolls back; and a connection whose disk has failed is not to be trusted
                raise
        self._positions.update(batch.after)
        return batch.results

    def _at_once(self, connection: sqlite3.Connection, appends: Sequence[Append]) -> Batch | None:
        """Write without asking first where the streams are, if that can be told; None if nothing could be written so."""
        if len(appends) < _MANY or self._as_of is None or len(self._positions) > _REMEMBERED:
            return None
        known = self._positions
        before: dict[str, int] = {}
        for append in appends:
            for stream, expected in append.expected.items():
                if stream not in before:
                    before[stream] = known.get(stream, expected)
            for entry in append.entries:
                if entry.stream not in before:
                    if entry.stream not in known:
                        return None
                    before[entry.stream] = known[entry.stream]
        batch = Batch(appends, before)
        return batch if not batch.stale and batch.write_at_once(connection) else None

    def _learned(self, connection: sqlite3.Connection, appends: Sequence[Append]) -> dict[str, int]:
        """The positions of the streams that are named; known ones hold until another connection has written."""
        (as_of,) = connection.execute("PRAGMA data_version").fetchone()
        if as_of != self._as_of or len(self._positions) > _REMEMBERED:
            self._positions.clear()
            self._as_of = as_of
        names = {entry.stream for append in appends for entry in append.entries}.union(*(a.expected for a in appends))
        if unknown := names - self._positions.keys():
            self._positions.update(dict.fromkeys(unknown, 0))
            asked = "SELECT name, position FROM streams WHERE name IN (SELECT value FROM json_each(?))"
            self._positions.update(connection.execute(asked, (json.dumps(sorted(unknown)),)).fetchall())
        return {name: self._positions[name] for name in names}

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
                open_inbox(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection
