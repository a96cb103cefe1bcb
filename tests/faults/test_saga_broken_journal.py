"""After one record that could not be written nothing further happens or is recorded, whatever swallows the error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import anyio
import pytest

from agenthelm.core.storage import InMemoryStorage, Record
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import StorageError
from agenthelm.orchestration import lease
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.testing.storage import FaultyStorage
from tests.support.making import making
from tests.support.saga_leases import Later


@pytest.fixture
def world() -> list[str]:
    return []


@pytest.fixture
def tools(world: list[str]) -> ToolRegistry:
    registry = ToolRegistry()
    making(registry, world)

    @tool(registry=registry)
    async def look() -> None:  # no effect, so the journal has nothing to say of it
        world.append("looked")

    return registry


def of(kind: str) -> Any:
    return lambda record: record.data.get("type") == kind


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_who_swallows_that_an_end_could_not_be_recorded_gets_no_further(
    tools: ToolRegistry, world: list[str], moment: Literal["before", "after"]
) -> None:
    storage = FaultyStorage(InMemoryStorage(), matching=of("finish"), moment=moment)
    with pytest.raises(StorageError, match="told to fail"):
        async with saga(tools=tools, storage=storage) as scope:
            with suppress(StorageError):
                await scope.use("make", name="a")
            with suppress(StorageError):
                await scope.use("look")
    assert world == ["a"]


async def test_nothing_is_recorded_behind_a_record_that_was_written_and_reported_as_lost(
    tools: ToolRegistry, world: list[str]
) -> None:
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=of("finish"), moment="after")
    result = await Orchestrator(tools=tools, storage=storage).run_saga([Step("make", {"name": "a"})])
    assert (result.status, world) == ("failed", ["a"])
    records = await inner.read(f"run:{result.run_id}")
    assert [record.data["type"] for record in records] == ["opened", "begin", "finish"]
    (recovered,) = await Orchestrator(tools=tools, storage=inner, clock=Later()).recover()
    assert (recovered.status, world) == ("rolled_back", [])


async def test_what_could_not_be_announced_was_not_called_and_is_not_undone(tools: ToolRegistry) -> None:
    called: list[str] = []

    @tool(registry=tools, compensating_tool="close_account")
    async def open_account(name: str) -> None:
        called.append(f"open {name}")

    @tool(registry=tools, idempotent=True)
    async def close_account(name: str) -> None:
        called.append(f"close {name}")

    storage = FaultyStorage(InMemoryStorage(), matching=of("begin"), at=2)
    with pytest.raises(StorageError, match="told to fail"):
        async with saga(tools=tools, storage=storage) as scope:
            await scope.use("open_account", name="a")
            await scope.use("open_account", name="b")
    assert called == ["open a", "close a"]
    assert scope.result is not None
    assert scope.result.status == "rolled_back"


async def test_a_run_whose_lease_can_not_be_renewed_goes_no_further(
    tools: ToolRegistry, world: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    tried = anyio.Event()

    def renews(record: Record) -> bool:
        if record.data.get("type") != "renewed":
            return False
        tried.set()
        return True

    storage = FaultyStorage(InMemoryStorage(), matching=renews)
    with anyio.fail_after(30), pytest.raises(StorageError, match="told to fail"):
        async with saga(tools=tools, storage=storage) as scope:
            await tried.wait()
            with suppress(StorageError):
                await scope.use("look")
    assert world == []
