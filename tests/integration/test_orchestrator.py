"""Runs: agents, flows and plans under one saga, budget, session and trace, alone and inside a service."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any, Literal

import anyio
import dspy
import httpx
import pytest
from fastapi import FastAPI, Request

from agenthelm._runtime.context import current_run
from agenthelm._runtime.progress import Progress
from agenthelm.agent.base import Agent
from agenthelm.core.cost import Budget
from agenthelm.core.storage import SqliteStorage
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import (
    AgentInputError,
    BudgetExceededError,
    PlanError,
    RunNotFoundError,
    RunTimeoutError,
    WiringError,
)
from agenthelm.memory import MemoryHub
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.pipeline import Pipeline
from agenthelm.orchestration.saga import Ref, Step
from agenthelm.testing.lm import ScriptedLM
from tests.support.deadlines import LIMITS
from tests.support.docs_blocks import blocks

on_asyncio = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)


class World:
    """Bookings that tools make and cancel."""

    def __init__(self) -> None:
        self.booked: set[str] = set()
        self.log: list[str] = []
        self.tools = ToolRegistry()
        self.cancelled = anyio.Event()

        @tool(registry=self.tools, compensating_tool="cancel", side_effects=["booking:write"])
        async def book(name: str, idempotency_key: str) -> dict[str, str]:
            self.booked.add(name)
            self.log.append(f"book {name}")
            return {"booking": name}

        @tool(registry=self.tools, compensating_tool="cancel", side_effects=["booking:write"])
        def book_in_thread(name: str, idempotency_key: str) -> dict[str, str]:
            self.booked.add(name)
            self.log.append(f"book {name}")
            return {"booking": name}

        @tool(registry=self.tools)
        async def cancel(booking: str) -> None:
            self.booked.discard(booking)
            self.log.append(f"cancel {booking}")
            self.cancelled.set()


@pytest.fixture
def world() -> World:
    return World()


class Books(Agent):
    """Books something."""

    def __init__(self, name: str = "books", what: str = "room") -> None:
        super().__init__(name=name)
        self.what = what

    async def aforward(self, context: Any, task: str) -> dict[str, str]:
        result: dict[str, str] = await self.ause("book", name=f"{self.what} {task}")
        return {self.name: result["booking"]}


class BooksInThread(Agent):
    """Books something from a worker thread."""

    def forward(self, context: Any, task: str) -> dict[str, str]:
        result = self.use("book_in_thread", name=f"thread {task}")
        context.write("booked", result)
        return {"thread": context.read("booked")["booking"]}


class Fails(Agent):
    """Never works."""

    async def aforward(self, context: Any, task: str) -> dict[str, str]:
        raise RuntimeError(f"no {task}")


class Hangs(Agent):
    """Waits for ever."""

    def __init__(self) -> None:
        super().__init__(name="hangs")

    async def aforward(self, context: Any, task: str) -> dict[str, str]:
        await anyio.sleep_forever()
        return {}


class Answers(Agent):
    """Asks the model."""

    class Signature(dspy.Signature):
        """Answer."""

        question: str = dspy.InputField()
        answer: str = dspy.OutputField()


class TestRuns:
    async def test_a_pipeline_hands_back_its_final_state_without_the_task(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            result = await orchestrator.run_pipeline([Books(), BooksInThread()], "x")
        assert dict(result) == {"books": "room x", "thread": "thread x"}
        assert (result.cost_usd, result.saga.status, result.in_doubt) == (0.0, "success", ())
        assert result.session_id
        assert world.booked == {"room x", "thread x"}

    async def test_what_agents_did_is_undone_when_a_later_one_fails(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            with pytest.raises(RuntimeError, match="no x") as caught:
                await orchestrator.run_pipeline([Books(), BooksInThread(), Fails()], "x")
        assert world.log == ["book room x", "book thread x", "cancel thread x", "cancel room x"]
        assert caught.value.saga.status == "rolled_back"  # type: ignore[attr-defined]
        assert caught.value.run_id  # type: ignore[attr-defined]

    async def test_and_across_parallel_branches(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            with pytest.raises(RuntimeError):
                await orchestrator.run(
                    Pipeline([Parallel([Books("a", "a"), Books("b", "b"), BooksInThread()]), Fails()]), "x"
                )
        assert world.booked == set()
        assert len(world.log) == 6

    async def test_without_rollback_it_stands(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            with pytest.raises(RuntimeError) as caught:
                await orchestrator.run_pipeline([Books(), Fails()], "x", rollback=False)
        assert world.booked == {"room x"}
        assert caught.value.saga.status == "stopped"  # type: ignore[attr-defined]

    async def test_a_collected_branch_that_fails_is_undone_at_once_and_the_others_stand(self, world: World) -> None:
        flow = Parallel(
            [Books("good", "good"), Pipeline([Books("bad", "bad"), Fails()], name="branch")], on_error="collect"
        )
        async with Orchestrator(tools=world.tools) as orchestrator:
            result = await orchestrator.run(flow, "x")
        assert result["errors"] == {"branch": "RuntimeError: no x"}
        assert world.booked == {"good x"}
        assert result.saga.status == "success"

    async def test_a_deadline_undoes_too(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            for seconds in LIMITS:
                with pytest.raises(RunTimeoutError, match=rf"within {seconds:g} s"):
                    await orchestrator.run_pipeline([Books(), Hangs()], "x", timeout=seconds)
                if world.log:
                    break
        assert world.log == ["book room x", "cancel room x"]

    async def test_cancellation_undoes_too(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator, anyio.create_task_group() as group:
            group.start_soon(orchestrator.run_pipeline, [Books(), Hangs()], "x")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert world.log == ["book room x", "cancel room x"]

    @on_asyncio
    @pytest.mark.parametrize("times", [1, 2])
    async def test_so_does_native_cancellation_once_and_twice(self, world: World, times: int) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            task = asyncio.ensure_future(orchestrator.run_pipeline([Books(), Hangs()], "x"))
            await anyio.wait_all_tasks_blocked()
            for _ in range(times):
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert world.log == ["book room x", "cancel room x"]

    async def test_two_hundred_runs_at_once_share_nothing(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            seen: dict[str, str] = {}

            async def one(i: int) -> None:
                agents = [Books(), *([Fails()] if i % 2 else [])]
                try:
                    result = await orchestrator.run_pipeline(agents, str(i), session_id=f"s{i}")
                except RuntimeError:
                    return
                seen[result.session_id] = result["books"]

            async with anyio.create_task_group() as group:
                for i in range(200):
                    group.start_soon(one, i)
        assert seen == {f"s{i}": f"room {i}" for i in range(0, 200, 2)}
        assert world.booked == {f"room {i}" for i in range(0, 200, 2)}


class TestRefusals:
    async def test_wiring_is_checked_before_anything_happens(self, world: World) -> None:
        lm = ScriptedLM([{"answer": "never"}])

        class Needs(Agent):
            async def aforward(self, context: Any, task: str, missing: int) -> dict[str, str]:
                raise AssertionError

        async with Orchestrator(tools=world.tools, lm=lm) as orchestrator:
            with pytest.raises(WiringError, match=r"'needs' needs 'missing'"):
                await orchestrator.run_pipeline([Answers(), Needs()], "x")
            assert await orchestrator.storage.streams() == []
        assert world.log == []
        assert lm.requests == []

    async def test_an_empty_task_is_refused(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            with pytest.raises(AgentInputError, match="task is empty"):
                await orchestrator.run_pipeline([Books()], "  ")

    async def test_inputs_nobody_declares_are_refused(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            with pytest.raises(AgentInputError, match="takes no 'colour'"):
                await orchestrator.run(Books(), "x", inputs={"colour": "red"})

    async def test_an_input_of_the_wrong_type_is_refused_and_one_that_fits_is_made_one(self) -> None:
        class Waits(Agent):
            """Waits."""

            async def aforward(self, context: Any, task: str, wait: float, times: int = 1, note: str = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013
                return {"got": [wait, times, note]}

        orchestrator = Orchestrator()
        for flow in (Waits(), Pipeline([Waits()])):
            with pytest.raises(AgentInputError, match="'waits' takes 'wait' as float, not 'abc'"):
                await orchestrator.run(flow, "x", inputs={"wait": "abc"})
            given = {"wait": "0.5", "times": 2.0, "note": None}
            assert (await orchestrator.run(flow, "x", inputs=given))["got"] == [0.5, 2, None]

    async def test_what_an_input_holds_is_of_its_type_as_well(self) -> None:
        class Tags(Agent):
            """Tags."""

            async def aforward(
                self,
                context: Any,
                tags: list[str],
                limit: int | None = None,
                by: Literal["day", "week"] = "day",
                spans: tuple[int, ...] = (),
                anything: Any = None,
            ) -> Any:
                return {"got": [tags, limit, by, spans, anything]}

        orchestrator = Orchestrator()
        for wrong, message in (
            ({"tags": "a"}, r"'tags' takes 'tags' as list\[str\], not 'a'"),
            ({"tags": [1]}, r"'tags' takes 'tags' as list\[str\], not \[1\]"),
            ({"tags": [], "limit": "x"}, r"'tags' takes 'limit' as int \| None, not 'x'"),
            ({"tags": [], "by": "year"}, r"'tags' takes 'by' as .*Literal\['day', 'week'\], not 'year'"),
            ({"tags": [], "spans": "12"}, r"'tags' takes 'spans' as tuple\[int, \.\.\.\], not '12'"),
            ({1: 2}, r"inputs must be a dict from names to values, not \{1: 2\}"),
            ("tags", "inputs must be a dict from names to values, not 'tags'"),
        ):
            with pytest.raises(AgentInputError, match=message):
                await orchestrator.run(Tags(), inputs=wrong)  # type: ignore[arg-type]
        given = {"tags": ("a",), "limit": None, "by": "week", "spans": [1, 2], "anything": "x"}
        assert (await orchestrator.run(Tags(), inputs=given))["got"] == [["a"], None, "week", (1, 2), "x"]

    async def test_the_task_is_given_once_and_is_a_text(self) -> None:
        orchestrator = Orchestrator()
        with pytest.raises(AgentInputError, match="the task was given twice; leave 'task' out of the inputs"):
            await orchestrator.run(Books(), "x", inputs={"task": "y"})
        task: Any = 1
        with pytest.raises(AgentInputError, match="the task must be a text, not 1"):
            await orchestrator.run(Books(), task)

    async def test_a_misspelt_input_is_refused_with_the_nearest(self, world: World) -> None:
        class Looks(Agent):
            """Looks."""

            async def aforward(self, context: Any, task: str, colour: str = "") -> Any:
                return {}

        with pytest.raises(AgentInputError, match=r"takes no 'color'\. Did you mean 'colour'"):
            await Orchestrator().run(Looks(), "x", inputs={"color": "red"})

    async def test_a_compensation_that_could_never_run_is_an_error_before_the_first_effect(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="cancle")
        async def buy() -> None: ...

        async with Orchestrator(tools=world.tools) as orchestrator:
            with pytest.raises(PlanError, match=r"'cancle'.*'cancel'"):
                await orchestrator.run_pipeline([Books()], "x")
        assert world.log == []


class TestModels:
    async def test_one_model_for_all_and_one_for_each(self) -> None:
        everybody, single = ScriptedLM([{"answer": "all"}]), ScriptedLM([{"answer": "one"}])
        first, second = Answers(name="first"), Answers(name="second")
        async with Orchestrator(lm=everybody, lms={"second": single}) as orchestrator:
            result = await orchestrator.run_parallel([first, second], "why?")
        assert (result["first"]["answer"], result["second"]["answer"]) == ("all", "one")
        assert result.usage.calls == 2
        assert set(result.totals("agent")) == {"first", "second"}

    async def test_a_model_may_be_named(self) -> None:
        async with Orchestrator(lm="offline") as orchestrator:
            result = await orchestrator.run(Answers(), "why?")
        assert "offline" in result["answer"]

    async def test_calls_are_on_record_with_their_agent(self) -> None:
        async with Orchestrator(lm=ScriptedLM([{"answer": "a"}])) as orchestrator:
            result = await orchestrator.run(Answers(name="asker"), "why?")
            events = [r.data for r in await orchestrator.storage.read(EVENTS)]
        assert [(e["kind"], e["agent_name"], e["run_id"]) for e in events] == [("lm", "asker", result.run_id)]

    async def test_a_budget_of_calls_ends_the_run_whatever_is_swallowed(self, world: World) -> None:
        class Stubborn(Agent):
            async def aforward(self, context: Any, task: str) -> dict[str, str]:
                await self.ause("book", name="room")
                answers = []
                for _ in range(5):
                    try:
                        answers.append((await self.ask("question -> answer", question=task)).answer)
                    except Exception:
                        answers.append("swallowed")
                return {"answers": ",".join(answers)}

        lm = ScriptedLM([{"answer": "a"}] * 5)
        async with Orchestrator(tools=world.tools, lm=lm) as orchestrator:
            with pytest.raises(BudgetExceededError) as caught:
                await orchestrator.run(Stubborn(), "x", budget=Budget(calls=2))
        assert (caught.value.scope, len(lm.requests)) == ("run", 2)
        assert world.log == ["book room", "cancel room"]

    async def test_the_error_of_a_failed_run_says_what_was_spent(self, world: World) -> None:
        class Nests(Agent):
            async def aforward(self, context: Any, task: str) -> None:
                await self.ause("book", name="a")
                await orchestrator.run(Pipeline([Answers(), Fails()]), task)

        lm = ScriptedLM([{"answer": "a"}] * 3, input_tokens=7, output_tokens=3)
        async with Orchestrator(lm=lm, tools=world.tools) as orchestrator:
            with pytest.raises(RuntimeError, match="no x") as inner:
                await orchestrator.run(Pipeline([Answers(), Fails()]), "x")
            with pytest.raises(RuntimeError, match="no x") as outer:
                await orchestrator.run(Pipeline([Answers(), Nests()]), "x")
        used = [error.value.usage for error in (inner, outer)]  # type: ignore[attr-defined]
        assert [(usage.calls, usage.tokens, usage.tool_calls) for usage in used] == [(1, 10, 0), (2, 20, 2)]
        assert used[1].cost_usd == 0

    async def test_an_agents_own_budget_ends_the_run_too(self) -> None:
        lm = ScriptedLM([{"answer": "a"}] * 5)
        flow = Pipeline([Answers(name="one"), Answers(name="two")])
        async with Orchestrator(lm=lm, budgets={"two": Budget(calls=0)}) as orchestrator:
            with pytest.raises(BudgetExceededError, match="agent:two"):
                await orchestrator.run(flow, "x", inputs={"question": "why"})
        assert len(lm.requests) == 1

    @pytest.mark.parametrize("way", ["tool", "nested", "other", "branch", "directly"])
    async def test_an_agents_own_budget_is_for_all_its_calls_in_the_run(self, way: str) -> None:
        tools = ToolRegistry()
        answers = Answers(name="two")

        @tool(registry=tools, max_cost=1.0)
        async def consult(question: str) -> str:
            return str((await answers.run(question=question))["answer"])

        class Asks(Agent):
            async def aforward(self, context: Any, task: str) -> None:
                for _ in range(3):
                    if way == "tool":
                        await self.ause("consult", question="why")
                    elif way == "branch":
                        await Parallel([answers], on_error="collect").run(context, question="why")
                    elif way == "directly":
                        await answers.run(question="why")
                    else:
                        await (orchestrator if way == "nested" else other).run(answers, "why")

        lm = ScriptedLM([{"answer": "a"}] * 5)
        other = Orchestrator(lm=lm, tools=tools, budgets={"two": Budget(calls=5, tool_calls=1)})
        async with other, Orchestrator(lm=lm, tools=tools, budgets={"two": Budget(calls=2)}) as orchestrator:
            if way == "branch":  # its branch is refused; the run, which collects, goes on
                assert (await orchestrator.run(Asks(), "x")).usage.calls == 2
            else:
                with pytest.raises(BudgetExceededError, match="agent:two"):
                    await orchestrator.run(Asks(), "x")
        assert len(lm.requests) == 2


class TestNestedRuns:
    async def test_a_nested_run_is_a_part_of_the_outer_one(self, world: World) -> None:
        seen: list[str] = []

        class Nests(Agent):
            async def aforward(self, context: Any, task: str) -> dict[str, str]:
                inner = await orchestrator.run_pipeline([Books()], f"{task} inner")
                seen.append(inner.run_id)
                return {"nested": inner["books"]}

        async with Orchestrator(tools=world.tools) as orchestrator:
            result = await orchestrator.run_pipeline([Nests()], "x")
            assert seen == [result.run_id]
            await orchestrator.undo(result.run_id)
        assert world.log == ["book room x inner", "cancel room x inner"]

    async def test_a_nested_run_that_fails_undoes_its_own_and_the_outer_may_go_on(self, world: World) -> None:
        class Tolerant(Agent):
            async def aforward(self, context: Any, task: str) -> dict[str, str]:
                await self.ause("book", name="outer")
                with pytest.raises(RuntimeError):
                    await orchestrator.run_pipeline([Books(), Fails()], "inner")
                return {"fine": "yes"}

        async with Orchestrator(tools=world.tools) as orchestrator:
            result = await orchestrator.run_pipeline([Tolerant()], "x")
        assert world.log == ["book outer", "book room inner", "cancel room inner"]
        assert result.saga.status == "success"

    async def test_it_stands_under_the_outer_budget(self) -> None:
        class Nests(Agent):
            async def aforward(self, context: Any, task: str) -> dict[str, str]:
                await orchestrator.run(Answers(), task, budget=Budget(calls=99))
                await orchestrator.run(Answers(), task)
                return {"fine": "yes"}

        lm = ScriptedLM([{"answer": "a"}] * 5)
        async with Orchestrator(lm=lm) as orchestrator:
            with pytest.raises(BudgetExceededError, match="of run is 1 call;"):
                await orchestrator.run(Nests(), "x", budget=Budget(calls=1))
        assert len(lm.requests) == 1


class TestAfterwards:
    async def test_a_good_run_can_be_taken_back_once(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            result = await orchestrator.run_pipeline([Books(), BooksInThread()], "x")
            undone = await orchestrator.undo(result.run_id)
            again = await orchestrator.undo(result.run_id)
        assert (undone.status, again.status) == ("rolled_back", "rolled_back")
        assert world.log == ["book room x", "book thread x", "cancel thread x", "cancel room x"]

    async def test_a_run_of_another_process_can_be_taken_back(self, world: World, tmp_path: Any) -> None:
        path = tmp_path / "agenthelm.db"
        async with SqliteStorage(path) as storage, Orchestrator(tools=world.tools, storage=storage) as orchestrator:
            run_id = (await orchestrator.run_pipeline([Books()], "x")).run_id
        async with SqliteStorage(path) as storage, Orchestrator(tools=world.tools, storage=storage) as orchestrator:
            result = await orchestrator.undo(run_id)
        assert (result.status, world.booked) == ("rolled_back", set())

    async def test_an_unknown_run_is_an_error(self) -> None:
        async with Orchestrator() as orchestrator:
            with pytest.raises(RunNotFoundError, match="nope"):
                await orchestrator.undo("nope")

    async def test_plans_run_under_the_same_roof(self, world: World) -> None:
        async with Orchestrator(tools=world.tools) as orchestrator:
            result = await orchestrator.run_saga(
                [Step("book", {"name": "a"}), Step("book", {"name": Ref("book", "booking")}, id="second")]
            )
            assert result.status == "success"
            await orchestrator.undo(result.run_id)
        assert world.log == ["book a", "book a", "cancel a", "cancel a"]


class TestMemory:
    async def test_a_session_goes_on_and_tenants_stay_apart(self) -> None:
        class Counts(Agent):
            async def aforward(self, context: Any, task: str) -> dict[str, int]:
                count = await context.read("count", 0) + 1
                await context.write("count", count)
                return {"count": count}

        async with MemoryHub() as hub, Orchestrator(hub) as orchestrator:
            counts = [
                (await orchestrator.run(Counts(), "x", session_id=session, namespace=namespace))["count"]
                for session, namespace in [("s", "a"), ("s", "a"), ("t", "a"), ("s", "b")]
            ]
        assert counts == [1, 2, 1, 1]


class TestWatching:
    async def test_an_observer_hears_of_agents_and_tools(self, world: World) -> None:
        heard: list[Progress] = []
        async with Orchestrator(tools=world.tools, observer=heard.append) as orchestrator:
            with pytest.raises(RuntimeError):
                await orchestrator.run_pipeline([Books(), Fails()], "x")
        assert [(p.kind, p.name) for p in heard] == [
            ("agent_started", "books"), ("tool_started", "book"), ("tool_finished", "book"), ("agent_finished", "books"),
            ("agent_started", "fails"), ("agent_failed", "fails"),
            ("unwinding", "cancel"), ("tool_started", "cancel"), ("tool_finished", "cancel"), ("undone", "book"),
        ]  # fmt: skip

    async def test_it_hears_whose_a_tool_is_and_what_went_wrong(self) -> None:
        tools, heard = ToolRegistry(), []

        @tool(registry=tools)
        async def refuse() -> None:
            raise ValueError("no room")

        class Asks(Agent):
            async def aforward(self, context: Any, task: str) -> dict[str, Any]:
                with pytest.raises(ValueError, match="no room"):
                    await self.ause("refuse")
                return {}

        async with Orchestrator(tools=tools, observer=heard.append) as orchestrator:
            result = await orchestrator.run(Asks(name="asks"), "x")
        assert [(p.kind, p.agent, p.error, p.run_id) for p in heard if p.name == "refuse"] == [
            ("tool_started", "asks", None, result.run_id),
            ("tool_failed", "asks", "ValueError: no room", result.run_id),
        ]

    async def test_it_hears_which_step_of_a_plan_it_is(self, world: World) -> None:
        heard: list[Progress] = []
        plan = [Step("book", {"name": "room"}, id="hotel"), Step("book", {"name": "seat"}), Step("fail")]

        @tool(registry=world.tools)
        async def fail() -> None:
            raise ValueError

        async with Orchestrator(tools=world.tools, observer=heard.append) as orchestrator:
            await orchestrator.run_saga(plan)
        assert [(p.kind, p.title) for p in heard] == [
            ("tool_started", "book (hotel)"), ("tool_finished", "book (hotel)"),
            ("tool_started", "book"), ("tool_finished", "book"), ("tool_started", "fail"), ("tool_failed", "fail"),
            ("unwinding", "cancel (book)"), ("tool_started", "cancel"), ("tool_finished", "cancel"), ("undone", "book"),
            ("unwinding", "cancel (hotel)"), ("tool_started", "cancel"), ("tool_finished", "cancel"), ("undone", "book (hotel)"),
        ]  # fmt: skip


def documented(name: str, page: str) -> Any:
    """A function as a page of the docs has it."""
    text = (Path(__file__).parents[2] / page).read_text()
    (block,) = [block.text for block in blocks(text) if f"def {name}(" in block.text]
    found: dict[str, Any] = {"anyio": anyio}
    exec(block, found)
    return found[name]


@pytest.mark.parametrize("by_docs", [True, False])
@on_asyncio
async def test_in_a_service_a_client_that_goes_away_takes_its_effects_with_it(world: World, by_docs: bool) -> None:
    import uvicorn

    orchestrator = Orchestrator(tools=world.tools)
    app = FastAPI()
    hanging = anyio.Event()

    class Signals(Hangs):
        async def aforward(self, context: Any, task: str) -> dict[str, str]:
            hanging.set()
            return await super().aforward(context, task)

    @app.get("/fine")
    async def fine() -> dict[str, str]:
        return dict(await orchestrator.run_pipeline([Books()], "fine"))

    @app.get("/hang")
    async def hang(request: Request) -> dict[str, str]:
        run = orchestrator.run_pipeline([Books(), Signals()], "hang", timeout=30)
        return dict(await (unless_gone(request, run) if by_docs else run))

    @app.get("/fail")
    async def fail(request: Request) -> str:
        try:
            await unless_gone(request, orchestrator.run_pipeline([Books(), Fails()], "fail"))
        except RuntimeError as error:
            return str(error.saga.status)  # type: ignore[attr-defined]
        return "fine"

    unless_gone = documented("unless_gone", "docs/concepts/orchestration.md")
    served = app if by_docs else CancelOnDisconnect(app)
    server = uvicorn.Server(uvicorn.Config(served, port=0, log_level="error", lifespan="off"))
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        while not server.started:
            await anyio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert (await client.get("/fine")).json() == {"books": "room fine"}
            assert (await client.get("/fail")).json() == "rolled_back"
            world.cancelled = anyio.Event()
            async with anyio.create_task_group() as requests:
                requests.start_soon(client.get, "/hang")
                await hanging.wait()
                requests.cancel_scope.cancel()
        with anyio.fail_after(60):
            await world.cancelled.wait()
        server.should_exit = True
    assert world.booked == {"room fine"}


class CancelOnDisconnect:
    """ASGI middleware: the handler is cancelled, as a task, when its client goes away."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await receive()
        handler = asyncio.ensure_future(self.app(scope, self._once(body), send))
        gone = asyncio.ensure_future(receive())
        await asyncio.wait({handler, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not handler.done():
            handler.cancel()
        gone.cancel()
        await asyncio.gather(handler, gone, return_exceptions=True)

    @staticmethod
    def _once(message: Any) -> Any:
        messages = [message]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await anyio.sleep_forever()
            raise AssertionError

        return receive


async def test_nothing_is_left_behind(world: World) -> None:
    before = threading.active_count()
    async with Orchestrator(tools=world.tools) as orchestrator:
        for _ in range(5):
            await orchestrator.run_pipeline([Books()], "x")
    assert current_run() is None
    assert threading.active_count() <= before + 1


async def test_runs_leave_nothing_to_the_garbage_collector() -> None:
    """A service that makes many runs gets their memory back at once, and not in pauses of the collector."""
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="unmake")
    async def make(name: str) -> dict[str, str]:
        return {"thing": name}

    @tool(registry=tools)
    def unmake(thing: str) -> None: ...

    @tool(registry=tools)
    def look(name: str) -> str:
        return name

    class Making(Agent):
        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            await self.ause("make", name=task)
            return {"seen": await self.ause("look", name=task)}

    orchestrator = Orchestrator(tools=tools)

    async def some() -> None:
        await orchestrator.run(Parallel([Making(name="a"), Making(name="b")]), "x")
        await orchestrator.run_saga([Step("make", {"name": "c"}), Step("look", {"name": "c"})])

    await some()
    gc.collect()
    gc.disable()
    try:
        await some()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(thing).__qualname__ for thing in gc.garbage if type(thing).__module__.startswith("agenthelm.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
