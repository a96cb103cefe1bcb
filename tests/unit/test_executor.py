"""The only door to a tool: each field of a contract, on each path a call can take."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any
from uuid import UUID

import anyio
import anyio.lowlevel
import httpx
import pytest
import typing_extensions
from pydantic import BaseModel, BeforeValidator, SecretStr, StringConstraints
from trio.testing import MockClock

from agenthelm._runtime.context import RunContext, StopMark, entered
from agenthelm._runtime.retry import Backoff
from agenthelm._runtime.workers import Workers, hop_back
from agenthelm.core.cost import Amount, Budget, Ledger
from agenthelm.core.event import ExecutionEvent
from agenthelm.core.executor import ToolExecutor, charge, current_executor, detached
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, AutoApprove, Decision
from agenthelm.core.redaction import Redacted
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import Tool, ToolContract, ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.exceptions import (
    ApprovalDeniedError,
    BudgetExceededError,
    OutcomeUnknown,
    StorageError,
    ToolInputError,
    ToolOutputError,
    ToolTimeoutError,
    UnknownToolError,
)
from agenthelm.orchestration.saga import saga

on_asyncio = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)

TIME = MockClock()
"""An event loop's own time, which passes only when a test says so."""


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await anyio.lowlevel.checkpoint()


class Door:
    """An executor in a run, with everything that can be looked at."""

    def __init__(self, **options: Any) -> None:
        self.tools = ToolRegistry()
        self.storage = options.pop("storage", InMemoryStorage())
        self.clock = Clock()
        self.stop = StopMark()
        self.ledger = Ledger("run", options.pop("budget", None), stop=self.stop)
        self.executor = ToolExecutor(self.tools, self.storage, ledger=self.ledger, clock=self.clock, **options)
        self.context = RunContext("run", "session", "tenant", agent="agent", step="step", stops=(self.stop,))

    async def call(self, name: str, /, **arguments: Any) -> Any:
        with entered(self.context):
            return await self.executor.call(name, arguments)

    async def events(self) -> list[ExecutionEvent]:
        return [ExecutionEvent.model_validate(dict(r.data)) for r in await self.storage.read(EVENTS)]

    async def event(self) -> ExecutionEvent:
        (event,) = await self.events()
        return event


@pytest.fixture
def door() -> Door:
    return Door()


