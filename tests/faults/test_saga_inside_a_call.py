"""What a tool does through other tools: which of it the tool's own compensator takes back, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agenthelm._runtime.retry import Backoff
from agenthelm.core.executor import current_executor
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import Tool, ToolRegistry, tool
from agenthelm.exceptions import OutcomeUnknown
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.orchestration.state import RunState
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later

live_or_later = pytest.mark.parametrize("live", [True, False], ids=["live", "later"])


class Hotel:
    """Rooms that a trip reserves through another tool; the first tries to fill in the form fail."""

    def __init__(self, *, failures: int = 1) -> None:
        self.tools = ToolRegistry()
        self.storage = InMemoryStorage()
        self.rooms: list[str] = []
        self.undone: list[str] = []
        self.tries = 0
        again = {"retries": 1, "backoff": Backoff(0.0)}

        @tool(registry=self.tools, compensating_tool="free", side_effects=["room:write"])
        async def reserve() -> dict[str, str]:
            room = f"room{self.tries}"
            self.rooms.append(room)
            return {"room": room}

        @tool(registry=self.tools)
        async def free(room: str) -> None:
            self.undone.append(f"free {room}")
            self.rooms.remove(room)

        async def trip() -> dict[str, str]:
            self.tries += 1
            room: dict[str, str] = await current_executor().call("reserve", {})  # type: ignore[union-attr]
            if self.tries <= failures:
                raise ValueError("the form was incomplete")
            return room

        for undo in ("undo_trip", "undo_all"):
            tool(registry=self.tools, name=f"trip_{undo}", compensating_tool=undo, **again)(trip)  # type: ignore[arg-type]

        @tool(registry=self.tools)
        async def undo_trip(room: str) -> None:
            self.undone.append(f"undo_trip {room}")
            self.rooms.remove(room)

        @tool(registry=self.tools, idempotent=True)
        async def undo_all(idempotency_key: str) -> None:
            self.undone.append("undo_all")
            self.rooms.clear()

        @tool(registry=self.tools)
        async def fail() -> None:
            raise ValueError("no car left")

    async def undo(self, step: str, *, live: bool) -> Any:
        orchestrator = Orchestrator(tools=self.tools, storage=self.storage)
        result = await orchestrator.run_saga([Step(step), Step("fail")] if live else [Step(step)])
        return result if live else await orchestrator.undo(result.run_id)

    async def state(self, run_id: str) -> RunState:
        return fold(run_id, await self.storage.read(stream_of(run_id)))


@live_or_later
async def test_what_a_failed_attempt_did_inside_is_undone_by_itself(live: bool) -> None:
    hotel = Hotel()
    result = await hotel.undo("trip_undo_trip", live=live)
    assert (result.status, hotel.rooms) == ("rolled_back", [])
    assert hotel.undone == ["undo_trip room2", "free room1"]


@live_or_later
async def test_so_is_it_if_the_attempt_that_returned_did_nothing_inside(live: bool) -> None:
    hotel = Hotel()
    tries: list[str] = []

    @tool(registry=hotel.tools, compensating_tool="undo_day", retries=1, backoff=Backoff(0.0))
    async def day_trip() -> dict[str, str]:
        tries.append("again")
        if len(tries) == 1:
            await current_executor().call("reserve", {})  # type: ignore[union-attr]
            raise ValueError("the form was incomplete")
        return {"day": "monday"}

    @tool(registry=hotel.tools)
    async def undo_day(day: str) -> None:
        hotel.undone.append(f"undo_day {day}")

    result = await hotel.undo("day_trip", live=live)
    assert (result.status, hotel.rooms) == ("rolled_back", [])
    assert hotel.undone == ["undo_day monday", "free room0"]


@pytest.mark.parametrize("later", ["recover", "resume, and undo"])
async def test_what_a_failed_attempt_did_inside_is_undone_by_itself_if_the_next_one_never_returned(later: str) -> None:
    hotel = Hotel()

    @tool(registry=hotel.tools)
    async def last_room() -> dict[str, str]:
        return {"room": f"room{hotel.tries}"}

    trip, again = hotel.tools["trip_undo_trip"].function, Backoff(0.0)
    tool(
        registry=hotel.tools, name="trip", compensating_tool="undo_trip", verify="last_room", retries=1, backoff=again
    )(trip)
    ends = {"type": "finish", "effect": "e1"}.items()
    dying = FaultyStorage(hotel.storage, matching=lambda record: ends <= record.data.items(), do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=hotel.tools, storage=dying).run_saga([Step("trip")])
    orchestrator = Orchestrator(tools=hotel.tools, storage=hotel.storage, clock=Later())
    (result,) = await orchestrator.recover(resume=later != "recover")
    if later != "recover":
        result = await orchestrator.undo(result.run_id)
    assert (result.status, hotel.rooms) == ("rolled_back", [])
    assert hotel.undone == ["undo_trip room2", "free room1"]


@pytest.mark.parametrize("known", [True, False], ids=["verify answers", "verify fails"])
async def test_what_an_interrupted_undo_may_have_taken_back_is_not_undone_by_itself_when_it_fails_again(
    known: bool,
) -> None:
    hotel = Hotel(failures=0)

    @tool(registry=hotel.tools)
    async def last_room() -> dict[str, str]:
        if not known and hotel.undone:
            raise ConnectionError("the hotel does not answer")
        return {"room": "room1"}

    @tool(registry=hotel.tools)
    async def undo_half(room: str) -> None:
        hotel.undone.append(f"undo_half {room}")
        if room in hotel.rooms:
            hotel.rooms.remove(room)
        raise ValueError("the deposit is not paid back")

    tool(registry=hotel.tools, name="trip", compensating_tool="undo_half", verify="last_room")(
        hotel.tools["trip_undo_trip"].function
    )
    ends = {"type": "finish", "effect": "e1"}.items()
    dying = FaultyStorage(hotel.storage, matching=lambda record: ends <= record.data.items(), do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=hotel.tools, storage=dying).run_saga([Step("trip")])
    dying = FaultyStorage(hotel.storage, matching=lambda record: record.data.get("type") == "undo_failed", do="crash")
    with pytest.RaisesGroup(SimulatedCrash, flatten_subgroups=True):
        await Orchestrator(tools=hotel.tools, storage=dying, clock=Later()).recover()
    (result,) = await Orchestrator(tools=hotel.tools, storage=hotel.storage, clock=Later(2)).recover()
    assert [stuck.effect_id for stuck in result.stuck] == ["e1"]
    assert hotel.undone == ["undo_half room1"] * (2 if known else 1)
    assert hotel.rooms == []


@live_or_later
async def test_a_compensator_that_needs_no_result_takes_back_what_every_attempt_did(live: bool) -> None:
    hotel = Hotel()
    result = await hotel.undo("trip_undo_all", live=live)
    assert (result.status, hotel.rooms, hotel.undone) == ("rolled_back", [], ["undo_all"])


@live_or_later
async def test_what_went_with_its_enclosing_call_is_told_as_undone(live: bool) -> None:
    hotel = Hotel(failures=0)
    result = await hotel.undo("trip_undo_trip", live=live)
    state = await hotel.state(result.run_id)
    assert (result.undone, result.irreversible) == (("e1",), ())
    assert [effect.status for effect in state.effects.values()] == ["undone", "undone"]
    again = await Orchestrator(tools=hotel.tools, storage=hotel.storage).undo(result.run_id)
    assert (again.status, again.undone, hotel.undone) == ("rolled_back", ("e1",), ["undo_trip room1"])


@live_or_later
async def test_what_no_tool_undoes_is_not_irreversible_inside_a_call_that_was_undone(live: bool) -> None:
    hotel = Hotel()

    @tool(registry=hotel.tools, side_effects=["mail:send"])
    async def ask_for_rooms() -> None: ...

    @tool(registry=hotel.tools, compensating_tool="undo_all")
    async def trip(idempotency_key: str) -> None:
        await current_executor().call("ask_for_rooms", {})  # type: ignore[union-attr]

    result = await hotel.undo("trip", live=live)
    assert (result.status, result.undone, result.irreversible) == ("rolled_back", ("e1",), ())


async def test_a_human_who_undid_a_call_undid_what_it_did_inside(anyio_backend: Any) -> None:
    hotel = Hotel(failures=0)
    orchestrator = Orchestrator(tools=hotel.tools, storage=hotel.storage)
    run = await orchestrator.run_saga([Step("trip_undo_trip")])
    hotel.rooms.clear()  # somebody was quicker, so that undoing fails
    stuck = await orchestrator.undo(run.run_id)
    assert [effect.effect_id for effect in stuck.stuck] == ["e1"]
    result = await orchestrator.resolve(run.run_id, "e1", outcome="undone")
    assert (result.status, result.stuck) == ("rolled_back", ())
    assert [effect.status for effect in (await hotel.state(run.run_id)).effects.values()] == ["undone", "undone"]


async def test_an_interrupted_undo_of_a_call_that_failed_ends_with_its_enclosing_call() -> None:
    """There was nothing to undo, but it was tried, because that is harmless; nobody would ever say how it ended."""
    tools, storage = ToolRegistry(), InMemoryStorage()

    @tool(registry=tools, compensating_tool="cancel")
    async def reserve(idempotency_key: str) -> None:
        raise ValueError("fully booked")

    @tool(registry=tools, compensating_tool="cancel")
    async def plan_trip(idempotency_key: str) -> None:
        async with saga("rooms") as scope:
            await scope.use("reserve")

    @tool(registry=tools)
    async def cancel(idempotency_key: str) -> None: ...

    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "undone", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga([Step("plan_trip")])
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover()
    state = fold(result.run_id, await storage.read(stream_of(result.run_id)))
    assert [effect.status for effect in state.effects.values()] == ["undone", "undone"]


async def test_an_interrupted_undo_is_repeated_though_verify_says_that_nothing_stands() -> None:
    """It says so of the call: its undo may have died before it took back what was done inside."""
    tools, storage, booked, undos = ToolRegistry(), InMemoryStorage(), set[str](), list[str]()

    @tool(registry=tools, compensating_tool="cancel")
    async def reserve(room: str) -> None:
        booked.add(room)

    def planned() -> bool:
        return "trip" in booked

    @tool(registry=tools, compensating_tool="cancel", verify=planned)
    async def plan_trip(idempotency_key: str) -> None:
        await current_executor().call("reserve", {"room": "left"})  # type: ignore[union-attr]
        booked.add("trip")

    @tool(registry=tools)
    async def cancel(idempotency_key: str) -> None:
        undos.append(idempotency_key)
        booked.discard("trip")
        if len(undos) > 1:  # the first time, its process dies here
            booked.clear()

    ends = {"type": "finish", "effect": "e1"}.items()
    dying = FaultyStorage(storage, matching=lambda record: ends <= record.data.items(), do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga([Step("plan_trip")])
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "undone", do="crash")
    with pytest.raises((SimulatedCrash, BaseExceptionGroup)):
        await Orchestrator(tools=tools, storage=dying, clock=Later()).recover()
    assert booked == {"left"}
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later(2)).recover()
    assert (result.status, booked, len(undos)) == ("rolled_back", set(), 2)


async def test_what_went_with_a_call_whose_undo_was_interrupted_is_not_undone_again() -> None:
    """A step is begun again, for which what it did is undone; that is interrupted, and then the run is left as it is."""
    tools, storage, undone = ToolRegistry(), InMemoryStorage(), list[str]()

    @tool(registry=tools, compensating_tool="free")
    async def reserve() -> None: ...

    @tool(registry=tools)
    async def free() -> None:
        undone.append("free")

    @tool(registry=tools, compensating_tool="cancel")
    async def plan_trip(idempotency_key: str) -> None:
        await current_executor().call("reserve", {})  # type: ignore[union-attr]

    @tool(registry=tools, compensating_tool="cancel")
    async def book(idempotency_key: str) -> None:
        await current_executor().call("plan_trip", {})  # type: ignore[union-attr]

    @tool(registry=tools)
    async def cancel(idempotency_key: str) -> None:
        undone.append("cancel")

    ends = {"type": "finish", "effect": "e1"}.items()
    dying = FaultyStorage(storage, matching=lambda record: ends <= record.data.items(), do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga([Step("book")], on_error="stop")
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "undone", do="crash")
    with pytest.raises((SimulatedCrash, BaseExceptionGroup)):
        await Orchestrator(tools=tools, storage=dying, clock=Later()).recover(resume=True)
    (left,) = await Orchestrator(tools=tools, storage=storage, clock=Later(2)).recover()
    state = fold(left.run_id, await storage.read(stream_of(left.run_id)))
    assert [effect.status for effect in state.effects.values()] == ["begun", "undone", "undone"]
    await Orchestrator(tools=tools, storage=storage).undo(left.run_id)
    assert "free" not in undone


def never_said(hotel: Hotel) -> None:
    """It raises what leaves it in doubt, and its compensator can't be run in doubt."""

    @tool(registry=hotel.tools, compensating_tool="undo_by_key")
    async def trip(idempotency_key: str) -> None:
        await current_executor().call("reserve", {})  # type: ignore[union-attr]
        raise OutcomeUnknown

    @tool(registry=hotel.tools, idempotent=False)
    async def undo_by_key(idempotency_key: str) -> None: ...


