"""The grace of a run is that of its collected branches, and of what resumes it, too."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.saga import Step
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later


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


async def test_so_is_a_step_of_a_plan_that_was_resumed() -> None:
    tools, storage = ToolRegistry(), InMemoryStorage()

    @tool(registry=tools, compensating_tool="unmake")
    async def make() -> None: ...

    @tool(registry=tools)
    async def unmake() -> None:
        await anyio.sleep_forever()

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("bad luck")

    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "unwinding", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga([Step("make"), Step("fail")])
    orchestrator = Orchestrator(tools=tools, storage=storage, clock=Later(), grace=0.1)
    (result,) = await orchestrator.recover(resume=True)
    assert "did not finish within 0.1 s" in result.stuck[0].reason
