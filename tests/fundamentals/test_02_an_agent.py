"""An agent is a DSPy module that can be awaited.

Its Signature says what goes in and out. `self.ask` calls the language model, `self.ause` a tool. The same agent may be
written with a sync `forward`, which runs in a thread.
"""

from __future__ import annotations

from typing import Any

import dspy

from agenthelm import Agent, Orchestrator, ToolRegistry, tool
from agenthelm.testing.lm import ScriptedLM

tools = ToolRegistry()


@tool(registry=tools)
def price(city: str, nights: int) -> float:
    """Say what a room costs."""
    return 80.0 * nights


class Plan(dspy.Signature):
    """Plan a trip."""

    task: str = dspy.InputField()
    city: str = dspy.OutputField()
    nights: int = dspy.OutputField()


class Planner(Agent):
    Signature = Plan

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        plan = await self.ask(Plan, task=task)
        cost = await self.ause("price", city=plan.city, nights=plan.nights)
        return {"city": plan.city, "nights": plan.nights, "cost": cost}


async def test_an_agent_asks_a_model_and_uses_tools() -> None:
    async with Orchestrator(lm=ScriptedLM([{"city": "Lisbon", "nights": 3}]), tools=tools) as orchestrator:
        result = await orchestrator.run(Planner(), "Three nights somewhere warm")
    assert dict(result) == {"city": "Lisbon", "nights": 3, "cost": 240.0}
    assert result.usage.calls == 1
