"""Cancelled at any turn of the event loop: who is cancelled finds nothing done; what was done, somebody has heard of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.storage import BaseStorage, InMemoryStorage, SqliteStorage
from agenthelm.core.tool import ToolRegistry
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.saga import SagaOrchestrator, Step, saga
from agenthelm.testing.storage import FaultyStorage
from tests.support.making import making

Way = Callable[[ToolRegistry, BaseStorage], Awaitable[object]]

TURNS = 150
"""More than any of these runs takes."""


class Making(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make", name=self.name)
        return {"made": self.name}


def tools_over(world: list[str]) -> ToolRegistry:
    tools = ToolRegistry()
    making(tools, world)
    return tools


async def by_hand(tools: ToolRegistry, storage: BaseStorage) -> None:
    async with saga(tools=tools, storage=storage) as scope:
        await scope.use("make", name="a")


async def chain(tools: ToolRegistry, storage: BaseStorage) -> None:
    await Orchestrator(tools=tools, storage=storage).run_saga([Step("make", {"name": "a"})])


async def group(tools: ToolRegistry, storage: BaseStorage) -> None:
    steps = [Step("make", {"name": name}, id=name) for name in "ab"]
    await SagaOrchestrator(ExecutionTracer(storage=storage), tools).execute([steps])


async def agents(tools: ToolRegistry, storage: BaseStorage) -> None:
    await Orchestrator(tools=tools, storage=storage).run(Parallel([Making("a"), Making("b")]), "go")


WAYS = [by_hand, chain, group, agents]


async def states(storage: BaseStorage) -> list[str | None]:
    return [info.state for info in await storage.streams(prefix="run:")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_at_any_turn_undoes_what_nobody_hears_of(way: Way, times: int) -> None:
    heard = 0
    for turn in range(TURNS):
        world: list[str] = []
        storage = InMemoryStorage()
        running = asyncio.ensure_future(way(tools_over(world), storage))
        for _ in range(turn):
            await asyncio.sleep(0)
        for _ in range(times):
            running.cancel()
            await asyncio.sleep(0)
        try:
            await running
        except asyncio.CancelledError:
            assert (world, "open" in await states(storage)) == ([], False), f"turn {turn}"
        else:
            assert (bool(world), await states(storage)) == (True, ["success"]), f"turn {turn}"
            heard += 1
    assert 0 < heard < TURNS


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_scope_cancelled_at_any_turn_undoes_what_nobody_hears_of(way: Way) -> None:
    heard = 0
    for turn in range(TURNS):
        world: list[str] = []
        storage, scope, ended = InMemoryStorage(), anyio.CancelScope(), False

        async def run(world: list[str] = world, storage: BaseStorage = storage, scope: Any = scope) -> None:
            nonlocal ended
            with scope:
                await way(tools_over(world), storage)
                ended = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            for _ in range(turn):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        assert (bool(world), "open" in await states(storage)) == (ended, False), f"turn {turn}"
        heard += ended
    assert 0 < heard < TURNS


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_undo_cancelled_while_it_claims_its_run_comes_to_its_end_first(tmp_path: Path) -> None:
    world: list[str] = []
    tools = tools_over(world)
    async with SqliteStorage(tmp_path / "journal.db") as inner:
        run_id = (await Orchestrator(tools=tools, storage=inner).run_saga([Step("make", {"name": "a"})])).run_id
        storage = FaultyStorage(
            inner, matching=lambda record: record.data.get("type") == "claimed", do="hang", moment="after"
        )
        undoing = asyncio.ensure_future(Orchestrator(tools=tools, storage=storage).undo(run_id))
        await storage.hanging.wait()
        undoing.cancel()
        storage.release()
        with pytest.raises(asyncio.CancelledError):
            await undoing
        assert (world, await states(inner)) == ([], ["rolled_back"])
