"""Values under keys: times to live, counters, and where they are kept."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from agenthelm.exceptions import ConfigError, MemoryStoreError, MemoryValueError
from agenthelm.memory import MemoryHub, ShortTermMemory
from agenthelm.memory.backends import sqlite as sqlite_module
from agenthelm.memory.backends.redis import RedisBackend
from agenthelm.memory.backends.sqlite import SqliteBackend
from tests.support.redis_server import shared_redis


class SetClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.now += seconds


Open = Callable[[SetClock], ShortTermMemory]


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/memory.db"
    return lambda clock: ShortTermMemory(url, clock=clock)


async def test_a_value_lives_exactly_as_long_as_it_was_given(opened: Open) -> None:
    clock = SetClock()
    async with opened(clock) as memory:
        await memory.write("hour", 1)
        await memory.write("short", 2, ttl=1.5)
        await memory.write("kept", 3, ttl=None)
        clock.now += 1.4999
        assert await memory.read("short") == 2
        clock.now += 0.0001
        assert await memory.read("short", "gone") == "gone"
        clock.now += 3598.4999
        assert await memory.read_many(["hour", "short", "kept"]) == {"hour": 1, "kept": 3}
        clock.now += 0.0001
        assert await memory.list_keys() == ["kept"]
        clock.now += 1e9
        assert await memory.read("kept") == 3


async def test_a_counter_keeps_its_end_while_it_counts(opened: Open) -> None:
    clock = SetClock()
    async with opened(clock) as memory:
        assert await memory.incr("calls", ttl=60) == 1
        clock.now += 59
        assert await memory.incr("calls", ttl=60) == 2
        clock.now += 1
        assert await memory.incr("calls", 5, ttl=60) == 5


async def test_lapsed_values_are_removed_by_the_first_write_of_another_process(tmp_path: Path) -> None:
    clock = SetClock()
    for key in ("code", "other"):
        async with ShortTermMemory(f"sqlite:///{tmp_path}/memory.db", clock=clock) as memory:
            await memory.write(key, 1, ttl=10)
        clock.now += 11
    with sqlite3.connect(tmp_path / "memory.db") as connection:
        assert connection.execute("SELECT key FROM memory_v1").fetchall() == [("agenthelm:k:other",)]
    connection.close()


async def test_lapsed_values_take_no_room_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "_SWEEP_EVERY", -1.0)
    clock = SetClock()
    async with ShortTermMemory(f"sqlite:///{tmp_path}/memory.db", clock=clock) as memory:
        await memory.write_many({str(n): n for n in range(100)}, ttl=10)
        clock.now += 11
        await memory.write("last", 1, ttl=None)
        with sqlite3.connect(tmp_path / "memory.db") as connection:
            assert connection.execute("SELECT count(*) FROM memory_v1").fetchone() == (1,)
        connection.close()
    async with ShortTermMemory("memory://", clock=clock) as memory:
        for n in range(1000):
            await memory.write("hot", n, ttl=1000)
            await memory.write(str(n), n, ttl=10)
        clock.now += 11
        await memory.write("last", 1)
        backend = memory.backend
        assert len(backend._items) == 2  # type: ignore[attr-defined]
        assert len(backend._ends) < 200  # type: ignore[attr-defined]


async def test_reads_give_copies() -> None:
    async with ShortTermMemory("memory://") as memory:
        value = {"a": [1]}
        await memory.write("k", value)
        value["a"].append(2)
        (await memory.read("k"))["a"].append(3)
        assert await memory.read("k") == {"a": [1]}


async def test_absent_and_null_are_told_apart_by_the_default() -> None:
    async with ShortTermMemory("memory://") as memory:
        await memory.write("null", None)
        assert await memory.read("null", "default") is None
        assert await memory.read("absent", "default") == "default"
        assert await memory.read_many(["null", "absent"]) == {"null": None}
        assert await memory.read_many([]) == {}


async def test_compare_and_set_compares_values_not_their_spelling(opened: Open) -> None:
    async with opened(SetClock()) as memory:
        assert await memory.compare_and_set("k", None, {"a": 1, "b": [2]})
        assert not await memory.compare_and_set("k", None, 0)
        assert not await memory.compare_and_set("k", {"a": 1.0, "b": [2]}, 0)
        assert await memory.compare_and_set("k", {"b": (2,), "a": 1}, None)
        assert await memory.compare_and_set("k", None, 7)
        assert await memory.read("k") == 7


async def test_compare_and_set_loops_lose_no_update(opened: Open) -> None:
    async with opened(SetClock()) as memory:
        await memory.write("list", [])

        async def append(n: int) -> None:
            while True:
                held = await memory.read("list")
                if await memory.compare_and_set("list", held, [*held, n]):
                    return

        async with anyio.create_task_group() as group:
            for n in range(12):
                group.start_soon(append, n)
        assert sorted(await memory.read("list")) == list(range(12))


@pytest.mark.parametrize("amount", [1.5, "1", True, 2**63])
async def test_incr_takes_whole_numbers_only(amount: object) -> None:
    async with ShortTermMemory("memory://") as memory:
        with pytest.raises(MemoryValueError, match="whole number"):
            await memory.incr("k", amount)  # type: ignore[arg-type]


async def test_a_counter_that_is_none_is_named_as_the_caller_named_it() -> None:
    async with ShortTermMemory("memory://") as memory:
        await memory.write("visits", "many")
        with pytest.raises(MemoryValueError, match=r"^the value under 'visits' is no 64-bit integer"):
            await memory.incr("visits")


async def test_clear_forgets_a_prefix(opened: Open) -> None:
    async with opened(SetClock()) as memory:
        await memory.write_many({"a:1": 1, "a:2": 2, "b": 3, "*": 4})
        assert await memory.clear("*") == 1
        assert await memory.clear("a:") == 2
        assert await memory.clear("a:") == 0
        assert await memory.list_keys() == ["b"]
        assert await memory.delete("b")
        assert not await memory.delete("b")


@pytest.mark.parametrize(
    "url", ["", "mem://", "postgres://secret@host", "sqlite://", "sqlite:///", "sqlite:///:memory:", "redis://h:port"]
)
def test_a_url_that_means_nothing_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ShortTermMemory(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["S3cret#pw@db:6379/0", "S3cret/pw@db:6379/0", "S3cret?pw@db/0", "12#S3cret@db/0", "12/S3cret@db/0", "12?S3cret@db/0"]
)  # fmt: skip
def test_a_password_that_is_not_encoded_is_refused_and_not_quoted(place: str) -> None:
    for make in (lambda: MemoryHub(f"redis://app:{place}"), lambda: MemoryHub(semantic=f"http://app:{place}")):
        with pytest.raises(ConfigError, match=r"URL can't be read.*%2F %3F %23 %40") as caught:
            make()
        assert "S3cret" not in f"{caught.value!r}{caught.value.__context__!r}"


def test_the_path_of_a_redis_url_is_a_database_or_nothing() -> None:
    with pytest.raises(ConfigError, match="number of a database"):
        ShortTermMemory("redis://host/orders")
    for path in ("", "/", "/3"):
        assert RedisBackend(f"redis://host{path}").location == f"redis://host{path}"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("socket_timout=3", "socket_timout"), ("socket_timeout=abc", "socket_timeout"), ("protocol=9", "protocol"),
        ("max_connections=-1", "max_connections"), ("ssl_cert_reqs=none", "ssl_cert_reqs"), ("db=1&retry=3", "str"),
    ],
)  # fmt: skip
def test_an_option_that_redis_py_refuses_is_refused_before_anything_is_used(options: str, named: str) -> None:
    with pytest.raises(ConfigError, match=f"option of the Redis URL.*{named}"):
        MemoryHub(f"redis://me:s3cret@localhost?{options}")


def test_no_password_is_ever_shown() -> None:
    shown = RedisBackend("rediss://me:pa%40ss@[::1]:6380/2?password=pass&ssl_cert_reqs=none").location
    assert shown == "rediss://me@[::1]:6380/2"


async def test_sqlite_values_survive_in_a_file_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "memory.db"
    async with ShortTermMemory(f"sqlite:///{path}") as memory:
        assert not path.exists()
        await memory.write("k", "v", ttl=None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with ShortTermMemory(f"sqlite:///{path}") as memory:
        assert await memory.read("k") == "v"


async def test_sqlite_knows_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with ShortTermMemory("sqlite:///~/memory.db") as memory:
        await memory.write("k", 1)
    assert (tmp_path / "memory.db").exists()


async def test_many_keys_are_one_round_trip_and_beyond_what_a_statement_takes(tmp_path: Path) -> None:
    async with ShortTermMemory(SqliteBackend(tmp_path / "memory.db")) as memory:
        await memory.write_many({str(n): n for n in range(3000)})
        assert await memory.read_many(str(n) for n in range(3000)) == {str(n): n for n in range(3000)}
        await memory.backend.aclose()


async def test_a_backend_that_was_handed_in_stays_open(tmp_path: Path) -> None:
    async with SqliteBackend(tmp_path / "memory.db") as backend:
        async with ShortTermMemory(backend) as memory:
            await memory.write("k", 1)
        assert await ShortTermMemory(backend).read("k") == 1
    with pytest.raises(MemoryStoreError, match="closed"):
        await ShortTermMemory(backend).read("k")


def test_one_redis_memory_serves_one_event_loop_after_another() -> None:
    memory = ShortTermMemory(shared_redis().url)

    async def use(n: int) -> None:
        await memory.write("loops", n)
        assert await memory.read("loops") == n
        link = memory.backend._links.get()  # type: ignore[attr-defined]
        await link.aclose()  # the loop ends here, the memory does not

    for n, backend in enumerate(["asyncio", "asyncio", "trio", "trio"]):
        anyio.run(use, n, backend=backend)


async def test_a_redis_memory_that_was_closed_in_another_event_loop_is_closed_in_this_one_too() -> None:
    memory = ShortTermMemory(shared_redis().url)
    await memory.write("loops", 1)
    await anyio.to_thread.run_sync(anyio.run, memory.aclose)
    with pytest.raises(MemoryStoreError, match="closed; open another one"):
        await memory.write("loops", 2)
    assert memory.backend._links.get() is None  # type: ignore[attr-defined]
