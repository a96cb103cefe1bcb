"""Values in a dictionary of this process."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Mapping, Sequence

import anyio.lowlevel

from agenthelm._runtime.retry import Clock, SystemClock
from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory.backends._integers import added
from agenthelm.memory.base import KeyValueBackend

__all__ = ["InMemoryBackend"]


class InMemoryBackend(KeyValueBackend):
    """Values in this process; gone with it, and safe to share between its threads and event loops.

    Args:
        clock: What times to live are measured with.
    """

    store = "memory"

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._items: dict[str, tuple[str, float | None]] = {}
        self._ends: list[tuple[float, str]] = []
        self._closed = False

    @property
    def location(self) -> str:
        return "memory://"

    async def read(self, keys: Sequence[str]) -> list[str | None]:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            now = self._now()
            return [self._get(key, now) for key in keys]

    async def write(self, items: Mapping[str, str], ttl: float | None) -> None:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            now = self._now()
            for key, value in items.items():
                self._put(key, value, now, ttl)

    async def delete(self, keys: Sequence[str]) -> int:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            now = self._now()
            present = [key for key in dict.fromkeys(keys) if self._get(key, now) is not None]
            for key in present:
                del self._items[key]
            return len(present)

    async def scan(self, prefix: str) -> list[str]:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            self._sweep(self._now())
            return sorted(key for key in self._items if key.startswith(prefix))

    async def swap(self, key: str, expected: str | None, new: str, *, ttl: float | None) -> bool:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            now = self._now()
            if self._get(key, now) != expected:
                return False
            self._put(key, new, now, ttl)
            return True

    async def incr(self, key: str, amount: int, *, ttl: float | None) -> int:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            now = self._now()
            held = self._get(key, now)
            total = added(held, amount, key=key)
            if held is None:
                self._put(key, str(total), now, ttl)
            else:
                self._items[key] = (str(total), self._items[key][1])
            return total

    async def ping(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._now()

    async def aclose(self) -> None:
        self._closed = True
        self._items.clear()
        self._ends.clear()

    def _now(self) -> float:
        if self._closed:
            raise MemoryStoreError("this memory is closed; open another ShortTermMemory or MemoryHub")
        return self._clock.monotonic()

    def _get(self, key: str, now: float) -> str | None:
        held = self._items.get(key)
        if held is None:
            return None
        value, end = held
        if end is not None and end <= now:
            del self._items[key]
            return None
        return value

    def _put(self, key: str, value: str, now: float, ttl: float | None) -> None:
        end = None if ttl is None else now + ttl
        self._items[key] = (value, end)
        if end is not None:
            heapq.heappush(self._ends, (end, key))
        self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Drop what has lapsed, so that keys nobody reads again take no room."""
        while self._ends and self._ends[0][0] <= now:
            end, key = heapq.heappop(self._ends)
            held = self._items.get(key)
            if held is not None and held[1] == end:
                del self._items[key]
        if len(self._ends) > 64 + 2 * len(self._items):  # ends of values that were written again
            self._ends = [(end, key) for key, (_, end) in self._items.items() if end is not None]
            heapq.heapify(self._ends)
