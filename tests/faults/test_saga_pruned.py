"""Pruning takes the journal of no run that somebody is undoing, and nobody undoes a run whose journal is gone.

A journal that can't be read is given up on purpose only.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agenthelm._runtime.retry import SystemClock
from agenthelm.cli._journals import read
from agenthelm.cli._journals import run_id as named
from agenthelm.core.storage import EVENTS, BaseStorage, InMemoryStorage, Record, SqliteStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import CorruptRecordError, PlanError, RunBusyError, RunNotFoundError, StorageError
from agenthelm.orchestration.journal import Journal, stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.pruning import prune_older
from agenthelm.orchestration.runs import states
from agenthelm.orchestration.saga import Step
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later

EVER = 9e12


class Interrupting(InMemoryStorage):
    """Somebody else does something when a listing, a read or the record of pruning is through."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self.after = after
        self.meanwhile: Any = None

    async def _now(self, what: str) -> None:
        if what == self.after and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()

    async def streams(self, **options: Any) -> Any:
        found = await super().streams(**options)
        await self._now("streams")
        return found

    async def read(self, stream: str, **options: Any) -> Any:
        found = await super().read(stream, **options)
        await self._now("read")
        return found

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        positions = await super().append(records, expected)
        if records[0].data.get("type") == "pruned":
            await self._now("pruned")
        return positions


class World:
    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.things: set[str] = set()
        self.tools = ToolRegistry()

        @tool(registry=self.tools, compensating_tool="unmake")
        async def make(name: str) -> None:
            self.things.add(name)

        @tool(registry=self.tools)
        async def unmake(name: str) -> None:
            self.things.remove(name)

        self.orchestrator = Orchestrator(tools=self.tools, storage=storage)

    async def run(self) -> str:
        return (await self.orchestrator.run_saga([Step("make", {"name": "a"})])).run_id


async def test_a_run_that_is_undone_meanwhile_keeps_its_journal() -> None:
    storage = Interrupting("streams")
    world = World(storage)
    run_id = await world.run()

    async def undo() -> None:
        await world.orchestrator.undo(run_id)

    storage.meanwhile = undo
    assert await prune_older(storage, SystemClock(), before=EVER) == []
    assert world.things == set()
    assert (await world.orchestrator.undo(run_id)).status == "rolled_back"


async def test_a_run_that_is_recovered_and_pruned_meanwhile_keeps_no_other_from_being_recovered() -> None:
    storage = Interrupting("streams")
    world = World(storage)
    for name in ("a", "b"):
        dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "closed", do="crash")
        with pytest.raises(SimulatedCrash):
            await Orchestrator(tools=world.tools, storage=dying).run_saga([Step("make", {"name": name})])
    recovering = Orchestrator(tools=world.tools, storage=storage, clock=Later())
    gone, other = [info.name.removeprefix("run:") for info in await storage.streams(prefix=stream_of(""))]

    async def recover_and_prune() -> None:
        await recovering.recover(gone)
        await prune_older(storage, SystemClock(), before=EVER)

    storage.meanwhile = recover_and_prune
    (result,) = await recovering.recover()
    assert (result.run_id, result.status, world.things) == (other, "rolled_back", set())


async def test_an_undo_that_had_read_the_journal_before_finds_that_it_is_gone() -> None:
    storage = Interrupting("read")
    world = World(storage)
    run_id = await world.run()

    async def away() -> None:
        await prune_older(storage, SystemClock(), before=EVER)

    storage.meanwhile = away
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.undo(run_id)
    assert world.things == {"a"}
    assert await storage.streams(prefix=stream_of("")) == []


async def test_between_the_record_of_pruning_and_the_dropping_nobody_gets_the_run() -> None:
    storage = Interrupting("pruned")
    world = World(storage)
    run_id = await world.run()
    heard: list[Exception] = []

    async def undo() -> None:
        try:
            await world.orchestrator.undo(run_id)
        except (RunNotFoundError, RunBusyError) as error:
            heard.append(error)

    storage.meanwhile = undo
    assert await prune_older(storage, SystemClock(), before=EVER) == [run_id]
    assert (world.things, [type(error) for error in heard]) == ({"a"}, [RunNotFoundError])


async def test_what_was_not_dropped_all_the_same_is_dropped_the_next_time() -> None:
    storage = InMemoryStorage()
    world = World(storage)
    run_id = await world.run()

    class Full(InMemoryStorage):
        streams, append = storage.streams, storage.append  # type: ignore[assignment]

        async def drop(self, stream: str) -> None:
            raise StorageError("no")

    with pytest.raises(StorageError):
        await prune_older(Full(), SystemClock(), before=EVER)
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.undo(run_id)
    assert await world.orchestrator.recover() == []
    assert await prune_older(storage, SystemClock(), before=EVER) == [run_id]
    assert await storage.streams(prefix=stream_of("")) == []


