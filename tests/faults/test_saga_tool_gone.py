"""A run whose tool is gone for good: what it did is undone by hand and said to be, and the run goes its way without it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agenthelm.core.storage import InMemoryStorage, StoredRecord
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import LeaseLostError, PlanError, RunBusyError
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.orchestration.state import RunState
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later

Plan = list[Any]


class Shop:
    """Things that are made by tools, of which some are in the app and some are not any more."""

    def __init__(self) -> None:
        self.things: list[str] = []
        self.calls: list[str] = []
        self.storage = InMemoryStorage()
        self.tools = ToolRegistry()

        @tool(registry=self.tools, compensating_tool="unmake")
        async def make(name: str, idempotency_key: str) -> None:
            self.make(name)

        @tool(registry=self.tools, compensating_tool="unmake")
        async def old(name: str, idempotency_key: str) -> None:
            self.make(name)

        @tool(registry=self.tools, compensating_tool="unmake")
        async def old_around(name: str, idempotency_key: str) -> None:
            async with saga("inside") as scope:
                await scope.use("make", name=f"{name}.inside")
            self.make(name)

        @tool(registry=self.tools, compensating_tool="unmake")
        async def old_failing(name: str, idempotency_key: str) -> None:
            raise ValueError("no")

        @tool(registry=self.tools)
        async def unmake(name: str) -> None:
            self.calls.append(f"unmake {name}")
            self.things.remove(name)

        @tool(registry=self.tools)
        async def fail() -> None:
            raise ValueError("no")

    def make(self, name: str) -> None:
        self.calls.append(f"make {name}")
        self.things.append(name)

    def orchestrator(self, *, gone: bool = True) -> Orchestrator:
        """One that finds all owners silent, and has only the tools that are left, or all."""
        left = [entry for entry in self.tools.values() if not (gone and entry.name.startswith("old"))]
        return Orchestrator(storage=self.storage, tools=ToolRegistry(left), clock=Later())

    async def dies(self, plan: Plan, at: str, effect: str | None = None, **options: Any) -> str:
        """Run a plan in a process that dies before a record is written; returns the run's id."""

        def due(record: Any) -> bool:
            return record.data.get("type") == at and record.data.get("effect") == effect

        dying = FaultyStorage(self.storage, matching=due, do="crash")
        with pytest.raises(SimulatedCrash):
            await Orchestrator(storage=dying, tools=self.tools).run_saga(plan, **options)
        self.calls.clear()
        (stream,) = await self.storage.streams(prefix="run:")
        return stream.name.removeprefix("run:")

    async def state(self, run_id: str) -> RunState:
        return fold(run_id, await self.storage.read(stream_of(run_id)))

    async def statuses(self, run_id: str) -> list[str]:
        return [effect.status for effect in (await self.state(run_id)).effects.values()]

    def by_hand(self, name: str) -> None:
        self.things.remove(name)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def a(name: str, tool: str = "make", after: tuple[str, ...] = ()) -> Step:
    return Step(tool, {"name": name}, id=name, depends_on=after)


# -- the way out -------------------------------------------------------------------------------------------------------


async def test_what_a_human_undid_keeps_nobody_from_ending_a_dead_run(shop: Shop) -> None:
    run_id = await shop.dies([a("first"), a("second", "old"), a("third")], "closed")
    with pytest.raises(PlanError, match="'old' is not registered") as refused:
        await shop.orchestrator().recover(run_id)
    assert f"undo e2 by hand and say so with `agenthelm saga resolve {run_id} e2 --as undone`" in str(refused.value)
    shop.by_hand("second")
    resolved = await shop.orchestrator().resolve(run_id, "second", outcome="undone")
    assert (resolved.status, resolved.undone) == ("open", ("e2",))
    (result,) = await shop.orchestrator().recover()
    assert (result.status, result.stuck, shop.things) == ("rolled_back", (), [])
    assert shop.calls == ["unmake third", "unmake first"]
    assert await shop.orchestrator().recover() == []


async def test_it_can_be_said_of_one_effect_after_another(shop: Shop) -> None:
    """A human's word is no sign of life of the owner: nobody has to wait for a lease before the next one."""
    run_id = await shop.dies([a("first", "old"), a("second", "old")], "finish", "e2")
    shop.things.clear()
    for effect in ("e1", "e2"):
        await shop.orchestrator().resolve(run_id, effect, outcome="undone")
    (result,) = await shop.orchestrator().recover(run_id)
    assert (result.status, shop.calls) == ("rolled_back", [])


