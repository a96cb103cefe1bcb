"""Sagas: plans, the scope, and what is undone, in which order, by what."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from agenthelm._runtime.context import current_run
from agenthelm.core.cost import Budget
from agenthelm.core.executor import charge, current_executor
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.exceptions import BudgetExceededError, PlanError, SagaError, StorageError
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.plan import Plan, Ref
from agenthelm.orchestration.runs import Runs
from agenthelm.orchestration.saga import SagaOrchestrator, SagaResult, Step, saga
from tests.support.deadlines import overruns

on_asyncio = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)


class World:
    """What tools do here, in order; and the tools."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.tools = ToolRegistry()
        self.storage = InMemoryStorage()
        log, registry = self.log, self.tools

        @tool(registry=registry, compensating_tool="unbook", side_effects=["booking:write"])
        async def book(name: str) -> dict[str, str]:
            log.append(f"book {name}")
            return {"booking": f"#{name}"}

        @tool(registry=registry, compensating_tool="unbook", side_effects=["booking:write"])
        def book_in_thread(name: str) -> dict[str, str]:
            log.append(f"book {name}")
            return {"booking": f"#{name}"}

        @tool(registry=registry)
        async def unbook(booking: str) -> None:
            log.append(f"unbook {booking}")

        @tool(registry=registry, side_effects=["mail:send"])
        async def send(to: str) -> None:
            log.append(f"send {to}")

        @tool(registry=registry)
        async def fail() -> None:
            raise ValueError("no car left")

        @tool(registry=registry, compensating_tool="close_account")
        async def open_account(idempotency_key: str) -> None:
            log.append(f"open {idempotency_key}")
            raise ConnectionResetError

        @tool(registry=registry)
        async def close_account(idempotency_key: str) -> None:
            log.append(f"close {idempotency_key}")

    def saga(self, **options: Any) -> Any:
        return saga("test", tools=self.tools, storage=self.storage, **options)

    async def execute(self, steps: Any, **options: Any) -> SagaResult:
        orchestrator = SagaOrchestrator(ExecutionTracer(self.storage), self.tools)
        return await orchestrator.execute(steps, **options)

    async def journal(self, run_id: str) -> list[str]:
        return [record.data["type"] for record in await self.storage.read(stream_of(run_id))]


@pytest.fixture
def world() -> World:
    return World()


