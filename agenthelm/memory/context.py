"""What an agent sees of the memory: its session, its namespace, and nothing beyond."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from agenthelm.exceptions import MemoryValueError
from agenthelm.memory.base import MemoryMatch
from agenthelm.memory.semantic import RESERVED, SESSION
from agenthelm.memory.values import check_key
from agenthelm.tracing import names, spans

if TYPE_CHECKING:
    from agenthelm.memory.hub import MemoryHub
    from agenthelm.memory.sync_context import SyncMemoryContext

__all__ = ["MemoryContext", "session_prefix"]


def session_prefix(namespace: str, session_id: str | None = None) -> str:
    """Where a session's keys begin in the store; without a session, where those of a namespace's sessions do.

    Namespace and session are percent-encoded, so neither can hold the colon that ends it, and no two pairs meet.
    """
    start = f"agenthelm:s:{_part(namespace)}:"
    return start if session_id is None else f"{start}{_part(session_id)}:"


def shared_prefix(namespace: str) -> str:
    """Where a namespace's shared keys begin in the store."""
    return f"agenthelm:n:{_part(namespace)}:"


def _part(text: str) -> str:
    return quote(text, safe="")


class MemoryContext:
    """Memory for one session in one namespace. Cheap to make; safe to share between tasks.

    Values written here are private to the session, shared ones belong to the namespace, and so do remembered texts. No
    read, listing, search or deletion ever leaves the namespace. Values are kept until deleted unless ``ttl`` is given.

    Attributes:
        session_id: The conversation.
        namespace: The tenant.
        hub: Where it is all kept.
    """

    __slots__ = ("_own", "_shared", "_texts", "hub", "namespace", "session_id")

    def __init__(self, session_id: str, hub: MemoryHub, *, namespace: str = "default") -> None:
        self.session_id: str = check_key(session_id, what="a session id")
        self.namespace: str = check_key(namespace, what="a namespace")
        self.hub: MemoryHub = hub
        self._own = hub.short_term.view(session_prefix(namespace, session_id))
        self._shared = hub.short_term.view(shared_prefix(namespace))
        self._texts = hub.collection(namespace)

    async def read(self, key: str, default: Any = None) -> Any:
        """The session's value under a key, or ``default``; see `ShortTermMemory.read`."""
        with self._span("read"):
            return await self._own.read(key, default)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Several of the session's values in one round trip; keys that hold nothing are left out."""
        with self._span("read") as span:
            found = await self._own.read_many(keys)
            span.set(names.MEMORY_RECORD_COUNT, len(found))
            return found

    async def write(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Keep a value for the session; see `ShortTermMemory.write`."""
        with self._span("write"):
            await self._own.write(key, value, ttl=ttl)

    async def write_many(self, items: Mapping[str, Any], *, ttl: float | None = None) -> None:
        """Keep several values for the session in one round trip, all or none."""
        with self._span("write") as span:
            await self._own.write_many(items, ttl=ttl)
            span.set(names.MEMORY_RECORD_COUNT, len(items))

    async def delete(self, key: str) -> bool:
        """Forget one of the session's keys; returns whether it held anything."""
        with self._span("delete"):
            return await self._own.delete(key)

    async def list_keys(self, prefix: str = "") -> list[str]:
        """The session's keys that begin with exactly ``prefix``, sorted."""
        with self._span("list_keys") as span:
            keys = await self._own.list_keys(prefix)
            span.set(names.MEMORY_RECORD_COUNT, len(keys))
            return keys

    async def clear(self) -> int:
        """Forget every value of the session; shared values and remembered texts stay. Returns how many there were."""
        with self._span("delete") as span:
            count = await self._own.clear()
            span.set(names.MEMORY_RECORD_COUNT, count)
            return count

    async def get_shared(self, key: str, default: Any = None) -> Any:
        """The namespace's value under a key, or ``default``."""
        with self._span("get_shared"):
            return await self._shared.read(key, default)

    async def set_shared(self, key: str, value: Any, *, ttl: float | None = None) -> None:
        """Keep a value that every session of the namespace sees."""
        with self._span("set_shared"):
            await self._shared.write(key, value, ttl=ttl)

    async def delete_shared(self, key: str) -> bool:
        """Forget one of the namespace's keys; returns whether it held anything."""
        with self._span("delete"):
            return await self._shared.delete(key)

    async def list_shared(self, prefix: str = "") -> list[str]:
        """The namespace's shared keys that begin with exactly ``prefix``, sorted."""
        with self._span("list_keys") as span:
            keys = await self._shared.list_keys(prefix)
            span.set(names.MEMORY_RECORD_COUNT, len(keys))
            return keys

    async def incr_shared(self, key: str, amount: int = 1, *, ttl: float | None = None) -> int:
        """Add to a counter of the namespace in one atomic step; see `ShortTermMemory.incr`."""
        with self._span("set_shared"):
            return await self._shared.incr(key, amount, ttl=ttl)

    async def compare_and_set_shared(self, key: str, expected: Any, new: Any, *, ttl: float | None = None) -> bool:
        """Write a shared value if it still is the expected one; see `ShortTermMemory.compare_and_set`."""
        with self._span("set_shared"):
            return await self._shared.compare_and_set(key, expected, new, ttl=ttl)

    async def remember(self, text: str, metadata: Mapping[str, Any] | None = None, *, id: str | None = None) -> str:  # noqa: A002
        """Remember a text for the namespace, and return its id; see `SemanticMemory.add`.

        Raises:
            MemoryValueError: Metadata use a field that begins with ``agenthelm.``.
        """
        if isinstance(metadata, Mapping):
            taken = next((name for name in metadata if isinstance(name, str) and name.startswith(RESERVED)), None)
            if taken is not None:
                raise MemoryValueError(f"the metadata field {taken!r} is reserved; use one without {RESERVED!r}")
            metadata = {**metadata, SESSION: self.session_id}
        elif metadata is None:
            metadata = {SESSION: self.session_id}
        with self._span("remember", semantic=True):
            return await self._texts.add(text, metadata, id=id)

    async def recall(
        self,
        query: str,
        top_k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        min_score: float = 0.0,
        this_session: bool = False,
    ) -> list[str]:
        """The remembered texts nearest to a query, best first; as `search`, without the rest of the matches."""
        found = await self.search(query, top_k, where=where, min_score=min_score, this_session=this_session)
        return [match.text for match in found]

    async def search(
        self,
        query: str,
        top_k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        min_score: float = 0.0,
        this_session: bool = False,
    ) -> list[MemoryMatch]:
        """The matches nearest to a query, best first; see `SemanticMemory.search`.

        Args:
            query: What to look for.
            top_k: At most so many.
            where: Only texts whose metadata fulfil this.
            min_score: Only matches that score at least so much, from 0 to 1.
            this_session: Only what this session remembered; otherwise all of the namespace.
        """
        if this_session:
            mine = {SESSION: self.session_id}
            where = {"$and": [mine, where]} if where else mine
        with self._span("recall", semantic=True) as span:
            span.set(names.MEMORY_QUERY, query)
            found = await self._texts.search(query, top_k, where=where, min_score=min_score)
            span.set(names.MEMORY_RECORD_COUNT, len(found))
            return found

    async def forget(self, id: str) -> bool:  # noqa: A002
        """Forget a remembered text of the namespace by its id; returns whether there was one."""
        with self._span("forget", semantic=True):
            return await self._texts.delete(id)

    async def count(self, *, where: Mapping[str, Any] | None = None) -> int:
        """How many texts the namespace remembers."""
        with self._span("recall", semantic=True):
            return await self._texts.count(where=where)

    def sync(self) -> SyncMemoryContext:
        """The same memory for sync code in a worker thread."""
        from agenthelm.memory.sync_context import SyncMemoryContext

        return SyncMemoryContext(self)

    def _span(self, operation: str, *, semantic: bool = False) -> spans.SpanHandle:
        store = f"semantic:{self._texts.backend.store}" if semantic else f"short_term:{self._own.backend.store}"
        return spans.memory(operation, store=store)

    def __repr__(self) -> str:
        return f"MemoryContext(session_id={self.session_id!r}, namespace={self.namespace!r})"
