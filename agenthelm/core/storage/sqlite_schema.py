"""The SQLite file of a log: how it is opened, what is in it, and what its errors mean."""

# ruff: noqa: S608 - every name in these statements is a constant of ours; values are bound

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from agenthelm.core.storage.codec import INDEXED_FIELDS, decode
from agenthelm.core.storage.writer import UnavailableError
from agenthelm.exceptions import StorageError
from agenthelm.sqlite import enter_wal, make_private

__all__ = [
    "FRESH_BITS",
    "RANGED_FIELDS",
    "SCHEMA_VERSION",
    "ZONE_BITS",
    "connect",
    "connect_reading",
    "is_current",
    "may_only_read",
    "migrate",
    "private_file",
    "translated",
]

RANGED_FIELDS = ("timestamp", "execution_time", "estimated_cost_usd")
"""The fields people ask ranges of; `sqlite_query` skips whole zones of events by them."""

ZONE_BITS = 10
"""A zone is a block of 1024 consecutive events."""

FRESH_BITS = 8
"""The latest events, up to 256 of them, are in no index: each is a page of the file, and so a part of a commit."""

APPLICATION_ID = 0x4147484C  # "AGHL"


def _base() -> Iterator[str]:
    yield """CREATE TABLE streams (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, position INTEGER NOT NULL, state TEXT,
        created_at REAL NOT NULL, updated_at REAL NOT NULL)"""
    yield "CREATE INDEX streams_by_state ON streams (state)"
    yield """CREATE TABLE records (
        stream TEXT NOT NULL, position INTEGER NOT NULL, data TEXT NOT NULL,
        PRIMARY KEY (stream, position)) WITHOUT ROWID"""
    # The fields come before the data: a filter then never reads a long row's overflow pages.
    yield f"CREATE TABLE events (position INTEGER PRIMARY KEY, {', '.join(INDEXED_FIELDS)}, data TEXT NOT NULL)"
    for name in INDEXED_FIELDS:
        yield f"CREATE INDEX events_by_{name} ON events ({name})"


def _zones() -> Iterator[str]:
    bounds = [f"{side}_{name}" for name in RANGED_FIELDS for side in ("low", "high")]
    yield f"CREATE TABLE zones (zone INTEGER PRIMARY KEY, {', '.join(bounds)})"
    lowest_and_highest = ", ".join(f"min({name}), max({name})" for name in RANGED_FIELDS)
    yield f"""INSERT INTO zones SELECT position >> {ZONE_BITS}, {lowest_and_highest} FROM events
        GROUP BY position >> {ZONE_BITS}"""
    # Of two values, min() and max() give NULL when either is NULL; the other one is meant.
    widened = ", ".join(
        f"{side}_{name} = coalesce({function}({side}_{name}, new.{name}), {side}_{name}, new.{name})"
        for name in RANGED_FIELDS
        for side, function in (("low", "min"), ("high", "max"))
    )
    values = ", ".join(f"new.{name}, new.{name}" for name in RANGED_FIELDS)
    yield f"""CREATE TRIGGER events_widen_zone AFTER INSERT ON events BEGIN
        INSERT INTO zones VALUES (new.position >> {ZONE_BITS}, {values})
        ON CONFLICT (zone) DO UPDATE SET {widened}; END"""


def _fresh() -> Iterator[str]:
    yield f"CREATE TABLE fresh (position INTEGER PRIMARY KEY, {', '.join(INDEXED_FIELDS)}, data TEXT NOT NULL)"


def _by_arrival() -> Iterator[str]:
    # Runs that write at once share pages so; by stream, each record would be a page of the commit.
    yield "ALTER TABLE records RENAME TO records_by_stream"
    yield """CREATE TABLE records (
        stream TEXT NOT NULL, position INTEGER NOT NULL, data TEXT NOT NULL, UNIQUE (stream, position))"""
    yield "INSERT INTO records SELECT * FROM records_by_stream"
    yield "DROP TABLE records_by_stream"


MIGRATIONS = (_base, _zones, _fresh, _by_arrival)
"""What leads from each schema version to the next; a new file goes through all of them."""