class TestScope:
    async def test_what_completes_stands(self, world: World) -> None:
        async with world.saga() as scope:
            await scope.use("book", name="a")
        assert world.log == ["book a"]
        assert scope.result.status == "success"
        assert await world.journal(scope.run_id) == ["opened", "begin", "finish", "closed"]

    async def test_what_fails_is_undone_last_first_with_the_results(self, world: World) -> None:
        with pytest.raises(KeyError) as caught:
            async with world.saga() as scope:
                await scope.use("book", name="a")
                await scope.use("book_in_thread", name="b")
                raise KeyError("x")
        assert world.log == ["book a", "book b", "unbook #b", "unbook #a"]
        assert caught.value.saga is scope.result  # type: ignore[attr-defined]
        assert caught.value.run_id == scope.run_id  # type: ignore[attr-defined]
        assert await world.journal(scope.run_id) == [
            "opened", "begin", "finish", "begin", "finish",
            "unwinding", "undoing", "undone", "undoing", "undone", "closed",
        ]  # fmt: skip

    async def test_a_tool_error_that_is_handled_undoes_nothing(self, world: World) -> None:
        async with world.saga() as scope:
            await scope.use("book", name="a")
            with pytest.raises(ValueError, match="no car"):
                await scope.use("fail")
        assert world.log == ["book a"]

    async def test_cancellation_undoes_and_goes_on(self, world: World) -> None:
        with anyio.CancelScope() as cancel:
            async with world.saga() as scope:
                await scope.use("book", name="a")
                cancel.cancel()
                await anyio.sleep_forever()
        assert cancel.cancelled_caught
        assert world.log == ["book a", "unbook #a"]
        assert scope.result.status == "rolled_back"

    @on_asyncio
    @pytest.mark.parametrize("times", [1, 2])
    async def test_native_cancellation_too_once_and_twice(self, world: World, times: int) -> None:
        inside, undoing, go = anyio.Event(), anyio.Event(), anyio.Event()

        @tool(registry=world.tools, compensating_tool="slow_undo", side_effects=["x:write"])
        async def slow() -> None: ...

        @tool(registry=world.tools)
        async def slow_undo() -> None:
            undoing.set()
            await go.wait()
            world.log.append("undone slowly")

        async def body() -> None:
            async with world.saga() as scope:
                await scope.use("book", name="a")
                await scope.use("slow")
                inside.set()
                await anyio.sleep_forever()

        task = asyncio.ensure_future(body())
        await inside.wait()
        task.cancel()
        await undoing.wait()
        if times == 2:
            task.cancel()
            await anyio.wait_all_tasks_blocked()
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.log == ["book a", "undone slowly", "unbook #a"]

    @on_asyncio
    async def test_wait_for_overruns_until_everything_is_undone(self, world: World) -> None:
        inside, let_go = threading.Event(), threading.Event()

        @tool(registry=world.tools, compensating_tool="unbook", side_effects=["x:write"])
        def late(name: str) -> dict[str, str]:
            inside.set()
            let_go.wait(60)
            world.log.append("late effect")
            return {"booking": "late"}

        async def body() -> None:
            async with world.saga() as scope:
                await scope.use("late", name="x")

        await overruns(body(), lambda: anyio.to_thread.run_sync(inside.wait, 60), let_go.set)
        assert world.log == ["late effect", "unbook late"]

    async def test_without_rollback_nothing_is_undone(self, world: World) -> None:
        with pytest.raises(KeyError):
            async with world.saga(rollback=False) as scope:
                await scope.use("book", name="a")
                raise KeyError
        assert world.log == ["book a"]
        assert scope.result.status == "stopped"

    async def test_a_nested_scope_undoes_its_own_at_once_and_nothing_else(self, world: World) -> None:
        async with world.saga() as outer:
            await outer.use("book", name="a")
            with pytest.raises(KeyError):
                async with saga("inner") as inner:
                    await inner.use("book", name="b")
                    raise KeyError
            assert world.log == ["book a", "book b", "unbook #b"]
            assert inner.run_id == outer.run_id
            await outer.use("book", name="c")
        assert world.log[-1] == "book c"
        assert outer.result.status == "success"

    @pytest.mark.parametrize("outer_fails", [False, True])
    async def test_what_a_nested_scope_undid_is_in_the_result_of_the_run(self, world: World, outer_fails: bool) -> None:
        async def body() -> None:
            with pytest.raises(RuntimeError):
                async with saga("inner") as inner:
                    await inner.use("book", name="b")
                    raise RuntimeError("never mind")
            if outer_fails:
                raise ValueError("nor that")

        with pytest.raises(ValueError, match="nor that") if outer_fails else nullcontext():
            async with world.saga() as outer:
                await outer.use("book", name="a")
                await body()
                await outer.use("book", name="c")
        run = await Runs(world.storage).find(outer.run_id)
        assert outer.result.undone == run.saga.undone == (("e2", "e1") if outer_fails else ("e2",))

    async def test_what_a_nested_scope_did_belongs_to_the_outer_one(self, world: World) -> None:
        with pytest.raises(KeyError):
            async with world.saga() as outer:
                async with saga("inner") as inner:
                    await inner.use("book", name="b")
                await outer.use("book", name="c")
                raise KeyError
        assert world.log == ["book b", "book c", "unbook #c", "unbook #b"]

    async def test_a_later_saga_never_undoes_an_earlier_one(self, world: World) -> None:
        async with world.saga() as first:
            await first.use("book", name="a")
        with pytest.raises(KeyError):
            async with world.saga():
                raise KeyError
        assert world.log == ["book a"]

    async def test_a_task_that_outlives_its_run_can_do_nothing(self, world: World) -> None:
        async with world.saga() as scope:
            executor = scope.executor
        with pytest.raises(SagaError, match="had ended"):
            await executor.call("book", {"name": "late"})

    async def test_a_swallowed_stop_is_raised_at_the_edge(self, world: World) -> None:
        @tool(registry=world.tools)
        async def spend() -> None:
            charge(5)

        with pytest.raises(BudgetExceededError) as caught:
            async with world.saga(budget=Budget(usd=1)) as scope:
                await scope.use("book", name="a")
                await scope.use("spend")
                try:
                    await scope.use("book", name="b")
                except Exception:
                    pass
        assert world.log == ["book a", "unbook #a"]
        assert caught.value.saga.status == "rolled_back"  # type: ignore[attr-defined]


