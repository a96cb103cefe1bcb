"""Reading a SQLite log: which index answers which question.

An equality is answered in reading order by its own index. A range is not: its index is ordered by value. With few
matches they are collected from that index and sorted; with many, the next ones are near, so events are walked in
reading order, past every zone whose lowest and highest value show that it has none. Of several conditions the rarest
one leads, and the others' indexes are asked about each position. Counts that stop early tell rare from common.
"""

# ruff: noqa: S608 - every name in these statements is a constant of ours; values are bound

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from typing import Any

from agenthelm.core.storage.base import EVENTS, Between, StoredRecord, StreamInfo, Where
from agenthelm.core.storage.codec import INDEXED_FIELDS, decode, is_journal
from agenthelm.core.storage.sqlite_schema import RANGED_FIELDS, ZONE_BITS
from agenthelm.exceptions import CorruptRecordError

__all__ = ["Page", "find_records", "find_streams"]

MANY = 10_000
"""From so many matches on, walking beats collecting and sorting."""

_COUNTED = 30_000

_PAST_EVERY_STRING = b""  # SQLite orders numbers before strings and strings before blobs


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a stream is read."""

    stream: str
    where: Where
    limit: int | None
    newest_first: bool
    after: int | None

    @property
    def order(self) -> str:
        return "DESC" if self.newest_first else "ASC"

    @property
    def beyond(self) -> str:
        return "<" if self.newest_first else ">"


@dataclass(frozen=True, slots=True)
class _Condition:
    """One part of a ``where`` as SQL; in ``text``, ``{}`` stands before the column's name."""

    field: str
    text: str
    values: tuple[Any, ...]
    is_range: bool

    @property
    def indexed(self) -> bool:
        return self.field in INDEXED_FIELDS

    def term(self, prefix: str = "") -> str:
        return self.text.format(prefix, prefix)

    @property
    def probe(self) -> str:
        """The condition as a question to its index about one position, which spares fetching the row."""
        return (
            f"EXISTS (SELECT 1 FROM events AS other INDEXED BY events_by_{self.field} "
            f"WHERE {self.term('other.')} AND other.position = events.position)"
        )


def _textual(wanted: Between) -> bool:
    return isinstance(wanted.low, str) or isinstance(wanted.high, str)


def _bounds(wanted: Between) -> tuple[Any, Any]:
    textual = _textual(wanted)
    if not textual and wanted.low is None is wanted.high:
        return -math.inf, _PAST_EVERY_STRING
    low = ("" if textual else -math.inf) if wanted.low is None else _held(wanted.low)
    high = (_PAST_EVERY_STRING if textual else math.inf) if wanted.high is None else _held(wanted.high)
    return low, high


def _held(wanted: str | float) -> str | float:
    """A value as SQLite can hold it: what is beyond the 64 bits of its integers is a float to it, in JSON as well."""
    if not isinstance(wanted, int) or -(2**63) <= wanted < 2**63:
        return wanted
    try:
        return float(wanted)
    except OverflowError:
        return math.inf if wanted > 0 else -math.inf


def _condition(field: str, wanted: str | float | Between | None, *, events: bool) -> _Condition:
    values: tuple[str, ...] = ()
    if events and field in INDEXED_FIELDS:
        column = "{}" + field
    else:
        path = _json_path(field)
        extracted, values = "json_extract(data, ?)", (path, field)
        if isinstance(wanted, str) or (isinstance(wanted, Between) and _textual(wanted)):
            # SQLite makes text of a list or an object, too.
            extracted, values = f"CASE json_type(data, ?) WHEN 'text' THEN {extracted} END", (path, *values)
        # NaN is JSON to Python and an error to SQLite; `connect` brings the function.
        column = f"CASE WHEN json_valid(data) THEN {extracted} ELSE json_field(data, ?) END"
    if wanted is None:
        return _Condition(field, f"{column} IS NULL", values, is_range=False)
    if not isinstance(wanted, Between):
        return _Condition(field, f"{column} = ?", (*values, _held(wanted)), is_range=False)
    low, high = _bounds(wanted)
    return _Condition(field, f"{column} >= ? AND {column} <= ?", (*values, low, *values, high), is_range=True)


