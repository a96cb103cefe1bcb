"""The grace is of a compensation with its retries: a sync one is not tried again after it, only awaited."""

from __future__ import annotations

import time

from agenthelm.core.tool import Backoff, ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step


async def test_no_attempt_begins_after_the_grace() -> None:
    tools, attempts = ToolRegistry(), []

    @tool(registry=tools, compensating_tool="unmake")
    async def make() -> None: ...

    @tool(registry=tools, retries=40, backoff=Backoff(initial=0.05, maximum=0.05))
    def unmake() -> None:
        attempts.append(time.monotonic())
        raise ValueError("no")

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    result = await Orchestrator(tools=tools, grace=0.2).run_saga([Step("make"), Step("fail")])
    assert result.status == "failed"
    assert attempts[-1] - attempts[0] < 0.6
