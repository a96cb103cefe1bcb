"""The grace is of a compensation with its retries: a sync one is not tried again after it, only awaited."""

from __future__ import annotations

import threading

from agenthelm.core.tool import Backoff, ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step


async def test_no_attempt_begins_after_the_grace() -> None:
    tools, attempts, past_the_grace = ToolRegistry(), [], threading.Event()

    @tool(registry=tools, compensating_tool="next_undo")
    async def first() -> None: ...

    @tool(registry=tools, compensating_tool="slow_undo")
    async def second() -> None: ...

    @tool(registry=tools, retries=40, backoff=Backoff(initial=0))
    def slow_undo() -> None:
        attempts.append(1)
        past_the_grace.wait(60)
        raise ValueError("no")

    @tool(registry=tools)
    def next_undo() -> None:
        past_the_grace.set()  # nobody waits for the other one any more

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    result = await Orchestrator(tools=tools, grace=0.2).run_saga([Step("first"), Step("second"), Step("fail")])
    assert (result.status, attempts) == ("failed", [1])
