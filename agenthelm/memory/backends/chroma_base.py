"""What all forms of Chroma share: how records go in and come out, and which collection is whose."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory.base import Embedding, EmbeddingSpec, Filter, MemoryMatch, VectorBackend, VectorRecord

__all__ = ["ChromaBase", "MissingCollectionError"]

T = TypeVar("T")

_PAGE = 1000  # Chroma takes 5,461 records at once
_EMBEDDER, _DIMENSION, _NAME = "agenthelm.embedder", "agenthelm.dimension", "agenthelm.collection"


class MissingCollectionError(MemoryStoreError):
    """Chroma has no such collection, or not any more."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A collection that was found, and what made its vectors."""

    handle: Any
    spec: EmbeddingSpec


class ChromaBase(VectorBackend):
    """One form of Chroma, reduced to three operations that differ.

    Args:
        location: Where it is, without secrets.
        prefix: What the names of its collections begin with.
    """

    store = "chroma"

    def __init__(self, location: str, *, prefix: str = "agenthelm") -> None:
        self._location = location
        self._prefix = prefix
        self._known: dict[str, _Open] = {}
        self._closed = False

    @property
    def location(self) -> str:
        return self._location

    @abstractmethod
    async def _get(self, name: str) -> tuple[Any, Mapping[str, Any]]:
        """A collection's handle and metadata; raises `MissingCollectionError`."""

    @abstractmethod
    async def _make(self, name: str, metadata: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """As `_get`, of a collection that is made if it is missing; the metadata of an existing one stay."""

    @abstractmethod
    async def _ask(self, handle: Any, operation: str, **payload: Any) -> Any:
        """Do one of Chroma's operations on a collection; raises `MissingCollectionError`."""

    async def open(self, collection: str, spec: EmbeddingSpec | None = None) -> EmbeddingSpec | None:
        self._check_open()
        found = await self._find(collection, spec)
        return None if found is None else found.spec

    async def upsert(self, collection: str, records: Sequence[VectorRecord]) -> None:
        for start in range(0, len(records), _PAGE):
            await self._with(collection, self._putting(records[start : start + _PAGE]), None, remake=True)

    def _putting(self, records: Sequence[VectorRecord]) -> Callable[[Any], Awaitable[None]]:
        async def put(handle: Any) -> None:
            left: Sequence[VectorRecord] = records
            held = await self._held(handle, left)
            # Chroma merges metadata into what it has, so fields that are gone must be named to go. Between our look and
            # our writing somebody else may add some under the same id; whoever wrote last sees it and writes again.
            while left:
                rows = [{**dict.fromkeys(held[record.id][1]), **record.metadata} for record in left]
                await self._ask(
                    handle,
                    "upsert",
                    ids=[record.id for record in left],
                    embeddings=[record.vector for record in left],
                    documents=[record.text for record in left],
                    metadatas=[row or None for row in rows],
                )
                held = await self._held(handle, left)
                left = [record for record in left if _mixed(record, *held[record.id])]

        return put

    async def _held(self, handle: Any, records: Sequence[VectorRecord]) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """The text and metadata that stand under the ids of some records."""
        held: dict[str, tuple[str, Mapping[str, Any]]] = {record.id: ("", {}) for record in records}
        found = await self._ask(handle, "get", ids=list(held), include=["documents", "metadatas"])
        for name, text, metadata in zip(found["ids"], found["documents"], found["metadatas"], strict=True):
            held[name] = (text or "", metadata or {})
        return held

    async def query(
        self, collection: str, vector: Embedding, *, top_k: int, where: Filter | None = None
    ) -> list[MemoryMatch]:
        wanted = ["documents", "metadatas", "distances"]

        async def ask(handle: Any) -> list[MemoryMatch]:
            found = await self._ask(
                handle, "query", query_embeddings=[vector], n_results=top_k, where=where, include=wanted
            )
            columns = [found[name][0] for name in ("ids", *wanted)]
            return [
                MemoryMatch(name, text or "", min(1.0, max(0.0, 1.0 - distance)), dict(metadata or {}))
                for name, text, metadata, distance in zip(*columns, strict=True)
            ]

        return await self._with(collection, ask, [])

    async def delete(self, collection: str, ids: Sequence[str]) -> int:
        async def remove(handle: Any) -> int:
            # Asked first, because Chroma counts what it was told to delete and not what was there.
            held = (await self._ask(handle, "get", ids=list(ids), include=[]))["ids"]
            if held:
                await self._ask(handle, "delete", ids=held)
            return len(held)

        return await self._with(collection, remove, 0)

    async def count(self, collection: str, *, where: Filter | None = None) -> int:
        async def ask(handle: Any) -> int:
            if where is None:
                return int(await self._ask(handle, "count"))
            return len((await self._ask(handle, "get", where=where, include=[]))["ids"])

        return await self._with(collection, ask, 0)

    async def _with(
        self, collection: str, action: Callable[[Any], Awaitable[T]], missing: T, *, remake: bool = False
    ) -> T:
        """Act on a collection; found or made anew if somebody has deleted it since it was last used."""
        self._check_open()
        for _ in range(3):
            found = await self._find(collection, None)
            if found is None and not remake:
                return missing
            if found is None:
                break
            try:
                return await action(found.handle)
            except MissingCollectionError:
                self._known.pop(collection, None)
                if remake:
                    await self._find(collection, found.spec)
        raise MemoryStoreError(
            f"the collection in Chroma at {self._location} was deleted meanwhile; nothing was stored"
        )

    async def _find(self, collection: str, spec: EmbeddingSpec | None) -> _Open | None:
        known = self._known.get(collection)
        if known is not None:
            return known
        name = self._named(collection)
        try:
            handle, metadata = await self._get(name)
        except MissingCollectionError:
            if spec is None:
                return None
            handle, metadata = await self._make(
                name, {_EMBEDDER: spec.name, _DIMENSION: spec.dimension, _NAME: collection[:200]}
            )
        found = self._known[collection] = _Open(handle, self._recorded(metadata, name))
        return found

    def _recorded(self, metadata: Mapping[str, Any], name: str) -> EmbeddingSpec:
        embedder, dimension = metadata.get(_EMBEDDER), metadata.get(_DIMENSION)
        if not isinstance(embedder, str) or not isinstance(dimension, int):
            raise MemoryStoreError(
                f"the collection {name} in Chroma at {self._location} was not made by AgentHelm; use another store"
            )
        return EmbeddingSpec(embedder, dimension)

    def _named(self, collection: str) -> str:
        """A name that Chroma allows; different for different collections, whatever characters they have."""
        return f"{self._prefix}-{hashlib.blake2b(collection.encode(), digest_size=20).hexdigest()}"

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryStoreError(f"the memory in Chroma at {self._location} is closed; open another one")


def _mixed(record: VectorRecord, text: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a record is held whole, with somebody else's fields beside its own."""
    ours = text == record.text and record.metadata.items() <= metadata.items()
    return ours and len(metadata) > len(record.metadata)
