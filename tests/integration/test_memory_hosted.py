"""Embedding models behind a provider's protocol, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory import SemanticMemory

MODEL = "openai/text-embedding-3-small"
WORDS = ("hotel", "pool", "trains", "porto")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A server that embeds texts as bags of four words; yields the requests so far."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, **body})
            vectors = [[float(word in text) for word in WORDS] + [0.1] for text in body["input"]]
            data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            answer = {"object": "list", "data": data, "model": body["model"], "usage": usage}
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
        monkeypatch.setenv("OPENAI_API_BASE", f"http://127.0.0.1:{server.server_address[1]}/v1")
        try:
            yield requests
        finally:
            server.shutdown()
            thread.join()


async def test_a_model_string_embeds_through_its_provider(asked: list[dict[str, Any]]) -> None:
    async with SemanticMemory(embedder=MODEL) as memory:
        assert memory.embedder == MODEL
        await memory.add_many(["the hotel has a pool", "trains to porto leave"])
        assert [match.text for match in await memory.search("a pool", 1)] == ["the hotel has a pool"]
    assert {request["model"] for request in asked} == {"text-embedding-3-small"}
    assert [request["path"] for request in asked] == ["/v1/embeddings"] * 2


async def test_a_provider_that_can_not_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/v1")
    async with SemanticMemory(embedder=MODEL) as memory:
        with pytest.raises(MemoryStoreError, match=f"embedding with '{MODEL}' failed"):
            await memory.add("a text")
        assert await memory.count() == 0
