"""A run whose deadline has passed ends in that, whatever the agent made of its cancellation."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.tool import ToolRegistry
from agenthelm.exceptions import RunTimeoutError
from agenthelm.orchestration.orchestrator import Orchestrator
from tests.support.making import making


class Swallowing(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make", name="a")
        try:
            await anyio.sleep(5)
        except BaseException:
            pass
        return {"done": True}


async def test_it_is_undone() -> None:
    tools, world = ToolRegistry(), []

    making(tools, world)

    with pytest.raises(RunTimeoutError):
        await Orchestrator(tools=tools).run(Swallowing(), "go", timeout=0.1)
    assert world == []
