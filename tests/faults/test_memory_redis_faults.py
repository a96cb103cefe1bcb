"""Redis that is dead, killed and restarted, silent, or locked: one clear error in bounded time, and back to work."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import anyio
import anyio.lowlevel
import pytest

from agenthelm._runtime.retry import SystemClock
from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory import MemoryHub, ShortTermMemory
from agenthelm.memory.backends.redis import RedisBackend
from tests.support.redis_server import RedisServer, free_port, shared_redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer(password="s3cret")
    server.start()
    yield server
    server.close()


@pytest.fixture
def quick() -> Iterator[RedisServer]:
    """One that waits for no disk before it answers, for short time limits."""
    server = RedisServer(durable=False)
    server.start()
    yield server
    server.close()


async def test_a_dead_server_is_one_error_without_the_password() -> None:
    port = free_port()
    async with ShortTermMemory(f"redis://me:s3cret@127.0.0.1:{port}/0") as memory:
        with pytest.raises(
            MemoryStoreError, match=rf"redis://me@127.0.0.1:{port}/0 can't be reached; is it running"
        ) as caught:
            await memory.read("k")
        assert "s3cret" not in f"{caught.value!r}{caught.value.__cause__!r}"
    async with MemoryHub(f"redis://127.0.0.1:{port}") as hub:
        health = await hub.health()
        assert not health["short_term"].ok
        assert health["semantic"].ok


async def test_health_tells_of_a_client_that_breaks() -> None:
    async with MemoryHub(f"{shared_redis().url}?encoding=nonsense") as hub:
        health = await hub.health()
    assert health["short_term"].error == "LookupError: unknown encoding: nonsense"
    assert health["semantic"].ok


async def test_a_run_goes_on_after_the_server_was_killed_and_restarted(server: RedisServer) -> None:
    async with ShortTermMemory(server.url) as memory:
        async with anyio.create_task_group() as group:  # many pooled connections, which all die
            for n in range(20):
                group.start_soon(memory.write, f"k{n}", n)
        server.kill()
        with pytest.raises(MemoryStoreError, match="can't be reached"):
            await memory.read("k1")
        server.start()
        with anyio.fail_after(60):
            assert await memory.read_many(f"k{n}" for n in range(20)) == {f"k{n}": n for n in range(20)}
            assert await memory.incr("calls") == 1
            assert await memory.compare_and_set("k1", 1, 2)


class Later(SystemClock):
    """A clock that can be put forward."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


async def test_a_server_that_was_restarted_in_a_quiet_time_is_there_for_what_is_never_repeated(
    server: RedisServer,
) -> None:
    clock = Later()
    async with RedisBackend(server.url, clock=clock) as backend:
        await backend.write({"k": "1"}, None)
        operations: list[Callable[[], Awaitable[object]]] = [
            backend.ping,
            lambda: backend.incr("k", 1, ttl=None),
            lambda: backend.incr("k", 1, ttl=60),
            lambda: backend.swap("k", "3", "4", ttl=None),
        ]
        for operation in operations:
            server.kill()
            server.start()  # the event loop stands still meanwhile, so it has not seen its connection end
            clock.ahead += 60
            await operation()
        assert await backend.read(["k"]) == ["4"]


async def test_a_call_that_meets_a_restart_waits_for_it(server: RedisServer) -> None:
    class Restarting(SystemClock):
        async def sleep(self, seconds: float) -> None:
            await anyio.to_thread.run_sync(server.start)

    async with RedisBackend(server.url, clock=Restarting()) as backend:
        await backend.write({"k": "1"}, None)
        server.kill()
        assert await backend.read(["k"]) == ["1"]


async def test_a_silent_server_costs_one_timeout_and_is_used_again_when_it_speaks(quick: RedisServer) -> None:
    server = quick
    async with RedisBackend(server.url, timeout=1.0) as backend:
        await backend.write({"k": "1"}, None)
        server.freeze()
        with pytest.raises(
            MemoryStoreError, match=r"did not answer within 1 s; whether it did what it was asked is unknown"
        ):
            await backend.incr("k", 1, ttl=None)
        server.thaw()
        with anyio.fail_after(60):
            (counted,) = await backend.read(["k"])
        assert counted in ("1", "2")  # unknown is unknown, but never counted twice


