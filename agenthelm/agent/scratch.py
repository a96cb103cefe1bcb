"""Memory for agents that run outside of any hub: optimizers, notebooks and unit tests of one agent.

A scratch pad answers every call of a memory context, keeps what one call writes for as long as that call lasts, and
recalls nothing. So an agent's code need not ask whether it has a memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["AsyncScratch", "Scratch"]


class Scratch:
    """The sync face, for ``forward``: the methods of `SyncMemoryContext`."""

    session_id = "detached"
    namespace = "default"
    hub = None

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._shared: dict[str, Any] = {}
        self._remembered = 0

    def read(self, key: str, default: Any = None) -> Any:
        """What this call wrote under the key, or the default."""
        return self._values.get(key, default)

    def read_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of the keys that this call wrote."""
        return {key: self._values[key] for key in keys if key in self._values}

    def write(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Keep a value until the call ends."""
        self._values[key] = value

    def write_many(self, items: Mapping[str, Any], *, ttl: float | None = None) -> None:
        """Keep values until the call ends."""
        self._values.update(items)

    def delete(self, key: str) -> bool:
        """Drop a value; whether there was one."""
        return self._values.pop(key, _ABSENT) is not _ABSENT

    def list_keys(self, prefix: str = "") -> list[str]:
        """The keys written so far."""
        return sorted(key for key in self._values if key.startswith(prefix))

    def clear(self) -> int:
        """Drop all values; how many there were."""
        count = len(self._values)
        self._values.clear()
        return count

    def get_shared(self, key: str, default: Any = None) -> Any:
        """What this call shared under the key, or the default."""
        return self._shared.get(key, default)

    def set_shared(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Keep a shared value until the call ends."""
        self._shared[key] = value

    def delete_shared(self, key: str) -> bool:
        """Drop a shared value; whether there was one."""
        return self._shared.pop(key, _ABSENT) is not _ABSENT

    def list_shared(self, prefix: str = "") -> list[str]:
        """The keys shared so far."""
        return sorted(key for key in self._shared if key.startswith(prefix))

    def incr_shared(self, key: str, amount: int = 1, *, ttl: float | None = None) -> int:
        """Add to a shared number."""
        self._shared[key] = self._shared.get(key, 0) + amount
        return int(self._shared[key])

    def compare_and_set_shared(self, key: str, expected: Any, new: Any, *, ttl: float | None = None) -> bool:
        """Set a shared value if it is still the expected one."""
        if self._shared.get(key) != expected:
            return False
        self._shared[key] = new
        return True

    def remember(self, text: str, metadata: Mapping[str, Any] | None = None, *, id: str | None = None) -> str:  # noqa: A002
        """Accept a text and let it go; the id is unique within the call."""
        self._remembered += 1
        return id or f"scratch-{self._remembered}"

    def recall(self, query: str, top_k: int = 5, **_: Any) -> list[str]:
        """Nothing: there is no store to recall from."""
        return []

    def search(self, query: str, top_k: int = 5, **_: Any) -> list[Any]:
        """Nothing, as `recall`."""
        return []

    def forget(self, id: str) -> bool:  # noqa: A002
        """There is nothing to forget."""
        return False

    def count(self, **_: Any) -> int:
        """Nothing is remembered."""
        return 0


class AsyncScratch:
    """The async face, for ``aforward``: the same methods, to be awaited."""

    session_id: str = Scratch.session_id
    namespace: str = Scratch.namespace
    hub = None

    def __init__(self) -> None:
        self._pad = Scratch()

    def sync(self) -> Scratch:
        """The same pad for sync code."""
        return self._pad

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Scratch, name):
            raise AttributeError(f"a memory context has no {name!r}")
        method = getattr(self._pad, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call


_ABSENT = object()
