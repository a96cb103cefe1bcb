"""Who holds a run: two that want to recover it, one that comes back too late, and journals that can't be written or read."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from agenthelm._runtime.retry import SystemClock
from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage, JsonStorage, SqliteStorage
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import CorruptRecordError, LeaseLostError, StalePositionError, StorageError
from agenthelm.orchestration import journal as journals
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.journal import Journal
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.pruning import prune_older
from agenthelm.orchestration.saga import SagaResult, Step, saga
from agenthelm.orchestration.state import RunState
from agenthelm.testing.storage import FaultyStorage
from tests.support.saga_leases import ROOT, Later, leave_open, recovering
from tests.support.saga_world import World, tools_of


async def journal_of(storage: Any) -> RunState:
    (info,) = await storage.streams(prefix="run:")
    return fold(info.name.removeprefix("run:"), await storage.read(info.name))


def undone_once(world: World, count: int) -> None:
    assert world.names() == []
    undone = Counter(doing.id for doing in world.log() if doing.verb == "undo")
    assert len(undone) == count
    assert set(undone.values()) == {1}


# -- two at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_of_two_that_recover_fifty_runs_at_once_each_run_is_undone_by_one(tmp_path: Path) -> None:
    await anyio.to_thread.run_sync(leave_open, tmp_path, 50)
    world = World(tmp_path / "world.db")
    assert len(world.names()) == 150
    ended: list[list[Any]] = []
    async with SqliteStorage(tmp_path / "journal.db") as one, SqliteStorage(tmp_path / "journal.db") as other:

        async def recover(storage: SqliteStorage) -> None:
            ended.append(await Orchestrator(storage=storage, tools=tools_of(world)).recover())

        async with anyio.create_task_group() as group:
            group.start_soon(recover, one)
            group.start_soon(recover, other)
        assert await one.streams(where={"state": "open"}) == []
    runs = Counter(result.run_id for results in ended for result in results)
    assert len(runs) == 50
    assert set(runs.values()) == {1}
    assert {result.status for results in ended for result in results} == {"rolled_back"}
    undone_once(world, 150)


def test_of_two_processes_that_recover_fifty_runs_at_once_each_run_is_undone_by_one(tmp_path: Path) -> None:
    leave_open(tmp_path, 50)
    processes = [recovering(tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [line for process in processes for line in process.communicate(timeout=120)[0].splitlines()]
    assert len(lines) == len(set(lines)) == 50
    assert all(line.endswith(" rolled_back") for line in lines)
    undone_once(World(tmp_path / "world.db"), 150)


# -- too late ----------------------------------------------------------------------------------------------------------


class Stall:
    """A world in memory, one of whose tools stalls until it is let go on."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stalled = anyio.Event()
        self.go_on = anyio.Event()
        self.stall_in = "make two"
        self.tools = ToolRegistry()

        @tool(compensating_tool="unmake", registry=self.tools)
        async def make(name: str) -> dict[str, str]:
            await self.act(f"make {name}")
            return {"thing": name}

        @tool(registry=self.tools)
        async def unmake(thing: str) -> None:
            await self.act(f"unmake {thing}")

        @tool(registry=self.tools)
        async def fail() -> None:
            raise ValueError("no")

    async def act(self, what: str) -> None:
        if what == self.stall_in:
            self.stall_in = ""
            self.stalled.set()
            with anyio.CancelScope(shield=True):  # like a frozen process: nothing reaches it
                await self.go_on.wait()
        self.log.append(what)