class Dying(InMemoryStorage):
    """A storage whose process dies at one of its drops."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    async def drop(self, stream: str) -> None:
        if not self.left:
            raise SimulatedCrash
        self.left -= 1
        await super().drop(stream)


@pytest.mark.parametrize("at", [0, 1])
async def test_a_run_whose_pruning_was_interrupted_is_gone_for_whoever_looks(at: int) -> None:
    storage = Dying(at)
    world = World(storage)
    older = await world.run()
    run_id = await world.run()
    await world.orchestrator.undo(run_id)  # so it was claimed, which is written down beside its journal
    with pytest.raises(SimulatedCrash):
        await prune_older(storage, SystemClock(), before=EVER)
    assert [run.run_id async for run in states(storage, status=None, limit=1)] == [older]
    assert await named(storage, "last") == older
    with pytest.raises(RunNotFoundError):
        await read(storage, run_id)
    storage.left = 9
    assert await prune_older(storage, SystemClock(), before=EVER) == [run_id, older]
    assert [info.name for info in await storage.streams()] == [EVENTS]


async def test_two_may_prune_at_once() -> None:
    storage = Interrupting("streams")
    world = World(storage)
    run_ids = [await world.run(), await world.run()]
    elsewhere: list[str] = []

    async def away() -> None:
        elsewhere.extend(await prune_older(storage, SystemClock(), before=EVER))

    storage.meanwhile = away
    assert await prune_older(storage, SystemClock(), before=EVER) == []
    assert sorted(elsewhere) == sorted(run_ids)
    assert await storage.streams(prefix=stream_of("")) == []


async def test_a_journal_that_can_not_be_written_is_not_dropped() -> None:
    storage = InMemoryStorage()
    run_id = await World(storage).run()
    full = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "pruned", do="fail")
    with pytest.raises(StorageError):
        await prune_older(full, SystemClock(), before=EVER)
    assert [info.name for info in await storage.streams(prefix=stream_of(""))] == [stream_of(run_id)]


# -- journals that can't be read ---------------------------------------------------------------------------------------

UNREADABLE = {"type": "of a later version", "at": 1.0, "epoch": 0}


async def left_open(storage: BaseStorage, run_id: str, *, damaged: bool = True) -> Journal:
    journal = Journal(storage, run_id, SystemClock())
    await journal.opened(name="n", kind="agents", rollback=True, session_id="s", namespace="n")
    if damaged:
        await storage.append([Record(stream_of(run_id), UNREADABLE)])
    return journal


async def test_a_run_that_is_given_up_is_named_by_no_recovery_any_more() -> None:
    storage = InMemoryStorage()
    orchestrator = Orchestrator(storage=storage, tools=ToolRegistry(), clock=Later())
    await left_open(storage, "r")
    await left_open(storage, "r2")
    await storage.append([Record(EVENTS, {"run_id": "r"})])
    assert [result.run_id for result in await orchestrator.recover()] == ["r2", "r"]
    await orchestrator.prune_unreadable("r")
    assert [result.run_id for result in await orchestrator.recover()] == ["r2"]
    assert len(await storage.read(EVENTS)) == 1
    with pytest.raises(RunNotFoundError):
        await orchestrator.prune_unreadable("r")


async def test_what_can_be_read_is_not_given_up() -> None:
    storage = InMemoryStorage()
    orchestrator = Orchestrator(storage=storage, tools=ToolRegistry(), clock=Later())
    await left_open(storage, "r", damaged=False)
    with pytest.raises(PlanError, match="the journal of run 'r' can be read, so it was left as it is"):
        await orchestrator.prune_unreadable("r")
    assert [result.status for result in await orchestrator.recover()] == ["rolled_back"]


async def test_a_run_that_somebody_may_hold_is_not_given_up() -> None:
    storage = Interrupting("streams")
    journal = await left_open(storage, "r")
    with pytest.raises(RunBusyError, match="wrote to its journal just now; wait"):
        await Orchestrator(storage=storage, tools=ToolRegistry()).prune_unreadable("r")

    async def wake_up() -> None:
        await storage.append([Record(journal.stream, {"type": "renewed"})])

    storage.meanwhile = wake_up
    with pytest.raises(RunBusyError):
        await Orchestrator(storage=storage, tools=ToolRegistry(), clock=Later()).prune_unreadable("r")
    with pytest.raises(CorruptRecordError):
        await Orchestrator(storage=storage, tools=ToolRegistry()).recover("r")


async def test_whoever_was_only_silent_goes_no_further_in_a_run_that_was_given_up() -> None:
    storage = InMemoryStorage()
    journal = await left_open(storage, "r", damaged=False)
    await storage.append([Record(journal.stream, UNREADABLE)])
    await Orchestrator(storage=storage, tools=ToolRegistry(), clock=Later()).prune_unreadable("r")
    with pytest.raises(StorageError, match="an earlier record of run 'r' was not written"):
        await journal.append("renewed")
    assert await storage.streams() == []


@pytest.mark.parametrize("status", ["failed", "success"])
async def test_a_run_that_has_ended_is_held_by_nobody(status: str) -> None:
    storage = InMemoryStorage()
    journal = await left_open(storage, "r", damaged=False)
    await journal.closed(status)
    await storage.append([Record(journal.stream, UNREADABLE)])
    await Orchestrator(storage=storage, tools=ToolRegistry()).prune_unreadable("r")
    assert await storage.streams() == []


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM streams WHERE name = 'run:r'",
        "DELETE FROM records WHERE stream = 'run:r' AND position = 0",
        "DELETE FROM records WHERE stream = 'run:r' AND position = 1",
        "UPDATE records SET data = 'x' WHERE stream = 'run:r' AND position = 0",
    ],
)
async def test_whatever_is_left_of_a_damaged_journal_is_dropped(damage: str, tmp_path: Path) -> None:
    async with SqliteStorage(tmp_path / "log.db") as storage:
        await left_open(storage, "r")
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as database:
            database.execute(damage)
        orchestrator = Orchestrator(storage=storage, tools=ToolRegistry(), clock=Later())
        with pytest.raises(CorruptRecordError):
            await orchestrator.recover("r")
        await orchestrator.prune_unreadable("r")
        with pytest.raises(RunNotFoundError):
            await orchestrator.recover("r")
        assert await storage.streams() == []
