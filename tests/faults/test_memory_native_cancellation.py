"""``task.cancel()`` of a host's asyncio code, at every turn of every operation, leaves nothing held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from agenthelm.memory.backends.chroma_server import ChromaServerBackend
from agenthelm.memory.backends.redis import RedisBackend
from agenthelm.memory.backends.sqlite import SqliteBackend
from agenthelm.memory.base import EmbeddingSpec, KeyValueBackend, VectorRecord
from tests.support.chroma_server import shared_chroma
from tests.support.redis_server import shared_redis

Operation = Callable[[], Coroutine[Any, Any, Any]]


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


async def cancel_everywhere(operations: list[Operation], *, turns: int = 12) -> None:
    """Cancel each operation after each number of turns of the loop, twice in a row."""
    for turn in range(turns):
        for operation in operations:
            task = asyncio.get_running_loop().create_task(operation())
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()


def values(store: KeyValueBackend) -> list[Operation]:
    return [
        lambda: store.read(["native"]),
        lambda: store.read(["native", "other"]),
        lambda: store.write({"native": "0"}, 60),
        lambda: store.write({"native": "0", "other": "0"}, 60),
        lambda: store.scan("native"),
        lambda: store.incr("native", 0, ttl=60),
        lambda: store.swap("native", "0", "0", ttl=60),
    ]


async def test_redis_has_every_turn_left() -> None:
    async with RedisBackend(shared_redis().url, max_connections=3) as store:
        await store.write({"native": "0"}, 60)
        await cancel_everywhere(values(store))
        link: Any = store._links.get()
        assert link._turns.value == 3
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for operation in values(store) * 3:
                    group.start_soon(operation)
            assert await store.read(["native"]) == ["0"]
        assert link._turns.value == 3


async def test_sqlite_has_its_thread_and_no_transaction_left_open(tmp_path: Path) -> None:
    async with SqliteBackend(tmp_path / "memory.db") as store, SqliteBackend(tmp_path / "memory.db", busy=0.5) as other:
        await store.write({"native": "0"}, None)
        await cancel_everywhere(values(store), turns=6)
        with anyio.fail_after(60):
            assert await store.read(["native"]) == ["0"]
            await other.write({"native": "1"}, None)
        assert store._workers.limiter(0).borrowed_tokens == 0


async def test_a_chroma_server_is_still_spoken_to() -> None:
    async with ChromaServerBackend(shared_chroma().url) as store:
        await store.open("native", EmbeddingSpec("native", 2))
        await cancel_everywhere(
            [
                lambda: store.upsert("native", [VectorRecord("a", "a", [1.0, 0.0])]),
                lambda: store.query("native", [1.0, 0.0], top_k=1),
                lambda: store.count("native"),
            ],
            turns=8,
        )
        with anyio.fail_after(60):
            await store.upsert("native", [VectorRecord("a", "a", [1.0, 0.0])])
            assert await store.count("native") == 1