class Making(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make", name="one")
        try:
            await self.ause("make", name="two")
        except Exception:
            pass  # an agent that swallows everything does not go on all the same
        await self.ause("make", name="three")
        return {}


async def agents(world: Stall, storage: Any) -> None:
    await Orchestrator(storage=storage, tools=world.tools).run(Making(), "go")


async def plan(world: Stall, storage: Any) -> None:
    steps = [Step("make", {"name": name}, id=name) for name in ("one", "two", "three")]
    await Orchestrator(storage=storage, tools=world.tools).run_saga(steps)


async def by_hand(world: Stall, storage: Any) -> None:
    async with saga("by hand", tools=world.tools, storage=storage) as scope:
        for name in ("one", "two", "three"):
            await scope.use("make", name=name)


@pytest.mark.parametrize("way", [agents, plan, by_hand], ids=lambda way: way.__name__)
async def test_an_owner_that_wakes_after_its_run_was_claimed_stops_and_undoes_nothing(way: Any) -> None:
    world, storage = Stall(), InMemoryStorage()
    raised: list[BaseException] = []

    async def own() -> None:
        try:
            await way(world, storage)
        except LeaseLostError as error:
            raised.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(own)
        await world.stalled.wait()
        (result,) = await Orchestrator(storage=storage, tools=world.tools, clock=Later()).recover()
        world.go_on.set()
    assert [type(error) for error in raised] == [LeaseLostError]
    # Nobody could know of the second call, so it is reported; the first is undone by the claimer alone.
    assert world.log == ["make one", "unmake one", "make two"]
    assert (result.status, [stuck.effect_id for stuck in result.stuck]) == ("failed", ["e2"])
    state = await journal_of(storage)
    assert (state.status, state.epoch) == ("failed", 1)


async def test_an_owner_that_stalls_while_it_undoes_leaves_the_rest_to_the_claimer() -> None:
    world, storage = Stall(), InMemoryStorage()
    world.stall_in = "unmake two"
    raised: list[BaseException] = []

    async def own() -> None:
        steps = [Step("make", {"name": name}, id=name) for name in ("one", "two")]
        try:
            await Orchestrator(storage=storage, tools=world.tools).run_saga([*steps, Step("fail")])
        except LeaseLostError as error:
            raised.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(own)
        await world.stalled.wait()
        (result,) = await Orchestrator(storage=storage, tools=world.tools, clock=Later()).recover()
        world.go_on.set()
    assert len(raised) == 1
    assert world.log == ["make one", "make two", "unmake one", "unmake two"]
    assert "interrupted" in result.stuck[0].reason


async def test_a_call_that_comes_after_the_claim_goes_by_no_effect_of_the_claimers() -> None:
    storage, tools, world = InMemoryStorage(), ToolRegistry(), list[str]()
    stalled, go_on = anyio.Event(), anyio.Event()

    @tool(registry=tools)
    async def think() -> None:
        if not stalled.is_set():
            stalled.set()
            with anyio.CancelScope(shield=True):
                await go_on.wait()

    @tool(compensating_tool="unmake", registry=tools)
    async def make(name: str) -> dict[str, str]:
        world.append(name)
        return {"thing": name}

    @tool(registry=tools)
    async def unmake(thing: str) -> None: ...

    async def own() -> None:
        with pytest.raises(LeaseLostError):
            await Orchestrator(storage=storage, tools=tools).run_saga([Step("think"), Step("make", {"name": "one"})])

    async with anyio.create_task_group() as group:
        group.start_soon(own)
        await stalled.wait()
        (result,) = await Orchestrator(storage=storage, tools=tools, clock=Later()).recover(resume=True)
        go_on.set()
    assert (result.status, world) == ("success", ["one"])
    events = [record.data for record in await storage.read(EVENTS, where={"tool_name": "make"})]
    assert [(event["outcome"], event.get("effect_id")) for event in events] == [("success", "e1"), ("cancelled", None)]


async def test_the_heartbeat_notices_that_the_run_was_claimed_and_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.05)
    storage, tools = InMemoryStorage(), ToolRegistry()
    entered = anyio.Event()
    log: list[str] = []

    @tool(compensating_tool="unmake", registry=tools)
    async def make() -> dict[str, str]:
        log.append("make")
        return {"thing": "1"}

    @tool(registry=tools)
    async def unmake(thing: str) -> None:
        log.append("unmake")

    @tool(registry=tools)
    async def think() -> None:
        entered.set()
        await anyio.sleep_forever()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:

            async def own() -> None:
                with pytest.raises(LeaseLostError):
                    await Orchestrator(storage=storage, tools=tools).run_saga([Step("make"), Step("think")])

            group.start_soon(own)
            await entered.wait()
            (result,) = await Orchestrator(storage=storage, tools=tools, clock=Later()).recover()
    assert result.status == "rolled_back"
    assert log == ["make", "unmake"]


