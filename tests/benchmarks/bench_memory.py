"""What the memory costs over the bare libraries, as ratios of medians taken in one process.

Run it with ``python -m tests.benchmarks.bench_memory``. Bare and wrapped calls alternate, because a machine's speed drifts
by more than what is measured. The limits are those the project has set itself; the exit status says whether they hold.
"""

from __future__ import annotations

import atexit
import functools
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from agenthelm.memory import SemanticMemory, ShortTermMemory
from agenthelm.memory.lexical import LexicalEmbedder
from tests.support.redis_server import RedisServer

Call = Callable[[], Awaitable[Any]]
Row = tuple[str, str, float, float, float]

VALUE = {"city": "Lisbon", "nights": 3, "guests": ["Maria", "Jonas"], "confirmed": True}
TEXT = '{"city":"Lisbon","nights":3,"guests":["Maria","Jonas"],"confirmed":true}'
ROUNDS = 41


async def one_by_one(call: Call, count: int) -> float:
    """Seconds per call of one caller."""
    began = time.perf_counter()
    for _ in range(count):
        await call()
    return (time.perf_counter() - began) / count


async def at_once(call: Call, count: int) -> float:
    """Seconds per call of many callers."""
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(call)
    return (time.perf_counter() - began) / count


async def compare(name: str, bare: Call, ours: Call, *, limit: float, callers: int = 1, count: int = 40) -> Row:
    """Alternate bare and wrapped calls, and take the ratio of the medians."""
    measure = one_by_one if callers == 1 else at_once
    count = count if callers == 1 else callers
    times: dict[Call, list[float]] = {bare: [], ours: []}
    for call in times:  # connections, caches
        await measure(call, count)
    for turn in range(ROUNDS):
        for call in (bare, ours) if turn % 2 else (ours, bare):
            times[call].append(await measure(call, count))
    return (
        name,
        "1 caller" if callers == 1 else f"{callers} at once",
        statistics.median(times[bare]),
        statistics.median(times[ours]),
        limit,
    )


@functools.cache
def _server() -> RedisServer:
    server = RedisServer(durable=False)
    server.start()
    atexit.register(server.close)
    return server


async def redis_rows(backend: str) -> list[Row]:
    """Against redis-py: its async client, or on trio its sync one through the same thread hop."""
    url = _server().url
    bare_read: Call
    bare_write: Call
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(ShortTermMemory(url))
        await memory.write("bench", VALUE)
        if backend == "trio":
            import redis

            sync = stack.enter_context(redis.Redis.from_url(url, decode_responses=True, max_connections=200))
            limiter = anyio.CapacityLimiter(64)

            async def bare_read() -> None:
                await anyio.to_thread.run_sync(sync.get, "bench", limiter=limiter)

            async def bare_write() -> None:
                await anyio.to_thread.run_sync(sync.set, "bench-bare", TEXT, 3600, limiter=limiter)
        else:
            import redis.asyncio

            client = redis.asyncio.Redis.from_url(url, decode_responses=True)
            stack.push_async_callback(client.aclose)

            async def bare_read() -> None:
                await client.get("bench")

            async def bare_write() -> None:
                await client.set("bench-bare", TEXT, ex=3600)

        async def read() -> None:
            await memory.read("bench")

        async def write() -> None:
            await memory.write("bench", VALUE)

        rows = []
        for callers, limit in ((1, 1.25), (100, 1.6)):
            rows.append(await compare("redis read", bare_read, read, limit=limit, callers=callers))
            rows.append(await compare("redis write", bare_write, write, limit=limit, callers=callers))
        await at_once(read, 1000)
        return rows


async def sqlite_rows(folder: Path) -> list[Row]:
    """Against a bare read in a worker thread."""
    async with ShortTermMemory(f"sqlite:///{folder}/memory.db") as memory:
        await memory.write_many({f"k{n}": VALUE for n in range(1000)})
        connection = sqlite3.connect(folder / "memory.db", isolation_level=None, check_same_thread=False)
        query = "SELECT value FROM memory_v1 WHERE key = ?"
        limiter = anyio.CapacityLimiter(1)

        def fetch() -> Any:
            return connection.execute(query, ("agenthelm:k:k500",)).fetchone()

        async def bare() -> None:
            await anyio.to_thread.run_sync(fetch, limiter=limiter)

        async def read() -> None:
            await memory.read("k500")

        row = await compare("sqlite read", bare, read, limit=1.5)
        connection.close()
        return [row]


async def chroma_rows(folder: Path) -> list[Row]:
    """Against bare Chroma and the same embedder, each in a worker thread."""
    import chromadb

    embed = LexicalEmbedder()
    async with SemanticMemory(str(folder / "vectors"), embedder="lexical") as memory:
        await memory.add_many(
            [f"note {n} about trains to Porto, invoice {n * 7} and seat {n % 40}" for n in range(1000)]
        )
        client = chromadb.PersistentClient(folder / "vectors", chromadb.Settings(anonymized_telemetry=False))
        (collection,) = client.list_collections()
        limiter = anyio.CapacityLimiter(8)
        question = "which seat has invoice 700?"

        async def bare() -> None:
            vectors = await anyio.to_thread.run_sync(embed, [question], limiter=limiter)
            await anyio.to_thread.run_sync(
                lambda: collection.query(
                    query_embeddings=vectors, n_results=5, include=["documents", "metadatas", "distances"]
                ),
                limiter=limiter,
            )

        async def search() -> None:
            await memory.search(question)

        row = await compare("chroma search", bare, search, limit=1.15, count=10)
        client.close()
        return [row]


async def measure(backend: str) -> list[Row]:
    """All rows of one kind of event loop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [*await redis_rows(backend), *await sqlite_rows(folder), *await chroma_rows(folder)]


def main() -> int:
    """Print the table; 0 if every ratio is within its limit."""
    missed = 0
    print(f"{'':8}{'':14}{'':12}{'bare':>10}{'ours':>10}{'ratio':>8}{'limit':>7}")
    for backend in sys.argv[1:] or ("asyncio", "trio"):
        for name, callers, bare, ours, limit in anyio.run(measure, backend, backend=backend):
            ratio = ours / bare
            missed += ratio > limit
            mark = "" if ratio <= limit else "  over"
            print(
                f"{backend:8}{name:14}{callers:12}{bare * 1e6:8.1f}us{ours * 1e6:8.1f}us{ratio:8.2f}{limit:7.2f}{mark}"
            )
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
