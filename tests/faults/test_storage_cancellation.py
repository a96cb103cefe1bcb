"""Cancelled while a commit is under way: the append is finished first, and the cancellation comes after it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agenthelm._runtime.groups import wait_through
from agenthelm.core.storage import BaseStorage, JsonStorage, Record, SqliteStorage
from agenthelm.core.storage.writer import Append, Writer
from agenthelm.exceptions import StorageClosedError, StorageError
from tests.support.storage_worlds import KINDS, opened


class Gate:
    """Stands before a storage's commits until it is opened, and notes how many appends each one wrote."""

    def __init__(self, storage: Any) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.reached = threading.Event()
        commit = storage._log.commit

        def guarded(appends: list[Append]) -> Any:
            self.sizes.append(len(appends))
            self.reached.set()
            assert self.open.wait(60)
            return commit(appends)

        storage._log.commit = guarded


@pytest.mark.parametrize("kind", KINDS)
async def test_appends_that_wait_for_a_commit_share_the_next_one(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path / "log") as storage:
        gate = Gate(storage)
        async with anyio.create_task_group() as group:
            group.start_soon(storage.append, [Record("a", {"n": 0})])
            await anyio.to_thread.run_sync(gate.reached.wait)
            for n in range(1, 101):
                group.start_soon(storage.append, [Record("a", {"n": n})])
            await anyio.wait_all_tasks_blocked()
            gate.open.set()
        assert gate.sizes == [1, 100]
        assert sorted(record.data["n"] for record in await storage.read("a")) == list(range(101))


@pytest.mark.parametrize("kind", KINDS)
async def test_of_two_that_share_a_commit_one_that_fails_does_not_take_the_other_with_it(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path / "log") as storage:
        gate, outcomes = Gate(storage), dict[str, object]()
        commit = storage._log.commit  # type: ignore[attr-defined]

        def picky(appends: list[Append]) -> Any:
            if any(entry.stream == "bad" for append in appends for entry in append.entries):
                raise ValueError("not this one")
            return commit(appends)

        storage._log.commit = picky  # type: ignore[attr-defined]

        async def write(stream: str) -> None:
            try:
                outcomes[stream] = await storage.append([Record(stream, {})])
            except StorageError as error:
                outcomes[stream] = str(error).partition(": ")[2]

        async with anyio.create_task_group() as group:
            group.start_soon(write, "first")
            await anyio.to_thread.run_sync(gate.reached.wait)
            for stream in ("bad", "good"):
                group.start_soon(write, stream)
            await anyio.wait_all_tasks_blocked()
            gate.open.set()
        assert outcomes == {"first": {"first": 1}, "bad": "ValueError: not this one", "good": {"good": 1}}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_append_ends_with_its_commit_and_then_is_cancelled(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path / "log") as storage:
        gate = Gate(storage)
        events: list[str] = []

        async def write() -> None:
            await storage.append([Record("a", {"n": 1})])
            events.append("appended")
            await anyio.lowlevel.checkpoint()
            events.append("went on")

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                assert events == []
                gate.open.set()
        assert events == ["appended"]
        assert len(await storage.read("a")) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True})], indirect=False)
@pytest.mark.parametrize("kind", KINDS)
async def test_native_cancellation_twice_does_not_lose_track_of_an_append(
    kind: str, tmp_path: Path, anyio_backend: object
) -> None:
    import asyncio

    async with opened(kind, tmp_path / "log") as storage:
        gate = Gate(storage)
        task = asyncio.create_task(storage.append([Record("a", {"n": 1})]))
        await anyio.to_thread.run_sync(gate.reached.wait)
        for _ in range(2):
            task.cancel()
            await anyio.wait_all_tasks_blocked()
            assert not task.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await storage.read("a")) == 1


