"""Agents inside real runs: a stop that DSPy would swallow still ends the run, and what was done is undone."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import dspy
import pytest

from agenthelm._runtime import workers
from agenthelm.agent import Agent, ToolAgent
from agenthelm.agent.bridge import await_from_sync
from agenthelm.core.cost import Budget
from agenthelm.core.storage.base import Record
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import (
    ApprovalDeniedError,
    BudgetExceededError,
    ModelCallError,
    ModelNotConfiguredError,
    StorageError,
)
from agenthelm.memory.hub import MemoryHub
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.testing.lm import ScriptedLM
from agenthelm.testing.storage import FaultyStorage
from tests.support.telemetry import recorded

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


class Deaf(Agent):
    """Books, and asks a model three times, whatever that says."""

    async def aforward(self, context, task):  # type: ignore[no-untyped-def]
        await self.ause("book", city="Lisbon")
        for _ in range(3):
            with suppress(Exception):
                await self.ask("task -> answer", task=task)
        return {}


class Blocking(Agent):
    """Books, and asks a model while it blocks the event loop, so that the event is written later."""

    async def aforward(self, context, task):  # type: ignore[no-untyped-def]
        await self.ause("book", city="Lisbon")
        dspy.Predict("task -> answer")(task=task)
        return {}


def is_of_a_model(record: Record) -> bool:
    return record.data.get("kind") == "lm"


@pytest.mark.parametrize("agent", [Deaf(), Blocking()], ids=lambda agent: agent.name)
async def test_a_call_of_a_model_that_can_t_be_put_on_record_ends_the_run(agent: Agent) -> None:
    lm = ScriptedLM([{"answer": "yes"}], repeat=True)
    storage = FaultyStorage(InMemoryStorage(), matching=is_of_a_model)
    async with Orchestrator(lm=lm, tools=TOOLS, storage=storage) as orchestrator:
        with pytest.raises(StorageError) as caught:
            await orchestrator.run(agent, "a trip")
    assert caught.value.saga.status == "rolled_back"  # type: ignore[attr-defined]
    assert (BOOKED, len(lm.requests)) == ([], 1)


class Broke(Blocking):
    """Fails in the end."""

    async def aforward(self, context, task):  # type: ignore[no-untyped-def]
        await super().aforward(context, task)
        raise ValueError("broke")


async def test_such_a_call_does_not_take_the_place_of_the_error_that_ended_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = FaultyStorage(InMemoryStorage(), matching=is_of_a_model)
    lm = ScriptedLM([{"answer": "yes"}])
    async with Orchestrator(lm=lm, tools=TOOLS, storage=storage) as orchestrator:
        with pytest.raises(ValueError, match="broke"):
            await orchestrator.run(Broke(), "a trip")
    assert BOOKED == []
    assert "events of model calls could not be written" in caplog.text


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


CITIES = ["Lisbon", "Porto", "Faro"]
on_asyncio = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)


class Booking(dspy.Module):
    """A module that asks a model and calls a tool of an agent's."""

    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.use = use
        self.predict = dspy.Predict("city -> answer")

    def forward(self, city: str) -> dspy.Prediction:
        return dspy.Prediction(booked=self.use("book", city=city), answer=self.predict(city=city).answer)


class Booker(Agent):
    def forward(self, context: Any, city: str) -> dict[str, Any]:
        return {"booked": self.use("book", city=city)}


def fanned_out(module: dspy.Module) -> list[Any]:
    parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
    return list(parallel([(module, {"city": city}) for city in CITIES]))


