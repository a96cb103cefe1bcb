"""A record that was written and reported as lost: the run ends there, and whoever recovers it knows all that happened."""

from __future__ import annotations

from typing import Literal

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.results import SagaResult
from agenthelm.orchestration.saga import Step
from agenthelm.testing.storage import FaultyStorage
from tests.support.making import making
from tests.support.saga_leases import Later


class Made:
    """A world, and a log of which one record is reported as lost."""

    def __init__(self, kind: str, moment: Literal["before", "after"]) -> None:
        self.tools, self.world = ToolRegistry(), list[str]()
        making(self.tools, self.world)
        self.log = InMemoryStorage()
        self._faulty = FaultyStorage(self.log, matching=lambda record: record.data.get("type") == kind, moment=moment)

    async def run(self) -> SagaResult:
        """Make one thing, while that record gets lost."""
        return await Orchestrator(tools=self.tools, storage=self._faulty).run_saga([Step("make", {"name": "a"})])

    def later(self) -> Orchestrator:
        """Somebody else, after the lease has run out."""
        return Orchestrator(tools=self.tools, storage=self.log, clock=Later())


async def test_nothing_is_recorded_behind_it_and_what_was_done_is_undone_once() -> None:
    made = Made("finish", "after")
    result = await made.run()
    assert (result.status, made.world) == ("failed", ["a"])
    records = await made.log.read(f"run:{result.run_id}")
    assert [record.data["type"] for record in records] == ["opened", "begin", "finish"]
    (recovered,) = await made.later().recover()
    assert (recovered.status, made.world) == ("rolled_back", [])


async def test_an_end_that_is_on_record_all_the_same_counts() -> None:
    """Nobody would ever look at that run again, so what it did must not be undone behind its journal's back."""
    made = Made("closed", "after")
    result = await made.run()
    assert (result.status, made.world) == ("success", ["a"])
    assert await made.later().recover() == []
    undone = await made.later().undo(result.run_id)
    assert (undone.status, made.world) == ("rolled_back", [])


async def test_an_end_that_is_not_on_record_is_none() -> None:
    made = Made("closed", "before")
    result = await made.run()
    assert result.status != "success"
    (recovered,) = await made.later().recover()
    assert (recovered.status, made.world) == ("rolled_back", [])
