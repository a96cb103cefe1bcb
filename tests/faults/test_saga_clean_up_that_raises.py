"""A tool that is stopped and whose clean-up raises has not failed cleanly: nobody knows what it did before."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from agenthelm._runtime.retry import Backoff
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import ToolTimeoutError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga


async def in_a_finally() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        raise RuntimeError("unclosed connection")


async def as_another_error() -> None:
    try:
        await anyio.sleep_forever()
    except BaseException as error:
        raise ValueError("request aborted") from error


async def in_a_task_of_its_own() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(in_a_finally)


Hang = Callable[[], Awaitable[None]]
EVERY_WAY = pytest.mark.parametrize("hang", [in_a_finally, as_another_error, in_a_task_of_its_own])


def paying(account: list[float], hang: Hang, *, timeout: float | None = None) -> ToolRegistry:
    """``pay``, which hangs when the money is gone, and ``refund``, which must run once at most."""
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="refund", timeout=timeout, retries=2, backoff=Backoff(initial=0))
    async def pay(amount: float) -> None:
        account.append(amount)
        await hang()

    @tool(registry=tools)
    async def refund(amount: float) -> None:
        account.append(-amount)

    return tools


async def as_an_exit() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        sys.exit("connection lost")


@pytest.mark.parametrize("hang", [in_a_finally, as_another_error, in_a_task_of_its_own, as_an_exit])
async def test_at_its_deadline_it_is_not_tried_again(hang: Hang) -> None:
    account: list[float] = []
    with pytest.raises(ToolTimeoutError) as caught:
        async with saga(tools=paying(account, hang, timeout=0.05)) as scope:
            await scope.use("pay", amount=100.0)
    assert account == [100.0]
    assert caught.value.__cause__ is not None  # what its clean-up said is not lost
    assert (scope.result.status, [stuck.tool for stuck in scope.result.stuck]) == ("failed", ["pay"])


@EVERY_WAY
async def test_neither_is_one_whose_run_is_cancelled_taken_for_undone(hang: Hang) -> None:
    account: list[float] = []
    with anyio.CancelScope() as outer, suppress(Exception):

        async def hang_when_cancelled() -> None:
            outer.cancel()
            await hang()

        async with saga(tools=paying(account, hang_when_cancelled)) as scope:
            await scope.use("pay", amount=100.0)
    assert account == [100.0]
    assert (scope.result.status, [stuck.tool for stuck in scope.result.stuck]) == ("failed", ["pay"])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("hang", [in_a_finally, as_another_error])
async def test_nor_one_whose_agent_waits_for_it_no_longer(hang: Hang) -> None:
    account: list[float] = []
    async with saga(tools=paying(account, hang)) as scope:
        paying_it = asyncio.ensure_future(scope.use("pay", amount=100.0))
        while not account:
            await anyio.lowlevel.checkpoint()
        with pytest.raises(Exception, match=r"unclosed|aborted"):
            await asyncio.wait_for(paying_it, 0.01)
    assert account == [100.0]
    assert len(scope.result.in_doubt) == 1


async def test_what_a_tool_makes_of_a_time_limit_of_its_own_is_its_answer() -> None:
    account: list[float] = []

    async def give_up() -> None:
        try:
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()
        except TimeoutError as error:
            account.clear()
            raise ValueError("called off") from error

    with pytest.raises(ValueError, match="called off"):
        async with saga(tools=paying(account, give_up)) as scope:
            await scope.use("pay", amount=100.0)
    assert (account, scope.result.status) == ([], "rolled_back")


async def test_an_error_that_was_raised_from_itself_is_an_answer_too() -> None:
    account: list[float] = []

    async def give_up() -> None:
        account.clear()
        error = ValueError("called off")
        raise error from error

    with pytest.raises(ValueError, match="called off"):
        async with saga(tools=paying(account, give_up)) as scope:
            await scope.use("pay", amount=100.0)
    assert (account, scope.result.status) == ([], "rolled_back")


@pytest.mark.parametrize(("timeout", "retries"), [(0.05, 2), (None, 0)], ids=["deadline", "grace"])
async def test_an_undo_that_may_have_worked_is_not_repeated(timeout: float | None, retries: int) -> None:
    tools, account = ToolRegistry(), []

    @tool(registry=tools, compensating_tool="refund")
    async def pay(amount: float) -> None:
        account.append(amount)

    @tool(registry=tools, timeout=timeout, retries=retries, backoff=Backoff(initial=0))
    async def refund(amount: float) -> None:
        account.append(-amount)
        await in_a_finally()

    async with Orchestrator(storage=InMemoryStorage(), tools=tools, grace=0.5) as orchestrator:
        run = await orchestrator.run_saga([Step("pay", {"amount": 10.0})])
        first = await orchestrator.undo(run.run_id)
        again = await orchestrator.retry(run.run_id)
    assert account == [10.0, -10.0]
    assert (first.status, again.status) == ("failed", "failed")
