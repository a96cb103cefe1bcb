"""A compensator may do its work through a run of its own, and that passes every door as it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.cost import Budget
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, AutoDeny, Decision
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import SagaOrchestrator, Step, saga


class Gate(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("gate")
        return {}


async def plan(orchestrator: Orchestrator, tools: ToolRegistry) -> None:
    result = await orchestrator.run_saga([Step("gate")])
    assert result.ok, result.error


async def agents(orchestrator: Orchestrator, tools: ToolRegistry) -> None:
    await orchestrator.run(Gate(), "go")


async def by_hand(orchestrator: Orchestrator, tools: ToolRegistry) -> None:
    async with saga("undoing") as scope:
        await scope.use("gate")


async def steps(orchestrator: Orchestrator, tools: ToolRegistry) -> None:
    tracer = ExecutionTracer(orchestrator.storage, approval_handler=AutoDeny())
    result = await SagaOrchestrator(tracer, tools).execute([Step("gate")])
    assert result.ok, result.error


@pytest.mark.parametrize("way", [plan, agents, by_hand, steps], ids=lambda way: way.__name__)
async def test_neither_approval_nor_budget_refuses_it(way: Callable[..., Awaitable[None]]) -> None:
    tools, world = ToolRegistry(), []
    orchestrator = Orchestrator(tools=tools, budget=Budget(tool_calls=2), approval_handler=AutoDeny())

    @tool(registry=tools, compensating_tool="unpay")
    async def pay() -> None:
        world.append("paid")

    @tool(registry=tools)
    async def unpay() -> None:
        await way(orchestrator, tools)

    @tool(registry=tools, side_effects=["x:write"], requires_approval=True)
    async def gate() -> None:
        world.remove("paid")

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    result = await orchestrator.run_saga([Step("pay"), Step("fail")])
    assert (result.status, result.stuck, world) == ("rolled_back", (), [])


@pytest.mark.parametrize("way", [plan, agents, by_hand, steps], ids=lambda way: way.__name__)
async def test_one_that_an_ordinary_tool_begins_is_asked_about_as_any_other(
    way: Callable[..., Awaitable[None]],
) -> None:
    class Deny(ApprovalHandler):
        async def request_approval(self, request: ApprovalRequest) -> Decision:
            return Decision(False, "not this one")

    tools, world = ToolRegistry(), []
    orchestrator = Orchestrator(tools=tools, approval_handler=Deny())

    @tool(registry=tools)
    async def begin() -> None:
        await way(orchestrator, tools)

    @tool(registry=tools, requires_approval=True)
    async def gate() -> None:
        world.append("passed")

    result = await orchestrator.run_saga([Step("begin")])
    assert (result.ok, world) == (False, [])
    assert "tool 'gate' was not approved by Deny: not this one" in str(result.error)
