"""An attempt that never began says nothing of the effect: what is known is what those before it have told."""

from __future__ import annotations

import threading

import anyio
import anyio.from_thread

from agenthelm._runtime.retry import SystemClock
from agenthelm.core.storage import EVENTS, InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step


async def test_a_call_cancelled_while_it_waits_for_a_thread_to_try_again_in_is_not_in_doubt() -> None:
    tools, storage, attempts = ToolRegistry(), InMemoryStorage(), list[int]()
    backing_off, taken, let_go = anyio.Event(), anyio.Event(), threading.Event()

    class Clock(SystemClock):
        async def sleep(self, seconds: float) -> None:
            backing_off.set()
            await taken.wait()

    orchestrator = Orchestrator(tools=tools, storage=storage, workers=1, clock=Clock())

    @tool(registry=tools, compensating_tool="unmake", retries=1, retry_on=ValueError)
    def make() -> dict[str, str]:
        attempts.append(1)
        raise ValueError("not now")

    @tool(registry=tools)
    async def unmake(thing: str) -> None: ...

    @tool(registry=tools)
    def occupy() -> None:
        anyio.from_thread.run_sync(taken.set)
        assert let_go.wait(60)

    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(orchestrator.run_saga, [Step("make")])
            await backing_off.wait()
            group.start_soon(orchestrator.run_saga, [Step("occupy")])
            await taken.wait()
            await anyio.wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        let_go.set()
    (event,) = [record.data for record in await storage.read(EVENTS) if record.data["tool_name"] == "make"]
    assert (attempts, event["outcome"], event["retry_count"]) == ([1], "cancelled", 1)
    assert len(await storage.streams(prefix="run:", where={"state": "rolled_back"})) == 1
