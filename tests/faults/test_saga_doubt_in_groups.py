"""A tool with tasks of its own raises a group: what is in it says whether the effect is in doubt."""

from __future__ import annotations

import anyio
import pytest

from agenthelm.core.executor import current_executor
from agenthelm.core.handlers import AutoDeny
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import ApprovalDeniedError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step


@pytest.mark.parametrize("error", [ConnectionError(), TimeoutError()])
async def test_a_lost_answer_in_a_task_of_the_tool_is_doubt(error: Exception) -> None:
    tools, world = ToolRegistry(), []

    @tool(registry=tools, side_effects=["x:write"], compensating_tool="cancel", retries=1)
    async def book() -> dict[str, str]:
        async def send() -> None:
            world.append("booked")
            raise error

        async with anyio.create_task_group() as group:
            group.start_soon(send)
        return {"id": "1"}

    @tool(registry=tools)
    async def cancel(id: str) -> None:  # noqa: A002 - the name of the field of the result
        world.clear()

    result = await Orchestrator(tools=tools).run_saga([Step("book")])
    assert world == ["booked"]  # in doubt, so it was not repeated
    assert (result.status, [stuck.tool for stuck in result.stuck]) == ("failed", ["book"])


async def test_a_denial_inside_the_tool_is_doubt_and_not_retried_also_beside_another_failure() -> None:
    tools, world = ToolRegistry(), []

    @tool(registry=tools, requires_approval=True)
    async def confirm() -> None: ...

    @tool(registry=tools, side_effects=["x:write"], compensating_tool="cancel", idempotent=True, retries=1)
    async def book() -> dict[str, str]:
        world.append("booked")
        try:
            await current_executor().call("confirm", {})  # type: ignore[union-attr]
        except ApprovalDeniedError as denied:
            raise ExceptionGroup("two tasks failed", [denied, ValueError("no car left")]) from None
        return {"id": "1"}

    @tool(registry=tools)
    async def cancel(id: str) -> None:  # noqa: A002 - the name of the field of the result
        world.clear()

    result = await Orchestrator(tools=tools, approval_handler=AutoDeny()).run_saga([Step("book")])
    assert world == ["booked"]
    assert (result.status, [stuck.tool for stuck in result.stuck]) == ("failed", ["book"])
