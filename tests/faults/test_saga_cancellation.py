"""Cancelled while an effect is in its thread: the effect ends, is on record and is undone; then the cancellation goes on."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from agenthelm._runtime.context import RunContext
from agenthelm._runtime.workers import Workers
from agenthelm.agent.base import Agent
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.handlers import AutoDeny
from agenthelm.core.storage import InMemoryStorage, SqliteStorage
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import SagaOrchestrator, Step, saga
from agenthelm.orchestration.scope import Opening, SagaScope
from agenthelm.orchestration.state import EffectState, RunState
from tests.support.deadlines import overruns


@dataclass
class Threads:
    """Tools that stay in their threads until they are let go, and what they did."""

    log: list[str] = field(default_factory=list)
    entered: anyio.Event = field(default_factory=anyio.Event)
    undoing: anyio.Event = field(default_factory=anyio.Event)
    gate: threading.Event = field(default_factory=threading.Event)
    undo_gate: threading.Event = field(default_factory=threading.Event)
    storage: InMemoryStorage = field(default_factory=InMemoryStorage)

    def __post_init__(self) -> None:
        self.undo_gate.set()
        self.tools = ToolRegistry()

        @tool(compensating_tool="unmake", registry=self.tools)
        def make(name: str) -> dict[str, str]:
            self.log.append(f"begin {name}")
            anyio.from_thread.run_sync(self.entered.set)
            assert self.gate.wait(60)
            self.log.append(f"made {name}")
            return {"thing": f"thing of {name}"}

        @tool(registry=self.tools)
        def unmake(thing: str) -> None:
            anyio.from_thread.run_sync(self.undoing.set)
            assert self.undo_gate.wait(60)
            self.log.append(f"undone {thing}")

    async def effects(self) -> list[EffectState]:
        (info,) = await self.storage.streams(prefix="run:")
        run = fold(info.name, await self.storage.read(info.name))
        assert run.status == "rolled_back"
        return list(run.effects.values())


Way = Callable[[Threads], Coroutine[Any, Any, Any]]


class Maker(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        return dict(await self.ause("make", name="A"))


class SyncMaker(Agent):
    def forward(self, context: Any, task: str) -> dict[str, Any]:
        return dict(self.use("make", name="A"))


async def by_an_agent(world: Threads) -> None:
    async with Orchestrator(storage=world.storage, tools=world.tools) as orchestrator:
        await orchestrator.run(Maker(), "go")


async def by_a_sync_agent(world: Threads) -> None:
    async with Orchestrator(storage=world.storage, tools=world.tools) as orchestrator:
        await orchestrator.run(SyncMaker(), "go")


async def by_a_plan(world: Threads) -> None:
    async with Orchestrator(storage=world.storage, tools=world.tools) as orchestrator:
        await orchestrator.run_saga([[Step("make", {"name": "A"})]])


async def by_the_saga_orchestrator(world: Threads) -> None:
    await SagaOrchestrator(ExecutionTracer(world.storage), world.tools).execute([Step("make", {"name": "A"})])


async def in_a_scope(world: Threads) -> None:
    async with saga("by hand", tools=world.tools, storage=world.storage) as scope:
        await scope.use("make", name="A")


async def in_a_scope_of_a_child(world: Threads) -> None:
    async with (
        saga("by hand", tools=world.tools, storage=world.storage) as scope,
        anyio.create_task_group() as group,
    ):
        group.start_soon(lambda: scope.use("make", name="A"))


WAYS = [by_an_agent, by_a_sync_agent, by_a_plan, by_the_saga_orchestrator, in_a_scope, in_a_scope_of_a_child]
EVERY_WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
NATIVE = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]

DONE_AND_UNDONE = ["begin A", "made A", "undone thing of A"]


async def check_done_and_undone(world: Threads) -> None:
    assert world.log == DONE_AND_UNDONE
    (effect,) = await world.effects()
    assert (effect.outcome, effect.undone, effect.result) == ("ok", True, {"thing": "thing of A"})


@EVERY_WAY
async def test_a_cancelled_scope_waits_for_the_thread_and_undoes_it(way: Way) -> None:
    world = Threads()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(way, world)
            await world.entered.wait()
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                assert world.log == ["begin A"]
                world.gate.set()
    assert scope.cancelled_caught
    await check_done_and_undone(world)


@EVERY_WAY
async def test_a_siblings_failure_waits_for_the_thread_and_undoes_it(way: Way) -> None:
    world = Threads()
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="sibling")):
        async with anyio.create_task_group() as group:
            group.start_soon(way, world)
            await world.entered.wait()
            threading.Timer(0.05, world.gate.set).start()
            raise ValueError("sibling")
    await check_done_and_undone(world)


@pytest.mark.parametrize("anyio_backend", NATIVE)
@pytest.mark.parametrize("times", [1, 2, 3])
@EVERY_WAY
async def test_native_cancellation_waits_for_the_thread_and_undoes_it(way: Way, times: int) -> None:
    world = Threads()
    task = asyncio.ensure_future(way(world))
    await world.entered.wait()
    for _ in range(times):
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert world.log == ["begin A"]
        assert not task.done()
    world.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_done_and_undone(world)


@pytest.mark.parametrize("anyio_backend", NATIVE)
@EVERY_WAY
async def test_cancelling_again_while_it_is_undone_does_not_stop_the_undo(way: Way) -> None:
    world = Threads()
    world.undo_gate.clear()
    task = asyncio.ensure_future(way(world))
    await world.entered.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    world.gate.set()
    await world.undoing.wait()
    for _ in range(2):
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not task.done()
    world.undo_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_done_and_undone(world)


@pytest.mark.parametrize("anyio_backend", NATIVE)
@EVERY_WAY
async def test_wait_for_overruns_until_the_effect_is_undone(way: Way) -> None:
    world = Threads()
    await overruns(way(world), world.entered.wait, world.gate.set)
    await check_done_and_undone(world)


async def test_a_sync_call_that_never_began_is_no_effect_and_leaves_no_doubt() -> None:
    world = Threads()
    full = Workers(1)
    executor = ToolExecutor(world.tools, world.storage, AutoDeny(), workers=full)
    release = threading.Event()

    async def run() -> None:
        async with SagaScope(executor, RunContext("r", "s", "n"), Opening("by hand")) as scope:
            await scope.use("make", name="A")

    async with anyio.create_task_group() as group:
        group.start_soon(full.run, release.wait, 30)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as inner:
            inner.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        release.set()
    assert world.log == []
    (info,) = await world.storage.streams(prefix="run:")
    state = fold("r", await world.storage.read(info.name))
    assert [effect.outcome for effect in state.effects.values()] == ["failed"]
    assert state.status == "rolled_back"


async def test_an_async_call_cancelled_on_its_way_is_in_doubt_and_said_to_be() -> None:
    tools = ToolRegistry()
    storage = InMemoryStorage()
    entered = anyio.Event()

    @tool(compensating_tool="unmake", registry=tools)
    async def make() -> dict[str, str]:
        entered.set()
        await anyio.sleep_forever()
        return {"thing": "1"}

    @tool(registry=tools)
    async def unmake(thing: str) -> None:
        raise AssertionError("nobody knows what to undo")

    async def run() -> None:
        async with saga("by hand", tools=tools, storage=storage) as scope:
            await scope.use("make")

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await entered.wait()
        group.cancel_scope.cancel()
    (info,) = await storage.streams(prefix="run:")
    state = fold("r", await storage.read(info.name))
    (effect,) = state.effects.values()
    assert (state.status, effect.outcome) == ("failed", "doubt")
    assert "nobody knows" in (effect.reason or "")


async def test_a_cancellation_that_comes_while_verify_is_asked_keeps_the_doubt_on_record() -> None:
    tools = ToolRegistry()
    storage = InMemoryStorage()
    asked = anyio.Event()
    there: list[str] = []

    async def verify() -> Any:
        if not asked.is_set():
            asked.set()
            await anyio.sleep_forever()
        return {"thing": there[0]} if there else False

    @tool(compensating_tool="unmake", verify=verify, registry=tools)
    async def make() -> dict[str, str]:
        there.append("1")
        raise ConnectionError

    @tool(registry=tools)
    async def unmake(thing: str) -> None:
        there.remove(thing)

    async def run() -> None:
        async with saga("by hand", tools=tools, storage=storage) as scope:
            await scope.use("make")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await asked.wait()
            group.cancel_scope.cancel()
    assert there == []
    (info,) = await storage.streams(prefix="run:")
    state = fold("r", await storage.read(info.name))
    effect = state.effects["e1"]
    assert (state.status, effect.outcome, effect.error) == ("rolled_back", "doubt", "ConnectionError")
    events = [record.data for record in await storage.read(EVENTS)]
    assert [event["outcome"] for event in events if event["tool_name"] == "make"] == ["in_doubt"]


SCRIPT = """
import signal, sys, anyio
from pathlib import Path
from agenthelm.core.storage import SqliteStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
folder = Path(sys.argv[1])
tools = ToolRegistry()
@tool(compensating_tool="unmake", registry=tools)
def make() -> dict[str, str]:
    print("in the tool", flush=True)
    sys.stdin.readline()
    (folder / "thing").touch()
    return {"thing": "thing"}
@tool(registry=tools)
def unmake(thing: str) -> None:
    (folder / thing).unlink()
    print("undone", flush=True)
async def main():
    async with SqliteStorage(folder / "log.db") as storage:
        await Orchestrator(storage=storage, tools=tools).run_saga([Step("make")])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
uvloop = sys.argv[2] == "uvloop"
anyio.run(main, backend="trio" if sys.argv[2] == "trio" else "asyncio", backend_options={"use_uvloop": True} if uvloop else {})
"""


async def last_run(path: Path) -> RunState:
    async with SqliteStorage(path) as storage:
        (info,) = await storage.streams(prefix="run:")
        return fold(info.name, await storage.read(info.name))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_one_interrupt_undoes_what_was_under_way(loop: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), loop],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "in the tool\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("go on\n", timeout=120)
    assert out == "undone\n"
    assert "KeyboardInterrupt" in err
    assert not (tmp_path / "thing").exists()
    state = anyio.run(last_run, tmp_path / "log.db")
    assert (state.status, state.effects["e1"].outcome) == ("rolled_back", "ok")
