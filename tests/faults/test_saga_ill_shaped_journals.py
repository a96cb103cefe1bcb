"""Records that are JSON and yet none of ours, damaged or of a later version, are refused; the other runs are not to blame."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agenthelm.core.storage import InMemoryStorage, Record
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import CorruptRecordError
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.support.saga_leases import Later


class World:
    """A run of two steps whose process died after the first one; written down as often as is wanted."""

    def __init__(self) -> None:
        self.undone: list[str] = []
        self.storage = InMemoryStorage()
        self.tools = ToolRegistry()
        self.orchestrator = Orchestrator(tools=self.tools, storage=self.storage, clock=Later())

        @tool(registry=self.tools, compensating_tool="unmake", idempotent=True)
        async def make(name: str) -> dict[str, str]:
            return {"thing": name}

        @tool(registry=self.tools)
        async def unmake(thing: str) -> None:
            self.undone.append(thing)

    async def records(self) -> list[dict[str, Any]]:
        storage = InMemoryStorage()
        orchestrator = Orchestrator(tools=self.tools, storage=storage)
        run = await orchestrator.run_saga([Step("make", {"name": name}, id=name) for name in "ab"])
        return [dict(record.data) for record in await storage.read(stream_of(run.run_id))][:3]

    async def left(self, run_id: str, records: list[dict[str, Any]]) -> None:
        await self.storage.append([Record(stream_of(run_id), data, "open") for data in records])


@pytest.mark.parametrize(
    ("position", "field", "value"),
    [
        (0, "at", float("nan")),
        (0, "at", 10**400),
        (0, "at", 1e300),
        (0, "epoch", float("inf")),
        (0, "plan", [1]),
        (0, "kind", "graphs"),
        (0, "owner", {"pid": float("inf")}),
        (1, "tool", ["make"]),
        (1, "key", {}),
        (1, "scope", None),
        (1, "withheld", [[]]),
        (1, "compensating_tool", 7),
        (2, "outcome", "success"),
        (2, "error", 1.0),
    ],
)
async def test_a_record_of_another_shape_is_named_and_the_other_runs_are_recovered(
    position: int, field: str, value: object
) -> None:
    world = World()
    records = await world.records()
    await world.left("good", records)
    records[position] = {**copy.deepcopy(records[position]), field: value}
    await world.left("ill", records)
    results = {result.run_id: result for result in await world.orchestrator.recover()}
    assert {run_id: result.status for run_id, result in results.items()} == {"ill": "failed", "good": "rolled_back"}
    assert f"record {position} of stream 'run:ill'" in (results["ill"].error or "")
    assert world.undone == ["a"]
    for refused in (world.orchestrator.recover("ill"), world.orchestrator.undo("ill")):
        with pytest.raises(CorruptRecordError):
            await refused
    assert len(await world.storage.read(stream_of("ill"))) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["steps"][1].pop("id"),
        lambda plan: plan["steps"].append(7),
        lambda plan: plan.pop("steps"),
        lambda plan: plan.update(budget={"of a later version": 1}),
        lambda plan: plan.update(budget="much"),
    ],
)
async def test_a_plan_that_can_not_be_read_is_undone_instead_of_resumed(change: Any) -> None:
    world = World()
    records = copy.deepcopy(await world.records())
    change(records[0]["plan"])
    await world.left("r", records)
    (result,) = await world.orchestrator.recover(resume=True)
    assert (result.status, world.undone) == ("rolled_back", ["a"])
    assert "it can't go on: its plan can't be read" in (result.error or "")