class TestDoubt:
    async def test_an_idempotent_compensator_that_needs_no_result_settles_it(self, world: World) -> None:
        with pytest.raises(ConnectionError):
            async with world.saga() as scope:
                await scope.use("open_account")
        (opened, closed) = world.log
        assert opened.removeprefix("open ") == closed.removeprefix("close ")
        assert scope.result.status == "rolled_back"

    async def test_it_also_runs_for_effects_that_failed_cleanly(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="close_account")
        async def half(idempotency_key: str) -> None:
            world.log.append("half done")
            raise ValueError

        with pytest.raises(ValueError):
            async with world.saga() as scope:
                await scope.use("half")
        assert world.log[0] == "half done"
        assert world.log[1].startswith("close ")

    @pytest.mark.parametrize(("answer", "undone"), [(False, []), ({"booking": "found"}, ["unbook found"])])
    async def test_verify_settles_it(self, world: World, answer: Any, undone: list[str]) -> None:
        @tool(registry=world.tools, compensating_tool="unbook", side_effects=["x:write"], verify=lambda: answer)
        async def unsure() -> dict[str, str]:
            await anyio.sleep_forever()
            raise AssertionError

        with anyio.CancelScope() as cancel:
            async with world.saga() as scope, anyio.create_task_group() as group:
                group.start_soon(scope.executor.call, "unsure", {})
                await anyio.wait_all_tasks_blocked()
                cancel.cancel()
        assert world.log == undone
        assert scope.result.status == "rolled_back"

    async def test_what_verify_says_did_not_happen_is_not_undone_though_that_would_be_harmless(
        self, world: World
    ) -> None:
        @tool(registry=world.tools, compensating_tool="close_account", verify=lambda: False)
        async def unsure(idempotency_key: str) -> None:
            await anyio.sleep_forever()

        with anyio.CancelScope() as cancel:
            async with world.saga() as scope, anyio.create_task_group() as group:
                group.start_soon(scope.executor.call, "unsure", {})
                await anyio.wait_all_tasks_blocked()
                cancel.cancel()
        assert (world.log, scope.result.status, scope.result.in_doubt) == ([], "rolled_back", ())
        state = fold(scope.run_id, await world.storage.read(stream_of(scope.run_id)))
        assert state.effects["e1"].status == "undone"

    async def test_otherwise_it_is_reported_and_never_guessed(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="unbook", side_effects=["x:write"])
        async def unsure() -> dict[str, str]:
            raise TimeoutError

        with pytest.raises(TimeoutError) as caught:
            async with world.saga() as scope:
                await scope.use("book", name="a")
                await scope.use("unsure")
        assert world.log == ["book a", "unbook #a"]
        assert scope.result.status == "failed"
        (stuck,) = scope.result.stuck
        assert (stuck.tool, "nobody knows" in stuck.reason) == ("unsure", True)
        assert scope.result.in_doubt == ()  # it is told once, as what got stuck
        assert "not undone: unsure" in caught.value.__notes__[0]

    @pytest.mark.parametrize(
        ("error", "outcome", "status"),
        [(TimeoutError("no answer"), "doubt", "in doubt"), (ValueError("no answer"), "failed", "failed")],
    )
    async def test_the_journal_says_what_the_call_raised(
        self, world: World, error: Exception, outcome: str, status: str
    ) -> None:
        @tool(registry=world.tools, side_effects=["x:write"])
        async def unsure() -> None:
            raise error

        async with world.saga() as scope:
            with pytest.raises(type(error)):
                await scope.use("unsure")
        effect = fold("r", await world.storage.read(stream_of(scope.result.run_id))).effects["e1"]
        assert (effect.outcome, effect.status) == (outcome, status)
        assert scope.result.irreversible == (("e1",) if status == "in doubt" else ())
        assert effect.error == f"{type(error).__name__}: no answer"

    async def test_in_a_run_that_succeeds_it_is_listed_and_left(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="unbook", side_effects=["x:write"])
        async def unsure() -> dict[str, str]:
            raise TimeoutError

        async with world.saga() as scope:
            with pytest.raises(TimeoutError):
                await scope.use("unsure")
        assert scope.result.status == "success"
        assert scope.result.in_doubt == ("e1",)

    @pytest.mark.parametrize("error", [TimeoutError("no answer"), ValueError("no")])
    async def test_a_call_without_an_answer_has_no_result_and_not_the_result_none(
        self, world: World, error: Exception
    ) -> None:
        told: list[str | None] = []

        @tool(registry=world.tools, compensating_tool="forget")
        async def note() -> str | None:
            raise error

        @tool(registry=world.tools)
        async def forget(idempotency_key: str, result: str | None = "unknown") -> None:
            told.append(result)

        @tool(registry=world.tools, compensating_tool="take_back")
        async def hand_out() -> str | None:
            raise error

        @tool(registry=world.tools)
        async def take_back(idempotency_key: str, result: str | None) -> None:
            told.append(result)

        with pytest.raises(KeyError):
            async with world.saga() as scope:
                for name in ("note", "hand_out"):
                    with pytest.raises(type(error)):
                        await scope.use(name)
                raise KeyError
        assert told == ["unknown"]
        in_doubt = isinstance(error, TimeoutError)
        assert [stuck.tool for stuck in scope.result.stuck] == (["hand_out"] if in_doubt else [])

    async def test_doubtful_ones_are_undone_first(self, world: World) -> None:
        with pytest.raises(KeyError):
            async with world.saga() as scope:
                with pytest.raises(ConnectionError):
                    await scope.use("open_account")
                await scope.use("book", name="a")
                raise KeyError
        assert [line.split()[0] for line in world.log] == ["open", "book", "close", "unbook"]


