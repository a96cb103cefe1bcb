"""A ``verify`` that never answers leaves its own doubt and holds up nobody; a lease is kept while one is asked."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.from_thread
import pytest

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration import journal as journals
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later


@pytest.mark.parametrize("where", ["async", "thread"])
async def test_a_verify_that_hangs_leaves_its_doubt_and_the_rest_is_undone(where: str) -> None:
    tools, world, gate = ToolRegistry(), ["a", "b"], threading.Event()

    async def ask() -> bool:
        await anyio.sleep_forever()
        return True

    def ask_in_thread() -> bool:
        assert gate.wait(60)
        return False

    @tool(registry=tools, compensating_tool="cancel")
    async def book(what: str) -> None: ...

    @tool(registry=tools, compensating_tool="cancel", verify=ask if where == "async" else ask_in_thread)
    async def slow(what: str) -> None:
        await anyio.sleep_forever()

    @tool(registry=tools)
    def cancel(what: str) -> None:  # in a thread, so that it comes to its end however short the grace
        world.remove(what)
        gate.set()

    scope = saga(tools=tools, grace=0.05)
    with anyio.fail_after(60), pytest.raises(ValueError, match="no"):
        async with scope:
            await scope.use("book", what="a")
            async with anyio.create_task_group() as calls:
                calls.start_soon(scope.executor.call, "slow", {"what": "b"})
                await anyio.wait_all_tasks_blocked()
                calls.cancel_scope.cancel()
            raise ValueError("no")
    assert world == ["b"]
    assert scope.result is not None
    (stuck,) = scope.result.stuck
    assert stuck.tool == "slow"
    assert "nobody knows whether slow happened (its verify did not answer within 0.05 s)" in stuck.reason


async def test_the_lease_of_a_run_to_be_resumed_is_kept_while_its_doubts_are_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.01)
    inner, renewed = InMemoryStorage(), anyio.Event()
    tools = ToolRegistry()

    async def ask() -> bool:
        await renewed.wait()
        return False

    @tool(registry=tools, compensating_tool="cancel", verify=ask)
    async def book(what: str) -> None: ...

    @tool(registry=tools)
    async def cancel(what: str) -> None: ...

    dying = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "finish", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga([Step("book", {"what": "a"})])

    def seen(record: Any) -> bool:
        if record.data.get("type") == "renewed":
            renewed.set()
        return False

    storage = FaultyStorage(inner, matching=seen)
    with anyio.fail_after(60):
        (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert result.status == "success"
    (info,) = await inner.streams(prefix="run:")
    kinds = [record.data["type"] for record in await inner.read(info.name)]
    assert kinds[kinds.index("claimed") + 1] == "renewed"
    assert fold("r", await inner.read(info.name)).status == "success"


async def test_what_its_verify_has_found_is_told_also_where_that_is_too_little_to_undo_it() -> None:
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="cancel", verify=lambda: True)
    async def book() -> dict[str, str]:
        raise TimeoutError

    @tool(registry=tools)
    async def cancel(booking: str) -> None: ...

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "finish", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga([Step("book")])
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover()
    assert [stuck.reason for stuck in result.stuck] == [
        "book happened, as its verify says, and cancel needs its result"
    ]
