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