def has_no_compensator(hotel: Hotel) -> None:
    """It happened, as its verify says, and nothing undoes it."""

    @tool(registry=hotel.tools, side_effects=["mail:send"], verify=lambda: True)
    async def trip() -> dict[str, str]:
        await current_executor().call("reserve", {})  # type: ignore[union-attr]
        raise OutcomeUnknown


def returned_what_no_journal_holds(hotel: Hotel) -> None:
    """Its compensator needs its result."""

    @tool(registry=hotel.tools, compensating_tool="undo_trip")
    async def trip() -> dict[str, Any]:
        return {**await current_executor().call("reserve", {}), "lock": object()}  # type: ignore[union-attr]


@pytest.mark.parametrize("call", [never_said, has_no_compensator, returned_what_no_journal_holds])
async def test_what_was_done_inside_a_call_that_can_not_be_undone_is_undone_by_itself(
    call: Callable[[Hotel], None],
) -> None:
    hotel = Hotel(failures=0)
    call(hotel)
    orchestrator = Orchestrator(tools=hotel.tools, storage=hotel.storage)
    run = await orchestrator.run_saga([Step("trip")], on_error="stop")
    assert hotel.rooms
    result = await orchestrator.undo(run.run_id)
    assert [stuck.effect_id for stuck in result.stuck] == ["e1"]
    assert (hotel.rooms, result.undone) == ([], ("e2",))


async def test_so_is_what_was_done_inside_a_call_whose_contract_has_changed_since() -> None:
    hotel = Hotel(failures=0)
    orchestrator = Orchestrator(tools=hotel.tools, storage=hotel.storage)
    run = await orchestrator.run_saga([Step("trip_undo_all")])
    trip = hotel.tools["trip_undo_all"]
    hotel.tools.register(
        Tool.from_function(trip.function, trip.contract, name=trip.name, idempotent=True), replace=True
    )
    result = await orchestrator.undo(run.run_id)
    assert [stuck.effect_id for stuck in result.stuck] == ["e1"]
    assert (hotel.rooms, result.undone) == ([], ("e2",))