class TestCalling:
    async def test_sync_and_async_tools_run_with_validated_arguments(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def double(x: int) -> int:
            return x * 2

        @tool(registry=door.tools)
        def triple(x: int) -> int:
            return x * 3

        assert await door.call("double", x="2") == 4
        assert await door.call("triple", x="2") == 6
        first, second = await door.events()
        assert (first.tool_name, first.inputs, first.outputs) == ("double", {"x": 2}, {"result": 4})
        assert second.outcome == "success"

    async def test_an_event_says_who_did_what_where(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def look(x: int) -> None: ...

        await door.call("look", x=1)
        event = await door.event()
        assert (event.run_id, event.session_id, event.namespace, event.agent_name, event.step) == (
            "run", "session", "tenant", "agent", "step",
        )  # fmt: skip
        assert event.kind == "tool"
        assert len(event.digest or "") == 64

    async def test_a_sync_tool_does_not_block_the_loop(self, door: Door) -> None:
        inside, let_go = threading.Event(), threading.Event()

        @tool(registry=door.tools)
        def wait() -> bool:
            inside.set()
            return let_go.wait(60)

        async def answer() -> None:
            while not inside.is_set():
                await anyio.lowlevel.checkpoint()
            let_go.set()  # only possible if the loop still runs

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            assert await door.call("wait") is True

    async def test_cpu_bound_tools_run_in_a_process(self, door: Door) -> None:
        door.tools.register(Tool.from_function(os.getpid, ToolContract(runs_in="process"), name="process_id"))
        assert await door.call("process_id") != os.getpid()

    async def test_also_with_positional_arguments(self, door: Door) -> None:
        door.tools.register(Tool.from_function(divmod, ToolContract(runs_in="process", inputs={"x": int, "y": int})))
        assert await door.call("divmod", x=7, y=2) == (3, 1)

    async def test_an_unknown_tool_and_one_that_was_not_given(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def transfer() -> None: ...

        with pytest.raises(UnknownToolError, match="transfer"):
            await door.call("tranfer")
        with entered(door.context), pytest.raises(UnknownToolError, match="this agent was given"):
            await door.executor.call("transfer", {}, allowed={"look"})
        assert [e.outcome for e in await door.events()] == ["invalid", "invalid"]

    async def test_what_is_allowed_can_be_called_by_name(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def look() -> str:
            return "seen"

        assert await door.executor.call("look", {}, allowed={"look", "transfer"}) == "seen"

    async def test_wrong_arguments_never_reach_the_tool(self, door: Door) -> None:
        @tool(registry=door.tools, retries=3)
        async def look(x: int) -> None:
            raise AssertionError("reached")

        with pytest.raises(ToolInputError):
            await door.call("look", x="nonsense")
        event = await door.event()
        assert (event.outcome, event.retry_count, event.error_type) == ("invalid", 0, "ToolInputError")

    async def test_a_result_that_does_not_fit_is_an_error_and_never_retried(self, door: Door) -> None:
        calls = []

        @tool(registry=door.tools, retries=3)
        async def look() -> int:
            calls.append(1)
            return "nonsense"  # type: ignore[return-value]

        with pytest.raises(ToolOutputError):
            await door.call("look")
        assert len(calls) == 1
        assert (await door.event()).outcome == "invalid"

    async def test_inside_a_tool_other_tools_go_through_the_same_door(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def inner() -> int:
            return 1

        @tool(registry=door.tools)
        async def outer() -> int:
            executor = current_executor()
            assert executor is not None
            return await executor.call("inner", {}) + 1

        assert await door.call("outer") == 2
        assert [e.tool_name for e in await door.events()] == ["inner", "outer"]

    async def test_an_attempt_can_not_change_what_the_next_one_gets(self, door: Door) -> None:
        seen: list[list[int]] = []

        @tool(registry=door.tools, retries=1, backoff=Backoff(initial=0))
        async def spoil(items: list[int]) -> None:
            seen.append(list(items))
            items.clear()
            raise OSError

        with pytest.raises(OSError):
            await door.call("spoil", items=[1, 2])
        assert seen == [[1, 2], [1, 2]]
        assert (await door.event()).inputs == {"items": [1, 2]}

    async def test_a_coroutine_that_nobody_awaited_is_no_result(self, door: Door) -> None:
        async def look() -> str:
            raise AssertionError("reached")

        @functools.lru_cache
        def wrapped() -> Any:
            return look()

        door.tools.register(Tool.from_function(wrapped, name="look"))
        with pytest.raises(ToolOutputError, match="async def") as refused:
            await door.call("look")
        event = await door.event()
        assert (event.outcome, event.error_type) == ("invalid", "ToolOutputError")
        assert event.error_state == f"ToolOutputError: {refused.value}"

    async def test_a_key_from_an_earlier_try_stands_over_one_among_the_arguments(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def pay(idempotency_key: str) -> str:
            return idempotency_key

        assert await door.call("pay", idempotency_key="given") == "given"
        with entered(door.context):
            assert await door.executor.call("pay", {"idempotency_key": "given"}, key="earlier") == "earlier"

    @pytest.mark.parametrize(
        ("kind", "given"),
        [
            (Annotated[str, StringConstraints(to_upper=True)], None),
            (Annotated[str, StringConstraints(strip_whitespace=True)], " K1\n"),
            (Annotated[str, BeforeValidator(lambda key: f"app-{key}")], None),
        ],
    )
    async def test_a_key_that_its_type_changes_is_refused_because_what_undoes_it_would_get_another(
        self, door: Door, kind: Any, given: str | None
    ) -> None:
        @tool(registry=door.tools, side_effects=["pay:send"], inputs={"idempotency_key": kind})
        async def pay(idempotency_key: str) -> None:
            raise AssertionError("never called")

        with pytest.raises(ToolInputError, match="give a key that it leaves as it is"):
            await door.call("pay", idempotency_key=given)
        assert (await door.event()).outcome == "invalid"

    async def test_what_undoes_it_is_not_called_with_another_key_because_of_its_own_type(self) -> None:
        tools = ToolRegistry()

        @tool(registry=tools, compensating_tool="refund")
        async def pay(idempotency_key: str) -> None: ...

        @tool(registry=tools, inputs={"idempotency_key": Annotated[str, StringConstraints(to_upper=True)]})
        async def refund(idempotency_key: str) -> None:
            raise AssertionError("never called")

        with pytest.raises(ZeroDivisionError):
            async with saga(tools=tools) as scope:
                await scope.use("pay", idempotency_key="k1")
                raise ZeroDivisionError
        assert scope.result is not None
        (stuck,) = scope.result.stuck
        assert "would go by different keys" in stuck.reason

    @pytest.mark.parametrize(("kind", "given"), [(Any, 5), (int, 5), (UUID, UUID(int=5))])
    async def test_a_key_that_is_no_text_is_known_by_the_text_of_it(self, kind: Any, given: Any) -> None:
        tools, keys = ToolRegistry(), []

        @tool(registry=tools, compensating_tool="refund", inputs={"idempotency_key": kind})
        async def pay(idempotency_key: Any) -> None:
            keys.append(str(idempotency_key))

        @tool(registry=tools)
        async def refund(idempotency_key: str) -> None:
            keys.append(idempotency_key)

        with pytest.raises(ZeroDivisionError):
            async with saga(tools=tools) as scope:
                await scope.use("pay", idempotency_key=given)
                raise ZeroDivisionError
        assert (keys, scope.result.status) == ([str(given)] * 2, "rolled_back")


class TestRetries:
    async def test_only_the_executor_retries_and_counts_right(self, door: Door) -> None:
        calls = []

        @tool(registry=door.tools, retries=3, backoff=Backoff(initial=1, factor=2, jitter=False))
        async def flaky() -> str:
            calls.append(1)
            if len(calls) < 4:
                raise OSError("try again")
            return "done"

        assert await door.call("flaky") == "done"
        assert len(calls) == 4
        assert door.clock.slept == [1, 2, 4]
        event = await door.event()
        assert (event.retry_count, event.outcome, event.error_state) == (3, "success", None)

    @pytest.mark.parametrize("what", ["ask", "pay", "look", "give", "nothing"])
    async def test_a_denial_a_budget_or_what_does_not_fit_inside_a_tool_is_not_retried(self, what: str) -> None:
        door = Door(budget=Budget(usd=0.1))
        calls = []

        @tool(registry=door.tools, requires_approval=True)
        async def ask() -> None: ...

        @tool(registry=door.tools, max_cost=5.0)
        async def pay() -> None: ...

        @tool(registry=door.tools)
        async def look(x: int) -> None: ...

        @tool(registry=door.tools)
        async def give() -> int:
            return "none"  # type: ignore[return-value]

        @tool(registry=door.tools, retries=3, backoff=Backoff(initial=0))
        async def outer() -> None:
            calls.append(1)
            executor = current_executor()
            assert executor is not None
            await executor.call(what, {})

        with pytest.raises(
            (ApprovalDeniedError, BudgetExceededError, ToolInputError, ToolOutputError, UnknownToolError)
        ):
            await door.call("outer")
        assert len(calls) == 1
        assert door.clock.slept == []

    async def test_only_what_the_contract_names_is_retried(self, door: Door) -> None:
        calls = []

        @tool(registry=door.tools, retries=3, retry_on=OSError)
        async def f() -> None:
            calls.append(1)
            raise KeyError("x")

        with pytest.raises(KeyError):
            await door.call("f")
        assert len(calls) == 1

    @pytest.mark.parametrize(("others", "attempts"), [([], 4), ([TimeoutError()], 4), ([KeyError("x")], 1)])
    async def test_a_group_is_retried_if_all_in_it_would_be(
        self, door: Door, others: list[Exception], attempts: int
    ) -> None:
        calls = []

        @tool(registry=door.tools, retries=3, retry_on=OSError)
        async def f() -> None:
            calls.append(1)
            raise ExceptionGroup("several", [ExceptionGroup("inner", [ConnectionError("gone")]), *others])

        with pytest.raises(ExceptionGroup):
            await door.call("f")
        assert len(calls) == attempts

    async def test_a_peer_that_says_when_to_come_back_is_obeyed(self, door: Door) -> None:
        class BusyError(OSError):
            retry_after = 17.0

        @tool(registry=door.tools, retries=1, backoff=Backoff(initial=0.1))
        async def f() -> None:
            raise BusyError

        with pytest.raises(BusyError):
            await door.call("f")
        assert door.clock.slept == [17.0]

    @pytest.mark.parametrize(("longest", "calls", "slept"), [(86_400.0, 2, [7200.0]), (7199.0, 1, [])])
    async def test_a_peer_that_asks_for_more_than_anybody_waits_is_not_asked_again(
        self, door: Door, longest: float, calls: int, slept: list[float]
    ) -> None:
        class BusyError(OSError):
            retry_after = 7200.0

        asked = []

        @tool(registry=door.tools, retries=1, backoff=Backoff(initial=0.1, longest_wait=longest))
        async def f() -> None:
            asked.append(1)
            raise BusyError

        with pytest.raises(BusyError):
            await door.call("f")
        assert (len(asked), door.clock.slept) == (calls, slept)

    async def test_the_retry_after_header_of_a_response_is_obeyed(self, door: Door) -> None:
        @tool(registry=door.tools, retries=1, backoff=Backoff(initial=0.1))
        async def fetch() -> None:
            request = httpx.Request("GET", "http://peer")
            httpx.Response(503, headers={"Retry-After": "17"}, request=request).raise_for_status()

        with pytest.raises(httpx.HTTPStatusError):
            await door.call("fetch")
        assert door.clock.slept == [17.0]

    async def test_a_late_failure_is_not_retried_past_a_stop(self, door: Door) -> None:
        calls = []

        @tool(registry=door.tools, retries=3, backoff=Backoff(initial=0))
        async def flaky() -> None:
            calls.append(1)
            door.stop.set(BudgetExceededError(scope="run", resource="calls", limit=1, spent=1, requested=1))
            raise OSError

        with pytest.raises(BudgetExceededError):
            await door.call("flaky")
        assert len(calls) == 1

    @pytest.mark.parametrize("idempotent", [True, False])
    async def test_an_effect_in_doubt_is_retried_only_if_that_is_harmless(self, door: Door, idempotent: bool) -> None:
        calls = []

        @tool(
            registry=door.tools, retries=2, side_effects=["pay:send"], idempotent=idempotent, backoff=Backoff(initial=0)
        )
        async def pay() -> None:
            calls.append(1)
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await door.call("pay")
        assert len(calls) == (3 if idempotent else 1)
        assert (await door.event()).outcome == "in_doubt"

    async def test_doubt_survives_a_later_clean_failure(self, door: Door) -> None:
        errors = iter([OutcomeUnknown("?"), ValueError("no")])

        @tool(registry=door.tools, retries=1, side_effects=["pay:send"], idempotent=True, backoff=Backoff(initial=0))
        async def pay() -> None:
            raise next(errors)

        with pytest.raises(ValueError, match="no"):
            await door.call("pay")
        assert (await door.event()).outcome == "in_doubt"

    async def test_a_success_ends_the_doubt(self, door: Door) -> None:
        errors = iter([TimeoutError(), None])

        @tool(registry=door.tools, retries=1, side_effects=["pay:send"], idempotent=True, backoff=Backoff(initial=0))
        async def pay() -> None:
            error = next(errors)
            if error is not None:
                raise error

        await door.call("pay")
        assert (await door.event()).outcome == "success"

    async def test_the_key_is_stable_over_retries_and_new_for_each_call(self, door: Door) -> None:
        keys: list[str] = []

        @tool(registry=door.tools, retries=1, backoff=Backoff(initial=0))
        async def pay(idempotency_key: str) -> None:
            keys.append(idempotency_key)
            if len(keys) == 1:
                raise OSError

        await door.call("pay")
        await door.call("pay")
        assert keys[0] == keys[1] != keys[2]
        with entered(door.context):
            await door.executor.call("pay", {}, key="mine")
        assert keys[3] == "mine"

    async def test_a_type_without_a_message_is_still_a_failure(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def f() -> None:
            raise AssertionError

        with pytest.raises(AssertionError):
            await door.call("f")
        event = await door.event()
        assert (event.outcome, event.error_state, event.error_type) == ("failed", "AssertionError", "AssertionError")


class TestDeadlines:
    async def test_an_async_tool_is_cancelled_at_once(self, door: Door) -> None:
        @tool(registry=door.tools, timeout=0.02)
        async def hang() -> None:
            await anyio.sleep_forever()

        with pytest.raises(ToolTimeoutError, match=r"0\.02 s") as caught:
            await door.call("hang")
        assert isinstance(caught.value, TimeoutError)
        assert (await door.event()).outcome == "timeout"

    async def test_the_deadline_is_of_one_attempt(self, door: Door) -> None:
        calls = []

        @tool(registry=door.tools, timeout=0.02, retries=2, backoff=Backoff(initial=0))
        async def hang() -> str:
            calls.append(1)
            if len(calls) < 3:
                await anyio.sleep_forever()
            return "third time"

        assert await door.call("hang") == "third time"

    async def test_a_late_sync_tool_is_a_success_marked_late_and_not_retried(self, door: Door) -> None:
        calls = []

        @tool(registry=door.tools, timeout=5, retries=3)
        def slow() -> str:
            calls.append(1)
            door.clock.now += 6
            return "value"

        assert await door.call("slow") == "value"
        event = await door.event()
        assert (event.late, event.outcome, len(calls)) == (True, "success", 1)

    async def test_waiting_for_a_thread_makes_nobody_late(self) -> None:
        door = Door(workers=Workers(1))
        entered, let_go = threading.Event(), threading.Event()

        @tool(registry=door.tools, timeout=5)
        def wait() -> None:
            entered.set()
            let_go.wait(60)

        @tool(registry=door.tools, timeout=5)
        def look() -> None: ...

        async with anyio.create_task_group() as group:
            group.start_soon(door.call, "wait")
            await anyio.to_thread.run_sync(entered.wait, 60)
            group.start_soon(door.call, "look")
            await anyio.wait_all_tasks_blocked()
            door.clock.now += 6
            let_go.set()
        assert {event.tool_name: event.late for event in await door.events()} == {"wait": True, "look": False}

    @pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {"clock": TIME}), id="trio")])
    async def test_neither_does_it_end_a_tool_that_could_be_let_go(self) -> None:
        door = Door(workers=Workers(1))
        let_go = threading.Event()
        waiting = door.executor.workers

        @tool(registry=door.tools, timeout=5, abandonable=True)
        def look() -> str:
            return "value"

        seen: list[str] = []

        async def call() -> None:
            seen.append(await door.call("look"))

        async with anyio.create_task_group() as group:
            group.start_soon(waiting.run_abandonable, let_go.wait, 60)
            await anyio.lowlevel.checkpoint()
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            TIME.jump(6)  # past the deadline, and the place is still taken
            await anyio.wait_all_tasks_blocked()
            let_go.set()
        assert seen == ["value"]

    async def test_an_abandonable_tool_is_let_go(self, door: Door) -> None:
        let_go = threading.Event()

        @tool(registry=door.tools, timeout=0.02, abandonable=True)
        def hang() -> None:
            let_go.wait(60)

        with pytest.raises(ToolTimeoutError):
            await door.call("hang")
        let_go.set()

    async def test_a_deadline_leaves_an_effect_in_doubt(self, door: Door) -> None:
        @tool(registry=door.tools, timeout=0.02, side_effects=["pay:send"])
        async def hang() -> None:
            await anyio.sleep_forever()

        with pytest.raises(ToolTimeoutError):
            await door.call("hang")
        assert (await door.event()).outcome == "in_doubt"

    @on_asyncio
    async def test_what_a_tool_makes_of_a_time_limit_of_its_own_is_its_answer(self, door: Door) -> None:
        @tool(registry=door.tools, side_effects=["pay:send"])
        async def pay() -> None:
            try:
                async with asyncio.timeout(0):
                    await anyio.sleep_forever()
            except TimeoutError as late:
                raise ValueError("no connection, so nothing was sent") from late

        with pytest.raises(ValueError, match="nothing was sent"):
            await door.call("pay")
        assert (await door.event()).outcome == "failed"


class TestVerify:
    @pytest.mark.parametrize(("answer", "outcome"), [(None, "timeout"), (False, "timeout")])
    async def test_it_did_not_happen(self, door: Door, answer: Any, outcome: str) -> None:
        @tool(registry=door.tools, side_effects=["pay:send"], verify=lambda: answer)
        async def pay() -> int:
            raise TimeoutError

        with pytest.raises(TimeoutError):
            await door.call("pay")
        assert [e.outcome for e in await door.events()] == ["success", outcome]

    async def test_it_did_with_this_result(self, door: Door) -> None:
        asked: list[Any] = []

        async def look(amount: int, idempotency_key: str) -> int:
            asked.append((amount, idempotency_key))
            return 7

        keys: list[str] = []

        @tool(registry=door.tools, side_effects=["pay:send"], verify=look)
        async def pay(amount: int, idempotency_key: str) -> int:
            keys.append(idempotency_key)
            raise ConnectionError

        assert await door.call("pay", amount=3) == 7
        assert asked == [(3, keys[0])]

    async def test_it_did_but_its_result_is_lost(self, door: Door) -> None:
        @tool(registry=door.tools, side_effects=["pay:send"], verify=lambda: True)
        async def pay() -> int:
            raise ConnectionError("cut")

        with pytest.raises(ConnectionError, match="cut") as caught:
            await door.call("pay")
        assert "its result is lost" in caught.value.__notes__[0]

    async def test_a_verify_knows_the_types_of_the_place_it_is_defined_at(self, door: Door) -> None:
        class Transfer(BaseModel):
            amount: float

        def look(transfer: Transfer) -> Transfer:
            return transfer

        @tool(registry=door.tools, side_effects=["pay:send"], verify=look)
        async def f(transfer: Transfer) -> Transfer:
            raise OutcomeUnknown

        assert await door.call("f", transfer={"amount": 5}) == Transfer(amount=5)

    async def test_a_verify_that_raises_leaves_the_doubt(self, door: Door) -> None:
        def look() -> bool:
            raise OSError

        @tool(registry=door.tools, side_effects=["pay:send"], verify=look)
        async def pay() -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await door.call("pay")
        assert [e.outcome for e in await door.events()] == ["failed", "in_doubt"]


class Order(BaseModel):
    amount: float


class Asked(ApprovalHandler):
    """Remembers what it was asked."""

    def __init__(self, decision: Any) -> None:
        self.decision = decision
        self.requests: list[ApprovalRequest] = []

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        self.requests.append(request)
        return self.decision(request) if callable(self.decision) else self.decision


class TestApproval:
    async def test_without_anybody_to_ask_it_is_denied(self, door: Door) -> None:
        @tool(registry=door.tools, requires_approval=True, retries=5)
        async def pay() -> None:
            raise AssertionError("reached")

        with pytest.raises(PermissionError) as caught:
            await door.call("pay")
        assert isinstance(caught.value, ApprovalDeniedError)
        event = await door.event()
        assert (event.outcome, event.approver, event.retry_count) == ("denied", "auto-deny", 0)
        assert event.approval_reason == "no approval handler is configured"

    @pytest.mark.parametrize("approved", [True, False])
    @pytest.mark.parametrize(
        ("said", "kept"),
        [
            (42, "42"),
            (["ann", "bob"], "['ann', 'bob']"),
            ("bot token=sk-abcdefghijklmnop", "bot token=***"),
            ("caf\udce9", "caf\\udce9"),
            (f"password=hunter22 {'y' * 100_000}", f"password=*** {'y' * 982}"),
        ],
    )
    async def test_whatever_a_handler_says_the_record_can_hold_and_show(
        self, approved: bool, said: Any, kept: str
    ) -> None:
        door = Door(approval_handler=Asked(Decision(approved, said, said)))

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None:
            """Pay."""

        if approved:
            await door.call("pay")
        else:
            with pytest.raises(ApprovalDeniedError) as caught:
                await door.call("pay")
            assert (caught.value.approver[:995], caught.value.reason[:995]) == (kept, kept)
        event = await door.event()
        assert str(event.approver)[:995] == str(event.approval_reason)[:995] == kept
        assert len(str(event.approver)) < 1100

    async def test_a_handler_that_breaks_when_it_picks_its_calls_is_a_denial_too(self) -> None:
        class Broken(Asked):
            gates = True

            def covers(self, request: ApprovalRequest) -> bool:
                raise KeyError(request.tool_name)

        door = Door(approval_handler=Broken(Decision(True)))

        @tool(registry=door.tools)
        async def look() -> None:
            raise AssertionError("reached")

        with pytest.raises(ApprovalDeniedError, match=r"the handler failed \(KeyError: 'look'\)"):
            await door.call("look")
        assert (await door.event()).outcome == "denied"

    async def test_what_is_asked_is_what_is_run(self) -> None:
        handler = Asked(Decision(True, "fine", "Ada"))
        door = Door(approval_handler=handler)
        ran: list[Any] = []

        @tool(registry=door.tools, requires_approval=True, side_effects=["pay:send"], tags=["money"], max_cost=1.0)
        async def pay(to: str, amount: int = 5) -> None:
            """Send money."""
            ran.append((to, amount))

        await door.call("pay", to="Bob")
        (request,) = handler.requests
        assert (dict(request.arguments), ran) == ({"to": "Bob", "amount": 5}, [("Bob", 5)])
        assert (request.agent, request.run_id, request.reason) == ("agent", "run", "Send money.")
        assert (request.session_id, request.namespace, request.max_cost) == ("session", "tenant", 1.0)
        assert (request.side_effects, request.tags, request.irreversible) == (("pay:send",), ("money",), True)
        with pytest.raises(TypeError):
            request.arguments["to"] = "Eve"  # type: ignore[index]
        event = await door.event()
        assert (event.approver, event.approval_reason, event.digest) == ("Ada", "fine", request.digest)

    @pytest.mark.parametrize(
        ("does", "undone_by", "irreversible"),
        [(["pay:send"], None, True), (["pay:send"], "refund", False), (["pay:read"], None, False), ([], None, False)],
    )
    async def test_who_is_asked_is_told_whether_it_can_be_taken_back(
        self, does: list[str], undone_by: str | None, irreversible: bool
    ) -> None:
        handler = Asked(Decision(True))
        door = Door(approval_handler=handler)

        @tool(registry=door.tools, requires_approval=True, side_effects=does, compensating_tool=undone_by)
        async def pay() -> None: ...

        @tool(registry=door.tools)
        async def refund() -> None: ...

        await door.call("pay")
        (request,) = handler.requests
        assert (request.compensating_tool, request.irreversible) == (undone_by, irreversible)

    async def test_who_is_asked_is_shown_nothing_that_a_hook_takes_out(self) -> None:
        handler = Asked(Decision(True))
        door = Door(approval_handler=handler, redact=lambda name, value: "gone" if name == "iban" else value)

        @tool(registry=door.tools, requires_approval=True)
        async def pay(iban: str, to: dict[str, str]) -> None: ...

        await door.call("pay", iban="DE00", to={"name": "Bob", "iban": "DE00"})
        assert dict(handler.requests[0].arguments) == {"iban": "gone", "to": {"name": "Bob", "iban": "gone"}}

    async def test_a_denial_without_a_reason_says_so(self) -> None:
        door = Door(approval_handler=Asked(Decision(False, approver="Ada")))

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None: ...

        with pytest.raises(ApprovalDeniedError, match="no reason given"):
            await door.call("pay")
        event = await door.event()
        assert (event.approver, event.approval_reason) == ("Ada", "no reason given")

    @pytest.mark.parametrize(("late", "digest"), [(True, None), (False, "0" * 64)])
    async def test_a_denial_keeps_its_reason_also_if_an_approval_would_not_count(
        self, late: bool, digest: str | None
    ) -> None:
        def deny(_: ApprovalRequest) -> Decision:
            door.clock.now += 61 if late else 0
            return Decision(False, "too dear", "Ada", digest)

        door = Door(approval_handler=Asked(deny), approval_timeout=60)

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None: ...

        with pytest.raises(ApprovalDeniedError, match="too dear"):
            await door.call("pay")
        assert (await door.event()).approval_reason == "too dear"

    async def test_shared_arguments_that_change_after_approval_are_refused(self) -> None:
        payments = [threading.Lock(), 1]  # a lock can't be copied

        def change(_: ApprovalRequest) -> Decision:
            payments.append(1_000_000)
            return Decision(True, approver="Ada")

        door = Door(approval_handler=Asked(change))

        @tool(registry=door.tools, requires_approval=True)
        async def pay(amounts: Any) -> None:
            raise AssertionError("reached")

        with pytest.raises(ApprovalDeniedError, match="changed after they were approved"):
            await door.call("pay", amounts=payments)

    async def test_arguments_that_change_between_approval_and_effect_change_nothing(self) -> None:
        payments = [1]
        ran: list[Any] = []

        class Log:
            """An effect log whose disk takes its time."""

            def next_id(self) -> str:
                return "e1"

            async def begin(self, effect: Any) -> None:
                payments.append(1_000_000)

            async def finish(self, effect: Any, outcome: str, *, value: Any, error: Any, event: Any) -> None:
                pass

        door = Door(approval_handler=AutoApprove(), effects=Log())

        @tool(registry=door.tools, requires_approval=True, side_effects=["pay:send"])
        async def pay(amounts: Any) -> None:
            ran.append(amounts)

        await door.call("pay", amounts=payments)
        assert ran == [[1]]

    @pytest.mark.parametrize("shared", [None, threading.Lock()])
    @pytest.mark.parametrize("rule", [True, lambda order: order.amount > 100])
    async def test_nobody_changes_a_call_under_way_also_beside_what_can_not_be_copied(
        self, rule: Any, shared: Any
    ) -> None:
        order = Order(amount=10)

        def change(_: ApprovalRequest) -> Decision:
            order.amount = 1_000_000
            return Decision(True, approver="Ada")

        class Log:
            """An effect log that keeps what it was told."""

            def next_id(self) -> str:
                return "e1"

            async def begin(self, effect: Any) -> None:
                self.effect = effect
                order.amount = 1_000_000

            async def finish(self, effect: Any, outcome: str, *, value: Any, error: Any, event: Any) -> None:
                self.event = event

        log = Log()
        door = Door(approval_handler=Asked(change), effects=log)
        ran: list[float] = []

        @tool(
            registry=door.tools, requires_approval=rule, side_effects=["pay:send"], retries=1, idempotent=True,
            backoff=Backoff(initial=0),
        )  # fmt: skip
        async def pay(order: Order, client: Any) -> None:
            ran.append(order.amount)
            order.amount = 0
            if len(ran) == 1:
                raise ValueError("try again")

        await door.call("pay", order=order, client=shared)
        assert ran == [10, 10]
        assert log.effect.arguments["order"].amount == 10
        assert log.event["inputs"]["order"] == {"amount": 10}

    async def test_an_approval_counts_until_it_expires(self) -> None:
        class Slow(ApprovalHandler):
            async def request_approval(self, request: ApprovalRequest) -> Decision:
                door.clock.now += 60
                return Decision(True, approver="Ada")

        door = Door(approval_handler=Slow(), approval_timeout=60)

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> str:
            return "paid"

        assert await door.call("pay") == "paid"

    async def test_an_approval_that_comes_after_its_expiry_does_not_count(self) -> None:
        class Slow(ApprovalHandler):
            async def request_approval(self, request: ApprovalRequest) -> Decision:
                door.clock.now += 61
                return Decision(True, approver="Ada")

        door = Door(approval_handler=Slow(), approval_timeout=60)

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None:
            raise AssertionError("reached")

        with pytest.raises(ApprovalDeniedError, match="after it had expired"):
            await door.call("pay")
        assert (await door.event()).execution_time == 0

    async def test_waiting_for_an_approval_is_no_execution_time(self) -> None:
        class Slow(ApprovalHandler):
            async def request_approval(self, request: ApprovalRequest) -> Decision:
                door.clock.now += 61
                return Decision(True, approver="Ada")

        door = Door(approval_handler=Slow())

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None:
            door.clock.now += 2

        await door.call("pay")
        assert (await door.event()).execution_time == 2

    async def test_an_approval_for_other_arguments_does_not_count(self) -> None:
        door = Door(approval_handler=Asked(Decision(True, approver="Ada", digest="0" * 64)))

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None: ...

        with pytest.raises(ApprovalDeniedError, match="for other arguments"):
            await door.call("pay")

    @pytest.mark.parametrize(("amount", "asked"), [(1, 0), (100, 1)])
    async def test_a_predicate_on_the_arguments_decides(self, amount: int, asked: int) -> None:
        handler = Asked(Decision(True))
        door = Door(approval_handler=handler)

        @tool(registry=door.tools, requires_approval=lambda amount: amount > 10)
        async def pay(amount: int, to: str = "me") -> None: ...

        await door.call("pay", amount=amount)
        assert len(handler.requests) == asked

    @pytest.mark.parametrize(
        ("amount", "asked"),
        [
            ("NaN", 1),
            (float("nan"), 1),
            ("50", 0),
            ([1, {"a": float("nan")}], 1),
            ([1, {"a": 2.0}], 0),
            (Order(amount=5), 0),
        ],
    )
    async def test_a_number_that_no_comparison_holds_for_asks(self, amount: object, asked: int) -> None:
        """A model may say NaN, which is neither above a limit nor below it."""
        handler = Asked(Decision(False))
        door = Door(approval_handler=handler)

        @tool(registry=door.tools, requires_approval=lambda amount: isinstance(amount, float) and amount > 100)
        async def pay(amount: float | Order | list[Any]) -> None: ...

        with pytest.raises(ApprovalDeniedError) if asked else nullcontext():
            await door.call("pay", amount=amount)
        assert len(handler.requests) == asked

    async def test_a_predicate_that_breaks_asks(self, door: Door) -> None:
        @tool(registry=door.tools, requires_approval=lambda amount: 1 / amount > 0)
        async def pay(amount: int) -> None: ...

        with pytest.raises(ApprovalDeniedError):
            await door.call("pay", amount=0)

    @pytest.mark.parametrize("answer", [None, True, "yes", lambda r: 1 / 0])
    async def test_anything_but_a_yes_is_a_no(self, answer: Any) -> None:
        door = Door(approval_handler=Asked(answer))

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None:
            raise AssertionError("reached")

        with pytest.raises(ApprovalDeniedError):
            await door.call("pay")

    async def test_nobody_answers_in_time(self) -> None:
        class Silent(ApprovalHandler):
            async def request_approval(self, request: ApprovalRequest) -> Decision:
                await anyio.sleep_forever()
                raise AssertionError

        door = Door(approval_handler=Silent(), approval_timeout=0.02)

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None: ...

        with pytest.raises(ApprovalDeniedError, match=r"nobody answered within 0\.02 s"):
            await door.call("pay")

    async def test_a_handler_may_gate_what_asks_for_nothing(self) -> None:
        class Careful(Asked):
            gates = True

            def covers(self, request: ApprovalRequest) -> bool:
                return request.irreversible

        door = Door(approval_handler=Careful(Decision(False, "irreversible", "policy")))

        @tool(registry=door.tools, side_effects=["mail:send"])
        async def send() -> None: ...

        @tool(registry=door.tools)
        async def look() -> None: ...

        await door.call("look")
        with pytest.raises(ApprovalDeniedError, match="irreversible"):
            await door.call("send")

    async def test_a_denial_can_be_final(self) -> None:
        door = Door(on_denial="stop")

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None: ...

        @tool(registry=door.tools)
        async def look() -> None:
            raise AssertionError("reached")

        with pytest.raises(ApprovalDeniedError) as denied:
            await door.call("pay")
        with pytest.raises(ApprovalDeniedError) as later:
            await door.call("look")
        assert later.value is denied.value
        assert [(e.tool_name, e.outcome) for e in await door.events()] == [("pay", "denied"), ("look", "denied")]

    async def test_what_let_the_refusal_of_another_call_through_was_not_refused_itself(self, door: Door) -> None:
        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None: ...

        @tool(registry=door.tools, max_cost=0.0)
        async def shop() -> None:
            await ExecutionTracer(tools=door.tools).trace_and_execute("pay")

        @tool(registry=door.tools)
        async def spend() -> None:
            raise BudgetExceededError(scope="run", resource="usd", limit=1.0, spent=1.0, reserved=0.0, requested=1.0)

        with pytest.raises(ApprovalDeniedError):
            await door.call("shop")
        with pytest.raises(BudgetExceededError):
            await door.call("spend")
        assert [(e.tool_name, e.outcome, e.error_type) for e in await door.events()] == [
            ("shop", "failed", "ApprovalDeniedError"),
            ("spend", "failed", "BudgetExceededError"),
        ]


class TestBudgets:
    async def test_a_free_tool_is_not_refused(self) -> None:
        door = Door(budget=Budget(usd=0.0))

        @tool(registry=door.tools, max_cost=0.0)
        async def look() -> str:
            return "seen"

        assert await door.call("look") == "seen"

    async def test_max_cost_is_reserved_before_the_call(self) -> None:
        door = Door(budget=Budget(usd=0.10))

        @tool(registry=door.tools, max_cost=0.25, retries=3)
        async def pay() -> None:
            raise AssertionError("reached")

        with pytest.raises(BudgetExceededError) as caught:
            await door.call("pay")
        assert (caught.value.scope, caught.value.limit, caught.value.requested) == ("run", 0.10, 0.25)
        assert (await door.event()).outcome == "over_budget"

    @pytest.mark.parametrize("max_cost", [None, 0.0, 0.01])
    async def test_a_call_counts_as_one_whatever_it_may_cost(self, max_cost: float | None) -> None:
        door = Door(budget=Budget(tool_calls=1))

        @tool(registry=door.tools, max_cost=max_cost)
        async def pay() -> None: ...

        await door.call("pay")
        assert (door.ledger.spent().tool_calls, door.ledger.total().tool_calls) == (1, 1)
        with pytest.raises(BudgetExceededError, match="tool call"):
            await door.call("pay")

    @pytest.mark.parametrize(("max_cost", "scope", "attempts"), [(0.10, "tool:pay", 2), (None, "run", 3)])
    async def test_nothing_is_tried_again_on_money_that_is_spent(
        self, max_cost: float | None, scope: str, attempts: int
    ) -> None:
        door = Door(budget=Budget(usd=0.20))

        @tool(registry=door.tools, max_cost=max_cost, retries=5, backoff=Backoff(initial=0))
        async def pay() -> None:
            charge(0.10)
            raise ValueError("declined")

        with pytest.raises(BudgetExceededError) as caught:
            await door.call("pay")
        assert caught.value.scope == scope
        assert str(caught.value.__cause__) == "declined"
        event = await door.event()
        assert (event.retry_count, event.estimated_cost_usd) == (attempts - 1, pytest.approx(0.10 * attempts))

    async def test_what_is_charged_is_settled_and_shows_in_the_event(self) -> None:
        door = Door(budget=Budget(usd=1.0))

        @tool(registry=door.tools, max_cost=0.25)
        async def pay() -> None:
            charge(0.2)

        await door.call("pay")
        assert door.ledger.spent().usd == pytest.approx(0.2)
        assert (await door.event()).estimated_cost_usd == pytest.approx(0.2)

    async def test_what_a_tool_charges_is_booked_for_the_agent_that_called_it(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def pay() -> None:
            charge(0.2)

        await door.call("pay")
        assert {name: used.priced_usd for name, used in door.ledger.totals("agent").items()} == {"agent": 0.2}
        assert {name: used.priced_usd for name, used in door.ledger.totals("tool").items()} == {"pay": 0.2}

    async def test_what_is_charged_in_a_thread_of_the_tools_own_is_booked_or_said_in_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        door = Door(budget=Budget(usd=1.0))

        @tool(registry=door.tools)
        def pay(handed_on: bool) -> None:
            with ThreadPoolExecutor(1) as pool:
                if handed_on:
                    pool.submit(contextvars.copy_context().run, charge, 0.25).result()
                else:
                    pool.submit(charge, 0.5).result()

        await door.call("pay", handed_on=True)
        assert door.ledger.spent().usd == 0.25
        assert caplog.text == ""
        await door.call("pay", handed_on=False)
        assert door.ledger.spent().usd == 0.25
        assert "charge(0.5) in a thread that belongs to no tool call: nothing was booked" in caplog.text

    async def test_an_excess_shows_at_the_next_door_and_stops_the_run(self) -> None:
        door = Door(budget=Budget(usd=0.5))

        @tool(registry=door.tools)
        async def pay() -> None:
            charge(0.6)

        await door.call("pay")
        for _ in range(2):
            with pytest.raises(BudgetExceededError):
                await door.call("pay")
        assert isinstance(door.stop.error, BudgetExceededError)

    async def test_tool_calls_are_counted(self) -> None:
        door = Door(budget=Budget(tool_calls=2))

        @tool(registry=door.tools)
        async def look() -> None: ...

        await door.call("look")
        await door.call("look")
        with pytest.raises(BudgetExceededError, match="2 tool calls"):
            await door.call("look")

    async def test_an_agent_has_one_budget_however_often_it_is_asked(self, door: Door) -> None:
        executor = replace(door.executor, budgets={"a": Budget(tool_calls=2)})
        assert executor.for_agent("b") is executor
        executor.for_agent("a").ledger.reserve(Amount(tool_calls=1)).settle(Amount(tool_calls=1))
        executor.for_agent("a").ledger.reserve(Amount(tool_calls=1)).settle(Amount(tool_calls=1))
        with pytest.raises(BudgetExceededError, match="agent:a"):
            executor.for_agent("a").ledger.reserve(Amount(tool_calls=1))

    async def test_compensations_pass_every_door(self) -> None:
        door = Door(budget=Budget(tool_calls=0))
        door.stop.set(ValueError("stopped"))

        @tool(registry=door.tools, requires_approval=True, max_cost=9.0)
        async def undo() -> str:
            return "undone"

        passing = replace(door.executor, passes_doors=True, ledger=door.ledger.unlimited())
        with entered(door.context):
            assert await passing.call("undo", {}, compensates="e1") == "undone"


class TestCancellation:
    async def test_an_async_tool_ends_at_once_and_is_on_record(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def hang() -> None:
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(door.call, "hang")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        event = await door.event()
        assert event.outcome == "cancelled"
        assert event.error_type

    async def test_a_cancelled_effect_is_in_doubt(self, door: Door) -> None:
        @tool(registry=door.tools, side_effects=["pay:send"])
        async def hang() -> None:
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(door.call, "hang")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert (await door.event()).outcome == "in_doubt"

    async def test_a_sync_tool_is_awaited_and_its_true_outcome_recorded(self, door: Door) -> None:
        inside, let_go = threading.Event(), threading.Event()

        @tool(registry=door.tools, side_effects=["pay:send"])
        def pay() -> str:
            inside.set()
            let_go.wait(60)
            return "paid"

        async with anyio.create_task_group() as group:
            group.start_soon(door.call, "pay")
            await anyio.to_thread.run_sync(inside.wait)
            group.cancel_scope.cancel()
            let_go.set()
        event = await door.event()
        assert (event.outcome, event.outputs) == ("success", {"result": "paid"})

    @on_asyncio
    @pytest.mark.parametrize("times", [1, 2])
    async def test_also_under_native_cancellation(self, door: Door, times: int) -> None:
        inside, let_go = threading.Event(), threading.Event()

        @tool(registry=door.tools, side_effects=["pay:send"], retries=3)
        def pay() -> str:
            inside.set()
            let_go.wait(60)
            raise OSError("declined")

        task = asyncio.ensure_future(door.call("pay"))
        await anyio.to_thread.run_sync(inside.wait)
        for _ in range(times):
            task.cancel()
            await anyio.wait_all_tasks_blocked()
        assert not task.done()
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        event = await door.event()
        assert (event.outcome, event.error_state, event.retry_count) == ("failed", "OSError: declined", 0)

    @on_asyncio
    async def test_a_thread_that_never_began_never_begins(self) -> None:
        workers = Workers(1)
        door = Door(workers=workers)
        let_go, ran = threading.Event(), list[str]()

        @tool(registry=door.tools)
        def first() -> None:
            let_go.wait(60)

        @tool(registry=door.tools)
        def second() -> None:
            ran.append("second")

        one = asyncio.ensure_future(door.call("first"))
        await anyio.wait_all_tasks_blocked()
        two = asyncio.ensure_future(door.call("second"))
        await anyio.wait_all_tasks_blocked()
        two.cancel()
        with pytest.raises(asyncio.CancelledError):
            await two
        let_go.set()
        await one
        assert ran == []

    async def test_a_thousand_tools_in_flight_leave_nothing_behind(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def hang() -> None:
            await anyio.sleep_forever()

        threads = threading.active_count()
        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(door.call, "hang")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        events = await door.events()
        assert len(events) == 1000
        assert {e.outcome for e in events} == {"cancelled"}
        assert threading.active_count() <= threads

    async def test_waiting_for_approval_can_be_cancelled(self) -> None:
        class Silent(ApprovalHandler):
            async def request_approval(self, request: ApprovalRequest) -> Decision:
                await anyio.sleep_forever()
                raise AssertionError

        door = Door(approval_handler=Silent())

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None: ...

        async with anyio.create_task_group() as group:
            group.start_soon(door.call, "pay")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert (await door.event()).outcome == "cancelled"


class TestRecords:
    async def test_secrets_never_reach_an_event(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def login(user: str, pin: SecretStr, note: Annotated[str, Redacted], api_key: str) -> dict[str, str]:
            return {"password": "hunter2", "user": user}

        await door.call("login", user="ada", pin="1234", note="private", api_key="sk-abcdefghijklmnopqrstuvwx")
        text = (await door.event()).model_dump_json()
        for secret in ("1234", "private", "hunter2", "sk-abc"):
            assert secret not in text
        assert "ada" in text

    @pytest.mark.parametrize(
        "arguments",
        [
            {"pin": "hush-hush", "card": {"holder": "ada", "number": "hush-hush", "code": "hush-hush"}},
            {"pin": "hush-hush", "card": {"number": "hush-hush"}},  # does not fit: never validated
            {"pin": "hush-hush", "cardd": {"number": "hush-hush"}},  # a wrong name
            {"pni": "hush-hush"},
        ],
    )
    @pytest.mark.parametrize("name", ["pay", "pai"])
    @pytest.mark.parametrize("allowed", [None, {"look"}])
    async def test_no_wrong_call_shows_a_secret(
        self, door: Door, arguments: dict[str, Any], name: str, allowed: set[str] | None
    ) -> None:
        class Card(BaseModel):
            holder: str
            number: SecretStr
            code: Annotated[str, Redacted] = ""

        @tool(registry=door.tools)
        async def pay(pin: SecretStr, card: Card) -> None: ...

        with entered(door.context):
            try:
                await door.executor.call(name, arguments, allowed=allowed)
            except (ToolInputError, UnknownToolError):
                pass
        assert "hush-hush" not in (await door.event()).model_dump_json()

    async def test_fields_of_dataclasses_and_typed_dicts_can_be_marked_too(self, door: Door) -> None:
        @dataclass
        class Login:
            note: Annotated[str, Redacted]

        class Options(typing_extensions.TypedDict):
            note: Annotated[str, Redacted]

        @tool(registry=door.tools)
        async def enter(login: Login, options: Options, more: list[Login]) -> None: ...

        marked = {"note": "hush-hush"}
        await door.call("enter", login=marked, options=marked, more=[marked])
        assert (await door.event()).inputs == {"login": "***", "options": "***", "more": "***"}

    @pytest.mark.parametrize("fails", [True, False])
    async def test_what_a_tool_says_of_its_secrets_is_masked(self, door: Door, fails: bool) -> None:
        class Keys(BaseModel):
            user: str
            key: SecretStr

        @tool(registry=door.tools)
        async def enter(pin: SecretStr, keys: Keys, url: str) -> list[dict[str, str]]:
            said = f"{pin.get_secret_value()} and {keys.key.get_secret_value()} of {keys.user}"
            if fails:
                raise ValueError(said)
            return [{"said": said}]

        keys = {"user": "ada", "key": "quiet-please"}
        try:
            await door.call("enter", pin="hush-hush", keys=keys, url="http://peer/?t=hush-hush")
        except ValueError:
            pass
        event = await door.event()
        told = event.error_state if fails else event.outputs["result"][0]["said"]
        assert told == ("ValueError: *** and *** of ada" if fails else "*** and *** of ada")
        assert event.inputs == {"pin": "***", "keys": {"user": "ada", "key": "***"}, "url": "http://peer/?t=***"}

    async def test_long_messages_and_names_are_capped_too(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def fail() -> None:
            raise ValueError("x" * 100_000)

        with pytest.raises(ValueError, match="xxx"):
            await door.call("fail")
        with pytest.raises(UnknownToolError):
            await door.call("y" * 10_000)
        failed, unknown = await door.events()
        assert len(failed.error_state or "") < 10_000
        assert "of 100012 characters" in (failed.error_state or "")
        assert len(unknown.tool_name) < 300

    async def test_a_message_that_can_not_be_read_is_still_a_failure(self, door: Door) -> None:
        class OddError(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no")

        @tool(registry=door.tools)
        async def fail() -> None:
            raise OddError

        with pytest.raises(OddError):
            await door.call("fail")
        assert (await door.event()).error_type == "OddError"

    async def test_a_hook_sees_each_value_first(self) -> None:
        door = Door(redact=lambda name, value: "gone" if name == "iban" else value)

        @tool(registry=door.tools)
        async def pay(iban: str, amount: int) -> None: ...

        await door.call("pay", iban="DE00", amount=1)
        assert (await door.event()).inputs == {"iban": "gone", "amount": 1}

    async def test_long_values_are_capped_and_say_how_long_they_were(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def read(text: str) -> None: ...

        await door.call("read", text="x" * 100_000)
        shown = (await door.event()).inputs["text"]
        assert len(shown) < 20_000
        assert "100" in shown

    async def test_a_broken_disk_is_never_the_tools_failure_and_ends_the_run(self) -> None:
        class Broken(InMemoryStorage):
            async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
                raise StorageError("no space left")

        door = Door(storage=Broken())

        @tool(registry=door.tools, retries=3)
        async def look() -> str:
            return "seen"

        with pytest.raises(StorageError, match="no space left"):
            await door.call("look")
        assert isinstance(door.stop.error, StorageError)

    async def test_a_log_that_breaks_before_the_tool_runs_says_so_and_a_stop_keeps_its_reason(self) -> None:
        class Breaking(InMemoryStorage):
            async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
                raise StorageError("no space left")

        door = Door(storage=Breaking())

        @tool(registry=door.tools, requires_approval=True)
        async def pay() -> None:
            raise AssertionError("reached")

        with pytest.raises(StorageError) as first:
            await door.call("pay")
        with pytest.raises(StorageError) as later:
            await door.call("pay")
        assert later.value is first.value

    async def test_eight_threads_and_many_agents_keep_their_names(self) -> None:
        door = Door()

        @tool(registry=door.tools)
        def look(x: int) -> int:
            return x

        async def one(agent: str, x: int) -> None:
            with entered(door.context.evolve(agent=agent)):
                await door.executor.call("look", {"x": x})

        async with anyio.create_task_group() as group:
            for i in range(160):
                group.start_soon(one, f"agent-{i % 8}", i)
        events = await door.events()
        assert len(events) == 160
        assert all(e.agent_name == f"agent-{e.inputs['x'] % 8}" for e in events)


class TestDetached:
    async def test_outside_of_a_run_contracts_hold(self) -> None:
        tools = ToolRegistry()

        @tool(registry=tools, requires_approval=True)
        async def pay() -> None: ...

        @tool(registry=tools)
        async def look(x: int) -> int:
            return x

        executor = detached(tools)
        assert await executor.call("look", {"x": "1"}) == 1
        with pytest.raises(ApprovalDeniedError):
            await executor.call("pay", {})

    async def test_the_tracer_is_a_door_too(self) -> None:
        def book(city: str) -> str:
            return city

        tracer = ExecutionTracer(approval_handler=AutoApprove(), tools=[book])
        assert await tracer.trace_and_execute("book", city="Lisbon") == "Lisbon"
        assert await tracer.trace_and_execute(book, city="Porto") == "Porto"
        assert [e.inputs["city"] for e in await tracer.events()] == ["Porto", "Lisbon"]

    async def test_the_tracer_adds_up_what_its_calls_cost(self) -> None:
        def pay() -> None:
            charge(0.25)

        tracer = ExecutionTracer(tools=[pay])
        await tracer.trace_and_execute("pay")
        await tracer.trace_and_execute("pay")
        assert tracer.cost_tracker.total_cost == pytest.approx(0.5)
        assert not tracer.cost_tracker.check_budget(0.4)

    async def test_a_sync_tool_may_call_back(self, door: Door) -> None:
        @tool(registry=door.tools)
        async def inner() -> int:
            return 1

        @tool(registry=door.tools)
        def outer() -> int:
            executor = current_executor()
            assert executor is not None
            value: int = hop_back(executor.call, "inner", {})
            return value + 1

        assert await door.call("outer") == 2
