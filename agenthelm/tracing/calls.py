"""Tells a tool's span what the event of its call says, so that both tell the same story."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agenthelm.tracing import names
from agenthelm.tracing.site import SpanHandle

__all__ = ["describe"]

_ALWAYS: Final = {"outcome": names.OUTCOME, "retry_count": names.RETRY_COUNT}
_IF_ANY: Final = {
    "run_id": names.RUN_ID,
    "session_id": names.CONVERSATION_ID,
    "namespace": names.NAMESPACE,
    "agent_name": names.AGENT_NAME,
    "step": names.STEP,
    "effect_id": names.EFFECT_ID,
    "compensates": names.COMPENSATES,
    "late": names.LATE,
    "estimated_cost_usd": names.COST_USD,
}


def describe(span: SpanHandle, event: Mapping[str, Any], description: str = "") -> None:
    """Set on the span of a tool's call what its event says; content only where it is opted in.

    Args:
        span: The span, still open.
        event: The event, of `ExecutionEvent`'s shape, masked.
        description: What the tool does.
    """
    for key, name in _ALWAYS.items():
        span.set(name, event.get(key))
    for key, name in _IF_ANY.items():
        if value := event.get(key):
            span.set(name, value)
    span.set(names.TOOL_DESCRIPTION, description or None)
    span.set(names.TOOL_ARGUMENTS, event.get("inputs"))
    span.set(names.TOOL_RESULT, (event.get("outputs") or {}).get("result"))
