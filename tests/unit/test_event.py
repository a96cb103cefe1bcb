"""The event: what a call is on record with."""

from __future__ import annotations

import contextvars
import threading
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agenthelm._runtime.context import RunContext, entered
from agenthelm.cli._events import OUTCOMES
from agenthelm.core.cost import Ledger
from agenthelm.core.event import EventOutcome, ExecutionEvent, utc
from agenthelm.core.executor import ToolExecutor, charge
from agenthelm.core.storage import EVENTS, InMemoryStorage
from agenthelm.core.tool import Tool, ToolContract, ToolRegistry


@given(st.floats(min_value=-1e9, max_value=1e11))
@example(0.0)
@example(1_700_000_000.0)
@example(1_700_000_000.9999996)
@example(1_700_000_000.0000004)
@example(-0.25)
def test_a_moment_is_told_as_datetime_tells_it(moment: float) -> None:
    assert utc(moment) == datetime.fromtimestamp(moment, UTC).isoformat()


def test_the_command_line_knows_every_outcome() -> None:
    assert get_args(EventOutcome) == OUTCOMES


async def test_fields_without_a_value_are_left_out_and_come_back_as_none() -> None:
    async def look(x: int) -> int:
        return x

    storage = InMemoryStorage()
    with entered(RunContext(run_id="r", session_id="s", namespace="n")):
        await ToolExecutor(ToolRegistry([look]), storage).call("look", {"x": 1})
    (record,) = await storage.read(EVENTS)
    assert None not in record.data.values()
    event = ExecutionEvent.model_validate(dict(record.data))
    assert (event.run_id, event.agent_name, event.step, event.approver, event.error_state) == (
        "r",
        None,
        None,
        None,
        None,
    )
    assert {name for name, value in event if value is not None} >= record.data.keys()


@pytest.mark.parametrize("max_cost", [None, 5.0])
async def test_threads_of_a_tool_that_charge_at_once_charge_one_call(max_cost: float | None) -> None:
    count, each = 8, 200
    together = threading.Barrier(count)

    def spend() -> None:
        together.wait()
        for _ in range(each):
            charge(0.001)

    def work() -> None:
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(spend,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    storage = InMemoryStorage()
    registry = ToolRegistry([Tool.from_function(work, ToolContract(max_cost=max_cost))])
    executor = ToolExecutor(registry, storage)
    await executor.call("work", {})
    (record,) = await storage.read(EVENTS)
    assert record.data["estimated_cost_usd"] == count * each * 0.001
    assert executor.ledger.cost_usd == count * each * 0.001


async def test_one_ledger_draws_on_a_reservation_and_is_there_before_any_thread_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawing: list[threading.Thread] = []
    child = Ledger.child

    def watched(self: Ledger, *args: Any, **options: Any) -> Ledger:
        if options.get("drawn_from") is not None:
            drawing.append(threading.current_thread())
        return child(self, *args, **options)

    def work() -> None:
        charge(0.5)

    monkeypatch.setattr(Ledger, "child", watched)
    executor = ToolExecutor(ToolRegistry([Tool.from_function(work, ToolContract(max_cost=1.0))]), InMemoryStorage())
    await executor.call("work", {})
    assert drawing == [threading.current_thread()]
    assert executor.ledger.cost_usd == 0.5


async def test_what_a_tool_may_cost_is_given_back_when_it_charges_nothing() -> None:
    async def look() -> None: ...

    executor = ToolExecutor(ToolRegistry([Tool.from_function(look, ToolContract(max_cost=5.0))]), InMemoryStorage())
    await executor.call("look", {})
    assert (executor.ledger.cost_usd, executor.ledger.total().tool_calls) == (0.0, 1)
