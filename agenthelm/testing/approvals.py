"""What every approval handler must do, for people who write one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import anyio
import anyio.lowlevel

from agenthelm.core.decisions import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.redaction import digest

__all__ = ["approval_contract", "approval_request"]


def approval_request(
    tool_name: str = "book_hotel", *, request_id: str = "request-1", **changes: object
) -> ApprovalRequest:
    """A request as the executor makes it, for tests of handlers.

    Args:
        tool_name: The tool it is about.
        request_id: Its id.
        **changes: Other fields of `ApprovalRequest`.
    """
    arguments = {"city": "Lisbon", "nights": 3}
    request = ApprovalRequest(
        id=request_id,
        tool_name=tool_name,
        arguments=MappingProxyType(arguments),
        digest=digest(tool_name, arguments),
        agent="planner",
        run_id="run-1",
        session_id="session-1",
        namespace="default",
        reason="Book a hotel.",
        side_effects=("booking:write",),
        tags=("travel",),
        compensating_tool="cancel_hotel",
        max_cost=0.05,
    )
    return replace(request, **changes)  # type: ignore[arg-type]


async def approval_contract(make: Callable[[], ApprovalHandler], *, timeout: float = 10.0) -> None:
    """Hold a handler against what the executor relies on.

    It decides on single and on concurrent requests with a `Decision` that names who decided, says why where it denies,
    and is bound to no other arguments than those it was asked about; and it can be cancelled. The handler must come
    to its decisions by itself: a human has to be played by the test.

    Args:
        make: Makes a handler; called for each check.
        timeout: Seconds after which a check counts as hanging.

    Raises:
        AssertionError: The handler breaks the contract; the message says where.
    """
    with anyio.fail_after(timeout):
        request = approval_request()
        _check(await make().request_approval(request), request)
        _check_gate(make(), request)
        await _check_concurrent(make())
        await _check_cancelled(make())


def _check(decision: object, request: ApprovalRequest) -> None:
    assert isinstance(decision, Decision), f"the handler answered {decision!r}, not a Decision"
    assert isinstance(decision.approved, bool), f"approved is {decision.approved!r}, not True or False"
    assert decision.approver, "the decision does not name its approver"
    assert decision.approved or decision.reason, "a denial needs a reason; the agent is told"
    assert decision.digest in {None, request.digest}, "the decision is for other arguments than those asked about"


def _check_gate(handler: ApprovalHandler, request: ApprovalRequest) -> None:
    assert isinstance(handler.gates, bool), "gates is True or False"
    assert isinstance(handler.covers(request), bool), "covers() returns True or False"


async def _check_concurrent(handler: ApprovalHandler) -> None:
    answered: list[str] = []

    async def ask(request: ApprovalRequest) -> None:
        _check(await handler.request_approval(request), request)
        answered.append(request.id)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(ask, approval_request(f"tool_{number}", request_id=f"request-{number}"))
    assert len(answered) == 5, "concurrent requests are each answered"


async def _check_cancelled(handler: ApprovalHandler) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await handler.request_approval(approval_request())
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught, "the handler swallows cancellation"
