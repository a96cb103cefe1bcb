"""Some calls wait for a yes.

The handler sees the exact arguments that will be executed. No answer is a no, and a no is an error that the agent may
handle.
"""

from __future__ import annotations

import pytest

from agenthelm import (
    ApprovalDeniedError,
    ApprovalHandler,
    ApprovalRequest,
    Decision,
    Orchestrator,
    Step,
    ToolRegistry,
    saga,
    tool,
)

tools = ToolRegistry()
paid: list[float] = []


@tool(requires_approval=lambda amount: amount > 100, side_effects=["payment:write"], registry=tools)
async def pay(to: str, amount: float) -> None:
    paid.append(amount)


class Accountant(ApprovalHandler):
    async def request_approval(self, request: ApprovalRequest) -> Decision:
        return Decision(request.arguments["to"] == "ann", reason="we only know ann", approver="accounting")


async def test_the_handler_decides_on_the_exact_arguments() -> None:
    paid.clear()
    async with Orchestrator(tools=tools, approval_handler=Accountant()) as orchestrator:
        known = await orchestrator.run_saga([Step("pay", {"to": "ann", "amount": 200})])
        unknown = await orchestrator.run_saga([Step("pay", {"to": "bob", "amount": 200})])
    assert (known.status, unknown.status, paid) == ("success", "rolled_back", [200.0])
    assert unknown.error == "ApprovalDeniedError: tool 'pay' was not approved by accounting: we only know ann"


async def test_nobody_to_ask_is_a_no() -> None:
    paid.clear()
    with pytest.raises(ApprovalDeniedError):
        async with saga(tools=tools) as scope:
            await scope.use("pay", to="ann", amount=50)  # small amounts need no approval
            await scope.use("pay", to="ann", amount=200)
    assert paid == [50.0]
