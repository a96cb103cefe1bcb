"""A journal that fails once: the run stops there, and nothing is done, or undone, that could not be told."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agenthelm._runtime.retry import SystemClock
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.storage.base import Record
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import StorageError
from agenthelm.orchestration import journal as journals
from agenthelm.orchestration.journal import Journal
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.testing.storage import FaultyStorage
from tests.support.saga_leases import Later


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def tools(log: list[str]) -> ToolRegistry:
    registry = ToolRegistry()

    @tool(registry=registry, compensating_tool="cancel")
    async def book(idempotency_key: str) -> None:
        log.append("book")

    @tool(registry=registry, idempotent=True)
    async def cancel(idempotency_key: str) -> None:
        log.append("cancel")

    @tool(registry=registry)
    async def look() -> None:
        log.append("look")

    return registry


def failing(kind: str, moment: Any = "before") -> FaultyStorage:
    """A storage that takes everything but the first record of one kind."""

    def is_it(record: Record) -> bool:
        return record.data.get("type") == kind

    return FaultyStorage(InMemoryStorage(), matching=is_it, moment=moment)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_journal_that_failed_once_takes_nothing_more(moment: Any) -> None:
    storage = failing("renewed", moment)
    journal = Journal(storage, "r", SystemClock())
    for kind in ("renewed", "claimed"):
        with pytest.raises(StorageError, match="told to fail"):
            await journal.append(kind)
    assert len(await storage.read(journal.stream)) == (moment == "after")


async def test_a_call_whose_begin_could_not_be_written_is_neither_made_nor_undone(
    tools: ToolRegistry, log: list[str]
) -> None:
    with pytest.raises(StorageError):
        async with saga("trip", tools=tools, storage=failing("begin")) as scope:
            await scope.use("book")
    assert log == []


@pytest.mark.parametrize(("kind", "done"), [("begin", []), ("finish", ["book", "cancel"])])
async def test_after_a_half_that_could_not_be_written_every_door_is_closed(
    tools: ToolRegistry, log: list[str], kind: str, done: list[str]
) -> None:
    """Also to tools that change nothing, and so are not in the journal."""
    with pytest.raises(StorageError):
        async with saga("trip", tools=tools, storage=failing(kind)) as scope:
            for name in ("book", "look"):
                with pytest.raises(StorageError):
                    await scope.use(name)
    assert log == done


async def test_a_run_whose_lease_could_not_be_renewed_goes_on_to_no_further_call(
    tools: ToolRegistry, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.05)
    storage = failing("renewed")
    with pytest.raises(StorageError):
        async with saga("trip", tools=tools, storage=storage) as scope:
            await scope.use("book")
            with anyio.fail_after(60):
                while not storage.count:
                    await anyio.sleep(0.01)
            await scope.use("look")
    assert log == ["book", "cancel"]


@pytest.mark.parametrize("resume", [True, False])
async def test_a_plan_is_not_undone_behind_the_back_of_whoever_may_go_on_with_it(
    tools: ToolRegistry, log: list[str], resume: bool
) -> None:
    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no car left")

    storage = InMemoryStorage()
    failing = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "unwinding")
    result = await Orchestrator(tools=tools, storage=failing).run_saga([Step("book"), Step("fail")])
    assert (result.status, log) == ("failed", ["book"])
    assert ["left for recovery" in stuck.reason for stuck in result.stuck] == [True]
    (recovered,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=resume)
    assert (recovered.status, log) == ("rolled_back", ["book", "cancel"])


async def test_what_recovery_lets_stand_is_not_undone_behind_its_back(tools: ToolRegistry, log: list[str]) -> None:
    storage = InMemoryStorage()
    failing = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "unwinding")
    outer = saga("outer", tools=tools, storage=failing, rollback=False)
    with pytest.raises(StorageError):
        async with outer:
            with pytest.raises(ValueError, match="no car left"):
                async with saga("inner") as inner:
                    await inner.use("book")
                    raise ValueError("no car left")
    assert outer.result is not None
    assert (outer.result.status, [stuck.tool for stuck in outer.result.stuck], log) == ("stopped", ["book"], ["book"])
    orchestrator = Orchestrator(tools=tools, storage=storage, clock=Later())
    (recovered,) = await orchestrator.recover()
    assert (recovered.status, recovered.undone, log) == ("stopped", (), ["book"])
    undone = await orchestrator.undo(outer.run_id)
    assert (undone.status, log) == ("rolled_back", ["book", "cancel"])
