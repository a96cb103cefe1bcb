"""A storage in this process's memory: for tests, for trying things out, and for runs that need no recovery."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from agenthelm._runtime.forks import Forked
from agenthelm.core.storage.base import EVENTS, BaseStorage, Record, StoredRecord, StreamInfo, Where
from agenthelm.core.storage.codec import decode, encode, is_journal, matches, reading_order, state_of
from agenthelm.exceptions import CorruptRecordError, StalePositionError, StorageClosedError, StorageError

__all__ = ["InMemoryStorage"]


class _Stream:
    __slots__ = ("created_at", "forgotten", "name", "number", "records", "state", "updated_at")

    def __init__(self, name: str, number: int, now: float) -> None:
        self.name = name
        self.number = number
        self.records: list[Record] = []
        self.forgotten = 0
        self.state: str | None = None
        self.created_at = self.updated_at = now

    @property
    def position(self) -> int:
        return self.forgotten + len(self.records)


class InMemoryStorage(BaseStorage, Forked):
    """Keeps the newest events and runs until the process ends; its runs can't be recovered.

    Bounded, because a service may live for months on it: beyond the limits the oldest events are forgotten, and the
    journals of the runs that ended first. A run in progress never is.

    Appending costs a few microseconds and never suspends. Records are kept as they are and copied through JSON when
    they are read, so a value that JSON can't hold shows only then: as a skipped event, or as an unreadable journal.
    Safe to share between event loops and threads.

    Args:
        max_events: How many events are kept, at least; up to a tenth more may be.
        max_runs: How many runs that have ended stay undoable.

    Raises:
        ValueError: One of them is below 1.
    """

    durable = False

    def __init__(self, *, max_events: int = 100_000, max_runs: int = 10_000) -> None:
        if max_events < 1 or max_runs < 1:
            raise ValueError(f"max_events and max_runs must be at least 1, not {max_events} and {max_runs}")
        self._max_events = max_events
        self._most_events = max_events + max_events // 10
        self._max_runs = max_runs
        self._ended: dict[str, None] = {}
        self._streams: dict[str, _Stream] = {}
        self._by_state: dict[str, dict[str, _Stream]] = {}
        self._numbers = itertools.count()
        self._guard = threading.Lock()
        self._skipped = 0
        self._closed = False
        super().__init__()

    async def append(self, records: Sequence[Record], expected: Mapping[str, int] | None = None) -> dict[str, int]:
        """Append records, all or none; see `BaseStorage.append`."""
        now = time.time()
        streams = self._streams
        touched: dict[str, int] = {}
        with self._guard:
            self._check_open()
            if expected:
                for name, position in expected.items():
                    known = streams.get(name)
                    actual = 0 if known is None else known.position
                    if actual != position:
                        raise StalePositionError(name, expected=position, actual=actual)
            for record in records:
                name, _, state, _ = record
                stream = streams.get(name)
                if stream is None:
                    stream = streams[name] = _Stream(name, next(self._numbers), now)
                kept = stream.records
                kept.append(record)
                stream.updated_at = now
                if state is not None and state != stream.state:
                    self._enter(stream, state)
                touched[name] = stream.forgotten + len(kept)
            if EVENTS in touched and len(streams[EVENTS].records) > self._most_events:
                self._forget_events(streams[EVENTS])
        return touched

    async def read(
        self,
        stream: str,
        *,
        where: Where | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        after: int | None = None,
    ) -> list[StoredRecord]:
        """Read a stream, record by record without an index; see `BaseStorage.read`."""
        self._check_open()
        known = self._streams.get(stream)
        if known is None or limit == 0:
            return []
        with self._guard:
            begin, records = known.forgotten, known.records
            end = begin + len(records)
        found: list[StoredRecord] = []
        for position in reading_order(begin, end, newest_first=newest_first, after=after):
            record = records[position - begin]
            if where and not matches(record.data, where):
                continue
            data = self._copied(record, position)
            if data is not None:
                found.append(StoredRecord(stream, position, data))
                if len(found) == limit:
                    break
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
        self._check_open()
        state = state_of(where)
        with self._guard:
            known = self._streams if state is None else self._by_state.get(state, {})
            chosen = [stream for stream in known.values() if stream.name.startswith(prefix)]
            # Dictionaries keep the order of creation, but a state is entered in any order.
            if state is not None:
                chosen.sort(key=lambda stream: stream.number)
            listed = reversed(chosen) if newest_first else iter(chosen)
            return [
                StreamInfo(s.name, s.position, s.state, s.created_at, s.updated_at)
                for s in itertools.islice(listed, limit)
            ]

    async def drop(self, stream: str) -> None:
        """Forget a stream with all its records."""
        with self._guard:
            self._check_open()
            known = self._streams.pop(stream, None)
            if known is not None:
                self._leave(known)

    async def aclose(self) -> None:
        """Refuse further use."""
        self._closed = True

    @property
    def skipped(self) -> int:
        """How many events held a value that JSON can't, and were left out of reads."""
        return self._skipped

    def before_fork(self) -> None:
        """Wait for appends of other threads: in the child they would never end, and never let go of the log."""
        self._guard.acquire()

    def in_parent(self) -> None:
        """Let others append again."""
        self._guard.release()

    def in_child(self) -> None:
        """Go on with a copy of the log."""
        self._guard = threading.Lock()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError("the in-memory storage was closed")

    def _enter(self, stream: _Stream, state: str) -> None:
        self._leave(stream)
        stream.state = state
        self._by_state.setdefault(state, {})[stream.name] = stream
        if state != "open" and is_journal(stream.name):
            self._ended[stream.name] = None
            if len(self._ended) > self._max_runs:
                self._leave(self._streams.pop(next(iter(self._ended))))

    def _leave(self, stream: _Stream) -> None:
        if stream.state is not None:
            del self._by_state[stream.state][stream.name]
        self._ended.pop(stream.name, None)

    def _forget_events(self, stream: _Stream) -> None:
        """Drop the oldest, many at a time; into a new list, because somebody may be reading the old one."""
        excess = len(stream.records) - self._max_events
        stream.records = stream.records[excess:]
        stream.forgotten += excess

    def _copied(self, record: Record, position: int) -> dict[str, Any] | None:
        try:
            return decode(encode(record))
        except (StorageError, ValueError) as exc:
            if is_journal(record.stream):
                raise CorruptRecordError(record.stream, position=position, detail=str(exc)) from None
            self._skipped += 1
            return None
