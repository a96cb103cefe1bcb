"""A record that was written and reported as lost: the run ends there, and whoever recovers it knows all that happened."""

from __future__ import annotations

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from agenthelm.testing.storage import FaultyStorage
from tests.support.making import making
from tests.support.saga_leases import Later


async def test_nothing_is_recorded_behind_it_and_what_was_done_is_undone_once() -> None:
    tools, world = ToolRegistry(), list[str]()
    making(tools, world)
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "finish", moment="after")
    result = await Orchestrator(tools=tools, storage=storage).run_saga([Step("make", {"name": "a"})])
    assert (result.status, world) == ("failed", ["a"])
    records = await inner.read(f"run:{result.run_id}")
    assert [record.data["type"] for record in records] == ["opened", "begin", "finish"]
    (recovered,) = await Orchestrator(tools=tools, storage=inner, clock=Later()).recover()
    assert (recovered.status, world) == ("rolled_back", [])


async def test_an_end_that_is_on_record_all_the_same_counts() -> None:
    """Nobody would ever look at that run again, so what it did must not be undone behind its journal's back."""
    tools, world = ToolRegistry(), list[str]()
    making(tools, world)
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "closed", moment="after")
    result = await Orchestrator(tools=tools, storage=storage).run_saga([Step("make", {"name": "a"})])
    assert (result.status, world) == ("success", ["a"])
    assert await Orchestrator(tools=tools, storage=inner, clock=Later()).recover() == []
    undone = await Orchestrator(tools=tools, storage=inner).undo(result.run_id)
    assert (undone.status, world) == ("rolled_back", [])


async def test_an_end_that_is_not_on_record_is_none() -> None:
    tools, world = ToolRegistry(), list[str]()
    making(tools, world)
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "closed")
    result = await Orchestrator(tools=tools, storage=storage).run_saga([Step("make", {"name": "a"})])
    assert result.status != "success"
    (recovered,) = await Orchestrator(tools=tools, storage=inner, clock=Later()).recover()
    assert (recovered.status, world) == ("rolled_back", [])
