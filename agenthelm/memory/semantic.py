"""Texts found again by what they are about."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from anyio.abc import AsyncResource

from agenthelm._runtime.workers import Workers
from agenthelm.exceptions import EmbedderMismatchError, MemoryStoreError, MemoryValueError
from agenthelm.memory.base import Embedding, EmbeddingSpec, MemoryMatch, Scalar, VectorBackend, VectorRecord
from agenthelm.memory.embedders import Embedder, EmbedderLike, checked, embedder_for, resolve
from agenthelm.memory.filters import can_be_filtered, normalise
from agenthelm.memory.values import check_key, decode, encode
from agenthelm.tracing import names as span_names
from agenthelm.tracing import spans

__all__ = ["RESERVED", "SESSION", "SemanticMemory"]

RESERVED = "agenthelm."
"""Metadata fields that begin so are the package's own."""

SESSION = RESERVED + "session"
"""The metadata field that holds the session which remembered a text."""

_REST = RESERVED + "rest"


class SemanticMemory(AsyncResource):
    """A vector store for similarity search.

    Safe to share between tasks. Connects on first use; embedding and every blocking call run in worker threads.

    Args:
        backend: A folder for embedded Chroma, ``http://host:port`` or ``https://`` for a Chroma server,
            ``memory://`` for an exact search in this process, ``ephemeral://`` for Chroma in this process, or a
            backend object, which stays its owner's to close.
        collection: Which texts; those of another collection are never seen.
        embedder: ``"auto"`` (MiniLM if its files are here, else the built-in lexical one; never a download),
            ``"lexical"``, ``"minilm"``, a model string for ``dspy.Embedder``, or a callable.
        embedder_name: What the collection records for a callable, instead of its qualified name; needed for a lambda, an
            inner function or a partial.
        workers: The threads that embedding runs in.

    Raises:
        ConfigError: The embedder is unknown, or has no name.
        MemoryValueError: The collection has a name that no store can hold.
    """

    def __init__(
        self,
        backend: str | VectorBackend = "memory://",
        *,
        collection: str = "default",
        embedder: EmbedderLike = "auto",
        embedder_name: str | None = None,
        workers: Workers | None = None,
    ) -> None:
        self._owns = isinstance(backend, str)
        self.backend: VectorBackend = vector_backend_from(backend) if isinstance(backend, str) else backend
        self.collection: str = check_key(collection, what="a collection's name")
        self._automatic = embedder == "auto"
        self._embedder = resolve(embedder, name=embedder_name)
        self._workers = workers or Workers(8)

    async def add(self, text: str, metadata: Mapping[str, Any] | None = None, *, id: str | None = None) -> str:  # noqa: A002 - the word of every vector store
        """Remember a text.

        Args:
            text: What to remember; not blank.
            metadata: JSON to store beside it. Texts, numbers and bools at its top can be filtered by.
            id: Its id; a text under the same id is replaced. Generated when absent.

        Returns:
            The id.

        Raises:
            MemoryValueError: The text is blank, or JSON can't hold the metadata; nothing was stored.
            EmbedderMismatchError: The collection was made with another embedder.
            MemoryStoreError: The store or the embedder failed.
        """
        (made,) = await self.add_many([text], metadatas=[metadata], ids=[id])
        return made

    async def add_many(
        self,
        texts: Sequence[str],
        *,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Remember several texts at once, which is much faster than one by one; as `add`.

        Where an id is given twice, the last text is the one that is kept.

        Returns:
            The ids, in the order of the texts.
        """
        if isinstance(texts, str):
            raise MemoryValueError("add_many takes a list of texts; use add for one")
        listed = list(texts)
        metadatas = [None] * len(listed) if metadatas is None else metadatas
        ids = [None] * len(listed) if ids is None else ids
        if not len(listed) == len(metadatas) == len(ids):
            raise MemoryValueError(
                f"add_many was given {len(listed)} texts, {len(metadatas)} metadatas and {len(ids)} ids; "
                "give as many of each"
            )
        for text in listed:
            _check_text(text)
        names = [secrets.token_hex(8) if name is None else check_key(name, what="an id") for name in ids]
        rows = [_stored(metadata) for metadata in metadatas]
        if listed:
            embedder = await self._chosen()
            vectors = await self._embed(embedder, listed)
            await self._open(embedder, len(vectors[0]))
            records = {
                name: VectorRecord(name, text, vector, row)
                for name, text, vector, row in zip(names, listed, vectors, rows, strict=True)
            }
            await self.backend.upsert(self.collection, list(records.values()))
        return names

    async def search(
        self, query: str, top_k: int = 5, *, where: Mapping[str, Any] | None = None, min_score: float = 0.0
    ) -> list[MemoryMatch]:
        """The remembered texts nearest to a query, best first.

        Args:
            query: What to look for; a blank one finds nothing.
            top_k: At most so many.
            where: Only texts whose metadata fulfil this: ``{"field": value}``, ``{"field": {"$gte": 3, "$lt": 9}}`` with
                ``$eq $ne $gt $gte $lt $lte $in $nin``, ``{"$and": [...]}``, ``{"$or": [...]}``. Several fields must all
                hold. A text without the field fulfils only ``$ne`` and ``$nin``.
            min_score: Only matches that score at least so much, from 0 to 1.

        Raises:
            MemoryValueError: ``where`` is no filter, or ``top_k`` is below 1.
            EmbedderMismatchError: The collection was made with another embedder.
            MemoryStoreError: The store or the embedder failed.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise MemoryValueError(f"top_k must be a whole number of at least 1, not {top_k!r}")
        condition = normalise(where)
        if not isinstance(query, str):
            raise MemoryValueError(f"a query is a text, not {type(query).__name__}")
        if not query.strip():
            return []
        embedder = await self._chosen()
        recorded = await self.backend.open(self.collection)
        if recorded is None:
            return []
        self._check(embedder, recorded)
        (vector,) = await self._embed(embedder, [query])
        self._check(embedder, recorded, len(vector))
        found = await self.backend.query(self.collection, vector, top_k=top_k, where=condition)
        return [_shown(match) for match in found if match.score >= min_score]

    async def delete(self, id: str) -> bool:  # noqa: A002
        """Forget a text by its id; returns whether there was one."""
        return await self.backend.delete(self.collection, [check_key(id, what="an id")]) > 0

    async def count(self, *, where: Mapping[str, Any] | None = None) -> int:
        """How many texts fulfil ``where``; without it, how many there are."""
        return await self.backend.count(self.collection, where=normalise(where))

    async def ping(self) -> None:
        """Reach the store.

        Raises:
            MemoryStoreError: It can't be reached.
        """
        await self.backend.ping()

    @property
    def embedder(self) -> str:
        """The name of the embedder in use."""
        return self._embedder.name

    def view(self, collection: str) -> SemanticMemory:
        """Another collection of the same store; whoever made the first closes it."""
        view = SemanticMemory(self.backend, collection=collection, embedder="lexical", workers=self._workers)
        view._embedder, view._automatic = self._embedder, self._automatic
        return view

    async def aclose(self) -> None:
        """Let go of what was opened here. May be called twice."""
        if self._owns:
            await self.backend.aclose()

    async def _chosen(self) -> Embedder:
        """The embedder; where it was left to us, the one that made the collection, if we have it."""
        if self._automatic:
            recorded = await self.backend.open(self.collection)
            if recorded is not None and recorded.name != self._embedder.name:
                self._embedder = embedder_for(recorded.name) or self._embedder
        return self._embedder

    async def _open(self, embedder: Embedder, dimension: int) -> None:
        # Asked every time: backends remember what they have open, and notice when somebody else has deleted it.
        recorded = await self.backend.open(self.collection, EmbeddingSpec(embedder.name, dimension))
        if recorded is None:
            raise MemoryStoreError(f"the backend did not make the collection {self.collection!r}")
        self._check(embedder, recorded, dimension)

    def _check(self, embedder: Embedder, recorded: EmbeddingSpec, dimension: int | None = None) -> None:
        if recorded.name == embedder.name and dimension in (None, recorded.dimension):
            return
        now = embedder.name if dimension is None else f"{embedder.name} ({dimension} numbers)"
        raise EmbedderMismatchError(
            f"collection {self.collection!r} in {self.backend.location} was made with the embedder {recorded.name} "
            f"({recorded.dimension} numbers) and is opened with {now}, which would find nonsense; use the first "
            "embedder, another collection or namespace, or delete the store and add the texts again"
        )

    async def _embed(self, embedder: Embedder, texts: list[str]) -> list[Embedding]:
        provider, slash, _ = embedder.name.partition("/")
        with spans.embeddings(embedder.name, provider=provider if slash else None) as span:
            if embedder.is_async:
                vectors = checked(await embedder.embed(texts), texts, embedder=embedder.name)
            else:
                vectors = await self._workers.hop(_embedded, embedder, texts)
            span.set(span_names.EMBEDDING_DIMENSIONS, len(vectors[0]))
            return vectors


def _embedded(embedder: Embedder, texts: list[str]) -> list[Embedding]:
    return checked(embedder.embed(texts), texts, embedder=embedder.name)


def _check_text(text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise MemoryValueError(f"a text to remember must be a non-blank string, not {str(text)[:40]!r}")
    check_key(text, what="a text to remember")


def _stored(metadata: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Metadata as stores hold them: scalars, by which they filter, and the rest as one JSON text."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise MemoryValueError(f"metadata must be a mapping, not {type(metadata).__name__}")
    plain: dict[str, Any] = json.loads(encode(metadata, where="metadata"))
    taken = next((name for name in plain if name.startswith(RESERVED) and name != SESSION), None)
    if taken is not None:
        raise MemoryValueError(
            f"the metadata field {taken!r} is reserved; use one that does not begin with {RESERVED!r}"
        )
    scalars = {name: value for name, value in plain.items() if _filterable(name, value)}
    rest = {name: value for name, value in plain.items() if name not in scalars}
    return {**scalars, **({_REST: json.dumps(rest)} if rest else {})}


def _filterable(name: str, value: Any) -> bool:
    if not can_be_filtered(name) or not isinstance(value, (str, int, float)):
        return False
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return -(2**63) <= value < 2**63


def _shown(match: MemoryMatch) -> MemoryMatch:
    rest = match.metadata.get(_REST)
    metadata = {name: value for name, value in match.metadata.items() if not name.startswith(RESERVED)}
    if isinstance(rest, str):
        metadata.update(decode(rest, key=match.id))
    return MemoryMatch(match.id, match.text, match.score, metadata)


def vector_backend_from(place: str) -> VectorBackend:
    """The backend that a path or URL means; nothing is opened yet."""
    if place == "memory://":
        from agenthelm.memory.backends.vector_list import VectorListBackend

        return VectorListBackend()
    from agenthelm.memory.backends.chroma import chroma_backend_from

    return chroma_backend_from(place)