async def test_callers_cancelled_at_a_silent_server_hold_nothing(quick: RedisServer) -> None:
    server = quick
    async with RedisBackend(server.url, timeout=1.0, max_connections=4) as backend:
        await backend.write({"k": "1"}, None)
        server.freeze()
        async with anyio.create_task_group() as group:  # more than there are connections, so some wait for a turn
            for _ in range(8):
                group.start_soon(backend.read, ["k"])
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        server.thaw()
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(12):
                    group.start_soon(backend.read, ["k"])
        link = backend._links.get()
        turns = getattr(link, "_turns", None)
        if turns is not None:
            assert turns.value == 4
        else:
            assert link._workers.limiter(0).borrowed_tokens == 0  # type: ignore[union-attr]


class ReplyLosingProxy:
    """Passes everything on to Redis, and drops the connection instead of answering one kind of command."""

    def __init__(self, port: int, command: bytes) -> None:
        self._target, self._command = port, command
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
                answer = server.recv(65536)
                if self._command in data:
                    return
                client.sendall(answer)


async def test_what_is_not_safe_to_repeat_is_never_repeated_and_what_is_safe_is() -> None:
    name = secrets.token_hex(6)
    async with RedisBackend(shared_redis().url) as direct:
        for command, operation in {
            b"INCRBY": lambda store: store.incr(name, 1, ttl=None),
            b"EVAL": lambda store: store.swap(name, "1", "2", ttl=None),
        }.items():
            proxy = ReplyLosingProxy(shared_redis().port, command)
            async with RedisBackend(proxy.url) as store:
                with pytest.raises(MemoryStoreError, match="can't be reached"):
                    await operation(store)
            proxy.listener.close()
        assert await direct.read([name]) == ["2"]  # counted once, swapped once
        await direct.delete([name])

    answers = 0

    class Flaky(ReplyLosingProxy):
        def _serve(self, client: socket.socket) -> None:
            nonlocal answers
            answers += 1
            if answers > 2:
                self._command = b"nothing"
            super()._serve(client)

    proxy = Flaky(shared_redis().port, b"SET")
    async with RedisBackend(proxy.url) as store:
        await store.write({name: "7"}, 60)
        assert await store.read([name]) == ["7"]
    proxy.listener.close()


async def test_a_wrong_password_is_not_tried_again(server: RedisServer) -> None:
    import redis

    async with ShortTermMemory(server.url.replace("s3cret", "wr0ng")) as memory:
        with pytest.raises(MemoryStoreError, match="refused the user or the password") as caught:
            await memory.write("k", 1)
        assert "wr0ng" not in str(caught.value)
    with redis.Redis.from_url(server.url) as admin:
        assert [entry["count"] for entry in admin.acl_log()] == [1]


async def test_a_full_server_is_one_clear_error(server: RedisServer) -> None:
    import redis

    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", "1")
    async with ShortTermMemory(server.url) as memory:
        with pytest.raises(MemoryStoreError, match="out of memory; nothing was written"):
            await memory.write("k", 1)
        with pytest.raises(MemoryStoreError, match="out of memory; nothing was written"):
            await memory.write_many({"a": 1, "b": 2})
        assert await memory.read("k") is None


async def test_what_is_not_redis_is_one_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        async with RedisBackend(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3) as backend:

            def babble() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, babble)
                with pytest.raises(MemoryStoreError, match="Redis at redis://127"):
                    await backend.ping()


async def test_keys_of_somebody_else_are_named_and_not_touched() -> None:
    import redis

    async with ShortTermMemory(shared_redis().url) as memory:
        with redis.Redis.from_url(shared_redis().url) as other:
            other.delete("agenthelm:k:list", "agenthelm:k:bytes")
            other.rpush("agenthelm:k:list", "x")
            other.set("agenthelm:k:bytes", b"\xff\xfe")
            with pytest.raises(MemoryStoreError, match="WRONGTYPE"):
                await memory.read("list")
            with pytest.raises(MemoryStoreError, match="did not write"):
                await memory.read("bytes")
            other.delete("agenthelm:k:list", "agenthelm:k:bytes")


async def test_a_thousand_concurrent_reads_share_the_pool(server: RedisServer) -> None:
    import redis

    async with ShortTermMemory(server.url) as memory:
        await memory.write("k", 7)
        values: list[int] = []

        async def read() -> None:
            values.append(await memory.read("k"))

        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(read)
        with redis.Redis.from_url(server.url) as admin:
            ours = [client for client in admin.client_list() if client["name"] == "agenthelm"]
        assert values == [7] * 1000
        assert 1 <= len(ours) <= 64
    with redis.Redis.from_url(server.url) as admin:
        with anyio.fail_after(60):
            while [client for client in admin.client_list() if client["name"] == "agenthelm"]:
                await anyio.sleep(0.01)
