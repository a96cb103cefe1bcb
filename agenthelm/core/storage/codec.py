"""Records as JSON text, and the one meaning of a ``where`` and of a page that all storages share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json

from agenthelm.core.storage.base import EVENTS, Between, Record, Where
from agenthelm.exceptions import StorageError

__all__ = [
    "INDEXED_FIELDS",
    "Entry",
    "decode",
    "encode",
    "entries",
    "is_journal",
    "matches",
    "reading_order",
    "state_of",
]

INDEXED_FIELDS = (
    "run_id",
    "agent_name",
    "tool_name",
    "outcome",
    "kind",
    "session_id",
    "namespace",
    "timestamp",
    "execution_time",
    "estimated_cost_usd",
)
"""The fields of an event by which `SqliteStorage` filters a million events in milliseconds."""


class Entry(NamedTuple):
    """A record on its way to the disk: encoded when it was submitted, so nothing is shared with the caller."""

    stream: str
    text: str
    state: str | None
    data: Mapping[str, Any]


def is_journal(stream: str) -> bool:
    """Whether every record of a stream counts; events can be missed, journals can't."""
    return stream != EVENTS


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_encoder = json.JSONEncoder(separators=(",", ":"), default=_plain)


def encode(record: Record) -> str:
    """A record's data as one line of JSON.

    Raises:
        StorageError: It holds something that JSON can't.
    """
    if record.plain:
        try:
            return to_json(record.data, inf_nan_mode="constants").decode()  # a third of what it costs below
        except ValueError:  # what UTF-8 can't hold, or very deep
            pass
    try:
        return _encoder.encode(record.data)
    except (TypeError, ValueError, RecursionError) as exc:
        raise StorageError(f"a record for stream {record.stream!r} can't be stored as JSON: {exc}") from None


def decode(text: str | bytes) -> dict[str, Any]:
    """The data of a stored record.

    Raises:
        ValueError: It is not a JSON object.
    """
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def entries(records: Sequence[Record]) -> list[Entry]:
    """Encode what is appended.

    Raises:
        StorageError: A record holds something that JSON can't; nothing was appended.
    """
    return [Entry(record.stream, encode(record), record.state, record.data) for record in records]


def matches(data: Mapping[str, Any], where: Where) -> bool:
    """Whether a record's data fulfils all conditions.

    A missing field is None. Numbers are compared with numbers and strings with strings, as JSON orders neither.
    """
    return all(_fulfils(data.get(field), wanted) for field, wanted in where.items())


def _fulfils(value: Any, wanted: str | float | Between | None) -> bool:
    if not isinstance(wanted, Between):
        return bool(value == wanted) and isinstance(value, str) == isinstance(wanted, str)
    low: Any = wanted.low
    high: Any = wanted.high
    if low is None is high:
        return value is not None
    if not isinstance(value, str if isinstance(low, str) or isinstance(high, str) else (int, float)):
        return False
    return (low is None or bool(value >= low)) and (high is None or bool(value <= high))


def reading_order(begin: int, end: int, *, newest_first: bool, after: int | None) -> range:
    """A stream's positions from ``begin`` to before ``end``, as a page is read: in order, and only beyond ``after``."""
    if newest_first:
        return range((end if after is None else min(end, after)) - 1, begin - 1, -1)
    return range(begin if after is None else max(begin, after + 1), end)


def state_of(where: Mapping[str, str] | None) -> str | None:
    """The state that a ``streams(where=...)`` asks for, None for any.

    Raises:
        ValueError: It asks for anything else; streams are indexed by their state only.
    """
    if not where:
        return None
    other = next((field for field in where if field != "state"), None)
    if other is not None:
        raise ValueError(f"streams can be listed by 'state', not by {other!r}")
    return where["state"]
