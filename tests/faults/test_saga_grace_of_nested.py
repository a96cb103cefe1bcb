"""The grace of a run is that of its collected branches, too."""

from __future__ import annotations

from typing import Any

import anyio

from agenthelm.agent.base import Agent
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel


class Branch(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make")
        raise ValueError("bad luck")


async def test_a_branch_whose_undo_hangs_is_stuck_after_the_grace_of_its_run() -> None:
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="unmake")
    async def make() -> None: ...

    @tool(registry=tools)
    async def unmake() -> None:
        await anyio.sleep_forever()

    result = await Orchestrator(tools=tools, grace=0.1).run(Parallel([Branch(name="a")], on_error="collect"), "go")
    assert "did not finish within 0.1 s" in result.saga.stuck[0].reason
