"""Vectors in Chroma, in a folder or in this process; and what both share with its server."""

from __future__ import annotations

import hashlib
import secrets
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agenthelm._runtime.workers import Workers
from agenthelm.exceptions import ConfigError, MemoryStoreError, describe
from agenthelm.memory.base import Embedding, EmbeddingSpec, Filter, MemoryMatch, VectorBackend, VectorRecord

if TYPE_CHECKING:
    from chromadb.api.client import Client

__all__ = ["ChromaBackend", "ChromaBase", "MissingCollectionError", "chroma_backend_from"]

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
    """What all forms of Chroma share: how records go in and come out.

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
        ids = [record.id for record in records]

        async def put(handle: Any) -> None:
            # Chroma merges metadata into what it has, so fields that are gone must be named to go.
            held = await self._ask(handle, "get", ids=ids, include=["metadatas"])
            old = dict(zip(held["ids"], held["metadatas"], strict=True))
            rows = [{**dict.fromkeys(old.get(record.id) or ()), **record.metadata} for record in records]
            await self._ask(
                handle,
                "upsert",
                ids=ids,
                embeddings=[record.vector for record in records],
                documents=[record.text for record in records],
                metadatas=[row or None for row in rows],
            )

        return put

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


class ChromaBackend(ChromaBase):
    """Embedded Chroma, every call of which runs in a worker thread.

    A folder is for one process at a time: Chroma keeps the index of an open collection in memory, so a process does
    not find what another one adds, and finds what it deleted. Use a server for several.

    Args:
        path: The folder, made if it is missing; ``~`` is the user's home. None keeps everything in this process, apart
            from that of other backends.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path).expanduser()
        # All ephemeral clients of a process share one store, so each backend needs names of its own.
        prefix = "agenthelm" if path is not None else f"agenthelm-{secrets.token_hex(8)}"
        super().__init__("ephemeral://" if self._path is None else str(self._path), prefix=prefix)
        self._workers = Workers(8)
        self._lock = threading.Lock()
        self._opened: Client | None = None

    async def ping(self) -> None:
        self._check_open()
        await self._workers.hop(self._guarded, lambda: self._client().heartbeat())

    async def aclose(self) -> None:
        self._closed = True
        await self._workers.run(self._guarded, self._close)

    async def _get(self, name: str) -> tuple[Any, Mapping[str, Any]]:
        def get() -> tuple[Any, Mapping[str, Any]]:
            collection = self._client().get_collection(name, embedding_function=None)
            return collection, collection.metadata or {}

        return await self._workers.hop(self._guarded, get)

    async def _make(self, name: str, metadata: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        def make() -> tuple[Any, Mapping[str, Any]]:
            collection = self._client().get_or_create_collection(
                name,
                metadata=dict(metadata),
                configuration={"hnsw": {"space": "cosine"}},
                embedding_function=None,
            )
            return collection, collection.metadata or {}

        return await self._workers.hop(self._guarded, make)

    async def _ask(self, handle: Any, operation: str, **payload: Any) -> Any:
        return await self._workers.hop(self._guarded, lambda: getattr(handle, operation)(**payload))

    def _guarded(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except MemoryStoreError:
            raise
        except Exception as exc:
            from chromadb.errors import NotFoundError

            text = f"Chroma at {self._location} failed: {describe(exc)[:300]}"
            if isinstance(exc, NotFoundError):
                raise MissingCollectionError(text) from exc
            raise MemoryStoreError(text) from exc

    def _client(self) -> Client:
        with self._lock:
            self._check_open()
            if self._opened is None:
                self._opened = self._open_client()
            return self._opened

    def _open_client(self) -> Client:
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False)
        if self._path is None:
            return cast("Client", chromadb.EphemeralClient(settings))
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cast("Client", chromadb.PersistentClient(self._path, settings))
        except Exception as exc:
            raise MemoryStoreError(
                f"Chroma can't open the folder {self._path}: {describe(exc)[:300]}; check that it can be written, or "
                "restore it if it is damaged"
            ) from exc

    def _close(self) -> None:
        with self._lock:
            client, self._opened = self._opened, None
            self._known.clear()
            if client is None:
                return
            try:
                if self._path is None:
                    for collection in client.list_collections():
                        if collection.name.startswith(self._prefix):
                            client.delete_collection(collection.name)
            finally:
                client.close()


def chroma_backend_from(place: str) -> ChromaBase:
    """The form of Chroma that a path or URL means.

    Raises:
        ConfigError: It is a URL of another kind.
    """
    scheme, separator, _ = place.partition("://")
    if not separator:
        if not place.strip():
            raise ConfigError("the path of the semantic memory is empty", setting="vectors")
        return ChromaBackend(place)
    if place == "ephemeral://":
        return ChromaBackend(None)
    if scheme in ("http", "https"):
        from agenthelm.memory.backends.chroma_server import ChromaServerBackend

        return ChromaServerBackend(place)
    raise ConfigError(
        f"{place.split('@')[-1]!r} is no place for a semantic memory; use a folder, http://host:port, https://, "
        "memory:// or ephemeral://",
        setting="vectors",
    )
