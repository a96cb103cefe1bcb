"""What one transaction of a SQLite log writes, and the two ways to write it."""

# ruff: noqa: S608 - every name in these statements is a constant of ours; values are bound

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from agenthelm.core.storage.base import EVENTS
from agenthelm.core.storage.codec import INDEXED_FIELDS
from agenthelm.core.storage.sqlite_schema import FRESH_BITS
from agenthelm.core.storage.writer import Append, AppendResult, check
from agenthelm.exceptions import StalePositionError

__all__ = ["Batch", "open_inbox"]

_EVENT_COLUMNS = len(INDEXED_FIELDS) + 2
_INSERT_EVENTS = ("INSERT INTO fresh VALUES", _EVENT_COLUMNS, "")
_INSERT_RECORDS = ("INSERT INTO records VALUES", 3, "")
_MOVE = """ON CONFLICT (name) DO UPDATE SET
    position = excluded.position, state = coalesce(excluded.state, state), updated_at = excluded.updated_at"""
# For streams whose state stays, because SQLite writes the index over a column that it is told to set, changed or not.
_STAY = "ON CONFLICT (name) DO UPDATE SET position = excluded.position, updated_at = excluded.updated_at"
_MOVE_STREAMS = ("INSERT INTO streams (name, position, state, created_at, updated_at) VALUES", 5, _MOVE)
_MOVE_STAYING = (*_MOVE_STREAMS[:2], _STAY)
# Many at once, because an index takes them for little more than the price of one.
_SETTLE = ("INSERT INTO events SELECT * FROM fresh", "DELETE FROM fresh")
_ROWS = 64
"""Rows of one statement, at most; SQLite binds 999 values in its oldest builds."""

_STREAM, _RECORD, _EVENT = range(3)
_INBOX = ["kind", *(f"c{n}" for n in range(_EVENT_COLUMNS))]
_INBOX_ROWS = 32
"""What goes into the inbox is filled up to so many rows, or twice as many, or four times as many, and so on: SQLite
compiles few statements then, and each keeps no more than the last values that it was given."""


def open_inbox(connection: sqlite3.Connection) -> None:
    """Give a connection the view that `Batch.write_at_once` inserts into, whose triggers do the rest; it goes with it."""
    c = [f"new.{name}" for name in _INBOX[1:]]
    into_streams = _MOVE_STREAMS[0].removesuffix("VALUES")
    is_there = (
        f"SELECT raise(ABORT, '') WHERE coalesce((SELECT position FROM streams WHERE name = {c[0]}), 0) <> {c[1]}"
    )

    def moves(after: str) -> list[str]:
        grows, stays = f"{after} > {c[1]}", f"{c[3]} IS NULL AND {c[1]} > 0"
        row = f"SELECT {c[0]}, {after}, {c[3]}, {c[4]}, {c[4]}"
        return [
            f"{into_streams} {row} WHERE {grows} AND {stays} {_STAY}",
            f"{into_streams} {row} WHERE {grows} AND NOT ({stays}) {_MOVE}",
        ]

    settles = f"WHERE ({c[0]} + 1) & {(1 << FRESH_BITS) - 1} = 0"
    does = {
        _STREAM: [is_there, *moves(c[2])],
        _RECORD: [is_there, f"INSERT INTO records VALUES ({c[0]}, {c[1]}, {c[2]})", *moves(f"{c[1]} + 1")],
        _EVENT: [f"INSERT INTO fresh VALUES ({', '.join(c)})", *(f"{statement} {settles}" for statement in _SETTLE)],
    }
    connection.execute(f"CREATE TEMP VIEW inbox ({', '.join(_INBOX)}) AS SELECT {', '.join('0' for _ in _INBOX)}")
    for kind, statements in does.items():
        connection.execute(
            f"""CREATE TEMP TRIGGER inbox_{kind} INSTEAD OF INSERT ON inbox WHEN new.kind = {kind}
            BEGIN {"; ".join(statements)}; END"""
        )