async def test_a_living_owner_that_renews_its_lease_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world, storage = Stall(), InMemoryStorage()
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(plan, world, storage)
        await world.stalled.wait()
        while (await journal_of(storage)).position < 6:  # renewed twice
            await anyio.sleep(0.01)
        assert await Orchestrator(storage=storage, tools=world.tools).recover() == []
        world.go_on.set()
    assert world.log == ["make one", "make two", "make three"]


@pytest.mark.parametrize("way", [agents, plan, by_hand], ids=lambda way: way.__name__)
def test_a_run_in_a_loop_that_asyncio_started_renews_its_lease_too(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # There no variable says which library runs: anyio knows it by the current task, and a loop's callback has none.
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.05)
    world, storage = Stall(), InMemoryStorage()

    async def main() -> list[SagaResult]:
        world.stalled, world.go_on = anyio.Event(), anyio.Event()
        task = asyncio.create_task(way(world, storage))
        await world.stalled.wait()
        begun = (await journal_of(storage)).position
        with anyio.fail_after(60):
            while (await journal_of(storage)).position < begun + 2:  # renewed twice
                await asyncio.sleep(0.01)
        recovered = await Orchestrator(storage=storage, tools=world.tools).recover()
        world.go_on.set()
        await task
        return recovered

    with ThreadPoolExecutor(1) as pool:  # with none of this thread's context variables
        assert pool.submit(asyncio.run, main()).result(timeout=120) == []
    assert world.log == ["make one", "make two", "make three"]


class Silence(SystemClock):
    """A clock by which time passes only on the event loop's own, or because a test says so."""

    ahead = 0.0

    def monotonic(self) -> float:
        return self.ahead + anyio.current_time()


async def begun(storage: Any, clock: Silence) -> Journal:
    journal = Journal(storage, "trip", clock)
    await journal.opened(name="trip", kind="agents", rollback=True, session_id="s", namespace="default")
    return journal


async def test_no_lease_is_renewed_behind_the_end_of_its_run_however_long_that_takes_to_be_written() -> None:
    inner, clock = InMemoryStorage(), Silence()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "closed", do="hang")
    journal = await begun(storage, clock)
    async with anyio.create_task_group() as group:
        group.start_soon(journal.closed, "success")
        await storage.hanging.wait()
        clock.ahead = 2 * journals.RENEW_SECONDS
        await journal.renew()
        storage.release()
    assert [record.data["type"] for record in await inner.read(journal.stream)] == ["opened", "closed"]
    assert await journals.status_of(inner, "trip") == "success"


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("trio", {"clock": MockClock(autojump_threshold=0)}), id="trio")]
)
async def test_whoever_undoes_a_run_is_never_silent_for_longer_than_it_may_be() -> None:
    storage = InMemoryStorage()
    journal = await begun(storage, Silence())
    async with anyio.create_task_group() as group:
        group.start_soon(journal.keep)
        await anyio.sleep(0.6 * journals.RENEW_SECONDS)
        await journal.append("undoing", effect="e1", by="cancel")
        await anyio.sleep(1.1 * journals.RENEW_SECONDS)
        group.cancel_scope.cancel()
    assert [record.data["type"] for record in await storage.read(journal.stream)] == ["opened", "undoing", "renewed"]


# -- journals that can't be written ------------------------------------------------------------------------------------