async def test_closing_under_cancellation_still_writes_what_was_submitted(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "log.db")
    gate = Gate(storage)
    async with anyio.create_task_group() as group:
        group.start_soon(storage.append, [Record("a", {"n": 1})])
        await anyio.to_thread.run_sync(gate.reached.wait)
        with anyio.CancelScope() as scope:
            scope.cancel()
            gate.open.set()
            await storage.aclose()
    assert not (tmp_path / "log.db-wal").exists()  # the last connection is closed
    async with SqliteStorage(tmp_path / "log.db") as again:
        assert len(await again.read("a")) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_with_loops_of_both_backends_lose_none_of_800_events(kind: str, tmp_path: Path) -> None:
    storage = opened(kind, tmp_path / "log")
    failures: list[BaseException] = []

    async def write(name: str) -> None:
        async def one(n: int) -> None:
            await storage.append([Record(name, {"n": n}), Record("events", {"n": n})])

        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(one, n)
        assert len(await storage.read(name)) == 100

    def run(backend: str, name: str) -> None:
        try:
            anyio.run(write, name, backend=backend)
        except BaseException as exc:
            failures.append(exc)

    threads = [
        threading.Thread(target=run, args=(backend, f"{backend}{n}"))
        for backend in ("asyncio", "trio")
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

    async def check() -> None:
        assert len(await storage.read("events")) == 800
        await storage.aclose()

    anyio.run(check)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_that_has_ended_stops_nobody_else(kind: str, tmp_path: Path) -> None:
    storage = opened(kind, tmp_path / "log")
    gate = Gate(storage)

    async def abandon() -> None:
        submitted = storage.append([Record("a", {"n": 1})])
        submitted.send(None)  # type: ignore[attr-defined]
        submitted.close()

    anyio.run(abandon)
    gate.open.set()

    async def go_on() -> None:
        assert await storage.append([Record("a", {"n": 2})]) == {"a": 2}
        await storage.aclose()

    anyio.run(go_on)


@pytest.mark.parametrize("kind", KINDS)
async def test_reads_do_not_wait_for_a_commit(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path / "log") as storage:
        await storage.append([Record("a", {"n": 1})])
        await storage.read("a")
        gate = Gate(storage)
        async with anyio.create_task_group() as group:
            group.start_soon(storage.append, [Record("a", {"n": 2})])
            await anyio.to_thread.run_sync(gate.reached.wait)
            with anyio.fail_after(60):
                assert len(await storage.read("a")) == 1
            gate.open.set()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_append_that_is_to_blame_fails_alone(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path / "log") as storage:
        gate = Gate(storage)
        outcomes: dict[str, object] = {}

        async def write(name: str) -> None:
            try:
                outcomes[name] = await storage.append([Record(name, {"n": 1}), Record("all", {"name": name})])
            except StorageError as exc:
                outcomes[name] = exc

        async with anyio.create_task_group() as group:
            group.start_soon(write, "first")
            await anyio.to_thread.run_sync(gate.reached.wait)
            for name in ("a", "broken", "b"):
                group.start_soon(write, name)
            await anyio.wait_all_tasks_blocked()
            real = storage._log.commit  # type: ignore[attr-defined]

            def commit(appends: list[Append]) -> Any:
                if any(entry.stream == "broken" for append in appends for entry in append.entries):
                    raise RuntimeError
                return real(appends)

            storage._log.commit = commit  # type: ignore[attr-defined]
            gate.open.set()
        assert {name for name, outcome in outcomes.items() if isinstance(outcome, dict)} == {"first", "a", "b"}
        assert str(outcomes["broken"]).endswith("log: RuntimeError")
        assert len(await storage.read("all")) == 3


@pytest.mark.parametrize("kind", [SqliteStorage, JsonStorage])
async def test_a_storage_that_is_forgotten_ends_its_thread(kind: type[Any], tmp_path: Path) -> None:
    storage: BaseStorage | None = kind(tmp_path / "log")
    assert storage is not None
    await storage.append([Record("a", {"n": 1})])
    writer: Writer = storage._writer  # type: ignore[attr-defined]
    gone = weakref.ref(storage)
    del storage
    gc.collect()
    assert gone() is None
    await anyio.to_thread.run_sync(writer.join)
    assert writer.closed


async def test_no_thread_is_started_before_the_first_append_and_none_is_left_after_closing(tmp_path: Path) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if str(tmp_path) in thread.name]

    storage = SqliteStorage(tmp_path / "log.db")
    assert ours() == []
    await storage.append([Record("a", {})])
    assert len(ours()) == 1
    await storage.aclose()
    assert ours() == []
    with pytest.raises(StorageClosedError):
        await storage.append([Record("a", {})])


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_thread_to_write_with_an_append_fails_and_does_not_wait_for_ever(
    kind: str, tmp_path: Path
) -> None:
    async with opened(kind, tmp_path / "log") as storage:
        usual = threading.stack_size(1 << 46)  # more than there is, so that the system refuses to start any
        try:
            for _ in range(2):
                with pytest.raises(StorageError, match="log: can't start new thread"):
                    await storage.append([Record("a", {"n": 1})])
        finally:
            threading.stack_size(usual)
        assert await storage.append([Record("a", {"n": 2})]) == {"a": 1}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("waiting_for", ["an append", "an event"])
async def test_a_native_cancellation_leaves_no_cycle_behind(waiting_for: str, tmp_path: Path) -> None:
    class Kept: ...

    async with opened("sqlite", tmp_path / "log") as storage:
        gate, event = Gate(storage), anyio.Event()
        refs: list[weakref.ref[Kept]] = []

        async def wait() -> None:
            kept = Kept()
            refs.append(weakref.ref(kept))
            if waiting_for == "an append":
                await storage.append([Record("a", {})])
            else:
                await wait_through(event)

        gc.collect()
        gc.disable()
        try:
            task = asyncio.ensure_future(wait())
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            await anyio.wait_all_tasks_blocked()
            gate.open.set()
            event.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            await anyio.lowlevel.checkpoint()
            assert refs[0]() is None
        finally:
            gc.enable()
