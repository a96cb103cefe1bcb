"""A run that is cancelled while its end is written: nobody hears of its success, so it is undone; none stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.testing.storage import FaultyStorage
from tests.support.making import making


class Cancelling(InMemoryStorage):
    """Cancels the caller while a record of one kind is on its way to the disk, as the durable storages do it."""

    def __init__(self, kind: str, *, times: int = 1) -> None:
        super().__init__()
        self.kind = kind
        self.times = times
        self.cancel: Callable[[], Any] = lambda: None

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        positions = await super().append(records, expected)
        if self.times and any(record.data.get("type") == self.kind for record in records):
            self.times -= 1
            self.cancel()
            pending = None
            try:
                await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class() as error:
                pending = error
            if pending is not None:
                raise pending
        return positions


def tools_over(world: list[str]) -> ToolRegistry:
    tools = ToolRegistry()

    making(tools, world)

    return tools


async def plan(tools: ToolRegistry, storage: Cancelling) -> None:
    await Orchestrator(tools=tools, storage=storage).run_saga([Step("make", {"name": "a"})])


class Making(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make", name="a")
        return {}


async def agents(tools: ToolRegistry, storage: Cancelling) -> None:
    await Orchestrator(tools=tools, storage=storage).run(Making(), "go")


async def by_hand(tools: ToolRegistry, storage: Cancelling) -> None:
    async with saga(tools=tools, storage=storage) as scope:
        await scope.use("make", name="a")


async def check(storage: Cancelling, world: list[str]) -> None:
    (info,) = await storage.streams(prefix="run:")
    state = fold("r", await storage.read(info.name))
    assert (world, state.status, info.state) == ([], "rolled_back", "rolled_back")


@pytest.mark.parametrize("way", [plan, agents, by_hand], ids=lambda way: way.__name__)
async def test_a_cancelled_scope(way: Any) -> None:
    world: list[str] = []
    storage = Cancelling("closed")
    with anyio.CancelScope() as scope:
        storage.cancel = scope.cancel
        await way(tools_over(world), storage)
    if scope.cancelled_caught:
        await check(storage, world)
    else:  # trio hands the result over first, and cancels at the next checkpoint
        assert world == ["a"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("kind", ["opened", "closed"])
@pytest.mark.parametrize("way", [plan, agents, by_hand], ids=lambda way: way.__name__)
async def test_a_cancelled_task(way: Any, kind: str, times: int) -> None:
    world: list[str] = []
    storage = Cancelling(kind, times=times)
    task = asyncio.ensure_future(way(tools_over(world), storage))
    storage.cancel = task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    await check(storage, world)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("way", [plan, agents, by_hand], ids=lambda way: way.__name__)
async def test_a_run_that_can_not_be_opened_again_to_be_undone_stands_and_says_so(
    way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world: list[str] = []
    inner = Cancelling("closed")
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "claimed")
    task = asyncio.ensure_future(way(tools_over(world), storage))
    inner.cancel = task.cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    (info,) = await inner.streams(prefix="run:")
    assert (world, info.state) == (["a"], "success")
    assert f"run {info.name.removeprefix('run:')} stands, and its caller was cancelled" in caplog.text
    result = await Orchestrator(tools=tools_over(world), storage=inner).undo(info.name.removeprefix("run:"))
    assert (world, result.status) == ([], "rolled_back")
