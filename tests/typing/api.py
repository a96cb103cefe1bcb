"""The public annotations, read by type checkers and never run: what a user's program looks like to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import agenthelm
from agenthelm import (
    Agent,
    ApprovalDeniedError,
    Budget,
    BudgetExceededError,
    MemoryContext,
    MemoryHub,
    Orchestrator,
    Parallel,
    Pipeline,
    Ref,
    RunResult,
    SagaResult,
    Step,
    SyncMemoryContext,
    Tool,
    ToolContract,
    agent,
    orchestration,
    testing,
    tool,
    tracing,
)

assert_type(agenthelm.__version__, str)

MISSPELT = (
    agenthelm.Budgett,  # type: ignore[attr-defined]
    agent.Agnet,  # type: ignore[attr-defined]
    orchestration.Orchestratr,  # type: ignore[attr-defined]
    testing.ScriptdLM,  # type: ignore[attr-defined]
    tracing.configur,  # type: ignore[attr-defined]
)
"""Names that are not there, and that a type checker must say so of."""


@tool
def bare(city: str) -> int:
    """A bare decorator keeps the function's type."""
    return len(city)


@tool(compensating_tool="cancel", retries=2, timeout=10.0, side_effects=["booking:write"], max_cost=0.05)
async def book(city: str, nights: int, idempotency_key: str) -> dict[str, str]:
    """So does one with fields."""
    return {"booking_id": idempotency_key, "city": city * nights}


assert_type(bare("Lisbon"), int)


class Sync(Agent):
    """A sync agent's context is a sync one."""

    def forward(self, context: SyncMemoryContext, topic: str) -> dict[str, Any]:
        """Overriding with declared inputs is fine."""
        context.write("topic", topic)
        return {"text": self.use("bare", city=topic)}


class Async(Agent):
    """An async agent's context is awaited."""

    async def aforward(self, context: MemoryContext, task: str) -> dict[str, Any]:
        """Overriding with declared inputs is fine."""
        await context.write("task", task)
        return {"booking": await self.ause("book", city=task, nights=1)}


def by_dict(results: dict[str, Any]) -> dict[str, Any]:
    """A merge function may say that it takes a dict."""
    return {"first": next(iter(results.values()))}


def by_mapping(results: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Or as little as it needs."""
    return next(iter(results.values()))


FLOWS = (Parallel([Sync()], merge=by_dict), Parallel([Sync()], by_mapping), Parallel([Sync()], merge=by_mapping))


async def program() -> None:
    """A run, its result, and taking it back."""
    assert_type(await book("Lisbon", 3, "key"), dict[str, str])
    contract: ToolContract = agenthelm.TOOL_REGISTRY["book"].contract
    entry: Tool = agenthelm.TOOL_REGISTRY["bare"]
    print(contract.timeout, entry.name)
    async with MemoryHub() as hub, Orchestrator(hub, lm="offline", budget=Budget(usd=0.50)) as orchestrator:
        result = await orchestrator.run_pipeline([Sync(), Async()], "Three nights in Lisbon", session_id="s")
        assert_type(result, RunResult)
        state: Mapping[str, Any] = result
        print(state["text"], result.run_id, result.cost_usd)
        assert_type(await orchestrator.run(Pipeline([Sync(), Parallel([Async()])]), "again"), RunResult)
        assert_type(await orchestrator.undo(result.run_id), SagaResult)
        assert_type(await orchestrator.recover(), list[SagaResult])
        steps = [Step("book", {"city": "Lisbon", "nights": 3}), Step("bare", {"city": Ref("book", "booking_id")})]
        try:
            assert_type(await orchestrator.run_saga(steps), SagaResult)
        except BudgetExceededError as error:
            assert_type(error.limit, float)
            assert_type(error.run_id, str | None)
            print(error.saga, error.usage)
        except ApprovalDeniedError as error:
            assert_type(error.reason, str)
