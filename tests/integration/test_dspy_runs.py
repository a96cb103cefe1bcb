"""Agents inside real runs: a stop that DSPy would swallow still ends the run, and what was done is undone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import dspy
import pytest

from agenthelm.agent import Agent, ToolAgent
from agenthelm.core.cost import Budget
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import ApprovalDeniedError, BudgetExceededError, ModelCallError, ModelNotConfiguredError
from agenthelm.memory.hub import MemoryHub
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.testing.lm import ScriptedLM

TOOLS = ToolRegistry()
BOOKED: list[str] = []
FINISH = {"next_tool_name": "finish", "next_tool_args": {}}


@tool(registry=TOOLS, compensating_tool="cancel", side_effects=["booking:write"])
async def book(city: str) -> str:
    """Book a hotel."""
    BOOKED.append(city)
    return "booked"


@tool(registry=TOOLS, idempotent=True)
async def cancel(city: str) -> None:
    """Cancel it."""
    if city in BOOKED:
        BOOKED.remove(city)


@tool(registry=TOOLS, requires_approval=True, side_effects=["payment:write"], compensating_tool="cancel")
async def pay(city: str) -> None:
    """Pay."""


@pytest.fixture(autouse=True)
def nothing_booked() -> Iterator[None]:
    BOOKED.clear()
    yield
    BOOKED.clear()


def choose(name: str, **arguments: Any) -> dict[str, Any]:
    return {"next_thought": "so", "next_tool_name": name, "next_tool_args": arguments}


def booker() -> ToolAgent:
    return ToolAgent("booker", signature="task -> answer", tools=[book, pay])


async def test_an_agent_with_tools_leaves_its_effects_when_it_succeeds() -> None:
    lm = ScriptedLM([choose("book", city="Lisbon"), FINISH, {"answer": "done"}])
    async with Orchestrator(lm=lm, tools=TOOLS) as orchestrator:
        result = await orchestrator.run(booker(), "go")
        assert result["answer"] == "done"
        assert result.usage.calls == 3
        assert BOOKED == ["Lisbon"]
        await orchestrator.undo(result.run_id)
    assert BOOKED == []


@pytest.mark.parametrize("budget", [Budget(calls=2), Budget(tool_calls=1)], ids=["calls", "tool_calls"])
async def test_a_used_up_budget_ends_the_loop_and_undoes_what_it_did(budget: Budget) -> None:
    lm = ScriptedLM([choose("book", city="Lisbon"), choose("book", city="Porto"), FINISH, {"answer": "done"}])
    async with Orchestrator(lm=lm, tools=TOOLS, budget=budget) as orchestrator:
        with pytest.raises(BudgetExceededError) as caught:
            await orchestrator.run(booker(), "go")
    assert caught.value.scope == "run"
    assert len(lm.requests) == 2
    assert BOOKED == []


async def test_an_agents_own_budget_ends_its_run() -> None:
    lm = ScriptedLM([choose("book", city="Lisbon"), FINISH, {"answer": "done"}])
    async with Orchestrator(lm=lm, tools=TOOLS, budgets={"booker": Budget(calls=1)}) as orchestrator:
        with pytest.raises(BudgetExceededError, match="agent:booker"):
            await orchestrator.run(booker(), "go")
    assert BOOKED == []


async def test_a_denial_is_seen_by_the_agent_or_ends_the_run() -> None:
    script = [choose("book", city="Lisbon"), choose("pay", city="Lisbon"), FINISH, {"answer": "unpaid"}]
    async with Orchestrator(lm=ScriptedLM(script), tools=TOOLS) as orchestrator:
        assert (await orchestrator.run(booker(), "go"))["answer"] == "unpaid"
    assert BOOKED == ["Lisbon"]
    lm = ScriptedLM(script)
    async with Orchestrator(lm=lm, tools=TOOLS, on_denial="stop") as orchestrator:
        with pytest.raises(ApprovalDeniedError):
            await orchestrator.run(booker(), "go")
    assert len(lm.requests) == 2
    assert BOOKED == ["Lisbon"]


async def test_a_collected_branch_is_undone_alone() -> None:
    class Loser(Agent):
        async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
            await self.ause("book", city="Faro")
            raise ValueError("lost")

    class Winner(Agent):
        def forward(self, context, task: str):  # type: ignore[no-untyped-def]
            return {"booking": self.use("book", city="Porto")}

    async with Orchestrator(tools=TOOLS) as orchestrator:
        result = await orchestrator.run(Parallel([Loser(), Winner()], on_error="collect"), "go")
    assert dict(result) == {"winner": {"booking": "booked"}, "errors": {"loser": "ValueError: lost"}}
    assert BOOKED == ["Porto"]


async def test_a_cancelled_sync_agent_is_undone_and_its_cancellation_goes_on() -> None:
    booked = anyio.Event()

    @tool(registry=(registry := TOOLS.copy()))
    async def wait() -> None:
        booked.set()
        await anyio.sleep_forever()

    class Slow(Agent):
        def forward(self, context, task: str):  # type: ignore[no-untyped-def]
            self.use("book", city="Lisbon")
            self.use("wait")

    async with Orchestrator(tools=registry) as orchestrator:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(orchestrator.run, Slow(), "go")
                await booked.wait()
                assert BOOKED == ["Lisbon"]
                scope.cancel()
        assert scope.cancelled_caught
    assert BOOKED == []


async def test_a_failing_model_is_one_clear_error_and_undoes_what_was_done() -> None:
    lm = ScriptedLM([choose("book", city="Lisbon"), dspy.lm15.AuthError("wrong key")])
    async with Orchestrator(lm=lm, tools=TOOLS) as orchestrator:
        with pytest.raises(ModelCallError, match="wrong key"):
            await orchestrator.run(booker(), "go")
    assert BOOKED == []


async def test_memory_of_a_run_reaches_sync_and_async_agents_alike() -> None:
    class Writes(Agent):
        def forward(self, context, task: str) -> None:  # type: ignore[no-untyped-def]
            context.write("note", task)

    class Reads(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return {"note": await context.read("note")}

    async with MemoryHub() as hub, Orchestrator(hub) as orchestrator:
        result = await orchestrator.run_pipeline([Writes(), Reads()], "remember me", session_id="s")
        assert result["note"] == "remember me"
        again = await orchestrator.run_pipeline([Reads()], "what was it?", session_id="s")
        assert again["note"] == "remember me"
        other = await orchestrator.run_pipeline([Reads()], "what was it?", session_id="other")
        assert other["note"] is None


class Asking(Agent):
    """Asks DSPy itself, from a thread."""

    def forward(self, context: Any, task: str) -> dict[str, Any]:
        return {"answer": dspy.ChainOfThought("task -> answer")(task=task).answer}


class Nesting(Agent):
    """Runs another agent, in a run of its own."""

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        return dict(await Orchestrator().run(Agent("inner", signature="task -> answer"), task))


@pytest.mark.parametrize(
    "agent", [Agent("plain", signature="task -> answer"), Asking(), Nesting(), booker()], ids=lambda agent: agent.name
)
async def test_without_any_model_a_run_says_how_to_give_one(agent: Agent) -> None:
    with (
        dspy.context(lm=None),
        pytest.raises(ModelNotConfiguredError, match=r"Orchestrator\(lm='openai/gpt-4o-mini'\)"),
    ):
        await Orchestrator(tools=TOOLS).run(agent, "go")


async def test_an_agent_with_a_model_of_its_own_needs_no_other() -> None:
    with dspy.context(lm=None):
        result = await Orchestrator().run(
            Agent("own", signature="task -> answer", lm=ScriptedLM([{"answer": "so"}])), "go"
        )
    assert result["answer"] == "so"
