"""What was done inside a call whose own end or undo is in doubt: undone once, and told as undone only if it was."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agenthelm.core.executor import current_executor
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.making import making
from tests.support.saga_leases import Later


async def use(name: str, /, **arguments: Any) -> Any:
    """What a tool does through another tool."""
    executor = current_executor()
    assert executor is not None
    return await executor.call(name, arguments)


# -- not done twice ----------------------------------------------------------------------------------------------------


async def test_what_an_interrupted_undo_took_back_inside_a_call_is_not_taken_back_again() -> None:
    tools, world, undone = ToolRegistry(), list[str](), list[str]()

    @tool(registry=tools, compensating_tool="free")
    async def reserve() -> dict[str, str]:
        world.append("room")
        return {"room": "room"}

    @tool(registry=tools)
    async def free(room: str) -> None:
        undone.append("free")

    def there() -> Any:
        return {"trip": "trip"} if "room" in world else False

    @tool(registry=tools, compensating_tool="call_off", verify=there)
    async def book() -> dict[str, str]:
        await use("reserve")
        return {"trip": "trip"}

    @tool(registry=tools)
    async def call_off(trip: str) -> None:
        undone.append("call_off")
        world.clear()

    def dying(storage: InMemoryStorage, kind: str, effect: str) -> FaultyStorage:
        crash_at = {"type": kind, "effect": effect}
        return FaultyStorage(storage, matching=lambda r: crash_at.items() <= r.data.items(), do="crash")

    storage = InMemoryStorage()
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying(storage, "finish", "e1")).run_saga([Step("book")])
    with pytest.RaisesGroup(SimulatedCrash, flatten_subgroups=True):
        await Orchestrator(tools=tools, storage=dying(storage, "undone", "e1"), clock=Later()).recover()
    assert (world, undone) == ([], ["call_off"])
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later(2)).recover()
    assert (result.status, undone) == ("rolled_back", ["call_off"])


async def test_what_was_done_inside_a_call_that_did_not_come_to_its_end_is_undone_by_itself() -> None:
    tools, world = ToolRegistry(), list[str]()
    making(tools, world)

    @tool(registry=tools, compensating_tool="undo_trip", verify=lambda: False)
    async def trip(idempotency_key: str) -> None:
        await use("make", name="room")
        await anyio.sleep_forever()

    @tool(registry=tools, idempotent=True)
    async def undo_trip(idempotency_key: str) -> None:
        raise AssertionError("there is no trip to undo")

    with anyio.CancelScope() as cancel:
        async with saga(tools=tools) as scope, anyio.create_task_group() as group:
            group.start_soon(scope.executor.call, "trip", {})
            await anyio.wait_all_tasks_blocked()
            assert world == ["room"]
            cancel.cancel()
    assert scope.result is not None
    assert (scope.result.status, world) == ("rolled_back", [])


# -- not covered up ----------------------------------------------------------------------------------------------------


class Trip:
    """A call that goes on although something it did inside could not be undone."""

    def __init__(self) -> None:
        self.tools = ToolRegistry()
        self.storage = InMemoryStorage()
        self.broken = {"unmake", "undo_trip"}
        self.world: list[str] = []

        @tool(registry=self.tools, compensating_tool="unmake")
        async def make(name: str) -> dict[str, str]:
            self.world.append(name)
            return {"thing": name}

        @tool(registry=self.tools)
        async def unmake(thing: str) -> None:
            self.act("unmake", thing)

        @tool(registry=self.tools, compensating_tool="undo_trip", side_effects=["trip:write"])
        async def trip() -> dict[str, str]:
            with pytest.raises(ValueError, match="no room"):
                async with saga("a hotel that is full") as inner:
                    await inner.use("make", name="deposit")
                    raise ValueError("no room")
            self.world.append("trip")
            return {"thing": "trip"}

        @tool(registry=self.tools)
        async def undo_trip(thing: str) -> None:
            self.act("undo_trip", thing)

        @tool(registry=self.tools)
        async def fail() -> None:
            raise ValueError("no")

    def act(self, name: str, thing: str) -> None:
        if name in self.broken:
            raise RuntimeError("out of order")
        self.world.remove(thing)

    @property
    def orchestrator(self) -> Orchestrator:
        return Orchestrator(tools=self.tools, storage=self.storage)


async def test_what_got_stuck_inside_a_call_is_not_told_as_undone_with_the_call() -> None:
    trip = Trip()
    trip.broken.remove("undo_trip")
    result = await trip.orchestrator.run_saga([Step("trip"), Step("fail")])
    assert trip.world == ["deposit"]
    assert (result.status, [stuck.tool for stuck in result.stuck]) == ("failed", ["make"])


async def test_neither_is_it_when_a_human_undid_the_call() -> None:
    trip = Trip()
    result = await trip.orchestrator.run_saga([Step("trip"), Step("fail")])
    assert [stuck.tool for stuck in result.stuck] == ["trip", "make"]
    resolved = await trip.orchestrator.resolve(result.run_id, result.stuck[0].effect_id, outcome="undone")
    assert (resolved.status, [stuck.tool for stuck in resolved.stuck]) == ("failed", ["make"])


@pytest.mark.parametrize("stuck", [{"unmake"}, {"unmake", "undo_trip"}])
async def test_a_retry_tries_it_again_also_after_the_call_was_undone(stuck: set[str]) -> None:
    trip = Trip()
    trip.broken = set(stuck)
    result = await trip.orchestrator.run_saga([Step("trip"), Step("fail")])
    trip.broken = {"unmake"}
    again = await trip.orchestrator.retry(result.run_id)
    assert ([left.tool for left in again.stuck], trip.world) == (["make"], ["deposit"])
    trip.broken = set()
    again = await trip.orchestrator.retry(result.run_id)
    assert (again.status, trip.world) == ("rolled_back", [])
