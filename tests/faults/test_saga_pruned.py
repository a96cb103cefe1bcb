"""Pruning takes the journal of no run that somebody is undoing, and nobody undoes a run whose journal is gone."""

from __future__ import annotations

from typing import Any

import pytest

from agenthelm.cli._journals import prune, read, runs
from agenthelm.cli._journals import run_id as named
from agenthelm.core.storage import EVENTS, InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import RunBusyError, RunNotFoundError, StorageError
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash

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
    assert await prune(storage, before=EVER, dry_run=False) == []
    assert world.things == set()
    assert (await world.orchestrator.undo(run_id)).status == "rolled_back"


async def test_an_undo_that_had_read_the_journal_before_finds_that_it_is_gone() -> None:
    storage = Interrupting("read")
    world = World(storage)
    run_id = await world.run()

    async def away() -> None:
        await prune(storage, before=EVER, dry_run=False)

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
    assert await prune(storage, before=EVER, dry_run=False) == [run_id]
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
        await prune(Full(), before=EVER, dry_run=False)
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.undo(run_id)
    assert await world.orchestrator.recover() == []
    assert await prune(storage, before=EVER, dry_run=False) == [run_id]
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
        await prune(storage, before=EVER, dry_run=False)
    assert [run.run_id async for run in runs(storage, state=None, limit=1)] == [older]
    assert await named(storage, "last") == older
    with pytest.raises(RunNotFoundError):
        await read(storage, run_id)
    storage.left = 9
    assert await prune(storage, before=EVER, dry_run=False) == [run_id, older]
    assert [info.name for info in await storage.streams()] == [EVENTS]


async def test_two_may_prune_at_once() -> None:
    storage = Interrupting("streams")
    world = World(storage)
    run_ids = [await world.run(), await world.run()]
    elsewhere: list[str] = []

    async def away() -> None:
        elsewhere.extend(await prune(storage, before=EVER, dry_run=False))

    storage.meanwhile = away
    assert await prune(storage, before=EVER, dry_run=False) == []
    assert sorted(elsewhere) == sorted(run_ids)
    assert await storage.streams(prefix=stream_of("")) == []


async def test_a_journal_that_can_not_be_written_is_not_dropped() -> None:
    storage = InMemoryStorage()
    run_id = await World(storage).run()
    full = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "pruned", do="fail")
    with pytest.raises(StorageError):
        await prune(full, before=EVER, dry_run=False)
    assert [info.name for info in await storage.streams(prefix=stream_of(""))] == [stream_of(run_id)]
