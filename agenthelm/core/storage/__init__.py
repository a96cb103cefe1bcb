"""The event log and the journals: an append-only port, and three storages behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthelm.core.storage.base import EVENTS, BaseStorage, Between, Record, StoredRecord, StreamInfo, Where
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.lazy import lazily

if TYPE_CHECKING:
    from agenthelm.core.storage.json_storage import JsonStorage
    from agenthelm.core.storage.sqlite_storage import SqliteStorage

__all__ = [
    "EVENTS",
    "BaseStorage",
    "Between",
    "InMemoryStorage",
    "JsonStorage",
    "Record",
    "SqliteStorage",
    "StoredRecord",
    "StreamInfo",
    "Where",
]


# sqlite3 and what surrounds it take 15 ms to import; a run in memory needs none of it.
_HOMES = {"JsonStorage": "json_storage", "SqliteStorage": "sqlite_storage"}


if not TYPE_CHECKING:  # a type checker must see which names are not there
    __getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
