"""Undoing holds the run's lease for as long as it takes, and stops where somebody else has it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress

import anyio
import pytest

from agenthelm.core.storage import InMemoryStorage, Record
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import LeaseLostError
from agenthelm.orchestration import journal as journals
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import saga
from agenthelm.testing.storage import FaultyStorage
from tests.support.saga_leases import Later

on_asyncio = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)


def undone_once_renewed() -> tuple[ToolRegistry, list[str], FaultyStorage]:
    """Tools of which one undoes only after the run's lease was renewed, what they have made, and the storage to use."""
    tools, world = ToolRegistry(), list[str]()
    renewed = anyio.Event()

    @tool(registry=tools, compensating_tool="unmake")
    async def make() -> None:
        world.append("made")

    @tool(registry=tools)
    async def unmake() -> None:
        with anyio.fail_after(60):  # as long as it takes, but for a test
            await renewed.wait()
        world.remove("made")

    def seen(record: Record) -> bool:
        if record.data.get("type") == "renewed":
            renewed.set()
        return False

    return tools, world, FaultyStorage(InMemoryStorage(), matching=seen)


@on_asyncio
async def test_a_success_that_nobody_heard_of_is_taken_back_under_a_lease_that_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.01)
    tools, world, inner = undone_once_renewed()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "closed", do="hang")

    async def run() -> None:
        async with saga(tools=tools, storage=storage) as scope:
            await scope.use("make")

    task = asyncio.ensure_future(run())
    await storage.hanging.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    storage.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    (info,) = await inner.streams(prefix="run:")
    assert (world, info.state) == ([], "rolled_back")
    kinds = [record.data["type"] for record in await inner.read(info.name)]
    assert kinds[kinds.index("undoing") + 1] == "renewed"


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_run_is_renewed_while_a_long_undo_goes_on_though_it_was_never_renewed_before(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.3)
    tools, world, inner = undone_once_renewed()
    made = anyio.Event()

    async def run() -> None:
        async with saga(tools=tools, storage=inner) as scope:
            await scope.use("make")
            made.set()
            if how == "failed":
                raise ValueError
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:

        async def own() -> None:
            with suppress(ValueError):
                await run()

        group.start_soon(own)
        await made.wait()
        if how == "cancelled":
            group.cancel_scope.cancel()
    (info,) = await inner.streams(prefix="run:")
    assert (world, info.state) == ([], "rolled_back")
    kinds = [record.data["type"] for record in await inner.read(info.name)]
    assert kinds == ["opened", "begin", "finish", "unwinding", "undoing", "renewed", "undone", "closed"]


@on_asyncio
async def test_nothing_of_a_lease_is_left_when_its_run_is_over() -> None:
    tools, ended = ToolRegistry(), list[str]()

    @tool(registry=tools, compensating_tool="unmake")
    async def make() -> None: ...

    @tool(registry=tools)
    async def unmake() -> None: ...

    before = asyncio.all_tasks()
    scope = saga(tools=tools)
    async with scope:
        await scope.use("make")
    weakref.finalize(scope._run.journal, ended.append, "ended")
    del scope
    gc.collect()
    assert ended == ["ended"]
    assert asyncio.all_tasks() == before


async def test_who_lost_the_run_while_undoing_does_not_even_ask_about_the_rest() -> None:
    tools, asked = ToolRegistry(), list[str]()
    undoing, go_on = anyio.Event(), anyio.Event()
    storage = InMemoryStorage()

    async def ask(name: str) -> bool:
        asked.append(name)
        return True

    @tool(registry=tools, compensating_tool="unmake", verify=ask)
    async def make(name: str) -> None:
        await anyio.sleep_forever()

    @tool(registry=tools, idempotent=True)
    async def unmake(name: str) -> None:
        if name == "second" and not undoing.is_set():
            undoing.set()
            with anyio.CancelScope(shield=True):  # like a frozen process: nothing reaches it
                await go_on.wait()

    async def own() -> None:
        with suppress(LeaseLostError):
            async with saga(tools=tools, storage=storage) as scope, anyio.create_task_group() as group:
                for name in ("first", "second"):
                    group.start_soon(scope.executor.call, "make", {"name": name})
                    await anyio.wait_all_tasks_blocked()
                raise ValueError("no")

    async with anyio.create_task_group() as group:
        group.start_soon(own)
        await undoing.wait()
        (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover()
        go_on.set()
    assert result.status == "rolled_back"
    assert asked == ["second", "first"]  # the latter by the claimer, which does not ask about an undo that was begun
