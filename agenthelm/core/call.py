"""The record of one tool call while it is made: what becomes its event."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any
from uuid import UUID

import anyio

from agenthelm._runtime.context import RunContext, new_call_id
from agenthelm._runtime.retry import Clock
from agenthelm.core.binding import KEY_PARAMETER, own_copy
from agenthelm.core.digest import digest
from agenthelm.core.effects import Effect
from agenthelm.core.event import utc
from agenthelm.core.redaction import Hook, masked, veiled
from agenthelm.core.sensitive import secret_texts
from agenthelm.core.tool import Tool
from agenthelm.exceptions import (
    ApprovalDeniedError,
    BudgetExceededError,
    LeaseLostError,
    ToolContractError,
    ToolInputError,
    UnknownToolError,
)
from agenthelm.telling import behind, conceal, conceal_notes, describe, message_of, notes_of
from agenthelm.tracing.calls import describe as describe_span
from agenthelm.tracing.site import NOTHING, SpanHandle, SpanIds

__all__ = ["Call"]

_LONGEST_NAME = 200
"""Characters of a tool's name that nobody registered; it is some caller's text."""

_LONGEST_REASONING = 2_000
"""Characters of what an LM said that are kept."""


def _refusal(error: BaseException) -> str:
    """The outcome of a call that never reached its tool."""
    if isinstance(error, ApprovalDeniedError):
        return "denied"
    if isinstance(error, BudgetExceededError):
        return "over_budget"
    return "invalid" if isinstance(error, (ToolInputError, UnknownToolError, ToolContractError)) else "failed"


class Call:
    """One call on its way through the door. Belongs to one task; nobody else sees it."""

    bound: dict[str, Any] | None = None
    tool: Tool | None = None
    compensating_tool: str | None = None
    digest: str = ""
    effect: Effect | None = None
    effect_id: str | None = None
    is_effect: bool = False
    approver: str | None = None
    approval_reason: str | None = None
    started: float | None = None
    stopped: float | None = None
    attempts: int = 0
    late: bool = False
    outcome: str = "success"
    result: Any = None
    error_state: str | None = None
    error_type: str | None = None
    raised: BaseException | None = None
    cost_usd: float | None = 0.0
    cancellation: BaseException | None = None
    span: SpanHandle = NOTHING
    ids: SpanIds = (None, None)

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        context: RunContext | None,
        clock: Clock,
        key: str | None = None,
        compensates: str | None = None,
        hidden: frozenset[str] = frozenset(),
        reasoning: str = "",
    ) -> None:
        self.id: str = new_call_id()
        self.name: str = name
        self.arguments: Mapping[str, Any] = arguments
        self.context: RunContext | None = context
        self.clock: Clock = clock
        self.hidden: frozenset[str] = hidden
        self.guarded: frozenset[str] = hidden
        self.key = key
        self.compensates: str | None = compensates
        self.reasoning: str = reasoning
        self.wall: float = clock.wall()

    def bind(self, tool: Tool, compensating_tool: str | None) -> None:
        """Validate the arguments, fill in the idempotency key, and settle whether this is an effect.

        Raises:
            ToolInputError: They don't fit.
        """
        self.tool = tool
        self.name = tool.name
        binding = tool.binding
        hidden = self.hidden
        self.guarded = binding.guarded | hidden if hidden else binding.guarded  # what is masked where it does not bind
        arguments = self.arguments
        if binding.takes_key:
            given = arguments.get(KEY_PARAMETER)
            self.key = self.key or given or f"{self.context.run_id if self.context else 'detached'}:{self.id}"
            if isinstance(self.key, (int, UUID)):  # as the journal, and whoever undoes this, will have it
                self.key = str(self.key)
            if given != self.key:
                arguments = {**arguments, KEY_PARAMETER: self.key}
        elif self.key is None:
            self.key = self.id
        # Nobody else can change it from here on: it is asked about, journaled, shown, and copied for every attempt.
        self.bound = own_copy(binding.bind(arguments))
        if self.guarded:
            self.guarded = binding.guarded_among(self.bound) | hidden
        self.compensating_tool = compensating_tool or tool.contract.compensating_tool
        self.is_effect = self.compensates is None and (tool.contract.effectful or compensating_tool is not None)
        if binding.takes_key:
            self._check_key(self.bound[KEY_PARAMETER])
        self.digest = digest(tool.name, self.bound)

    def _check_key(self, bound: Any) -> None:
        """Make sure that a tool, its compensator and its ``verify`` get the key that is in the journal.

        Raises:
            ToolInputError: Its own type makes another of it.
        """
        if isinstance(bound, str) and bound != self.key:
            raise ToolInputError(
                f"tool {self.name!r}: the type of {KEY_PARAMETER!r} makes {bound!r} of {self.key!r}, so what is done and what "
                f"undoes it would go by different keys; give a key that it leaves as it is, or annotate the parameter as str",
                tool_name=self.name,
            )

    def as_effect(self, effect_id: str) -> Effect:
        """What the journal needs to know to undo this call."""
        assert self.tool is not None and self.bound is not None and self.key is not None
        binding, context = self.tool.binding, self.context
        whose = (context.effect, context.step, context.agent) if context is not None else (None, None, None)
        self.effect_id = effect_id
        self.effect = Effect(
            effect_id, self.tool.name, self.bound, self.key, *whose, self.digest, self.compensating_tool,
            self.guarded, binding.secret_fields, binding.secret_result, *self.ids,
        )  # fmt: skip
        return self.effect

    def ended(self) -> None:
        """Stop the clock."""
        if self.stopped is None:
            self.stopped = self.clock.monotonic()

    def succeeded(self, value: Any, invalid: Exception | None) -> None:
        """The tool ran to its end; ``invalid`` is why its result is refused all the same."""
        self.result = value
        self.outcome = "success" if invalid is None else "invalid"
        self.error_state = self.error_type = self.raised = None
        if invalid is not None:
            self._name(invalid)

    def failed(self, error: BaseException, *, doubt: bool) -> None:
        """The call ended with an exception."""
        self._name(error)
        if doubt:
            self.outcome = "in_doubt"
        elif not isinstance(error, Exception) or isinstance(error, (LeaseLostError, anyio.get_cancelled_exc_class())):
            self.outcome = "cancelled"
        elif isinstance(error, TimeoutError):
            self.outcome = "timeout"
        else:
            # What a tool that ran lets through is of a call inside it, which has an event of its own.
            self.outcome = "failed" if self.attempts else _refusal(error)

    def event(self, redact: Hook | None) -> dict[str, Any]:
        """The event, safe to store and to show: `ExecutionEvent`'s fields, those without a value left out."""
        shown = self.arguments if self.bound is None else self.bound
        guarded = self.guarded
        secrets = self.secrets()
        succeeded = self.outcome == "success"
        event: dict[str, Any] = {
            "id": self.id,
            "kind": "tool",
            "timestamp": utc(self.wall),
            "tool_name": self.name if self.tool is not None else masked(self.name, cap=_LONGEST_NAME),
            "inputs": masked(
                shown, sensitive=self._sensitive(shown) if guarded else guarded, secrets=secrets, hook=redact
            ),
            "outputs": masked({"result": self._result()}, secrets=secrets, hook=redact) if succeeded else {},
            "execution_time": self._seconds(),
            "outcome": self.outcome,
            "estimated_cost_usd": self.cost_usd,
            "retry_count": self.attempts - 1 if self.attempts else 0,
            "late": self.late,
        }
        self._say_what_is_known(event)
        if not succeeded:
            event["error_state"], event["error_type"] = self.error_state, self.error_type
        if secrets:
            self._veil(event, secrets)
        self.raised = None  # its traceback holds this call
        if self.reasoning:
            said = masked({"reasoning": self.reasoning}, hook=redact, cap=_LONGEST_REASONING)
            event["llm_reasoning_trace"] = said["reasoning"]
        if self.span.listening:
            describe_span(self.span, event, "" if self.tool is None else self.tool.description)
        return event

    def _say_what_is_known(self, event: dict[str, Any]) -> None:
        """The fields that not every call has."""
        if self.digest:
            event["digest"] = self.digest
        context = self.context
        if context is not None:
            event["run_id"] = context.run_id
            event["session_id"] = context.session_id
            event["namespace"] = context.namespace
            if context.agent is not None:
                event["agent_name"] = context.agent
            if context.step is not None:
                event["step"] = context.step
        if self.effect_id is not None:
            event["effect_id"] = self.effect_id
        if self.compensates is not None:
            event["compensates"] = self.compensates
        if self.approver is not None:
            event["approver"], event["approval_reason"] = self.approver, self.approval_reason
        if self.ids[0] is not None:
            event["trace_id"], event["span_id"] = self.ids

    def _seconds(self) -> float:
        """From the first attempt to the end of the last; a call that was refused took none."""
        if self.started is None:
            return 0.0
        # In whole nanoseconds; `round` to digits costs five times as much.
        return round(((self.clock.monotonic() if self.stopped is None else self.stopped) - self.started) * 1e9) / 1e9

    def _name(self, error: BaseException) -> None:
        self.raised = error
        self.error_type = type(error).__name__
        self.error_state = masked(describe(error))

    def _result(self) -> Any:
        """The result, without what only its declaration says is secret."""
        return self.result if self.tool is None else self.tool.binding.shown(self.result)

    def secrets(self) -> list[str]:
        """What the secret arguments say, the longest first."""
        if not self.guarded:
            return []
        shown = self.arguments if self.bound is None else self.bound
        sensitive = self._sensitive(shown)
        found = secret_texts([shown[name] for name in sensitive if name in shown], whole=True)
        found |= secret_texts([shown[name] for name in self.guarded if name in shown], whole=False)
        return sorted(found, key=len, reverse=True)

    def _sensitive(self, shown: Mapping[str, Any]) -> AbstractSet[str]:
        """The arguments that are masked whole."""
        tool = self.tool
        if tool is None:
            # Nobody knows what the arguments of no tool are; where some tool has secrets, they may be those.
            return set(shown)
        if self.bound is None:
            # What was not validated has no types to say what is secret, and a secret may stand under a wrong name.
            return self.guarded | {name for name in shown if name not in tool.parameters}
        return tool.binding.sensitive_among(shown) | self.hidden

    def _veil(self, event: dict[str, Any], secrets: list[str]) -> None:
        """Take what the secret arguments say out of the reasons and the errors as well."""
        self.reasoning = veiled(self.reasoning, secrets)
        if self.raised is None:
            return
        # From here on it is told in these words, wherever it gets: spans, outer calls, the journal, what an LM sees.
        for error in (self.raised, *behind(self.raised)):
            said, notes = message_of(error), notes_of(error)
            if notes != (remarks := [veiled(note, secrets) for note in notes]):
                conceal_notes(error, remarks)
            if said is not None and said != (words := veiled(said, secrets)):
                conceal(error, words)
        if (said := masked(describe(self.raised))) != self.error_state:
            self.error_state = event["error_state"] = said
