"""A Chroma server that asks who you are, and where you keep your things."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory import SemanticMemory
from agenthelm.memory.backends.chroma_server import ChromaServerBackend


@pytest.fixture
def guarded() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that has no collections, and answers to whoever brings its token; and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404 if self.headers["x-chroma-token"] == "ours" else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


async def test_a_token_a_tenant_and_a_database_are_told_to_the_server(guarded: tuple[str, list[str]]) -> None:
    url, asked = guarded
    backend = ChromaServerBackend(url, headers={"X-Chroma-Token": "ours"}, tenant="acme inc", database="memories")
    async with backend, SemanticMemory(backend) as memory:
        assert await memory.search("anything") == []
    assert asked
    assert all(path.startswith("/api/v2/tenants/acme%20inc/databases/memories/collections/") for path in asked)


async def test_without_the_token_the_server_s_refusal_is_one_error(guarded: tuple[str, list[str]]) -> None:
    async with ChromaServerBackend(guarded[0]) as backend, SemanticMemory(backend) as memory:
        with pytest.raises(MemoryStoreError, match="answered with status 401"):
            await memory.search("anything")