class TestCompensation:
    async def test_a_failing_one_never_stops_the_others_and_is_reported(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="broken", side_effects=["x:write"])
        async def fragile() -> None: ...

        @tool(registry=world.tools)
        async def broken() -> None:
            raise RuntimeError("out of order")

        with pytest.raises(KeyError):
            async with world.saga() as scope:
                await scope.use("book", name="a")
                await scope.use("fragile")
                await scope.use("book", name="b")
                raise KeyError
        assert world.log == ["book a", "book b", "unbook #b", "unbook #a"]
        assert scope.result.status == "failed"
        assert "RuntimeError: out of order" in scope.result.stuck[0].reason
        state = fold(scope.run_id, await world.storage.read(stream_of(scope.run_id)))
        assert [s.status for s in state.effects.values()] == ["undone", "stuck", "undone"]

    async def test_it_has_its_own_retries(self, world: World) -> None:
        tries: list[int] = []

        @tool(registry=world.tools, compensating_tool="flaky", side_effects=["x:write"])
        async def effect() -> None: ...

        @tool(registry=world.tools, retries=2)
        async def flaky() -> None:
            tries.append(1)
            if len(tries) < 3:
                raise RuntimeError

        with pytest.raises(KeyError):
            async with world.saga() as scope:
                await scope.use("effect")
                raise KeyError
        assert len(tries) == 3
        assert scope.result.status == "rolled_back"

    async def test_one_that_hangs_is_stuck_after_its_grace_and_the_rest_go_on(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="hang", side_effects=["x:write"])
        async def effect() -> None: ...

        @tool(registry=world.tools)
        async def hang() -> None:
            await anyio.sleep_forever()

        @tool(registry=world.tools, compensating_tool="last", side_effects=["x:write"])
        async def first() -> None: ...

        @tool(registry=world.tools)
        def last() -> None:  # in a thread, so that it comes to its end however short the grace
            world.log.append("last")

        with pytest.raises(KeyError):
            async with world.saga(grace=0.02) as scope:
                await scope.use("first")
                await scope.use("effect")
                raise KeyError
        assert world.log == ["last"]
        (stuck,) = scope.result.stuck
        assert (stuck.tool, "did not finish" in stuck.reason) == ("effect", True)

    async def test_a_thread_that_hangs_is_awaited_last_and_its_late_success_counts(self, world: World) -> None:
        let_go = threading.Event()

        @tool(registry=world.tools, compensating_tool="slow", side_effects=["x:write"])
        async def effect() -> None: ...

        @tool(registry=world.tools)
        def slow() -> None:
            assert let_go.wait(60)
            world.log.append("slow")

        @tool(registry=world.tools, compensating_tool="last", side_effects=["x:write"])
        async def first() -> None: ...

        @tool(registry=world.tools)
        def last() -> None:
            world.log.append("last")
            let_go.set()

        with pytest.raises(KeyError):
            async with world.saga(grace=0.02) as scope:
                await scope.use("first")
                await scope.use("effect")
                raise KeyError
        assert world.log == ["last", "slow"]
        assert scope.result.status == "rolled_back"

    async def test_irreversible_effects_are_named(self, world: World) -> None:
        with pytest.raises(KeyError):
            async with world.saga() as scope:
                await scope.use("send", to="ada")
                raise KeyError
        assert scope.result.status == "failed"
        assert scope.result.irreversible == ("e1",)
        assert scope.result.stuck[0].reason == "no tool undoes it"

    async def test_it_gets_arguments_then_fields_then_result_and_key(self, world: World) -> None:
        class Booking(BaseModel):
            booking_id: int
            city: str

        got: dict[str, Any] = {}

        @tool(registry=world.tools, compensating_tool="undo_it", side_effects=["x:write"])
        async def do_it(city: str, idempotency_key: str) -> Booking:
            return Booking(booking_id=7, city="from the result")

        @tool(registry=world.tools)
        async def undo_it(city: str, booking_id: int, result: Booking, idempotency_key: str, other: int = 3) -> None:
            got.update(city=city, booking_id=booking_id, result=result, key=idempotency_key, other=other)

        with pytest.raises(KeyError):
            async with world.saga() as scope:
                await scope.use("do_it", city="Lisbon")
                raise KeyError
        assert got["city"] == "Lisbon"
        assert (got["booking_id"], got["other"]) == (7, 3)
        assert got["result"] == Booking(booking_id=7, city="from the result")
        assert got["key"].startswith(scope.run_id)

    async def test_a_result_that_can_not_be_stored_still_drives_a_live_undo(self, world: World) -> None:
        class Handle:
            number = 9

        @tool(registry=world.tools, compensating_tool="close_handle", side_effects=["x:write"])
        async def open_handle() -> Any:
            return Handle()

        @tool(registry=world.tools)
        async def close_handle(result: Any) -> None:
            world.log.append(f"closed {result.number}")

        with pytest.raises(KeyError):
            async with world.saga() as scope:
                await scope.use("open_handle")
                raise KeyError
        assert world.log == ["closed 9"]
        finish = [r.data for r in await world.storage.read(stream_of(scope.run_id)) if r.data["type"] == "finish"]
        assert finish[0]["opaque"] is True

    async def test_an_outer_tools_compensator_covers_what_it_did_inside(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="cancel_trip", side_effects=["trip:write"])
        async def plan_trip() -> None:
            executor = current_executor()
            assert executor is not None
            await executor.call("book", {"name": "inner"})

        @tool(registry=world.tools)
        async def cancel_trip() -> None:
            world.log.append("cancel trip")

        with pytest.raises(KeyError):
            async with world.saga() as scope:
                await scope.use("plan_trip")
                raise KeyError
        assert world.log == ["book inner", "cancel trip"]

    async def test_if_that_can_not_run_the_inner_effects_are_undone_one_by_one(self, world: World) -> None:
        @tool(registry=world.tools, compensating_tool="cancel_trip", side_effects=["trip:write"])
        async def plan_trip() -> dict[str, str]:
            executor = current_executor()
            assert executor is not None
            await executor.call("book", {"name": "inner"})
            raise ValueError("half-way")

        @tool(registry=world.tools)
        async def cancel_trip(result: dict[str, str]) -> None:
            world.log.append("cancel trip")

        with pytest.raises(ValueError, match="half-way"):
            async with world.saga() as scope:
                await scope.use("plan_trip")
        assert world.log == ["book inner", "unbook #inner"]