class InThreads(Agent):
    """Books in threads that the run did not start, then fails."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, context: Any, task: str) -> None:
        if self.way == "modules":
            results = fanned_out(Booking(self.use))
        elif self.way == "agents":
            results = fanned_out(Booker())
        elif self.way == "batch":
            examples = [dspy.Example(city=city).with_inputs("city") for city in CITIES]
            results = Booking(self.use).batch(examples, num_threads=3, disable_progress_bar=True)
        else:
            with ThreadPoolExecutor(3) as pool:
                calls = [pool.submit(contextvars.copy_context().run, self.use, "book", city=city) for city in CITIES]
                results = [{"booked": call.result()} for call in calls]
        assert [result["booked"] for result in results] == ["booked"] * 3
        assert sorted(BOOKED) == sorted(CITIES)
        raise RuntimeError("boom")


@pytest.mark.parametrize("way", ["modules", "agents", "batch", "copied contexts"])
async def test_tools_called_in_threads_of_an_agents_own_are_undone_with_the_run(way: str) -> None:
    lm = ScriptedLM([{"answer": "yes"}], repeat=True)
    with recorded() as telemetry:
        async with Orchestrator(lm=lm, tools=TOOLS) as orchestrator:
            with pytest.raises(RuntimeError, match="boom") as caught:
                await orchestrator.run(InThreads(way), "go")
    assert BOOKED == []
    assert len(caught.value.saga.undone) == 3  # type: ignore[attr-defined]
    assert caught.value.usage.tool_calls == 6  # type: ignore[attr-defined]
    assert caught.value.usage.calls == (3 if way in {"modules", "batch"} else 0)  # type: ignore[attr-defined]
    assert [span.name for span in telemetry.spans if span.parent is None] == ["invoke_workflow in_threads"]


async def test_without_a_model_threads_find_the_run_as_well() -> None:
    async with Orchestrator(tools=TOOLS, budget=Budget(tool_calls=2)) as orchestrator:
        with pytest.raises(BudgetExceededError):
            await orchestrator.run(InThreads("agents"), "go")
    assert BOOKED == []


@pytest.mark.parametrize("chooses", ["code", "model"])
async def test_a_thread_that_knows_nothing_of_the_run_calls_no_tool(chooses: str) -> None:
    class Pooled(Agent):
        def forward(self, context: Any, task: str) -> None:
            with ThreadPoolExecutor(1) as pool:
                if chooses == "code":
                    pool.submit(self.use, "book", city="Lisbon").result()
                else:  # what a tool loop does with its model's choice
                    pool.submit(await_from_sync, self.tools.call, "book", {"city": "Lisbon"}).result()

    agent = Pooled(tools=[book])
    async with Orchestrator(tools=TOOLS) as orchestrator:
        with pytest.raises(RuntimeError, match="copy_context") as caught:
            await orchestrator.run(agent, "go")
    assert caught.value.saga.status == "rolled_back"  # type: ignore[attr-defined]
    assert BOOKED == []


async def test_a_fan_out_on_the_event_loop_asks_models_and_calls_no_tool() -> None:
    class Blocks(Agent):
        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            def used(name: str, **arguments: Any) -> str:
                with pytest.raises(RuntimeError, match="block"):
                    self.use(name, **arguments)
                return "refused"

            return {"said": [(result.booked, result.answer) for result in fanned_out(Booking(used))]}

    lm = ScriptedLM([{"answer": "yes"}], repeat=True)
    async with Orchestrator(lm=lm, tools=TOOLS) as orchestrator:
        result = await orchestrator.run(Blocks(), "go")
    assert result["said"] == [("refused", "yes")] * 3
    assert result.usage.calls == 3
    assert BOOKED == []


async def test_an_awaited_module_fans_out_in_the_run() -> None:
    class FanOut(dspy.Module):
        def __init__(self, use: Callable[..., Any]) -> None:
            super().__init__()
            self.each = Booking(use)

        def forward(self, task: str) -> dspy.Prediction:
            return dspy.Prediction(booked=[result.booked for result in fanned_out(self.each)])

    class Asks(Agent):
        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            return {"booked": (await self.ask(FanOut(self.use), task=task)).booked}

    lm = ScriptedLM([{"answer": "yes"}], repeat=True)
    async with Orchestrator(lm=lm, tools=TOOLS) as orchestrator:
        result = await orchestrator.run(Asks(), "go")
        assert result["booked"] == ["booked"] * 3
        assert sorted(BOOKED) == sorted(CITIES)
        await orchestrator.undo(result.run_id)
    assert BOOKED == []


@on_asyncio
async def test_asyncios_threads_are_in_the_run() -> None:
    class Hops(Agent):
        async def aforward(self, context: Any, task: str) -> None:
            booking = Booking(self.use)
            await asyncio.gather(*(asyncio.to_thread(booking, city=city) for city in CITIES))
            assert sorted(BOOKED) == sorted(CITIES)
            raise RuntimeError("boom")

    lm = ScriptedLM([{"answer": "yes"}], repeat=True)
    async with Orchestrator(lm=lm, tools=TOOLS) as orchestrator:
        with pytest.raises(RuntimeError, match="boom") as caught:
            await orchestrator.run(Hops(), "go")
    assert caught.value.usage.calls == 3  # type: ignore[attr-defined]
    assert BOOKED == []


async def test_a_thread_does_not_wait_for_ever_for_a_blocked_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.05)

    class Blocks(Agent):
        async def aforward(self, context: Any, task: str) -> None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(contextvars.copy_context().run, self.use, "book", city="Lisbon").result()

    async with Orchestrator(tools=TOOLS) as orchestrator:
        with pytest.raises(RuntimeError, match="block"):
            await orchestrator.run(Blocks(), "go")
    assert BOOKED == []