def _json_path(field: str) -> str:
    if '"' in field:
        raise ValueError(f"a field to filter by can't contain a quotation mark: {field!r}")
    return f'$."{field}"'


def find_records(connection: sqlite3.Connection, page: Page) -> tuple[list[StoredRecord], int]:
    """Read a page of a stream.

    Returns:
        The records, and how many events had to be left out because they can't be read.

    Raises:
        CorruptRecordError: The same, in a journal.
    """
    conditions = [_condition(f, wanted, events=page.stream == EVENTS) for f, wanted in page.where.items()]
    if page.stream == EVENTS:
        rows = _find_events(connection, page, conditions)
    else:
        rows = _find_in_journal(connection, page, conditions)
    found: list[StoredRecord] = []
    for position, text in rows:
        try:
            found.append(StoredRecord(page.stream, position, decode(text)))
        except (ValueError, TypeError) as exc:
            if is_journal(page.stream):
                raise CorruptRecordError(page.stream, position=position, detail=str(exc)) from None
    return found, len(rows) - len(found)


class _Terms:
    """The parts of a WHERE clause and their values, in step."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.values: list[Any] = []

    def add(self, text: str, *values: Any) -> None:
        self.texts.append(text)
        self.values += values

    @property
    def clause(self) -> str:
        return f"WHERE {' AND '.join(self.texts)}" if self.texts else ""


def _find_in_journal(connection: sqlite3.Connection, page: Page, conditions: list[_Condition]) -> list[tuple[int, str]]:
    _check_whole(connection, page.stream)
    terms = _Terms()
    terms.add("stream = ?", page.stream)
    return _walk(connection, "records", page, conditions, terms)


def _check_whole(connection: sqlite3.Connection, stream: str) -> None:
    """Refuse a journal that has lost a record: a page that is damaged may show fewer, without an error.

    Raises:
        CorruptRecordError: One is missing.
    """
    asked = """SELECT coalesce((SELECT position FROM streams WHERE name = :stream), 0),
        (SELECT count(*) FROM records WHERE stream = :stream)"""  # in one statement, or somebody could write in between
    appended, there = connection.execute(asked, {"stream": stream}).fetchone()
    if appended != there:
        rows = connection.execute("SELECT position FROM records WHERE stream = ? ORDER BY position", (stream,))
        lost = next((n for n, (position,) in enumerate(rows) if position != n), min(appended, there))
        raise CorruptRecordError(stream, position=lost, detail="it is missing in the file")


def _walk(
    connection: sqlite3.Connection, table: str, page: Page, conditions: list[_Condition], terms: _Terms
) -> list[tuple[int, str]]:
    """Look at row after row."""
    for condition in conditions:
        terms.add(condition.term(), *condition.values)
    if page.after is not None:
        terms.add(f"position {page.beyond} ?", page.after)
    sql = f"SELECT position, data FROM {table} {terms.clause} ORDER BY position {page.order} LIMIT ?"
    return connection.execute(sql, (*terms.values, _limit(page))).fetchall()


def _find_events(connection: sqlite3.Connection, page: Page, conditions: list[_Condition]) -> list[tuple[int, str]]:
    # The fresh ones first: what is moved between the two questions is found twice then, and not missed.
    fresh = _walk(connection, "fresh", page, conditions, _Terms())
    found = dict(_find_indexed(connection, page, conditions))
    found.update(fresh)
    return sorted(found.items(), reverse=page.newest_first)[: page.limit]


def _find_indexed(connection: sqlite3.Connection, page: Page, conditions: list[_Condition]) -> list[tuple[int, str]]:
    driver = _driver(connection, conditions)
    ranges = [condition for condition in conditions if condition.is_range and condition.field in RANGED_FIELDS]
    terms = _Terms()
    source, order = "events", f"position {page.order}"
    if driver is not None:
        source = f"events INDEXED BY events_by_{driver.field}"
        if ranges and not driver.is_range and not _bound(connection, terms, ranges):
            return []
    elif ranges:
        source = f"zones CROSS JOIN events ON position BETWEEN zone << {ZONE_BITS} AND ((zone + 1) << {ZONE_BITS}) - 1"
        order = f"zone {page.order}, position {page.order}"
        _overlap(terms, ranges)
        if page.after is not None:
            terms.add(f"zone {page.beyond}= ? >> {ZONE_BITS}", page.after)
    for condition in conditions:
        if condition is driver:
            terms.add(condition.term(), *condition.values)
        elif driver is not None and condition.indexed and not condition.is_range:
            terms.add(condition.probe, *condition.values)
        else:
            terms.add(condition.term("+"), *condition.values)  # the plus keeps its index out of the plan
    if page.after is not None:
        sorts = driver is not None and driver.is_range
        terms.add(f"{'+' if sorts else ''}position {page.beyond} ?", page.after)
    # The positions alone are sorted; only the rows that are wanted are fetched.
    sql = f"SELECT position FROM {source} {terms.clause} ORDER BY {order} LIMIT ?"
    sql = f"SELECT position, data FROM events WHERE position IN ({sql}) ORDER BY position {page.order}"
    return connection.execute(sql, (*terms.values, _limit(page))).fetchall()


def _overlap(terms: _Terms, ranges: list[_Condition]) -> None:
    """Only zones that may hold a match."""
    for condition in ranges:
        low, high = condition.values
        terms.add(f"low_{condition.field} <= ? AND high_{condition.field} >= ?", high, low)


def _bound(connection: sqlite3.Connection, terms: _Terms, ranges: list[_Condition]) -> bool:
    """Only positions between the first and the last zone that may hold a match; False when there is none."""
    zones = _Terms()
    _overlap(zones, ranges)
    first, last = connection.execute(f"SELECT min(zone), max(zone) FROM zones {zones.clause}", zones.values).fetchone()
    if first is None:
        return False
    terms.add("position >= ? AND position < ?", first << ZONE_BITS, (last + 1) << ZONE_BITS)
    return True


def _driver(connection: sqlite3.Connection, conditions: list[_Condition]) -> _Condition | None:
    """The condition whose index leads to the matches soonest; None to walk the events in reading order."""
    indexed = [condition for condition in conditions if condition.indexed]
    equalities = [condition for condition in indexed if not condition.is_range]
    if len(indexed) == len(equalities) == 1:
        return equalities[0]
    counts = [(_count(connection, condition), condition) for condition in indexed]
    for count, condition in sorted(counts, key=lambda pair: pair[0]):
        if count < MANY or not condition.is_range:
            return condition
    return None


def _count(connection: sqlite3.Connection, condition: _Condition) -> int:
    sql = f"SELECT count(*) FROM (SELECT 1 FROM events WHERE {condition.term()} LIMIT {_COUNTED})"
    count: int = connection.execute(sql, condition.values).fetchone()[0]
    return count


def _limit(page: Page) -> int:
    return -1 if page.limit is None else page.limit


def find_streams(
    connection: sqlite3.Connection,
    *,
    state: str | None,
    prefix: str,
    limit: int | None,
    newest_first: bool,
) -> list[StreamInfo]:
    """List streams in the order of their creation."""
    terms: list[str] = []
    values: list[Any] = []
    if state is not None:
        terms.append("state = ?")
        values.append(state)
    if prefix:
        terms.append("substr(name, 1, ?) = ?")
        values += [len(prefix), prefix]
    where = f"WHERE {' AND '.join(terms)} " if terms else ""
    order = "DESC" if newest_first else "ASC"
    rows = connection.execute(
        f"SELECT name, position, state, created_at, updated_at FROM streams {where}ORDER BY number {order} LIMIT ?",
        (*values, -1 if limit is None else limit),
    )
    return [StreamInfo(*row) for row in rows]