class TestPlans:
    async def test_steps_run_in_order_and_hand_on_their_results(self, world: World) -> None:
        result = await world.execute([Step("book", {"name": "a"}), Step("send", {"to": Ref("book", "booking")})])
        assert world.log == ["book a", "send #a"]
        assert (result.status, result.result_of("book")) == ("success", {"booking": "#a"})

    async def test_a_failure_undoes_in_reverse_order_of_completion(self, world: World) -> None:
        turn = anyio.Event()

        @tool(registry=world.tools, compensating_tool="unbook", side_effects=["x:write"])
        async def waits() -> dict[str, str]:
            await turn.wait()
            world.log.append("waits")
            return {"booking": "waited"}

        @tool(registry=world.tools, compensating_tool="unbook", side_effects=["x:write"])
        async def goes() -> dict[str, str]:
            world.log.append("goes")
            turn.set()
            return {"booking": "went"}

        result = await world.execute([[Step("waits"), Step("goes")], Step("fail")])
        assert world.log == ["goes", "waits", "unbook waited", "unbook went"]
        assert (result.status, result.error) == ("rolled_back", "ValueError: no car left")

    async def test_siblings_of_a_failed_step_stop_before_anything_is_undone(self, world: World) -> None:
        started = anyio.Event()

        @tool(registry=world.tools, compensating_tool="unbook", side_effects=["x:write"], verify=lambda: False)
        async def slow() -> dict[str, str]:
            started.set()
            await anyio.sleep_forever()
            raise AssertionError

        @tool(registry=world.tools)
        async def fail_then() -> None:
            await started.wait()
            raise ValueError

        result = await world.execute([Step("book", {"name": "a"}), [Step("slow"), Step("fail_then")]])
        assert result.status == "rolled_back"
        assert world.log == ["book a", "unbook #a"]

    async def test_a_dag_runs_each_step_as_soon_as_it_can(self, world: World) -> None:
        plan = [
            Step("book", {"name": "a"}, id="a"),
            Step("book", {"name": "b"}, id="b", depends_on=("a",)),
            Step("book", {"name": "c"}, id="c", depends_on=("a",)),
            Step("send", {"to": Ref("b", "booking")}, id="d", depends_on=("b", "c")),
        ]
        result = await world.execute(plan)
        assert result.status == "success"
        assert (world.log[0], sorted(world.log[1:3]), world.log[3]) == ("book a", ["book b", "book c"], "send #b")

    async def test_stop_leaves_what_was_done(self, world: World) -> None:
        result = await world.execute([Step("book", {"name": "a"}), Step("fail")], on_error="stop")
        assert (result.status, world.log) == ("stopped", ["book a"])

    async def test_continue_goes_on_with_what_does_not_depend_on_the_failure(self, world: World) -> None:
        plan = [
            Step("fail", id="bad"),
            Step("book", {"name": "a"}, id="free"),
            Step("book", {"name": "b"}, id="bound", depends_on=("bad",)),
        ]
        result = await world.execute(plan, on_error="continue")
        assert (result.status, world.log) == ("success", ["book a"])
        assert result.errors == {"bad": "ValueError: no car left", "bound": "not run, because 'bad' failed"}

    async def test_a_step_may_bring_its_own_compensator(self, world: World) -> None:
        @tool(registry=world.tools)
        async def apologise(to: str) -> None:
            world.log.append(f"sorry {to}")

        await world.execute([Step("send", {"to": "ada"}, compensate_with="apologise"), Step("fail")])
        assert world.log == ["send ada", "sorry ada"]

    async def test_deadlines_and_budgets_end_in_results(self, world: World) -> None:
        @tool(registry=world.tools)
        async def hang() -> None:
            await anyio.sleep_forever()

        late = await world.execute([Step("book", {"name": "a"}), Step("hang")], timeout=0.02)
        assert (late.status, late.error) == ("rolled_back", "RunTimeoutError: the run did not finish within 0.02 s")
        poor = await world.execute(
            [Step("book", {"name": "a"}), Step("send", {"to": "b"})], budget=Budget(tool_calls=1)
        )
        assert poor.status == "rolled_back"
        assert isinstance(poor.exception, BudgetExceededError)

    async def test_one_orchestrator_runs_many_plans_at_once(self, world: World) -> None:
        orchestrator = SagaOrchestrator(ExecutionTracer(world.storage), world.tools)
        results: list[SagaResult] = []

        async def one(i: int) -> None:
            steps = [Step("book", {"name": str(i)}), *([Step("fail")] if i % 2 else [])]
            results.append(await orchestrator.execute(steps))

        async with anyio.create_task_group() as group:
            for i in range(20):
                group.start_soon(one, i)
        assert sorted(r.status for r in results) == ["rolled_back"] * 10 + ["success"] * 10
        assert sorted(line for line in world.log if line.startswith("unbook")) == sorted(
            f"unbook #{i}" for i in range(1, 20, 2)
        )

    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            ([], "at least one step"),
            ([[]], "at least one step"),
            ([Step("book"), Step("book")], "two steps are called 'book'"),
            ([Step("book", depends_on=("bok",))], "'bok', which is not in the plan"),
            ([Step("book", depends_on=("send",)), Step("send", depends_on=("book",))], "in a circle: book, send"),
            ([Step("book", depends_on=("book",))], "in a circle"),
            ([Step("send", {"to": Ref("x")})], "'x', which is not in the plan"),
            ([[Step("book", {"name": "a"}), Step("send", {"to": Ref("book")})]], "need not have run before"),
            ([[Step("book"), Step("send")], Step("fail", depends_on=("book",))], "not both"),
            ([Step("bok")], "no tool named 'bok'"),
            ([Step("book", {"nam": "a"})], "takes no 'nam'"),
            ([Step("book", {"name": "a"}, compensate_with="nobody")], "nobody"),
            ([Step("send", {"to": "a"}, compensate_with="unbook")], "'booking'"),
        ],
    )
    async def test_a_bad_plan_is_refused_before_anything_happens(self, world: World, steps: Any, message: str) -> None:
        with pytest.raises(PlanError, match=message):
            await world.execute(steps)
        assert world.log == []
        assert await world.storage.streams() == []

    async def test_a_plan_survives_its_journal(self) -> None:
        plan = Plan.of([Step("a", {"x": 1}), [Step("b.c", {"y": [Ref("a", "p.q")]}), Step("d")]])
        assert Plan.from_data(plan.data()).data() == plan.data()
        assert Plan.from_data(plan.data()).steps["b.c"].arguments == {"y": [Ref("a", "p.q")]}

    async def test_steps_are_named_in_the_events(self, world: World) -> None:
        await world.execute([Step("book", {"name": "a"}, id="hotel"), Step("fail")])
        events = [r.data for r in await world.storage.read("events")]
        assert [(e["tool_name"], e.get("step"), e.get("effect_id"), e.get("compensates")) for e in events] == [
            ("book", "hotel", "e1", None),
            ("fail", "fail", None, None),
            ("unbook", None, None, "e1"),
        ]