async def test_a_tools_name_does_for_the_only_effect_of_it_and_for_no_other(shop: Shop) -> None:
    run_id = await shop.dies([a("first", "old"), a("second", "old")], "finish", "e2")
    with pytest.raises(PlanError, match=r"not undone: e1 \(first\), e2 \(second\)"):
        await shop.orchestrator().resolve(run_id, "old", outcome="undone")
    await shop.orchestrator().resolve(run_id, "e1", outcome="undone")
    resolved = await shop.orchestrator().resolve(run_id, "old", outcome="undone")
    assert resolved.undone == ("e1", "e2")
    with pytest.raises(PlanError, match="not undone: none"):
        await shop.orchestrator().resolve(run_id, "e1", outcome="undone")


async def test_that_something_stands_is_said_when_the_run_has_ended(shop: Shop) -> None:
    run_id = await shop.dies([a("first", "old")], "finish", "e1")
    with pytest.raises(RunBusyError, match=f"`agenthelm saga recover {run_id}`.*only be said what was undone by hand"):
        await shop.orchestrator().resolve(run_id, "e1", outcome="done")
    assert await shop.statuses(run_id) == ["begun"]


async def test_what_has_to_stand_is_stuck_once_there_is_another_tool_of_that_name(shop: Shop) -> None:
    run_id = await shop.dies([a("first"), a("second", "old")], "closed")
    orchestrator = shop.orchestrator()

    @tool(registry=orchestrator.tools, name="old", compensating_tool="unmake")
    async def another(name: str, why: str) -> None: ...

    (result,) = await orchestrator.recover(run_id)
    assert (result.status, [stuck.effect_id for stuck in result.stuck]) == ("failed", ["e2"])
    result = await shop.orchestrator().resolve(run_id, "old", outcome="done")
    assert (result.status, shop.calls, shop.things) == ("rolled_back", ["unmake first"], ["second"])


async def test_what_failed_cleanly_can_not_be_said_to_be_undone(shop: Shop) -> None:
    run_id = await shop.dies([a("first"), a("second", "old_failing")], "unwinding")
    with pytest.raises(PlanError, match="not undone: e1"):
        await shop.orchestrator().resolve(run_id, "e2", outcome="undone")


async def test_a_finished_run_is_undone_without_what_a_human_undid(shop: Shop) -> None:
    run = await shop.orchestrator(gone=False).run_saga([a("first"), a("second", "old")])
    with pytest.raises(PlanError, match=r"'old' is not registered.*resolve"):
        await shop.orchestrator().undo(run.run_id)
    shop.by_hand("second")
    resolved = await shop.orchestrator().resolve(run.run_id, "e2", outcome="undone")
    assert (resolved.status, shop.things) == ("success", ["first"])
    result = await shop.orchestrator().undo(run.run_id)
    assert (result.status, result.undone, shop.things) == ("rolled_back", ("e1",), [])


@pytest.mark.parametrize(
    ("at", "verify"), [(("closed",), None), (("closed",), lambda: True), (("finish", "e1"), None)],
    ids=["finished", "finished, and could be asked about", "in doubt, and nobody can be asked"],
)  # fmt: skip
@pytest.mark.parametrize("way", ["recover", "undo"])
async def test_a_tool_is_not_missed_whose_work_a_call_around_it_takes_back(
    shop: Shop, way: str, at: tuple[str, ...], verify: Any
) -> None:
    @tool(registry=shop.tools, compensating_tool="clear", verify=verify)
    async def around(name: str, idempotency_key: str) -> None:
        async with saga("inside") as scope:
            await scope.use("old", name=f"{name}.inside")
        shop.make(name)

    @tool(registry=shop.tools)
    async def clear(idempotency_key: str) -> None:
        shop.things.clear()

    run_id = await shop.dies([a("first", "around")], *at)
    orchestrator = shop.orchestrator()
    (result,) = await orchestrator.recover(run_id) if way == "recover" else [await orchestrator.undo(run_id)]
    assert (result.status, shop.things, await shop.statuses(run_id)) == ("rolled_back", [], ["undone", "undone"])


