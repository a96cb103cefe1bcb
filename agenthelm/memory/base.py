"""The ports of the memory: what a store of values and a store of vectors must do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from anyio.abc import AsyncResource

__all__ = [
    "Embedding",
    "EmbeddingSpec",
    "Filter",
    "KeyValueBackend",
    "MemoryMatch",
    "Scalar",
    "VectorBackend",
    "VectorRecord",
]

Scalar: TypeAlias = "str | int | float | bool"
"""What a filter can compare."""

Filter: TypeAlias = Mapping[str, Any]
"""A normalised filter, see `agenthelm.memory.filters`."""

Embedding: TypeAlias = Sequence[float]
"""One vector."""


@dataclass(frozen=True, slots=True)
class MemoryMatch:
    """A remembered text that a search found.

    Attributes:
        id: Its id, unique in its namespace.
        text: The text.
        score: The cosine of the angle between text and query, from 0 (unrelated) to 1 (same direction). The meaning is
            the same on every backend; how high a good match scores depends on the embedder.
        metadata: What was stored beside the text.
    """

    id: str
    text: str
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """Which embedder made the vectors of a collection.

    Attributes:
        name: The embedder's name.
        dimension: The length of its vectors.
    """

    name: str
    dimension: int


@dataclass(frozen=True, slots=True)
class VectorRecord:
    """What a vector backend keeps: a text, its vector, and metadata of scalars."""

    id: str
    text: str
    vector: Embedding
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


class _Closing(AsyncResource):
    """What both kinds of backend share: a life that ends with `aclose`."""

    store: str = "memory"
    """The kind of store, for health reports and spans."""

    @property
    def location(self) -> str:
        """Where the store is, without secrets."""
        return self.store

    @abstractmethod
    async def ping(self) -> None:
        """Reach the store.

        Raises:
            MemoryStoreError: It can't be reached.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of connections, files and threads. May be called twice."""


class KeyValueBackend(_Closing):
    """Texts under keys, each with an optional end of life.

    Keys are any non-empty strings that UTF-8 can hold. A key whose time to live has passed is absent for every
    operation from that moment on. ``agenthelm.testing.key_value_contract`` checks an implementation.
    """

    @abstractmethod
    async def read(self, keys: Sequence[str]) -> list[str | None]:
        """The texts under some keys, in their order and in one round trip; None where there is none."""

    @abstractmethod
    async def write(self, items: Mapping[str, str], ttl: float | None) -> None:
        """Keep texts, all or none, in one round trip; ``ttl`` in seconds replaces what the keys had, None keeps them."""

    @abstractmethod
    async def delete(self, keys: Sequence[str]) -> int:
        """Forget keys; returns how many there were."""

    @abstractmethod
    async def scan(self, prefix: str) -> list[str]:
        """Every key that begins with exactly these characters, sorted."""

    @abstractmethod
    async def swap(self, key: str, expected: str | None, new: str, *, ttl: float | None) -> bool:
        """Write ``new`` if the text under the key is ``expected`` (None: if there is none), in one atomic step."""

    @abstractmethod
    async def incr(self, key: str, amount: int, *, ttl: float | None) -> int:
        """Add to the integer under a key in one atomic step; an absent key counts as 0.

        ``ttl`` holds for a key this call creates; an existing key keeps its own.

        Raises:
            MemoryValueError: The key holds no integer, or the sum does not fit into 64 bits; nothing was changed.
        """


class VectorBackend(_Closing):
    """Vectors in named collections, searched by cosine.

    ``agenthelm.testing.vector_contract`` checks an implementation.
    """

    @abstractmethod
    async def open(self, collection: str, spec: EmbeddingSpec | None = None) -> EmbeddingSpec | None:
        """Find a collection, or make it.

        Args:
            collection: Its name, any string.
            spec: Recorded with the collection if this call makes it; without, none is made.

        Returns:
            What is recorded, which may differ from ``spec``; None if there is no such collection.
        """

    @abstractmethod
    async def upsert(self, collection: str, records: Sequence[VectorRecord]) -> None:
        """Keep records in an open collection; those whose id is taken are replaced, whole, whoever writes them at once."""

    @abstractmethod
    async def query(
        self, collection: str, vector: Embedding, *, top_k: int, where: Filter | None = None
    ) -> list[MemoryMatch]:
        """The nearest records that fulfil ``where``, best first; none if there is no such collection."""

    @abstractmethod
    async def delete(self, collection: str, ids: Sequence[str]) -> int:
        """Forget records; returns how many there were."""

    @abstractmethod
    async def count(self, collection: str, *, where: Filter | None = None) -> int:
        """How many records fulfil ``where``; 0 if there is no such collection."""
