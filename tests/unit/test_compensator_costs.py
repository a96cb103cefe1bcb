"""What undoing costs is booked in the run, and no limit keeps it from being done."""

from __future__ import annotations

from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.cost import Budget
from agenthelm.core.executor import charge, current_executor
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.saga import Step


class Branch(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("pay")
        if self.name == "bad":
            raise ValueError("no")
        return {}


async def directly(orchestrator: Orchestrator) -> None:
    executor = current_executor()
    assert executor is not None
    for _ in range(2):
        await executor.call("fee", {})


async def in_a_run_of_its_own(orchestrator: Orchestrator) -> None:
    result = await orchestrator.run_saga([Step("fee", id="one"), Step("fee", id="two")])
    assert result.ok, result.error


@pytest.mark.parametrize("way", [directly, in_a_run_of_its_own], ids=lambda way: way.__name__)
async def test_what_a_compensator_spends_is_booked_and_refused_nowhere(way: Any) -> None:
    tools, paid = ToolRegistry(), list[str]()
    orchestrator = Orchestrator(tools=tools, budget=Budget(usd=0.5))

    @tool(registry=tools, compensating_tool="unpay")
    async def pay() -> None:
        paid.append("paid")

    @tool(registry=tools, max_cost=0.125)
    async def unpay() -> None:
        await way(orchestrator)
        paid.remove("paid")

    @tool(registry=tools)
    async def fee() -> None:
        charge(0.5)

    both = Parallel([Branch(name="good"), Branch(name="bad")], on_error="collect")
    result = await orchestrator.run(both, "go")
    assert (result.saga.status, result.saga.stuck, paid) == ("success", (), ["paid"])
    assert result.cost_usd == 1.0
    assert result.totals("tool")["fee"].priced_usd == 1.0
