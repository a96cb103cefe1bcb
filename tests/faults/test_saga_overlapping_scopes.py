"""Scopes that end while others around, inside or beside them are still at it, or are left where they should not be."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.executor import current_executor
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import SagaError, StorageError
from agenthelm.orchestration import journal as journals
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel, branch_scope
from agenthelm.orchestration.saga import SagaOrchestrator, Step, saga
from agenthelm.testing.storage import FaultyStorage


class World:
    """Bookings whose making and cancelling can be held up."""

    def __init__(self, *, idempotent: bool = True) -> None:
        self.log: list[str] = []
        self.holds: dict[str, anyio.Event] = {}
        self.reached: dict[str, anyio.Event] = {}
        self.storage = InMemoryStorage()
        self.tools = ToolRegistry()

        @tool(registry=self.tools, compensating_tool="cancel")
        async def book(what: str) -> None:
            await self.act(f"book {what}")

        @tool(registry=self.tools, idempotent=idempotent)
        async def cancel(what: str) -> None:
            await self.act(f"cancel {what}")

    def hold(self, what: str) -> tuple[anyio.Event, anyio.Event]:
        """Events: somebody is there, and they may go on."""
        self.reached[what], self.holds[what] = anyio.Event(), anyio.Event()
        return self.reached[what], self.holds[what]

    async def act(self, what: str) -> None:
        if what in self.holds:
            self.reached[what].set()
            await self.holds[what].wait()
        self.log.append(what)

    async def kinds(self, run_id: str) -> list[str]:
        return [str(record.data["type"]) for record in await self.storage.read(f"run:{run_id}")]


async def test_a_scope_that_was_not_entered_calls_nothing() -> None:
    world = World()
    scope = saga("trip", tools=world.tools, storage=world.storage)
    with pytest.raises(SagaError, match="saga 'trip' was not entered: use it inside of 'async with'"):
        await scope.use("book", what="a")
    with pytest.raises(SagaError, match="saga 'trip' was not entered, and has a run id only then"):
        _ = scope.run_id
    async with scope:
        await scope.use("book", what="b")
    assert world.log == ["book b"]


async def test_a_scope_that_could_not_be_entered_calls_nothing() -> None:
    world = World()
    scope = saga("trip", tools=world.tools, storage=FaultyStorage(world.storage, at=1))
    with pytest.raises(StorageError):
        async with scope:
            raise AssertionError("never inside")
    with pytest.raises(SagaError, match="saga 'trip' was not entered"):
        await scope.use("book", what="a")
    assert world.log == []


@pytest.mark.parametrize("nested", [True, False])
async def test_a_scope_is_entered_once(nested: bool) -> None:
    world = World()
    async with AsyncExitStack() as stack:
        if nested:
            await stack.enter_async_context(saga("outer", tools=world.tools, storage=world.storage))
        scope = saga("trip", tools=world.tools, storage=world.storage)
        async with scope:
            await scope.use("book", what="a")
        with pytest.raises(SagaError, match="saga 'trip' was entered before; make another one"):
            async with scope:
                raise AssertionError("never inside")
    assert (world.log, scope.result and scope.result.status) == (["book a"], "success")


@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_scope_waits_for_the_undoing_of_one_inside_it_and_does_not_repeat_it(idempotent: bool) -> None:
    world = World(idempotent=idempotent)
    undoing, go_on = world.hold("cancel a")
    outer = saga("outer", tools=world.tools, storage=world.storage)

    async def inner() -> None:
        with pytest.raises(KeyError):
            async with saga("inner") as scope:
                await scope.use("book", what="a")
                raise KeyError

    async with anyio.create_task_group() as others:  # not the outer scope's own, as with asyncio.gather
        with pytest.raises(ValueError, match="no"):
            async with outer:
                others.start_soon(inner)
                await undoing.wait()
                others.start_soon(_set_when_blocked, go_on)
                raise ValueError("no")
    assert outer.result is not None
    assert (outer.result.status, outer.result.stuck) == ("rolled_back", ())
    assert world.log == ["book a", "cancel a"]
    assert await world.kinds(outer.run_id) == [
        "opened", "begin", "finish", "unwinding", "undoing", "undone", "closed",
    ]  # fmt: skip


async def _set_when_blocked(event: anyio.Event) -> None:
    await anyio.wait_all_tasks_blocked()
    event.set()


async def test_two_scopes_that_wait_for_calls_of_theirs_are_both_told() -> None:
    world = World()
    held = {what: world.hold(f"book {what}") for what in "ab"}
    ended: list[str] = []

    async def branch(what: str, calls: Any) -> None:
        with pytest.raises(ValueError, match="no"):
            async with branch_scope(what):
                executor = current_executor()
                assert executor is not None
                calls.start_soon(executor.call, "book", {"what": what})
                await held[what][0].wait()
                raise ValueError("no")
        ended.append(what)

    async def branches(calls: Any) -> None:
        async with anyio.create_task_group() as group:
            for what in "ab":
                group.start_soon(branch, what, calls)
            await anyio.wait_all_tasks_blocked()
            for what in "ab":
                held[what][1].set()
                await anyio.wait_all_tasks_blocked()

    with anyio.fail_after(60):
        async with saga(tools=world.tools, storage=world.storage), anyio.create_task_group() as calls:
            await branches(calls)
    assert sorted(ended) == ["a", "b"]
    assert sorted(world.log) == ["book a", "book b", "cancel a", "cancel b"]


@pytest.mark.parametrize("way", ["saga", "plan"])
async def test_nothing_begins_inside_a_run_that_has_ended(way: str) -> None:
    world, go = World(), anyio.Event()
    raised: list[BaseException] = []

    async def late() -> None:
        await go.wait()
        try:
            if way == "plan":
                await SagaOrchestrator().execute([Step("book", {"what": "late"})])
            else:
                async with saga("late") as scope:
                    await scope.use("book", what="late")
        except SagaError as error:
            raised.append(error)

    async with anyio.create_task_group() as leaked:
        async with saga(tools=world.tools, storage=world.storage) as scope:
            leaked.start_soon(late)
            await anyio.wait_all_tasks_blocked()
        go.set()
    assert [str(error).partition(" after ")[0] for error in raised] == [
        "saga 'late' was begun" if way == "saga" else "saga 'saga' was begun"
    ]
    assert (world.log, await world.kinds(scope.run_id)) == ([], ["opened", "closed"])


async def test_a_scope_that_outlives_the_one_around_it_says_so_and_changes_nothing_any_more() -> None:
    world, go = World(), anyio.Event()
    booked = anyio.Event()

    async def leaked() -> None:
        with pytest.raises(SagaError, match="saga 'leaked' ended after its run"):
            async with saga("leaked") as scope:
                await scope.use("book", what="a")
                booked.set()
                await go.wait()

    async with anyio.create_task_group() as tasks:
        with pytest.raises(ValueError, match="no"):
            async with saga(tools=world.tools, storage=world.storage) as outer:
                tasks.start_soon(leaked)
                await booked.wait()
                raise ValueError("no")
        go.set()
    assert world.log == ["book a", "cancel a"]
    assert (await world.kinds(outer.run_id))[-1] == "closed"


async def test_a_scope_that_can_not_be_entered_leaves_nothing_behind() -> None:
    world = World()
    scope = saga(tools=world.tools, storage=world.storage)
    scope.budget = 0.5  # type: ignore[assignment] - what refuses it elsewhere has been got round
    with pytest.raises(AttributeError):
        await scope.__aenter__()
    assert await world.storage.streams() == []


@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("shared", [False, True], ids=["own context", "shared context"])
@pytest.mark.parametrize("fails", [True, False])
async def test_a_scope_left_in_another_task_is_undone_and_its_heartbeat_ends(fails: bool, shared: bool) -> None:
    world = World()
    scope = saga("fixture", tools=world.tools, storage=world.storage)
    context = contextvars.copy_context() if shared else None

    def in_another_task(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(coroutine, context=context)

    async def leave(error: Exception | None) -> None:
        await scope.__aexit__(type(error) if error else None, error, None)

    # As the fixtures of some test frameworks do.
    await in_another_task(scope.__aenter__())
    await scope.use("book", what="a")
    if fails:
        failure = ValueError("no")
        await in_another_task(leave(failure))  # returns, so that the block's own exception goes on
        assert "another task" in failure.__notes__[0]
    else:
        with pytest.raises(SagaError, match="another task"):
            await in_another_task(leave(None))
    assert world.log == ["book a", "cancel a"]
    assert await world.kinds(scope.run_id) == ["opened", "begin", "finish", "unwinding", "undoing", "undone", "closed"]
    await anyio.wait_all_tasks_blocked()
    assert [task.name for task in anyio.get_running_tasks() if task.name == "agenthelm lease"] == []


@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"])
async def test_a_scope_in_a_generator_that_a_web_server_dropped_is_undone_when_it_is_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.05)
    world = World()

    async def answer() -> AsyncIterator[str]:
        async with saga("stream", tools=world.tools, storage=world.storage) as scope:
            await scope.use("book", what="a")
            while True:
                yield scope.run_id

    async def send() -> None:
        stream = answer()  # what keeps it is the traceback of what this task ends with
        async for run_id in stream:
            while "renewed" not in await world.kinds(run_id):
                await anyio.sleep(0.01)
            sending.set()
            await anyio.Event().wait()

    async def request() -> None:
        # The client is gone: what is cancelled is the sending, and nobody closes the generator.
        with pytest.RaisesGroup(RuntimeError):  # anyio's, because the generator holds an open scope
            async with anyio.create_task_group() as group:
                group.start_soon(send)
                await sending.wait()
                group.cancel_scope.cancel()

    sending = anyio.Event()
    await request()
    with anyio.fail_after(60):
        while world.log != ["book a", "cancel a"]:
            gc.collect()
            await anyio.sleep(0.01)


class Exiting(Agent):
    def forward(self, context: Any, task: str) -> dict[str, Any]:
        sys.exit(3)


class Booking(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        return {"booked": await self.ause("book", what="a")}


@pytest.mark.parametrize("on_error", ["cancel", "collect"])
async def test_an_agent_that_exits_in_a_branch_leaves_nothing_booked(on_error: Any) -> None:
    world = World()
    flow = Parallel([Booking("booking"), Exiting("exiting")], on_error=on_error)
    with pytest.raises(SystemExit) as raised:
        await Orchestrator(tools=world.tools, storage=world.storage).run(flow, "go")
    assert raised.value.code == 3
    assert sorted(world.log) in ([], ["book a", "cancel a"])
    (info,) = await world.storage.streams(prefix="run:")
    assert info.state == "rolled_back"


async def test_a_collected_branch_that_fails_is_undone_without_those_whose_number_begins_with_its_own() -> None:
    world = World()
    everybody = 11

    class Branch(Agent):
        async def aforward(self, context, task: str) -> dict[str, Any]:  # type: ignore[no-untyped-def]
            await self.ause("book", what=self.name)
            if self.name == "1":
                while len(world.log) < everybody:
                    await anyio.lowlevel.checkpoint()
                raise ValueError("no")
            return {}

    branches = Parallel([Branch(str(number)) for number in range(1, everybody + 1)], on_error="collect")
    async with Orchestrator(tools=world.tools, storage=world.storage) as orchestrator:
        result = await orchestrator.run(branches, task="x")
    assert [entry for entry in world.log if entry.startswith("cancel")] == ["cancel 1"]
    state = fold(result.run_id, await world.storage.read(f"run:{result.run_id}"))
    assert [effect.effect.arguments for effect in state.begun()] == [{"what": "1"}]
