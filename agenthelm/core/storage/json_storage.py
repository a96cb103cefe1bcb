"""A storage one can read with a pager: one JSON Lines file, safe for several processes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from agenthelm._runtime.groups import shielded
from agenthelm._runtime.workers import Workers
from agenthelm.core.storage.base import BaseStorage, Record, StoredRecord, StreamInfo, Where
from agenthelm.core.storage.codec import entries, is_journal, matches, reading_order, state_of
from agenthelm.core.storage.file_lock import can_lock
from agenthelm.core.storage.json_log import JsonLog
from agenthelm.core.storage.writer import Append, Writer
from agenthelm.exceptions import ConfigError, CorruptRecordError, StorageClosedError

__all__ = ["JsonStorage"]

_READERS = 4


class JsonStorage(BaseStorage):
    """A log in one JSON Lines file: a line per append, flushed to the disk before the append returns.

    Good for logs that people read and tools like ``jq`` filter. Appending costs the same however long the file is;
    opening reads the file once, and a filter reads it line by line, so prefer `SqliteStorage` beyond some 100,000
    events. A line torn by a crash is skipped, counted and cut off by the next append. A damaged line further up is
    skipped and counted for events, and makes the journals it belonged to unreadable, by name.

    The file and its folder are made when the first append needs them, readable by their owner only.

    Args:
        path: The file.
        lock_timeout: Seconds to wait for another process that is writing, before an append fails.

    Raises:
        ConfigError: This system has no file locks, as Windows has none.
    """

    def __init__(self, path: str | PathLike[str], *, lock_timeout: float = 10.0) -> None:
        if not can_lock():
            raise ConfigError(
                "JsonStorage needs file locks, which this system has not; use SqliteStorage", setting="path"
            )
        self._path = Path(path).expanduser().absolute()
        self._log = JsonLog(self._path, lock_timeout=lock_timeout)
        self._writer = Writer(self._log, name=str(self._path))
        self._workers = Workers(_READERS)
        self._skipped = 0
        weakref.finalize(self, self._writer.stop)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    async def append(self, records: Sequence[Record], expected: Mapping[str, int] | None = None) -> dict[str, int]:
        """Append records as one line, sharing the flush with whoever else appends; see `BaseStorage.append`."""
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
        """Read a stream, line by line; see `BaseStorage.read`."""
        self._check_open()
        return await self._workers.run(self._read, stream, where or {}, limit, newest_first, after)

    async def streams(
        self,
        *,
        where: Mapping[str, str] | None = None,
        prefix: str = "",
        limit: int | None = None,
        newest_first: bool = True,
    ) -> list[StreamInfo]:
        """List streams; see `BaseStorage.streams`."""
        self._check_open()
        state = state_of(where)
        infos = await self._workers.run(self._log.infos)
        if newest_first:
            infos.reverse()
        found = [info for info in infos if info.name.startswith(prefix) and state in (None, info.state)]
        return found[:limit]

    async def drop(self, stream: str) -> None:
        """Forget a stream with all its records; the file shrinks once dropped records outnumber the others."""
        self._check_open()
        await self._writer.submit(lambda: self._log.drop(stream))

    async def aclose(self) -> None:
        """Write what was submitted, close the file, end the thread."""
        self._writer.stop()
        await shielded(self._workers.hop, self._shut)

    @property
    def skipped(self) -> int:
        """How many damaged or torn lines, and unreadable events, were left out of reads so far."""
        return self._log.skipped + self._skipped

    def _shut(self) -> None:
        self._writer.join()
        self._log.close()

    def _check_open(self) -> None:
        if self._writer.closed:
            raise StorageClosedError(f"{self._path} was closed")

    def _read(
        self, stream: str, where: Where, limit: int | None, newest_first: bool, after: int | None
    ) -> list[StoredRecord]:
        found: list[StoredRecord] = []
        journal = is_journal(stream)
        with self._log.view(stream, whole=journal) as view:
            if view is None or limit == 0:
                return found
            for position in reading_order(0, view.end, newest_first=newest_first, after=after):
                data = view.data(position)
                if data is None:
                    if journal:
                        raise CorruptRecordError(stream, position=position, detail="its line in the file is damaged")
                    continue
                if matches(data, where):
                    found.append(StoredRecord(stream, position, data))
                    if len(found) == limit:
                        break
        return found