async def test_it_is_missed_if_the_call_around_it_may_not_have_happened(shop: Shop) -> None:
    @tool(registry=shop.tools)
    async def whether(name: str) -> bool:
        return name in shop.things

    @tool(registry=shop.tools, compensating_tool="clear", verify="whether")
    async def around(name: str, idempotency_key: str) -> None:
        async with saga("inside") as scope:
            await scope.use("old", name=f"{name}.inside")

    @tool(registry=shop.tools)
    async def clear(idempotency_key: str) -> None:
        shop.things.clear()

    run_id = await shop.dies([a("first", "around")], "finish", "e1")
    with pytest.raises(PlanError, match="'old' is not registered"):
        await shop.orchestrator().recover(run_id)
    (result,) = await shop.orchestrator(gone=False).recover(run_id)
    assert (result.status, shop.calls) == ("rolled_back", ["unmake first.inside"])


# -- nobody is overtaken -----------------------------------------------------------------------------------------------


class Held(InMemoryStorage):
    """A storage whose commits take until they are let go, for a process that is stalled."""

    def __init__(self, under: InMemoryStorage) -> None:
        super().__init__()
        self.under, self.go, self.waiting = under, anyio.Event(), 0

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        if any(record.data.get("effect") in ("e2", "e3") for record in records):
            self.waiting += 1
            await self.go.wait()
        return await self.under.append(records, expected)

    async def read(self, stream: str, **options: Any) -> list[StoredRecord]:
        return await self.under.read(stream, **options)


async def test_an_owner_that_was_only_silent_writes_nothing_behind_a_humans_word(shop: Shop) -> None:
    """Nor do its other branches, whose commits were under way together with the one that the word keeps out."""
    storage = Held(shop.storage)
    orchestrator = Orchestrator(storage=storage, tools=shop.tools)
    ended: list[BaseException] = []

    async def stalls() -> None:
        try:
            await orchestrator.run_saga([[a("first", "old")], [a("second"), a("third")]])
        except LeaseLostError as lost:
            ended.append(lost)

    async with anyio.create_task_group() as group:
        group.start_soon(stalls)
        while storage.waiting < 2:
            await anyio.lowlevel.checkpoint()
        (stream,) = await shop.storage.streams(prefix="run:")
        run_id = stream.name.removeprefix("run:")
        shop.by_hand("first")
        try:
            await shop.orchestrator().resolve(run_id, "e1", outcome="undone")
        finally:
            storage.go.set()
    assert len(ended) == 1
    assert (shop.things, await shop.statuses(run_id)) == ([], ["undone"])
    (result,) = await shop.orchestrator().recover(run_id)
    assert (result.status, await shop.statuses(run_id)) == ("rolled_back", ["undone"])


@pytest.mark.parametrize("other", ["resolve", "recover"])
async def test_of_a_human_and_another_who_come_at_once_one_is_heard(shop: Shop, other: str) -> None:
    run_id = await shop.dies([a("first")], "closed")
    inner, both = shop.storage.append, anyio.Event()
    met: list[str] = []

    async def in_step(records: Any, expected: Any = None) -> dict[str, int]:
        if (kind := records[0].data.get("type")) in ("claimed", "resolved") and len(met) < 2:
            met.append(kind)
            if len(met) == 2:
                both.set()
            with anyio.move_on_after(5):  # or the other one was refused before it came that far
                await both.wait()
        return await inner(records, expected)

    shop.storage.append = in_step  # type: ignore[method-assign]
    refused: list[RunBusyError] = []

    async def come(way: str) -> None:
        orchestrator = shop.orchestrator()
        try:
            if way == "resolve":
                await orchestrator.resolve(run_id, "e1", outcome="undone")
            else:
                await orchestrator.recover(run_id)
        except RunBusyError as busy:
            refused.append(busy)

    async with anyio.create_task_group() as group:
        group.start_soon(come, "resolve")
        group.start_soon(come, other)
    assert ["claimed it just now" in str(busy) for busy in refused] == [True]
    assert await shop.statuses(run_id) == ["undone"]
    by_hand = (await shop.state(run_id)).effects["e1"].said_by == "a human"
    assert shop.calls == ([] if by_hand else ["unmake first"])


# -- what it did inside ------------------------------------------------------------------------------------------------


async def test_what_a_call_did_inside_was_taken_back_with_it(shop: Shop) -> None:
    run_id = await shop.dies([a("first"), a("second", "old_around")], "closed")
    shop.by_hand("second")
    shop.by_hand("second.inside")
    await shop.orchestrator().resolve(run_id, "e2", outcome="undone")
    assert await shop.statuses(run_id) == ["finished", "undone", "undone"]
    (result,) = await shop.orchestrator().recover(run_id)
    assert (result.status, shop.calls, shop.things) == ("rolled_back", ["unmake first"], [])