class TestDisk:
    async def test_a_journal_that_can_not_be_written_stops_before_the_effect(self, world: World) -> None:
        class Full(InMemoryStorage):
            async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
                if any(r.data.get("type") == "begin" and r.data["arguments"] == {"name": "b"} for r in records):
                    raise StorageError("disk full")
                return await super().append(records, expected)

        world.storage = Full()
        with pytest.raises(StorageError, match="disk full"):
            async with world.saga() as scope:
                await scope.use("book", name="a")
                await scope.use("book", name="b")
        # The journal is broken, so only compensators that are harmless to repeat may run now; the rest is for recovery.
        assert world.log == ["book a"]
        assert scope.result.status == "failed"
        assert "left for recovery" in scope.result.stuck[0].reason

    async def test_idempotent_compensators_run_unrecorded(self, world: World) -> None:
        class Full(InMemoryStorage):
            full = False

            async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
                if self.full:
                    raise StorageError("disk full")
                return await super().append(records, expected)

        storage = world.storage = Full()

        @tool(registry=world.tools, compensating_tool="close_account")
        async def account(idempotency_key: str) -> None:
            world.log.append("account")

        with pytest.raises(KeyError):
            async with world.saga() as scope:
                await scope.use("account")
                storage.full = True
                raise KeyError
        assert [line.split()[0] for line in world.log] == ["account", "close"]
        assert scope.result.status == "rolled_back"


async def test_identity_is_gone_after_the_scope(world: World) -> None:
    async with world.saga():
        assert current_run() is not None
    assert current_run() is None
    assert current_executor() is None
