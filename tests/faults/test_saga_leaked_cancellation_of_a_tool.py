"""A tool that ends in a cancellation nobody asked for: the run is undone, and what leaves it is that cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.support.making import making


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