class Batch:
    """The appends of one transaction, laid out as rows; those that are stale are left out.

    Args:
        appends: The appends.
        before: The position of every stream they name.

    Attributes:
        results: What becomes of each append, once the others are written.
        before: As given.
        after: Where the streams are then.
        stale: Whether any is left out.
    """

    __slots__ = ("_events", "_moved", "_records", "after", "before", "results", "stale")

    def __init__(self, appends: Sequence[Append], before: Mapping[str, int]) -> None:
        self.before: Mapping[str, int] = before
        self.after: dict[str, int] = dict(before)
        self.results: list[AppendResult] = []
        self.stale: bool = False
        self._events: list[tuple[Any, ...]] = []
        self._records: list[tuple[str, int, str]] = []
        self._moved: dict[str, str | None] = {}  # with their new state, in the order in which new ones are to be made
        after, moved = self.after, self._moved
        for append in appends:
            try:
                check(append, after)
            except StalePositionError as exc:
                # Without its traceback, which would hold this batch, and so the exception itself.
                self.results.append(exc.with_traceback(None))
                self.stale = True
                continue
            touched: dict[str, int] = {}
            for stream, text, state, data in append.entries:
                position = after[stream]
                touched[stream] = after[stream] = position + 1
                if state is not None or stream not in moved:
                    moved[stream] = state
                if stream == EVENTS:
                    self._events.append((position, *_fields(data), text))
                else:
                    self._records.append((stream, position, text))
            self.results.append(touched)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write it in a transaction that has begun, in which ``before`` was read."""
        now = time.time()
        moved: list[tuple[Any, ...]] = []
        staying: list[tuple[Any, ...]] = []
        for name, state in self._moved.items():
            row = (name, self.after[name], state, now, now)
            (staying if state is None and self.before[name] else moved).append(row)
        _insert(connection, _INSERT_EVENTS, self._events)
        _insert(connection, _INSERT_RECORDS, self._records)
        _insert(connection, _MOVE_STREAMS, moved)
        _insert(connection, _MOVE_STAYING, staying)
        if self.before.get(EVENTS, 0) >> FRESH_BITS != self.after.get(EVENTS, 0) >> FRESH_BITS:
            for statement in _SETTLE:
                connection.execute(statement)

    def write_at_once(self, connection: sqlite3.Connection) -> bool:
        """Write it in a transaction that is one statement.

        Whoever calls SQLite lets go of the GIL, and waits for it afterwards: beside a busy event loop for the
        interpreter's switch interval, many times what the call itself takes. So one call does it all.

        Returns:
            Whether it is written. If not, nothing is: a stream is not where ``before`` says, there are no rows or too many,
            or the very first event is among them, whose stream would be made after all others.
        """
        if EVENTS in self._moved and not self.before[EVENTS]:
            return False
        now = time.time()
        rest = [None] * (len(_INBOX) - 6)
        values: list[Any] = []
        alone = dict(self.before)
        for stream, position, text in self._records:
            alone.pop(stream, None)
            values += (_RECORD, stream, position, text, self._moved[stream], now)
            values += rest
        for event in self._events:
            values.append(_EVENT)
            values += event
        for stream, position in alone.items():
            values += (_STREAM, stream, position, self.after[stream], self._moved.get(stream), now)
            values += rest
        given, rows = len(values) // len(_INBOX), _INBOX_ROWS
        while rows < given:
            rows *= 2
        if not given or rows * len(_INBOX) > connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER):
            return False
        values += [None] * (rows * len(_INBOX) - len(values))
        try:
            connection.execute(_statement(("INSERT INTO inbox VALUES", len(_INBOX), ""), rows), values)
        except sqlite3.IntegrityError:
            return False
        return True


def _insert(connection: sqlite3.Connection, into: tuple[str, int, str], rows: Sequence[tuple[Any, ...]]) -> None:
    """As ``executemany``, in few statements; see `Batch.write_at_once`."""
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
    for value in values:
        if value is not None and not isinstance(value, (str, int, float)):
            return [value if isinstance(value, (str, int, float)) else None for value in values]
    return values
