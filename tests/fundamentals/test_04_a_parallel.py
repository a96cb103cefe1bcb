"""Fan-out is structured: branches run at once, and none outlives the run.

With `on_error="collect"` each branch is a saga of its own: one that fails is undone at once, the others stand.
"""

from __future__ import annotations

from typing import Any

from agenthelm import Agent, Orchestrator, Parallel, ToolRegistry, tool

tools = ToolRegistry()
filed: list[str] = []


@tool(compensating_tool="withdraw", side_effects=["report:write"], registry=tools)
async def file_report(author: str) -> None:
    filed.append(author)


@tool(registry=tools)
async def withdraw(author: str) -> None:
    filed.remove(author)


class Analyst(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("file_report", author=self.name)
        if self.name == "legal":
            raise ConnectionError("the register is down")
        return {"finding": f"{self.name}: {task} is fine"}


async def test_one_branch_fails_and_the_other_stands() -> None:
    filed.clear()
    both = Parallel([Analyst("technical"), Analyst("legal")], on_error="collect")
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run(both, "the plan")
    assert result["technical"] == {"finding": "technical: the plan is fine"}
    assert result["errors"] == {"legal": "ConnectionError: the register is down"}
    assert filed == ["technical"]
