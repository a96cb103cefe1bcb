"""Values under keys, for as long as they are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from anyio.abc import AsyncResource

from agenthelm._runtime.retry import Clock
from agenthelm.exceptions import ConfigError, MemoryValueError
from agenthelm.memory.base import KeyValueBackend
from agenthelm.memory.values import check_key, check_ttl, decode, encode, not_an_integer, same

__all__ = ["ShortTermMemory"]

DEFAULT_TTL = 3600
"""Seconds that `ShortTermMemory.write` keeps a value unless told otherwise."""

_DIRECT = "agenthelm:k:"


class ShortTermMemory(AsyncResource):
    """JSON values in Redis, SQLite or this process.

    Values are anything JSON holds, and pydantic models and dataclasses, which are dumped. What is read is a fresh
    copy. Safe to share between tasks. Connects on first use.

    Args:
        backend: ``redis://[user:password@]host:port/db`` (``rediss://`` with TLS, ``unix://`` for a socket),
            ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, ``memory://``, or a backend object, which stays
            its owner's to close. A Redis on this machine by default; a `MemoryHub` has ``memory://``.
        clock: What times to live are measured with in SQLite and in memory; Redis has its own.

    Raises:
        ConfigError: The URL is none of these.
    """

    def __init__(
        self, backend: str | KeyValueBackend = "redis://localhost:6379", *, clock: Clock | None = None
    ) -> None:
        self._owns = isinstance(backend, str)
        self.backend: KeyValueBackend = backend_from_url(backend, clock=clock) if isinstance(backend, str) else backend
        self._prefix = _DIRECT

    async def read(self, key: str, default: Any = None) -> Any:
        """The value under a key.

        Args:
            key: Its key.
            default: Returned when there is none, or its time has passed.

        Raises:
            MemoryStoreError: The store can't be reached or read.
        """
        (text,) = await self.backend.read([self._physical(key)])
        return default if text is None else decode(text, key=key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values under some keys in one round trip; keys that hold nothing are left out."""
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return {}
        texts = await self.backend.read([self._physical(key) for key in wanted])
        return {key: decode(text, key=key) for key, text in zip(wanted, texts, strict=True) if text is not None}

    async def write(self, key: str, value: Any, *, ttl: float | None = DEFAULT_TTL) -> None:
        """Keep a value, in place of what the key held.

        Args:
            key: A non-empty string.
            value: What to keep.
            ttl: Seconds until it lapses; None keeps it.

        Raises:
            MemoryValueError: JSON can't hold the value, or the key or the time makes no sense; nothing was written.
            MemoryStoreError: The store can't be reached or written.
        """
        physical = self._physical(key)
        await self.backend.write({physical: encode(value, where=f"the value for {key[:80]!r}")}, check_ttl(ttl))

    async def write_many(self, items: Mapping[str, Any], *, ttl: float | None = DEFAULT_TTL) -> None:
        """Keep several values in one round trip, all or none; as `write`."""
        encoded = {
            self._physical(key): encode(value, where=f"the value for {str(key)[:80]!r}") for key, value in items.items()
        }
        ttl = check_ttl(ttl)
        if encoded:
            await self.backend.write(encoded, ttl)

    async def delete(self, key: str) -> bool:
        """Forget a key; returns whether it held anything."""
        return await self.backend.delete([self._physical(key)]) > 0

    async def clear(self, prefix: str = "") -> int:
        """Forget every key that begins with ``prefix``; returns how many there were."""
        keys = await self.backend.scan(self._prefix + self._checked_prefix(prefix))
        return await self.backend.delete(keys) if keys else 0

    async def list_keys(self, prefix: str = "") -> list[str]:
        """The keys that begin with exactly ``prefix``, sorted; no character in it is a wildcard."""
        start = len(self._prefix)
        return [key[start:] for key in await self.backend.scan(self._prefix + self._checked_prefix(prefix))]

    async def incr(self, key: str, amount: int = 1, *, ttl: float | None = None) -> int:
        """Add to a counter in one atomic step, and return its new value.

        Args:
            key: The counter; one that does not exist counts as 0.
            amount: A whole number, negative to subtract.
            ttl: Seconds until a counter that this call creates lapses; an existing one keeps its own.

        Raises:
            MemoryValueError: The key holds something other than a whole number, or the sum passes 64 bits.
            MemoryStoreError: The store failed. It is then unknown whether the counter moved; this is never retried.
        """
        if isinstance(amount, bool) or not isinstance(amount, int) or not -(2**63) <= amount < 2**63:
            raise MemoryValueError(f"incr needs a whole number of at most 64 bits, not {amount!r}")
        physical, ttl = self._physical(key), check_ttl(ttl)
        try:
            return await self.backend.incr(physical, amount, ttl=ttl)
        except MemoryValueError as refused:  # which names the key as the store has it
            raise not_an_integer(key) from refused

    async def compare_and_set(self, key: str, expected: Any, new: Any, *, ttl: float | None = None) -> bool:
        """Write a value if the key still holds the expected one, in one atomic step.

        Args:
            key: Its key.
            expected: What it must hold, compared as JSON (the order of object keys is nothing); None means that there
                is no such key, or that it holds null.
            new: What to write.
            ttl: Seconds until it lapses; None keeps it.

        Returns:
            Whether it was written.

        Raises:
            MemoryValueError: JSON can't hold one of the values, or the key or the time makes no sense.
            MemoryStoreError: The store failed. If it did not answer, it is unknown whether the value was written.
        """
        physical = self._physical(key)
        wanted = decode(encode(expected, where=f"the expected value for {key[:80]!r}"), key=key)
        text = encode(new, where=f"the value for {key[:80]!r}")
        ttl = check_ttl(ttl)
        while True:  # each further turn means that somebody else wrote in between
            (held,) = await self.backend.read([physical])
            if not same(None if held is None else decode(held, key=key), wanted):
                return False
            if await self.backend.swap(physical, held, text, ttl=ttl):
                return True

    async def ping(self) -> None:
        """Reach the store.

        Raises:
            MemoryStoreError: It can't be reached.
        """
        await self.backend.ping()

    def view(self, prefix: str) -> ShortTermMemory:
        """The same store under another physical prefix; whoever made the first closes it."""
        view = ShortTermMemory(self.backend)
        view._prefix = prefix
        return view

    async def aclose(self) -> None:
        """Let go of what was opened here. May be called twice."""
        if self._owns:
            await self.backend.aclose()

    def _physical(self, key: str) -> str:
        return self._prefix + check_key(key)

    @staticmethod
    def _checked_prefix(prefix: str) -> str:
        return check_key(prefix, what="a prefix") if prefix else ""


def backend_from_url(url: str, *, clock: Clock | None = None) -> KeyValueBackend:
    """The backend that a URL means; nothing is opened yet.

    Raises:
        ConfigError: Its scheme is unknown, or it names no file.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        from agenthelm.memory.backends.in_memory import InMemoryBackend

        return InMemoryBackend(clock=clock)
    if scheme == "sqlite":
        path = rest.removeprefix("/") if rest.startswith("/") else ""
        if not path or path == ":memory:":
            raise ConfigError(
                f"{url!r} names no file; write sqlite:///relative.db or sqlite:////absolute.db, or memory://",
                setting="memory_url",
            )
        from agenthelm.memory.backends.sqlite import SqliteBackend

        return SqliteBackend(path, clock=clock)
    if scheme in ("redis", "rediss", "unix"):
        from agenthelm.memory.backends.redis import RedisBackend

        return RedisBackend(url)
    raise ConfigError(
        f"{url.split('@')[-1]!r} is no memory URL; use redis://, rediss://, unix://, sqlite:///file or memory://",
        setting="memory_url",
    )
