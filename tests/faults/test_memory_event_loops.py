"""One memory in many event loops, as of a worker that runs each job by ``anyio.run``: none leaves a connection behind."""

from __future__ import annotations

import contextlib
import gc
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import RunVar

from agenthelm.memory.backends.chroma_server import ChromaServerBackend
from agenthelm.memory.backends.redis import RedisBackend
from tests.support.chroma_server import shared_chroma
from tests.support.redis_server import shared_redis

Store = RedisBackend | ChromaServerBackend

STORES = pytest.mark.parametrize(
    "opened",
    [lambda: RedisBackend(shared_redis().url), lambda: ChromaServerBackend(shared_chroma().url)],
    ids=["redis", "chroma"],
)


def open_sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for descriptor in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            count += stat.S_ISSOCK(os.fstat(int(descriptor.name)).st_mode)
    return count


@STORES
@pytest.mark.parametrize(
    ("backend", "options"), [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})], ids=str
)
def test_connections_end_with_their_event_loop(
    opened: Callable[[], Store], backend: Any, options: dict[str, bool]
) -> None:
    store = opened()
    gc.collect()
    before = open_sockets()
    for _ in range(3):
        anyio.run(store.ping, backend=backend, backend_options=options)
    assert open_sockets() <= before
    anyio.run(store.aclose)


@STORES
async def test_an_event_loop_keeps_nothing_of_a_memory_that_was_closed(opened: Callable[[], Store]) -> None:
    """A service may open one for each request, and its loop runs for months."""

    async def request() -> None:
        store = opened()
        await store.ping()
        await store.aclose()

    def kept() -> int:
        gc.collect()
        return sum(isinstance(thing, RunVar) for thing in gc.get_objects())

    await request()
    before = kept()
    for _ in range(3):
        await request()
    assert kept() == before