SCHEMA_VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a file to `SCHEMA_VERSION`, in one transaction.

    Raises:
        StorageError: The file is newer than this version of AgentHelm, or holds something else.
    """
    if _version(connection, path) == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have migrated it while this one waited for the lock.
        for steps in MIGRATIONS[_version(connection, path) :]:
            for statement in steps():
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if not ours and (version or connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()):
        raise UnavailableError(f"{path} is a SQLite file of something else; name another file")
    if version > SCHEMA_VERSION:
        raise UnavailableError(
            f"{path} has schema version {version} and this AgentHelm knows up to {SCHEMA_VERSION}; upgrade AgentHelm"
        )
    return version


def connect(path: Path, *, busy_timeout: float, writing: bool, mode: str = "rw") -> sqlite3.Connection:
    """Open a connection that any thread may use, one at a time.

    Args:
        path: The file.
        busy_timeout: Seconds to wait for another process.
        writing: For commits that outlive a power failure; otherwise for reading only, and only a file that is there.
        mode: How to open it for reading.
    """
    uri = path.as_uri() + ("" if writing else f"?mode={mode}")
    connection = sqlite3.connect(uri, timeout=busy_timeout, isolation_level=None, check_same_thread=False, uri=True)
    try:
        if writing:
            enter_wal(connection, timeout=busy_timeout)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # for macOS, whose `fsync` leaves it in the drive's cache
        else:
            connection.execute("PRAGMA query_only = ON")
            connection.create_function("json_field", 2, _json_field, deterministic=True)
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reading(path: Path, *, busy_timeout: float) -> tuple[sqlite3.Connection, bool]:
    """Open a connection for reading, also where nothing may be written; returns it, and whether it sees later commits.

    Readers of a WAL file write beside it. Where they may not, and nobody has left anything there, the file is taken as it
    is; it is not to be kept open, because who may write does not wait for such readers.
    """
    connection = connect(path, busy_timeout=busy_timeout, writing=False)
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
        return connection, True
    except sqlite3.OperationalError as exc:
        connection.close()
        if not may_only_read(exc) or Path(f"{os.path.realpath(path)}-wal").exists():  # beside what a link leads to
            raise
        return connect(path, busy_timeout=busy_timeout, writing=False, mode="ro&immutable=1"), False
    except BaseException:
        connection.close()
        raise


def may_only_read(error: sqlite3.OperationalError) -> bool:
    """Whether SQLite could not do something because it may write neither the file nor beside it."""
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def is_current(path: Path, *, busy_timeout: float) -> bool:
    """Whether a file, which may be one to read only, has the current schema.

    Raises:
        StorageError: The file is newer than this version of AgentHelm, or holds something else.
    """
    connection, _ = connect_reading(path, busy_timeout=busy_timeout)
    try:
        return _version(connection, path) == SCHEMA_VERSION
    finally:
        connection.close()


def _json_field(text: str, name: str) -> str | float | None:
    try:
        value = decode(text).get(name)
    except ValueError:
        return None
    if isinstance(value, float) and math.isnan(value):
        return "NaN"  # SQLite would make NULL of it, and it is not absent
    return value if isinstance(value, (str, int, float)) else None


def private_file(path: Path) -> None:
    """Create a file only its owner may read, and its folder, where they are missing.

    Raises:
        StorageError: That is not possible.
    """
    try:
        make_private(path)
    except OSError as exc:
        raise UnavailableError(f"can't create {path}: {exc.strerror}") from None


_MEANINGS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it or its folder is read-only",
    sqlite3.SQLITE_BUSY: "another process has locked it for too long",
    sqlite3.SQLITE_LOCKED: "another connection has locked it for too long",
    sqlite3.SQLITE_NOTADB: "it is damaged, or no SQLite file; restore it from a copy or name another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore it from a copy or name another file",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened",
    sqlite3.SQLITE_PERM: "its permissions forbid that",
    sqlite3.SQLITE_IOERR: "the disk failed or is full",
}
_FOR_ALL = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}


class translated:  # noqa: N801 - used like a function: `with translated(path, verb="read"):`
    """Turns SQLite's errors into ours.

    Raises:
        StorageError: One line: what could not be done, with which file, and why.
    """

    __slots__ = ("_path", "_verb")

    def __init__(self, path: Path, *, verb: str) -> None:
        self._path = path
        self._verb = verb

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            meaning = "it is a folder; name a file" if self._path.is_dir() else _MEANINGS.get(code, error)
            message = f"can't {self._verb} {self._path}: {meaning}"
            raise (UnavailableError if code in _FOR_ALL else StorageError)(message) from error
