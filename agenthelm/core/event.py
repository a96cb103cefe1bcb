"""The durable audit record of one tool call or one LM call."""

from __future__ import annotations

import functools
import math
import time
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from agenthelm.core.cost import TokenUsage

__all__ = ["EventOutcome", "ExecutionEvent", "utc"]

EventOutcome = Literal["success", "failed", "denied", "over_budget", "timeout", "cancelled", "invalid", "in_doubt"]
"""How a call ended, as an auditor asks: also calls that were refused before the tool ran have one."""


def utc(moment: float) -> str:
    """Seconds since the epoch as an event tells them: as ``datetime.isoformat`` does, at a third of its price."""
    seconds = math.floor(moment)
    micros = round((moment - seconds) * 1e6)
    if micros == 1_000_000:
        seconds, micros = seconds + 1, 0
    return f"{_second(seconds)}.{micros:06d}+00:00" if micros else f"{_second(seconds)}+00:00"


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class ExecutionEvent(BaseModel):
    """One call, on record whatever became of it.

    The executor writes plain dictionaries of this shape, without the fields that have no value; the model
    validates them when they are read.

    Attributes:
        id: Unique id of the call.
        kind: ``"tool"`` or ``"lm"``.
        timestamp: When the call began, UTC.
        tool_name: The tool, or the model for ``kind="lm"``.
        inputs: The bound arguments, redacted and capped in size.
        outputs: ``{"result": ...}`` on success, redacted and capped in size.
        execution_time: Seconds from the first attempt to the last one's end; waiting for approval is not in it.
        outcome: How it ended.
        error_state: ``"TypeName: message"`` of what was raised; the type is there even when the message is empty.
        error_type: The exception's type alone.
        llm_reasoning_trace: What the agent's LM said it wanted, where known.
        confidence_score: 0 to 1, where an agent states one.
        calls: LM calls that were made, retries included (``kind="lm"``); 0 for one refused or answered from a cache.
        token_usage: Tokens used by LM calls (``kind="lm"``).
        estimated_cost_usd: Cost in USD; None when a price is unknown, never 0 for that. A tool's is what it charged
            itself: LM calls inside it have events of their own, so that the events of a run add up to its cost.
        cost_source: Where the price came from.
        retry_count: Attempts after the first.
        late: A sync tool finished after its deadline; the value is used all the same.
        agent_name: The agent that called.
        session_id: The conversation.
        namespace: The tenant.
        run_id: The run.
        step: The saga step.
        effect_id: The journal's id of the effect, when the call was one.
        compensates: The id of the effect this call undid.
        approver: Who approved or denied.
        approval_reason: Their words.
        digest: Digest of tool and exact arguments, as approved.
        trace_id: The OpenTelemetry trace, 32 hex digits.
        span_id: The span, 16 hex digits.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore")

    id: str
    kind: Literal["tool", "lm"] = "tool"
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    tool_name: str
    inputs: dict[str, Any] = Field(default_factory=dict)
    outputs: dict[str, Any] = Field(default_factory=dict)
    execution_time: float = 0.0
    outcome: EventOutcome = "success"
    error_state: str | None = None
    error_type: str | None = None
    llm_reasoning_trace: str = ""
    confidence_score: float | None = None
    calls: int = 0
    token_usage: TokenUsage | None = None
    estimated_cost_usd: float | None = 0.0
    cost_source: str | None = None
    retry_count: int = 0
    late: bool = False
    agent_name: str | None = None
    session_id: str | None = None
    namespace: str | None = None
    run_id: str | None = None
    step: str | None = None
    effect_id: str | None = None
    compensates: str | None = None
    approver: str | None = None
    approval_reason: str | None = None
    digest: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