async def test_what_a_call_that_never_returned_did_inside_is_still_undone(shop: Shop) -> None:
    """Who says of such a call that it never happened says nothing of what it had done by then."""
    run_id = await shop.dies([a("first"), a("second", "old_around")], "finish", "e2")
    shop.by_hand("second")
    await shop.orchestrator().resolve(run_id, "e2", outcome="undone")
    assert await shop.statuses(run_id) == ["finished", "undone", "finished"]
    (result,) = await shop.orchestrator().recover(run_id)
    assert (result.status, shop.things) == ("rolled_back", [])
    assert shop.calls == ["unmake second.inside", "unmake first"]


async def test_the_same_holds_in_a_run_that_was_left_as_it_was(shop: Shop) -> None:
    @tool(registry=shop.tools, compensating_tool="unmake")
    async def unsure(name: str, idempotency_key: str) -> None:
        async with saga("inside") as scope:
            await scope.use("make", name=f"{name}.inside")
        raise TimeoutError

    run = await shop.orchestrator().run_saga([a("first", "unsure")], on_error="stop")
    assert (run.status, run.in_doubt) == ("stopped", ("e1",))
    await shop.orchestrator().resolve(run.run_id, "e1", outcome="undone")
    result = await shop.orchestrator().undo(run.run_id)
    assert (result.status, result.undone, shop.things) == ("rolled_back", ("e2",), [])


# -- going on with it --------------------------------------------------------------------------------------------------


async def test_a_step_that_a_human_undid_is_done_again_when_the_plan_goes_on(shop: Shop) -> None:
    run_id = await shop.dies([a("first"), a("second")], "begin", "e2")
    shop.by_hand("first")
    await shop.orchestrator().resolve(run_id, "first", outcome="undone")
    (result,) = await shop.orchestrator().recover(run_id, resume=True)
    assert (result.status, shop.calls, shop.things) == ("success", ["make first", "make second"], ["first", "second"])


@pytest.mark.parametrize("between", [False, True])
async def test_a_plan_does_not_go_on_if_later_steps_have_built_on_what_a_human_undid(shop: Shop, between: bool) -> None:
    @tool(registry=shop.tools)
    async def look() -> None: ...

    plan = [a("first"), *([Step("look")] if between else []), a("second"), a("third")]
    run_id = await shop.dies(plan, "begin", "e3")
    shop.by_hand("first")
    await shop.orchestrator().resolve(run_id, "first", outcome="undone")
    (result,) = await shop.orchestrator().recover(run_id, resume=True)
    assert (result.status, shop.calls, shop.things) == ("rolled_back", ["unmake second"], [])


async def test_steps_beside_the_one_that_a_human_undid_keep_their_results(shop: Shop) -> None:
    run_id = await shop.dies([a("first"), a("beside", after=()), a("last", after=("first",))], "begin", "e3")
    shop.by_hand("beside")
    await shop.orchestrator().resolve(run_id, "beside", outcome="undone")
    (result,) = await shop.orchestrator().recover(run_id, resume=True)
    assert (result.status, sorted(shop.things)) == ("success", ["beside", "first", "last"])


async def test_a_plan_whose_tool_is_gone_is_undone_instead(shop: Shop) -> None:
    run_id = await shop.dies([a("first", "old"), a("second")], "begin", "e2")
    shop.by_hand("first")
    await shop.orchestrator().resolve(run_id, "first", outcome="undone")
    (result,) = await shop.orchestrator().recover(run_id, resume=True)
    assert (result.status, shop.calls) == ("rolled_back", [])
    assert result.error is not None
    assert "can't go on" in result.error


# -- nothing to undo ---------------------------------------------------------------------------------------------------


async def test_a_tool_that_failed_cleanly_is_not_needed_to_undo_a_finished_run(shop: Shop) -> None:
    run = await shop.orchestrator(gone=False).run_saga([a("first"), a("second", "old_failing")], on_error="continue")
    assert (run.status, shop.things) == ("success", ["first"])
    result = await shop.orchestrator().undo(run.run_id)
    assert (result.status, result.undone, shop.things) == ("rolled_back", ("e1",), [])


async def test_nor_to_end_a_dead_one(shop: Shop) -> None:
    run_id = await shop.dies([a("first"), a("second", "old_failing")], "unwinding")
    (result,) = await shop.orchestrator().recover(run_id)
    assert (result.status, shop.things) == ("rolled_back", [])
