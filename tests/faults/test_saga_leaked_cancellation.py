"""What ends a compensator or a ``verify`` is never taken for an undo, and never keeps the others from theirs."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio
import pytest

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.support.making import making_and_failing


async def cancelled() -> None:
    inner = asyncio.ensure_future(asyncio.sleep(10))
    inner.cancel()
    await inner


def cancelled_in_a_thread() -> None:
    asyncio.run(cancelled())


def exits() -> None:
    sys.exit(1)


async def exits_too() -> None:
    sys.exit(1)


async def group() -> None:
    raise BaseExceptionGroup("several", [GeneratorExit()])


WAYS = [cancelled, cancelled_in_a_thread, exits, exits_too, group]


@pytest.fixture
def world() -> list[str]:
    return []


@pytest.fixture
def tools(world: list[str]) -> ToolRegistry:
    return making_and_failing(world)


async def ended(tools: ToolRegistry, *steps: Step) -> tuple[str, list[str], list[str]]:
    storage = InMemoryStorage()
    around = [Step("make", {"name": "before"}, id="before"), *steps, Step("make", {"name": "after"}, id="after")]
    result = await Orchestrator(tools=tools, storage=storage).run_saga([*around, Step("fail")])
    state = fold("r", await storage.read(f"run:{result.run_id}"))
    assert state.status == result.status
    return result.status, [str(stuck.step) for stuck in result.stuck], [e.status for e in state.effects.values()]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("ends", WAYS, ids=lambda ends: ends.__name__)
async def test_a_compensator(ends: Any, tools: ToolRegistry, world: list[str]) -> None:
    tool(registry=tools, name="odd", compensating_tool="unodd")(lambda: None)
    tool(registry=tools, name="unodd")(ends)
    assert await ended(tools, Step("odd")) == ("failed", ["odd"], ["undone", "stuck", "undone"])
    assert world == []


async def hangs() -> None:
    await anyio.sleep_forever()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("ends", [cancelled, hangs])
async def test_a_compensator_that_was_ended_may_have_worked_and_is_not_repeated(ends: Any, tools: ToolRegistry) -> None:
    undone = []

    @tool(registry=tools)
    async def unodd() -> None:
        undone.append(1)
        if len(undone) == 1:
            await ends()

    tool(registry=tools, name="odd", compensating_tool="unodd")(lambda: None)
    orchestrator = Orchestrator(tools=tools, grace=0.5)
    result = await orchestrator.run_saga([Step("odd"), Step("fail")])
    assert result.status == "failed"
    again = await orchestrator.retry(result.run_id)
    assert (again.status, undone) == ("failed", [1])
    assert "nobody knows whether it worked" in again.stuck[0].reason


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("ends", WAYS, ids=lambda ends: ends.__name__)
async def test_verify(ends: Any, tools: ToolRegistry, world: list[str]) -> None:
    times = []

    async def verify() -> None:
        times.append(1)
        if len(times) == 1:
            raise ValueError("not now")  # the tool has failed, and its run goes on
        result = ends()
        if result is not None:
            await result

    @tool(registry=tools, side_effects=["x:write"], verify=verify)
    async def odd() -> None:
        raise ConnectionError

    @tool(registry=tools)
    async def around() -> None:
        from agenthelm.core.executor import current_executor

        executor = current_executor()
        assert executor is not None
        with pytest.raises(ConnectionError):
            await executor.call("odd", {})

    if ends is not cancelled_in_a_thread:
        assert await ended(tools, Step("around")) == ("failed", ["around"], ["undone", "stuck", "undone"])
        assert world == []


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("exits", [exits, exits_too], ids=["sync", "async"])
async def test_a_tool_that_leaves_the_interpreter_has_failed(exits: Any, tools: ToolRegistry, world: list[str]) -> None:
    tool(registry=tools, name="odd")(exits)
    result = await Orchestrator(tools=tools).run_saga([Step("make", {"name": "a"}), Step("odd")])
    assert (result.status, world) == ("rolled_back", [])
    assert result.error == "RuntimeError: tool 'odd' called sys.exit(1)"
