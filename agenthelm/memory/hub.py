"""The owner of both memories."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

import anyio
from anyio.abc import AsyncResource

from agenthelm.memory.base import KeyValueBackend, VectorBackend
from agenthelm.memory.context import MemoryContext, session_prefix
from agenthelm.memory.embedders import EmbedderLike
from agenthelm.memory.semantic import SemanticMemory
from agenthelm.memory.short_term import ShortTermMemory
from agenthelm.memory.values import check_key
from agenthelm.telling import describe

__all__ = ["MemoryHub", "StoreHealth"]


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """Whether a store can be reached.

    Attributes:
        ok: Whether it answered.
        location: Where it is, without secrets.
        latency: Seconds that its answer took.
        error: One line, where it did not answer.
    """

    ok: bool
    location: str
    latency: float
    error: str | None = None


class MemoryHub(AsyncResource):
    """Short-term and semantic memory for all sessions and namespaces of an application.

    Nothing is opened before it is used, and the defaults live in this process: no server, no key, no download, no
    file. Several hubs may live beside each other. Contexts stop working when their hub is closed.

    Args:
        short_term: A URL as for `ShortTermMemory`, or a `ShortTermMemory` or backend that its owner closes.
        semantic: A path or URL as for `SemanticMemory`, or a `SemanticMemory` or backend that its owner closes.
        embedder: As for `SemanticMemory`; not used if ``semantic`` is a `SemanticMemory`.
        embedder_name: What collections record for a callable embedder, instead of its qualified name; needed for a
            lambda, an inner function or a partial.

    Raises:
        ConfigError: A URL or the embedder makes no sense.
    """

    def __init__(
        self,
        short_term: str | ShortTermMemory | KeyValueBackend = "memory://",
        semantic: str | SemanticMemory | VectorBackend = "memory://",
        *,
        embedder: EmbedderLike = "auto",
        embedder_name: str | None = None,
    ) -> None:
        self._closes: list[ShortTermMemory | SemanticMemory] = []
        if isinstance(short_term, ShortTermMemory):
            self.short_term: ShortTermMemory = short_term
        else:
            self.short_term = ShortTermMemory(short_term)
            self._closes.append(self.short_term)
        if isinstance(semantic, SemanticMemory):
            self.semantic: SemanticMemory = semantic
        else:
            self.semantic = SemanticMemory(semantic, embedder=embedder, embedder_name=embedder_name)
            self._closes.append(self.semantic)
        self._collections: dict[str, SemanticMemory] = {}

    def create_context(self, session_id: str | None = None, namespace: str = "default") -> MemoryContext:
        """The memory of a session; opens nothing.

        Args:
            session_id: The conversation to continue; a new one when absent.
            namespace: The tenant.

        Raises:
            MemoryValueError: One of them is empty, or can't be held as UTF-8.
        """
        return MemoryContext(secrets.token_hex(8) if session_id is None else session_id, self, namespace=namespace)

    def collection(self, namespace: str) -> SemanticMemory:
        """The remembered texts of a namespace."""
        found = self._collections.get(namespace)
        if found is None:
            if len(self._collections) >= 1024:  # they only remember what their store knows
                self._collections.clear()
            found = self._collections[namespace] = self.semantic.view(f"ns:{check_key(namespace, what='a namespace')}")
        return found

    async def sessions(self, namespace: str = "default") -> dict[str, int]:
        """The sessions of a namespace that hold values, and how many each holds, by name.

        Walks over the namespace's keys, so it is for people who look, not for each request.
        """
        prefix = session_prefix(check_key(namespace, what="a namespace"))
        keys = await self.short_term.backend.scan(prefix)
        counts = Counter(unquote(key[len(prefix) :].partition(":")[0]) for key in keys)
        return dict(sorted(counts.items()))

    async def health(self) -> dict[str, StoreHealth]:
        """Ask both stores at once whether they can be reached; never raises for one that can't or that breaks.

        Returns:
            The answers under ``"short_term"`` and ``"semantic"``.
        """
        answers: dict[str, StoreHealth] = {}

        async def ask(name: str, ping: Callable[[], Awaitable[None]], location: str) -> None:
            began = time.perf_counter()
            error = None
            try:
                await ping()
            except Exception as exc:  # noqa: BLE001 - a store that breaks has not answered
                error = describe(exc)
            answers[name] = StoreHealth(error is None, location, time.perf_counter() - began, error)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "short_term", self.short_term.ping, self.short_term.backend.location)
            group.start_soon(ask, "semantic", self.semantic.ping, self.semantic.backend.location)
        return {name: answers[name] for name in ("short_term", "semantic")}

    async def aclose(self) -> None:
        """Close whatever was opened here, even when cancelled or when one of the two fails. May be called twice."""
        try:
            for memory in self._closes[:1]:
                await memory.aclose()
        finally:
            for memory in self._closes[1:]:
                await memory.aclose()
