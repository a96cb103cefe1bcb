"""A tool that ends in a cancellation nobody asked for: the run is undone, and what leaves it is that cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import ErrorPolicy
from agenthelm.orchestration.saga import OnError, Step
from tests.support.making import making


async def cancelled() -> None:
    """Raise a cancellation that was sent to somebody else, and long ago."""
    leaked: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class() as sent:
            leaked.append(sent)
            raise
    raise leaked.pop()


class Making(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make", name="a")
        await self.ause("odd")
        return {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("plan", [True, False])
async def test_a_run_ends_in_the_cancellation_its_tool_ended_in(plan: bool) -> None:
    tools, world = ToolRegistry(), []

    making(tools, world)

    @tool(registry=tools)
    async def odd() -> None:
        inner = asyncio.ensure_future(asyncio.sleep(10))
        inner.cancel()
        await inner

    orchestrator = Orchestrator(tools=tools)
    with pytest.raises(asyncio.CancelledError):
        if plan:
            await orchestrator.run_saga([Step("make", {"name": "a"}), Step("odd")])
        else:
            await orchestrator.run(Making(), "go")
    assert world == []


@pytest.mark.parametrize("on_error", ["rollback", "continue", "stop"])
async def test_a_step_beside_others_ends_the_plan_as_a_step_of_a_chain_does(on_error: OnError) -> None:
    tools, world, storage = ToolRegistry(), [], InMemoryStorage()
    making(tools, world)
    tool(registry=tools, name="odd")(cancelled)
    plan = [
        Step("make", {"name": "a"}, id="a"),
        [Step("odd"), Step("make", {"name": "b"}, id="b")],
        Step("make", {"name": "c"}, id="c"),
    ]
    with pytest.raises(anyio.get_cancelled_exc_class()):
        await Orchestrator(tools=tools, storage=storage).run_saga(plan, on_error=on_error)
    (run,) = await storage.streams(prefix="run:")
    state = fold("r", await storage.read(run.name))
    assert "c" not in [effect.effect.step for effect in state.effects.values()]
    if on_error == "rollback":
        assert (state.status, world) == ("rolled_back", [])
    else:
        assert state.status == "stopped"
        assert "a" in world


@pytest.mark.parametrize("on_error", ["cancel", "collect"])
async def test_a_branch_beside_others_undoes_the_run(on_error: ErrorPolicy) -> None:
    tools, world = ToolRegistry(), []
    making(tools, world)
    made = anyio.Event()

    class Good(Agent):
        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            await self.ause("make", name="b")
            made.set()
            await anyio.sleep_forever()
            return {}

    class Odd(Agent):
        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            await made.wait()
            await cancelled()
            return {}

    with pytest.raises(anyio.get_cancelled_exc_class()):
        await Orchestrator(tools=tools).run_parallel([Good(), Odd()], "go", on_error=on_error)
    assert world == []
