"""The approval step of the door: what is executed is what was approved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import anyio
from pydantic import BaseModel

from agenthelm.core.binding import own_copy
from agenthelm.core.call import Call
from agenthelm.core.digest import digest
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.redaction import Hook, masked
from agenthelm.core.signature import call_by_name
from agenthelm.exceptions import ApprovalDeniedError
from agenthelm.tracing import names

__all__ = ["approve"]

_LONGEST: Final = 1000
"""Characters of a reason, or of an approver's name; neither an agent's prompt nor the record is a place for essays."""


async def approve(
    call: Call,
    handler: ApprovalHandler,
    *,
    timeout: float | None,
    on_denial: Literal["observe", "stop"],
    hook: Hook | None = None,
) -> None:
    """Get the approval a call needs, if it needs one.

    Raises:
        ApprovalDeniedError: It was denied, nobody answered in time, the handler failed, or the arguments are no longer
            those that were approved.
    """
    assert call.tool is not None and call.bound is not None
    required = _required(call)
    if not required and not handler.gates:
        return
    request = _request(call, timeout, hook)
    asked = call.clock.monotonic()
    decision = await _ask(handler, request, timeout, required=required)
    if decision is None:
        return
    waited = call.clock.monotonic() - asked
    call.approver = _said(decision.approver) or type(handler).__name__
    reason = _said(decision.reason)
    call.approval_reason = reason or None
    reason = reason or "no reason given"
    approved = decision.approved is True
    if approved and decision.digest is not None and decision.digest != request.digest:
        approved, reason = False, "the approval is for other arguments"
    if approved and request.expires_at is not None and call.clock.wall() > request.expires_at:
        approved, reason = False, "the approval came after it had expired"
    if approved and digest(call.tool.name, call.bound) != request.digest:
        approved, reason = False, "the arguments changed after they were approved"
    call.span.set(names.APPROVAL_OUTCOME, "approved" if approved else "denied")
    call.span.set(names.APPROVAL_APPROVER, call.approver)
    call.span.set(names.APPROVAL_WAIT, waited)
    if approved:
        return
    call.approval_reason = reason
    error = ApprovalDeniedError(call.tool.name, reason=reason, approver=call.approver)
    if on_denial == "stop" and call.context is not None and call.context.stops:
        call.context.stops[0].set(error)
    raise error


def _said(words: object) -> str:
    """What a handler said, as a text that may be stored and shown, whatever it handed over."""
    text = masked(words, cap=_LONGEST)
    return "" if text is None else text if isinstance(text, str) else str(text)


def _required(call: Call) -> bool:
    assert call.tool is not None and call.bound is not None
    rule = call.tool.contract.requires_approval
    if not callable(rule):
        return rule
    try:
        return bool(call_by_name(rule, own_copy(call.bound))) or _holds_nan(call.bound)
    except Exception:  # noqa: BLE001 - a predicate that can't say no says yes
        return True


def _holds_nan(arguments: Mapping[str, Any]) -> bool:
    """Whether a number among them is none: no comparison holds for it, such as ``amount > 100``."""
    waiting: list[Any] = [arguments]
    seen: set[int] = set()
    for value in waiting:
        if isinstance(value, float) and math.isnan(value):
            return True
        if id(value) not in seen:
            seen.add(id(value))
            waiting.extend(_parts(value))
    return False


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return dict(value).values()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def _request(call: Call, timeout: float | None, hook: Hook | None) -> ApprovalRequest:
    assert call.tool is not None and call.bound is not None
    tool, context = call.tool, call.context
    sensitive = tool.binding.sensitive_among(call.bound)
    arguments = masked(call.bound, sensitive=sensitive, secrets=call.secrets(), hook=hook)
    return ApprovalRequest(
        id=call.id,
        tool_name=tool.name,
        arguments=MappingProxyType(arguments),
        digest=call.digest,
        agent=context.agent if context else None,
        run_id=context.run_id if context else None,
        session_id=context.session_id if context else None,
        namespace=context.namespace if context else None,
        reason=tool.description,
        side_effects=tool.contract.side_effects,
        tags=tool.contract.tags,
        compensating_tool=call.compensating_tool,
        irreversible=tool.contract.changes_something and call.compensating_tool is None,
        max_cost=tool.contract.max_cost,
        expires_at=None if timeout is None else call.clock.wall() + timeout,
    )


async def _ask(
    handler: ApprovalHandler, request: ApprovalRequest, timeout: float | None, *, required: bool
) -> Decision | None:
    """The handler's answer; None where the contract asks for none, and the handler does not want to be asked either."""
    with anyio.move_on_after(timeout) as scope:
        try:
            if not required and not handler.covers(request):
                return None
            decision: object = await handler.request_approval(request)
        except Exception as exc:  # noqa: BLE001 - a handler that breaks has not said yes
            return Decision(False, reason=f"the handler failed ({type(exc).__name__}: {exc})")
        if not isinstance(decision, Decision):
            return Decision(False, reason=f"the handler answered {decision!r}, not a Decision")
        return decision
    assert scope.cancelled_caught
    return Decision(False, reason=f"nobody answered within {timeout:g} s")