async def test_a_journal_on_a_full_disk_undoes_what_is_safe_now_and_the_rest_when_there_is_room(tmp_path: Path) -> None:
    world = World(tmp_path / "world.db")
    async with SqliteStorage(tmp_path / "journal.db") as storage:
        tools = tools_of(world)

        def pages(count: int) -> None:
            storage._log._open().execute(f"PRAGMA max_page_count = {count}")

        @tool(compensating_tool="cancel", registry=tools)
        async def fill_the_disk(idempotency_key: str) -> str:
            pages(storage._log._open().execute("PRAGMA page_count").fetchone()[0])
            return "x" * 200_000

        scope = saga(tools=tools, storage=storage)
        with pytest.raises(StorageError, match="disk is full"):
            async with scope:
                for kind, name in (("make", "A"), ("book", "B"), ("check", "C")):
                    await scope.use(kind, name=name)
                await scope.use("fill_the_disk")
        assert scope.result is not None
        assert scope.result.status == "failed"
        assert world.names() == ["A", "C"]
        assert sorted(stuck.tool for stuck in scope.result.stuck) == ["check", "make"]
        assert all("left for recovery" in stuck.reason for stuck in scope.result.stuck)
        pages(1_000_000)
        (recovered,) = await Orchestrator(storage=storage, tools=tools, clock=Later()).recover()
    assert recovered.status == "rolled_back"
    assert world.names() == []


async def test_a_success_that_can_not_be_put_on_record_is_undone_and_not_called_one(tmp_path: Path) -> None:
    world = World(tmp_path / "world.db")
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "closed", times=None)
    tools = tools_of(world)
    result = await Orchestrator(storage=storage, tools=tools).run_saga(
        [Step("make", {"name": "A"}), Step("book", {"name": "B"})]
    )
    assert result.status == "failed"
    assert "A" in world.names()
    (recovered,) = await Orchestrator(storage=inner, tools=tools, clock=Later()).recover()
    assert (recovered.status, world.names()) == ("rolled_back", [])


