"""Vectors in embedded Chroma, in a folder or in this process."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agenthelm._runtime.workers import Workers
from agenthelm.exceptions import ConfigError, MemoryStoreError
from agenthelm.memory.backends.chroma_base import ChromaBase, MissingCollectionError
from agenthelm.telling import describe

if TYPE_CHECKING:
    from chromadb.api.client import Client

__all__ = ["ChromaBackend", "chroma_backend_from"]

T = TypeVar("T")

_OPENINGS = 4


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
        attempt = 0
        while True:
            attempt += 1
            try:
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
                return cast("Client", chromadb.PersistentClient(self._path, settings))
            except Exception as exc:
                _forget_failed(str(self._path))
                # Two processes that make a folder at the same moment get in each other's way once.
                if attempt < _OPENINGS and ("already exists" in str(exc) or "locked" in str(exc)):
                    time.sleep(0.2 * attempt)
                    continue
                raise MemoryStoreError(
                    f"Chroma can't open the folder {self._path}: {describe(exc)[:300]}; check that it can be written, "
                    "or restore it if it is damaged"
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


def _forget_failed(path: str) -> None:
    """Let a folder that could not be opened be opened later on in this process.

    Chroma keeps what it failed to start, and hands it, broken, to whoever asks for the same folder again.
    """
    from chromadb.api.shared_system_client import SharedSystemClient

    users = getattr(SharedSystemClient, "_identifier_to_refcount", None)
    systems = getattr(SharedSystemClient, "_identifier_to_system", None)
    if isinstance(systems, dict) and isinstance(users, dict) and not users.get(path):
        systems.pop(path, None)


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
