"""The memory for sync code that runs in a worker thread of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from agenthelm._runtime.workers import hop_back
from agenthelm.memory.base import MemoryMatch

if TYPE_CHECKING:
    from agenthelm.memory.context import MemoryContext
    from agenthelm.memory.hub import MemoryHub

__all__ = ["SyncMemoryContext"]


class SyncMemoryContext:
    """The methods of `MemoryContext` as plain calls, each of which waits for the event loop.

    Works in a sync ``forward`` and in sync tools. Every call is a point at which the run can be cancelled.

    Attributes:
        session_id: The conversation.
        namespace: The tenant.
        hub: Where it is all kept.
    """

    __slots__ = ("_context",)

    def __init__(self, context: MemoryContext) -> None:
        self._context = context

    @property
    def session_id(self) -> str:
        """The conversation."""
        return self._context.session_id

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self._context.namespace

    @property
    def hub(self) -> MemoryHub:
        """Where it is all kept."""
        return self._context.hub

    def read(self, key: str, default: Any = None) -> Any:
        """As `MemoryContext.read`."""
        return hop_back(self._context.read, key, default)

    def read_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """As `MemoryContext.read_many`."""
        return dict(hop_back(self._context.read_many, keys))

    def write(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """As `MemoryContext.write`."""
        hop_back(self._context.write, key, value, ttl=ttl)

    def write_many(self, items: Mapping[str, Any], *, ttl: float | None = None) -> None:
        """As `MemoryContext.write_many`."""
        hop_back(self._context.write_many, items, ttl=ttl)

    def delete(self, key: str) -> bool:
        """As `MemoryContext.delete`."""
        return bool(hop_back(self._context.delete, key))

    def list_keys(self, prefix: str = "") -> list[str]:
        """As `MemoryContext.list_keys`."""
        return list(hop_back(self._context.list_keys, prefix))

    def clear(self) -> int:
        """As `MemoryContext.clear`."""
        return int(hop_back(self._context.clear))

    def get_shared(self, key: str, default: Any = None) -> Any:
        """As `MemoryContext.get_shared`."""
        return hop_back(self._context.get_shared, key, default)

    def set_shared(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """As `MemoryContext.set_shared`."""
        hop_back(self._context.set_shared, key, value, ttl=ttl)

    def delete_shared(self, key: str) -> bool:
        """As `MemoryContext.delete_shared`."""
        return bool(hop_back(self._context.delete_shared, key))

    def list_shared(self, prefix: str = "") -> list[str]:
        """As `MemoryContext.list_shared`."""
        return list(hop_back(self._context.list_shared, prefix))

    def incr_shared(self, key: str, amount: int = 1, *, ttl: float | None = None) -> int:
        """As `MemoryContext.incr_shared`."""
        return int(hop_back(self._context.incr_shared, key, amount, ttl=ttl))

    def compare_and_set_shared(self, key: str, expected: Any, new: Any, *, ttl: float | None = None) -> bool:
        """As `MemoryContext.compare_and_set_shared`."""
        return bool(hop_back(self._context.compare_and_set_shared, key, expected, new, ttl=ttl))

    def remember(self, text: str, metadata: Mapping[str, Any] | None = None, *, id: str | None = None) -> str:  # noqa: A002
        """As `MemoryContext.remember`."""
        return str(hop_back(self._context.remember, text, metadata, id=id))

    def recall(
        self,
        query: str,
        top_k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        min_score: float = 0.0,
        this_session: bool = False,
    ) -> list[str]:
        """As `MemoryContext.recall`."""
        found = self.search(query, top_k, where=where, min_score=min_score, this_session=this_session)
        return [match.text for match in found]

    def search(
        self,
        query: str,
        top_k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        min_score: float = 0.0,
        this_session: bool = False,
    ) -> list[MemoryMatch]:
        """As `MemoryContext.search`."""
        options = {"where": where, "min_score": min_score, "this_session": this_session}
        return list(hop_back(self._context.search, query, top_k, **options))

    def forget(self, id: str) -> bool:  # noqa: A002
        """As `MemoryContext.forget`."""
        return bool(hop_back(self._context.forget, id))

    def count(self, *, where: Mapping[str, Any] | None = None) -> int:
        """As `MemoryContext.count`."""
        return int(hop_back(self._context.count, where=where))

    def __repr__(self) -> str:
        return f"SyncMemoryContext(session_id={self.session_id!r}, namespace={self.namespace!r})"
