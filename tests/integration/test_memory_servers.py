"""Both memories on real servers: sessions that continue, TLS, and keys as an operator sees them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import anyio
import pytest

from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory import MemoryHub, ShortTermMemory
from tests.support.chroma_server import shared_chroma
from tests.support.redis_server import TlsProxy, shared_redis


async def test_a_session_continues_in_another_hub() -> None:
    namespace = secrets.token_hex(6)

    def hub() -> MemoryHub:
        return MemoryHub(shared_redis().url, shared_chroma().url, embedder="lexical")

    async with hub() as first:
        context = first.create_context("trip", namespace)
        await context.write("city", "Lisbon")
        await context.set_shared("budget", 500)
        await context.remember("Maria prefers a window seat", id="seat")
    async with hub() as second:
        context = second.create_context("trip", namespace)
        assert await context.read("city") == "Lisbon"
        assert await context.get_shared("budget") == 500
        assert await context.recall("Which seat does Maria like?") == ["Maria prefers a window seat"]
        assert all(answer.ok for answer in (await second.health()).values())
        assert await context.forget("seat")
    import redis

    with redis.Redis.from_url(shared_redis().url, decode_responses=True) as client:
        assert sorted(client.scan_iter(match=f"agenthelm:*{namespace}*")) == [
            f"agenthelm:n:{namespace}:budget",
            f"agenthelm:s:{namespace}:trip:city",
        ]
        assert client.ttl(f"agenthelm:s:{namespace}:trip:city") == -1


async def test_short_term_memory_lapses_after_an_hour_on_redis_too() -> None:
    import redis

    async with ShortTermMemory(shared_redis().url) as memory:
        await memory.write("hour", 1)
        await memory.write_many({"x": 1, "y": 2}, ttl=90)
        await memory.write("half", 1, ttl=0.5)
    with redis.Redis.from_url(shared_redis().url) as client:
        assert 3_590_000 < client.pttl("agenthelm:k:hour") <= 3_600_000
        assert 80_000 < client.pttl("agenthelm:k:y") <= 90_000
        assert client.pttl("agenthelm:k:half") <= 500


async def test_redis_is_never_asked_for_all_keys_at_once() -> None:
    import redis

    with redis.Redis.from_url(shared_redis().url, decode_responses=True) as client:
        client.config_resetstat()
        async with ShortTermMemory(shared_redis().url) as memory:
            await memory.write_many({f"scan{n}": n for n in range(50)})
            assert len(await memory.list_keys("scan")) == 50
            assert await memory.clear("scan") == 50
        used = set(client.info("commandstats"))
    assert "cmdstat_scan" in used
    assert "cmdstat_keys" not in used


async def test_many_agents_count_together_over_several_hubs() -> None:
    namespace = secrets.token_hex(6)

    async def agent(n: int) -> None:
        async with MemoryHub(shared_redis().url) as hub:
            context = hub.create_context(f"agent {n}", namespace)
            for _ in range(10):
                await context.incr_shared("calls")

    async with anyio.create_task_group() as group:
        for n in range(5):
            group.start_soon(agent, n)
    async with MemoryHub(shared_redis().url) as hub:
        assert await hub.create_context("s", namespace).get_shared("calls") == 50


async def test_a_server_on_a_socket_of_this_machine() -> None:
    name = secrets.token_hex(6)
    async with ShortTermMemory(f"unix://{shared_redis().socket}?db=2") as memory:
        await memory.write(name, {"a": 1})
        assert await memory.incr(f"{name}:calls", ttl=60) == 1
        assert await memory.read(name) == {"a": 1}
    async with MemoryHub(f"unix://{shared_redis().socket}.gone") as hub:
        health = await hub.health()
        assert "can't be reached" in (health["short_term"].error or "")


@pytest.fixture
def proxy() -> Iterator[TlsProxy]:
    proxy = TlsProxy(shared_redis().port)
    yield proxy
    proxy.close()


async def test_rediss_verifies_the_certificate(proxy: TlsProxy) -> None:
    url = f"rediss://localhost:{proxy.port}/0"
    async with ShortTermMemory(f"{url}?ssl_ca_certs={proxy.certificate}") as memory:
        await memory.write("tls", {"a": 1})
        assert await memory.read("tls") == {"a": 1}
        async with anyio.create_task_group() as group:
            for _ in range(5):  # each has a connection of its own, and making one's TLS context takes 20 ms of the loop
                group.start_soon(memory.read, "tls")
    async with ShortTermMemory(url) as memory:
        with pytest.raises(MemoryStoreError, match=r"certificate|CERTIFICATE"):
            await memory.read("tls")


async def test_a_chroma_server_behind_https_must_show_a_certificate_that_can_be_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = TlsProxy(shared_chroma().port)
    try:
        async with MemoryHub(semantic=f"https://localhost:{proxy.port}", embedder="lexical") as hub:
            with pytest.raises(MemoryStoreError, match=r"certificate|CERTIFICATE"):
                await hub.create_context("s").remember("text")
        monkeypatch.setenv("SSL_CERT_FILE", str(proxy.certificate))
        async with MemoryHub(semantic=f"https://localhost:{proxy.port}", embedder="lexical") as hub:
            context = hub.create_context("s", secrets.token_hex(6))
            await context.remember("text")
            assert await context.recall("text") == ["text"]
    finally:
        proxy.close()
