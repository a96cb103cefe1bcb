"""A budget is checked before each call, not after it.

What would pass a limit is not made, the run ends, and what its tools did is undone.
"""

from __future__ import annotations

from typing import Any

import pytest

from agenthelm import Agent, Budget, BudgetExceededError, Orchestrator, ToolRegistry, tool
from agenthelm.testing.lm import ScriptedLM

tools = ToolRegistry()
booked: list[str] = []


@tool(compensating_tool="cancel", side_effects=["booking:write"], registry=tools)
async def book(city: str) -> None:
    booked.append(city)


@tool(registry=tools)
async def cancel(city: str) -> None:
    booked.remove(city)


class Wanderer(Agent):
    """Never has enough."""

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        while True:
            plan = await self.ask("task -> city", task=task)
            await self.ause("book", city=plan.city)


async def test_the_call_that_would_pass_the_limit_is_not_made() -> None:
    lm = ScriptedLM([{"city": "Lisbon"}], repeat=True)
    async with Orchestrator(lm=lm, tools=tools, budget=Budget(calls=3)) as orchestrator:
        with pytest.raises(BudgetExceededError) as caught:
            await orchestrator.run(Wanderer(), "Go on")
    assert (caught.value.resource, caught.value.limit, len(lm.requests)) == ("calls", 3, 3)
    assert booked == []
