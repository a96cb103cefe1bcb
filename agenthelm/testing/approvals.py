"""What every approval handler must do, for people who write one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import anyio
import anyio.lowlevel

from agenthelm.core.decisions import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.digest import digest

__all__ = ["approval_contract", "approval_request"]

_TIMEOUT: Final = 10.0
"""Seconds after which a test counts as hanging."""


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


def approval_contract(factory: Callable[[], ApprovalHandler]) -> type:
    """Make a class of tests that hold a handler to what the executor relies on.

    Assign the class to a name that pytest collects. The tests are coroutines; anyio's pytest plugin (its ``auto``
    mode) runs them on the backends of the ``anyio_backend`` fixture. The handler must come to its decisions by
    itself: a human has to be played by the test.

    ```python
    TestMyHandler = approval_contract(lambda: MyHandler())
    ```

    Args:
        factory: Makes a handler; called for each test.
    """
    return type("ApprovalContract", (_ApprovalContract,), {"factory": staticmethod(factory)})


class _ApprovalContract:
    factory: Callable[[], ApprovalHandler]

    async def test_decides_with_a_name_and_a_reason_bound_to_the_call(self) -> None:
        request = approval_request()
        with anyio.fail_after(_TIMEOUT):
            _check(await self.factory().request_approval(request), request)

    async def test_says_which_calls_it_covers(self) -> None:
        handler = self.factory()
        assert isinstance(handler.gates, bool), "gates is True or False"
        assert isinstance(handler.covers(approval_request()), bool), "covers() returns True or False"

    async def test_answers_each_of_concurrent_requests(self) -> None:
        handler, answered = self.factory(), set[str]()

        async def ask(request: ApprovalRequest) -> None:
            _check(await handler.request_approval(request), request)
            answered.add(request.id)

        with anyio.fail_after(_TIMEOUT):
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(ask, approval_request(f"tool_{number}", request_id=f"request-{number}"))
        assert len(answered) == 5

    async def test_lets_cancellation_through(self) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await self.factory().request_approval(approval_request())
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught, "the handler swallows cancellation"


def _check(decision: object, request: ApprovalRequest) -> None:
    assert isinstance(decision, Decision), f"the handler answered {decision!r}, not a Decision"
    assert isinstance(decision.approved, bool), f"approved is {decision.approved!r}, not True or False"
    assert decision.approver, "the decision does not name its approver"
    assert decision.approved or decision.reason, "a denial needs a reason; the agent is told"
    assert decision.digest in {None, request.digest}, "the decision is for other arguments than those asked about"
