"""Two calls under one key are one effect only if the tool says so; else the one in doubt is reported."""

from __future__ import annotations

from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.state import fold


class Insisting(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        with pytest.raises(ConnectionError):
            await self.ause("pay", idempotency_key="k")
        await self.ause("pay", idempotency_key="k")
        if task == "fail":
            raise ValueError("later")
        return {}


@pytest.mark.parametrize("idempotent", [False, True])
async def test_what_may_have_happened_twice(idempotent: bool) -> None:
    tools, paid, storage = ToolRegistry(), [], InMemoryStorage()

    @tool(registry=tools, side_effects=["x:write"], compensating_tool="refund", idempotent=idempotent)
    async def pay(idempotency_key: str) -> dict[str, str]:
        paid.append(f"p{len(paid)}")
        if len(paid) == 1:
            raise ConnectionError
        return {"thing": paid[-1]}

    @tool(registry=tools)
    async def refund(thing: str) -> None:
        paid.remove(thing)

    orchestrator = Orchestrator(tools=tools, storage=storage)
    result = await orchestrator.run(Insisting(name="a"), "go")
    assert result.in_doubt == (() if idempotent else ("e1",))
    state = fold("r", await storage.read(f"run:{result.run_id}"))
    assert state.effects["e1"].settled is idempotent
    paid.clear()
    with pytest.raises(ValueError, match="later") as failed:
        await orchestrator.run(Insisting(name="a"), "fail")
    saga = failed.value.saga  # type: ignore[attr-defined]
    assert [stuck.effect_id for stuck in saga.stuck] == ([] if idempotent else ["e1"])