LIMITED = """
import resource, sys, anyio
from pathlib import Path
from agenthelm.core.storage import SqliteStorage
from agenthelm.core.tool import tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.support.saga_world import World, tools_of
folder = Path(sys.argv[1])
async def main():
    tools = tools_of(World(folder / "world.db"))
    @tool(registry=tools)
    async def limit() -> None:
        size = (folder / "journal.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
    async with SqliteStorage(folder / "journal.db") as storage:
        steps = [Step("make", {"name": "A"}), Step("book", {"name": "B"}), Step("check", {"name": "C"})]
        print((await Orchestrator(storage=storage, tools=tools).run_saga([*steps, Step("limit"), Step("book", {"name": "x" * 500_000}, id="D")])).status)
anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_process_with_a_full_disk_left_is_undone_by_the_next(tmp_path: Path) -> None:
    process = await anyio.run_process([sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, stderr=None)
    assert process.stdout == b"failed\n"
    world = World(tmp_path / "world.db")
    assert {"A", "C"} <= set(world.names())
    async with SqliteStorage(tmp_path / "journal.db") as storage:
        (recovered,) = await Orchestrator(storage=storage, tools=tools_of(world)).recover()
    assert (recovered.status, world.names()) == ("rolled_back", [])


# -- journals that can't be read ---------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys, anyio
from pathlib import Path
from agenthelm.core.storage import JsonStorage
from agenthelm.core.tool import tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.support.saga_world import PointStorage, Points, World, tools_of
folder, points = Path(sys.argv[1]), Points(sys.argv[2])
async def main():
    async with JsonStorage(folder / "journal.jsonl") as inner:
        storage = PointStorage(inner, points)
        steps = [Step("book", {"name": "A"}), Step("check", {"name": "B"})]
        await Orchestrator(storage=storage, tools=tools_of(World(folder / "world.db", points))).run_saga(steps)
anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("point", ["before doing book A", "before writing begin e2", "before doing check B"])
async def test_a_torn_last_record_is_as_if_it_was_never_written(point: str, tmp_path: Path) -> None:
    process = await anyio.run_process([sys.executable, "-c", KILLED, str(tmp_path), point], cwd=ROOT, check=False)
    assert process.returncode == -9, process.stderr
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    assert whole.endswith(b"\n")
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    journal.write_bytes(whole[: (start + len(whole)) // 2])
    world = World(tmp_path / "world.db")
    async with JsonStorage(journal) as storage:
        (recovered,) = await Orchestrator(storage=storage, tools=tools_of(world)).recover()
    assert (recovered.status, world.names()) == ("rolled_back", [])


async def test_a_journal_damaged_in_the_middle_is_left_alone_and_named_while_others_are_recovered(
    tmp_path: Path,
) -> None:
    await anyio.to_thread.run_sync(leave_open, tmp_path, 3)
    world = World(tmp_path / "world.db")
    async with SqliteStorage(tmp_path / "journal.db") as storage:
        damaged = (await storage.streams(prefix="run:"))[1].name
        storage._log._open().execute(
            "UPDATE records SET data = substr(data, 1, 20) WHERE stream = ? AND position = 1", (damaged,)
        )
        run_id = damaged.removeprefix("run:")
        orchestrator = Orchestrator(storage=storage, tools=tools_of(world))
        results = {result.run_id: result for result in await orchestrator.recover()}
        assert Counter(result.status for result in results.values()) == {"rolled_back": 2, "failed": 1}
        assert "record 1" in (results[run_id].error or "")
        assert len(world.names()) == 3
        for refused in (orchestrator.recover(run_id), orchestrator.undo(run_id)):
            with pytest.raises(CorruptRecordError, match=damaged):
                await refused
        assert len(world.names()) == 3


# -- several records under way at once ---------------------------------------------------------------------------------


def file_storage(kind: str, folder: Path) -> Any:
    return SqliteStorage(folder / "journal.db") if kind == "sqlite" else JsonStorage(folder / "journal.jsonl")


async def opened(storage: Any) -> Journal:
    journal = Journal(storage, "r", SystemClock())
    await journal.opened(name="n", kind="agents", rollback=True, session_id="s", namespace="n")
    return journal


@pytest.mark.parametrize("kind", ["sqlite", "json"])
async def test_nothing_of_a_late_owner_gets_in_behind_the_claim(kind: str, tmp_path: Path) -> None:
    """The second of two records would find the log just as long as it expects it, thanks to the claim."""
    async with file_storage(kind, tmp_path) as storage:
        owner = await opened(storage)
        claimer = Journal(storage, "r", SystemClock(), position=1)
        await claimer.claimed()
        raised: list[type[BaseException]] = []

        async def renew() -> None:
            try:
                await owner.append("renewed")
            except (LeaseLostError, StorageError) as error:
                raised.append(type(error))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(renew)
        assert raised == [LeaseLostError] * 3
        await claimer.append("unwinding", scope="", reason="its process died")
        kinds = [record.data["type"] for record in await storage.read("run:r")]
    assert kinds == ["opened", "claimed", "unwinding"]


class Reversed(InMemoryStorage):
    """Refuses the second record, as it stands behind one that failed, before it tells of that failure."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.told = anyio.Event()

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        self.asked += 1
        if self.asked == 1:
            await self.told.wait()
            raise StorageError("the disk is full")
        self.told.set()
        raise StalePositionError("run:r", expected=1, actual=0)


async def test_a_record_that_is_missing_before_another_is_not_taken_for_a_claim() -> None:
    journal = Journal(Reversed(), "r", SystemClock())
    told: list[str] = []

    async def renew() -> None:
        try:
            await journal.append("renewed")
        except StorageError as error:
            told.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(renew)
        group.start_soon(renew)
    assert sorted(told) == ["an earlier record of run 'r' was not written", "the disk is full"]
    assert journal.lost is None


def test_pruning_a_run_forgets_the_claims_on_it(tmp_path: Path) -> None:
    leave_open(tmp_path, 1)
    world = World(tmp_path / "world.db")

    async def recover_and_prune() -> list[str]:
        async with SqliteStorage(tmp_path / "journal.db") as storage:
            (result,) = await Orchestrator(storage=storage, tools=tools_of(world)).recover()
            assert [info.position for info in await storage.streams(prefix="claims:")] == [1]
            assert await prune_older(storage, SystemClock(), before=time.time() + 1) == [result.run_id]
            return [info.name for info in await storage.streams()]

    assert anyio.run(recover_and_prune) == [EVENTS]
