"""Runs that somebody ends after the fact: two at once, one that is held up, and one that takes its time."""

from __future__ import annotations

import logging
from typing import Any, Literal

import anyio
import pytest

from agenthelm._runtime.retry import SystemClock
from agenthelm.core.storage import InMemoryStorage, Record
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import CorruptRecordError, LeaseLostError, RunBusyError, SagaError, StorageError
from agenthelm.orchestration import journal as journals
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later


class InStep(InMemoryStorage):
    """Takes the first two claims (or human words) on a run at the same moment, when both have read its journal."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = 0
        self.both = anyio.Event()

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        if any(record.data.get("type") in ("claimed", "resolved") for record in records):
            self.claims += 1
            if self.claims == 2:
                self.both.set()
            await self.both.wait()
        return await super().append(records, expected)


class World:
    """Things that are made and unmade; unmaking can be broken, and held up."""

    def __init__(self) -> None:
        self.things: list[str] = []
        self.undone: list[str] = []
        self.broken = False
        self.hold: anyio.Event | None = None
        self.held = anyio.Event()
        self.tools = ToolRegistry()

        @tool(registry=self.tools, compensating_tool="unmake")
        async def make(name: str, idempotency_key: str) -> None:
            self.things.append(name)

        @tool(registry=self.tools)
        async def unmake(name: str, idempotency_key: str) -> None:
            if self.broken:
                raise RuntimeError("no way")
            if self.hold is not None:
                self.held.set()
                await self.hold.wait()
            self.undone.append(name)
            if name in self.things:
                self.things.remove(name)

        @tool(registry=self.tools)
        async def fail() -> None:
            raise ValueError("no")

    def orchestrator(self, storage: Any, clock: SystemClock | None = None) -> Orchestrator:
        return Orchestrator(storage=storage, tools=self.tools, clock=clock or SystemClock())

    async def good_run(self, storage: Any) -> str:
        return (await self.orchestrator(storage).run_saga([Step("make", {"name": "a"})])).run_id

    async def stuck_run(self, storage: Any) -> str:
        self.broken = True
        result = await self.orchestrator(storage).run_saga([Step("make", {"name": "a"}), Step("fail")])
        self.broken = False
        assert result.status == "failed"
        return result.run_id

    async def dead_run(self, storage: Any, name: str = "a") -> str:
        """A run whose process died when it had made something."""
        dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "closed", do="crash")
        scope = saga(tools=self.tools, storage=dying)
        with pytest.raises(SimulatedCrash):
            async with scope:
                await scope.use("make", name=name)
        return scope.run_id


@pytest.fixture
def world() -> World:
    return World()


# -- two at once -------------------------------------------------------------------------------------------------------


async def undo(orchestrator: Orchestrator, run_id: str) -> Any:
    return await orchestrator.undo(run_id)


async def retry(orchestrator: Orchestrator, run_id: str) -> Any:
    return await orchestrator.retry(run_id)


async def resolve(orchestrator: Orchestrator, run_id: str) -> Any:
    return await orchestrator.resolve(run_id, "make", outcome="undone")


@pytest.mark.parametrize(
    ("make", "end"),
    [("good_run", undo), ("dead_run", undo), ("stuck_run", retry), ("dead_run", retry), ("stuck_run", resolve)],
)
async def test_of_two_that_end_a_run_at_once_one_does_and_the_other_hears_of_it(
    world: World, make: str, end: Any
) -> None:
    storage = InStep()
    run_id = await getattr(world, make)(storage)
    ended: list[Any] = []

    async def attempt() -> None:
        try:
            ended.append(await end(world.orchestrator(storage, Later()), run_id))
        except RunBusyError as error:
            ended.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(attempt)
        group.start_soon(attempt)
    (refused,) = (one for one in ended if isinstance(one, RunBusyError))
    (result,) = (one for one in ended if one is not refused)
    assert "claimed it just now" in str(refused)
    assert result.status == "rolled_back"
    assert world.undone == ([] if end is resolve else ["a"])


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_run_about_which_a_human_said_something_is_never_taken_for_a_dead_one(
    world: World, moment: Literal["before", "after"]
) -> None:
    storage = InMemoryStorage()
    run_id = await world.stuck_run(storage)
    dying = FaultyStorage(storage, at=1, do="crash", moment=moment)
    with pytest.raises(SimulatedCrash):
        await resolve(world.orchestrator(dying), run_id)
    assert await world.orchestrator(storage, Later()).recover() == []
    result = await world.orchestrator(storage, Later()).retry(run_id)
    assert (result.status, world.undone) == ("rolled_back", [] if moment == "after" else ["a"])


@pytest.mark.parametrize("word", ["done", "undone"])
async def test_a_run_whose_owner_may_be_alive_is_waited_for_whatever_a_human_says(world: World, word: Any) -> None:
    storage = InMemoryStorage()
    run_id = await world.dead_run(storage, "a")
    with pytest.raises(RunBusyError, match="wait for it to end"):
        await world.orchestrator(storage).resolve(run_id, "make", outcome=word)


async def test_a_run_whose_owner_is_gone_is_to_be_recovered_before_a_human_lets_anything_stand(world: World) -> None:
    storage = InMemoryStorage()
    run_id = await world.dead_run(storage, "a")
    with pytest.raises(RunBusyError, match=f"end the run first, with `agenthelm saga recover {run_id}`") as refused:
        await world.orchestrator(storage, Later()).resolve(run_id, "make", outcome="done")
    assert "wait" not in str(refused.value)


async def test_one_run_is_recovered_by_name_once_its_owner_is_gone(world: World) -> None:
    storage = InMemoryStorage()
    run_id, other = await world.dead_run(storage, "a"), await world.dead_run(storage, "b")
    with pytest.raises(RunBusyError, match="process"):
        await world.orchestrator(storage).recover(run_id)
    (result,) = await world.orchestrator(storage, Later()).recover(run_id)
    assert (result.status, result.run_id, world.things) == ("rolled_back", run_id, ["b"])
    assert await world.orchestrator(storage, Later()).recover(run_id) == []
    assert (await storage.streams(where={"state": "open"}))[0].name == stream_of(other)


# -- one that is held up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [True, False])
async def test_who_is_held_up_while_recovering_leaves_that_run_to_its_new_owner(
    world: World, by_name: bool, caplog: pytest.LogCaptureFixture
) -> None:
    storage = InMemoryStorage()
    run_id, other = await world.dead_run(storage, "a"), await world.dead_run(storage, "b")
    world.hold = anyio.Event()
    slow: list[Any] = []

    async def recover_slowly() -> None:
        try:
            slow.append(await world.orchestrator(storage, Later()).recover(run_id if by_name else None))
        except LeaseLostError as error:
            slow.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(recover_slowly)
        await world.held.wait()
        hold, world.hold = world.hold, None
        claimed = next(info.name for info in await storage.streams(prefix="run:") if info.position > 4).removeprefix(
            "run:"
        )
        (result,) = await world.orchestrator(storage, Later(2)).recover(claimed)
        hold.set()
    assert (result.status, result.run_id) == ("rolled_back", claimed)
    (ended,) = slow
    if by_name:
        assert isinstance(ended, LeaseLostError)
    else:  # the other run is not to blame
        assert [(one.status, one.run_id) for one in ended] == [("rolled_back", ({run_id, other} - {claimed}).pop())]
        assert any(claimed in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert world.things == []


# -- one that takes its time -------------------------------------------------------------------------------------------


async def test_a_run_that_is_long_in_undoing_is_not_taken_for_a_dead_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.01)
    renewed, clock = anyio.Event(), Later()
    storage = FaultyStorage(InMemoryStorage(), at=0, times=0, matching=lambda record: _seen(record, renewed))
    run_id = await world.good_run(storage)
    world.hold = renewed
    with anyio.fail_after(60):
        assert (await world.orchestrator(storage, clock).undo(run_id)).status == "rolled_back"
    kinds = [record.data["type"] for record in await storage.read(stream_of(run_id))]
    assert kinds[kinds.index("undoing") + 1] == "renewed"
    assert kinds[-2:] == ["undone", "closed"]


async def test_an_undo_whose_lease_can_not_be_renewed_says_so_and_can_be_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.01)
    inner, renewed = InMemoryStorage(), anyio.Event()
    storage = FaultyStorage(inner, at=1, times=None, matching=lambda record: _seen(record, renewed))
    run_id = await world.good_run(storage)
    world.hold = renewed
    with anyio.fail_after(60), pytest.raises(StorageError, match="told to fail"):
        await world.orchestrator(storage).undo(run_id)
    assert f"lease of run {run_id}" in caplog.text
    world.hold = None
    (result,) = await world.orchestrator(inner, Later()).recover(run_id)
    assert (result.status, world.things, world.undone) == ("rolled_back", [], ["a", "a"])


def _seen(record: Any, event: anyio.Event) -> bool:
    if record.data.get("type") != "renewed":
        return False
    event.set()
    return True


# -- one that was to stand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_that_was_not_to_be_undone_still_finishes_undoing_what_failed_inside_it(
    world: World, cancelled: bool
) -> None:
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "undoing", do="crash")
    scope = saga(tools=world.tools, storage=storage, rollback=False)
    with pytest.raises(SimulatedCrash):
        async with scope:
            await scope.use("make", name="stands")
            async with saga("inside") as inside:
                await inside.use("make", name="falls")
                raise ValueError("no")
    assert world.things == ["stands", "falls"]
    if cancelled:  # then it is ended as well: this process lives, so for a while nobody could claim it from it
        world.hold = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(world.orchestrator(inner, Later()).recover)
            await world.held.wait()
            group.cancel_scope.cancel()
            world.hold.set()
        result = await world.orchestrator(inner).retry(scope.run_id)
    else:
        (result,) = await world.orchestrator(inner, Later()).recover()
    assert (result.status, world.things) == ("stopped", ["stands"])


async def test_nor_is_it_undone_because_whoever_was_to_go_on_with_it_is_cancelled(world: World) -> None:
    asked = anyio.Event()

    async def ask() -> bool:
        asked.set()
        await anyio.sleep_forever()
        return True

    @tool(registry=world.tools, compensating_tool="unmake", verify=ask, idempotent=False)
    async def unsure(name: str, idempotency_key: str) -> None: ...

    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("effect") == "e2", at=2, do="crash")
    steps = [Step("make", {"name": "stands"}), Step("unsure", {"name": "b"})]
    with pytest.raises(SimulatedCrash):
        await world.orchestrator(storage).run_saga(steps, on_error="stop")
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: world.orchestrator(inner, Later()).recover(resume=True))
        await asked.wait()
        group.cancel_scope.cancel()
    (info,) = await inner.streams(prefix=stream_of(""))
    assert (info.state, world.things) == ("stopped", ["stands"])


# -- one that nobody can read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "detail"),
    [({"type": "dissolved"}, "unknown record type 'dissolved'"), ({"effect": "e9"}, "KeyError")],
)
async def test_a_journal_with_a_record_that_makes_no_sense_is_refused_by_place_and_nothing_is_undone(
    world: World, change: dict[str, str], detail: str
) -> None:
    storage = InMemoryStorage()
    run_id = await world.good_run(storage)
    records = await storage.read(stream_of(run_id))
    finish = next(record for record in records if record.data["type"] == "finish")
    copy = InMemoryStorage()
    for record in records:
        data = {**record.data, **change} if record is finish else record.data
        await copy.append([Record(record.stream, data)])
    with pytest.raises(CorruptRecordError, match=detail) as caught:
        await world.orchestrator(copy).undo(run_id)
    assert caught.value.position == finish.position
    assert world.things == ["a"]


# -- one that goes on beside its block -----------------------------------------------------------------------------


async def test_undoing_waits_for_a_call_that_another_task_still_has_under_way(world: World) -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    @tool(registry=world.tools, compensating_tool="unmake")
    async def make_slowly(name: str, idempotency_key: str) -> None:
        begun.set()
        await go_on.wait()
        world.things.append(name)

    async with anyio.create_task_group() as group:
        with pytest.raises(ValueError, match="no"):
            async with saga(tools=world.tools, storage=InMemoryStorage()) as scope:
                await scope.use("make", name="fast")
                group.start_soon(lambda: scope.use("make_slowly", name="slow"))
                await begun.wait()

                async def let_go() -> None:
                    await anyio.wait_all_tasks_blocked()
                    assert world.things == ["fast"]  # nothing is undone before all has ended
                    go_on.set()

                group.start_soon(let_go)
                raise ValueError("no")
    assert world.undone == ["slow", "fast"]
    with pytest.raises(SagaError, match="had ended"):
        await scope.use("make", name="late")
