"""Vectors on a Chroma server, over its HTTP interface.

Chroma's own async client shares its connections between everybody in the process who names the same server, verifies no
certificates unless told to, waits for ever, and asks asyncio for its event loop; the five calls needed here are simpler
to make directly, on any event loop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from agenthelm._runtime.per_loop import PerLoop
from agenthelm._runtime.workers import Workers
from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory.backends._urls import split_url, unreadable
from agenthelm.memory.backends.chroma_base import ChromaBase, MissingCollectionError
from agenthelm.telling import behind, describe

if TYPE_CHECKING:
    import httpx

__all__ = ["ChromaServerBackend"]

_EXAMPLE = "http://host:8000"
_SPACE = {"hnsw": {"space": "cosine"}}


class ChromaServerBackend(ChromaBase):
    """A Chroma server, which any number of processes may share.

    Args:
        url: ``http://host:port`` or ``https://host``; certificates are verified.
        headers: Sent with each request, for servers that want a token.
        tenant: Chroma's tenant.
        database: Chroma's database.
        timeout: Seconds to wait for an answer.
        connect_timeout: Seconds to wait for a connection.

    Raises:
        ConfigError: The URL can't be read.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tenant: str = "default_tenant",
        database: str = "default_database",
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
    ) -> None:
        parts = split_url(url, store="Chroma", example=_EXAMPLE, setting="vectors")
        if parts.query:
            raise unreadable("Chroma", _EXAMPLE, "vectors")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
        port = f":{parts.port}" if parts.port else ""
        super().__init__(f"{parts.scheme}://{host}{port}")
        self._root = f"{self._location}{parts.path.rstrip('/')}/api/v2"
        self._base = f"{self._root}/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}/collections"
        self._auth = (parts.username, parts.password or "") if parts.username else None
        self._headers = dict(headers or {})
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._workers = Workers(4)
        self._clients: PerLoop[httpx.AsyncClient] = PerLoop(lambda client: client.aclose())

    async def ping(self) -> None:
        self._check_open()
        await self._request("GET", f"{self._root}/heartbeat")

    async def aclose(self) -> None:
        self._closed = True
        await self._clients.close()

    async def _get(self, name: str) -> tuple[Any, Mapping[str, Any]]:
        found = await self._request("GET", f"{self._base}/{name}")
        return found["id"], found["metadata"] or {}

    async def _make(self, name: str, metadata: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        wanted = {"name": name, "metadata": dict(metadata), "configuration": _SPACE, "get_or_create": True}
        made = await self._request("POST", self._base, wanted)
        return made["id"], made["metadata"] or {}

    async def _ask(self, handle: Any, operation: str, **payload: Any) -> Any:
        url = f"{self._base}/{handle}/{operation}"
        if operation == "count":
            return await self._request("GET", url)
        for name in ("embeddings", "query_embeddings"):
            if name in payload:
                payload[name] = [_floats(vector) for vector in payload[name]]
        return await self._request("POST", url, payload)

    async def _request(self, method: str, url: str, payload: Mapping[str, Any] | None = None) -> Any:
        import httpx

        try:
            content = None
            if payload is not None and len(payload.get("embeddings", ())) > 1:
                content = await self._workers.hop(_encoded, payload)  # a thousand vectors take a noticeable time
            elif payload is not None:
                content = _encoded(payload)
            client = await self._client()
            response = await client.request(method, url, content=content)
        except httpx.TimeoutException as exc:
            raise MemoryStoreError(
                f"Chroma at {self._location} did not answer within {self._timeout:g} s; whether it did what it was "
                "asked is unknown"
            ) from exc
        except httpx.HTTPError as exc:
            raise MemoryStoreError(
                f"Chroma at {self._location} can't be reached; is it running? ({describe(_root(exc))})"
            ) from exc
        if response.status_code == httpx.codes.NOT_FOUND:
            raise MissingCollectionError(f"Chroma at {self._location} has no such collection")
        if response.is_error:
            raise MemoryStoreError(
                f"Chroma at {self._location} answered with status {response.status_code}: {response.text[:300]!r}"
            )
        try:
            return response.json() if response.content else None
        except ValueError as exc:
            raise MemoryStoreError(
                f"what answers at {self._location} is no Chroma server (its answer is no JSON)"
            ) from exc

    async def _client(self) -> httpx.AsyncClient:
        client = self._clients.get()
        if client is None:
            import httpx

            # No limit on the wait for a connection: that is a queue, and each place in it is freed in bounded time.
            timeout = httpx.Timeout(self._timeout, connect=self._connect_timeout, pool=None)
            headers = {"Content-Type": "application/json", "User-Agent": "agenthelm", **self._headers}
            client = httpx.AsyncClient(timeout=timeout, headers=headers, auth=self._auth)
            await self._clients.set(client)
        return client


def _root(error: BaseException) -> BaseException:
    """What an error without a text of its own came from: on trio, httpx's have none."""
    causes = [error, *behind(error)]
    return next((cause for cause in causes if str(cause)), causes[-1])


def _floats(vector: Any) -> list[float]:
    return vector.tolist() if hasattr(vector, "tolist") else [float(number) for number in vector]


def _encoded(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()
