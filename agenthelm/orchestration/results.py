"""What a run hands back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agenthelm.core.cost import Ledger, Totals
from agenthelm.orchestration.plan import Step

__all__ = ["RunResult", "SagaResult", "SagaStatus", "StepRecord", "StuckEffect"]

SagaStatus = Literal["success", "stopped", "rolled_back", "failed", "open"]
"""How a saga ended; `SagaResult` says what each of them means."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that succeeded, and what it returned."""

    step: Step
    result: Any


@dataclass(frozen=True, slots=True)
class StuckEffect:
    """An effect that stands although it should not.

    Attributes:
        effect_id: Its id in the journal.
        tool: The tool that made it.
        step: The step it belongs to.
        reason: Why it could not be undone, in one line.
    """

    effect_id: str
    tool: str
    step: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class SagaResult:
    """How a saga ended.

    Attributes:
        status: ``success``: the effects stand. ``stopped``: it failed and they were left standing, as asked.
            ``rolled_back``: all undone. ``failed``: something was irreversible or could not be undone; ``stuck`` names it.
            ``open``: it has not ended: it is running, or its process is gone. `Runs` and `Orchestrator.resolve` say that.
        steps: The steps that succeeded, in order of completion (plans only).
        error: What went wrong, in one line.
        exception: The exception itself, where there was one in this process.
        errors: By step, what went wrong under ``on_error="continue"``.
        stuck: What could not be undone.
        undone: Ids of the effects that were undone, in that order.
        in_doubt: Effects of a successful run of which nobody knows whether they happened.
        irreversible: Effects that changed something no tool undoes.
        run_id: The run.
    """

    status: SagaStatus
    steps: list[StepRecord] = field(default_factory=list)
    error: str | None = None
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    errors: Mapping[str, str] = field(default_factory=dict)
    stuck: tuple[StuckEffect, ...] = ()
    undone: tuple[str, ...] = ()
    in_doubt: tuple[str, ...] = ()
    irreversible: tuple[str, ...] = ()
    run_id: str = ""

    @property
    def ok(self) -> bool:
        """Whether the effects stand as planned."""
        return self.status == "success"

    def result_of(self, step: str) -> Any:
        """What a step returned.

        Raises:
            KeyError: The step did not succeed.
        """
        for record in self.steps:
            if record.step.name == step:
                return record.result
        raise KeyError(step)


class RunResult(Mapping[str, Any]):
    """The final state of a run, as a mapping, with what is known about the run itself.

    Attributes:
        run_id: The run; `Orchestrator.undo` takes it.
        session_id: The conversation.
        namespace: The tenant.
        usage: Calls and tokens.
        saga: How its saga ended.
        trace_id: Its OpenTelemetry trace, 32 hex digits, where there is one.
        durable: Whether its journal outlives this process; without that it can be undone here but not recovered.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        *,
        run_id: str,
        session_id: str,
        namespace: str,
        ledger: Ledger,
        saga: SagaResult,
        trace_id: str | None = None,
        durable: bool = False,
    ) -> None:
        self._state = dict(state)
        self._ledger = ledger
        self.run_id = run_id
        self.session_id = session_id
        self.namespace = namespace
        self.usage: Totals = ledger.total()
        self.saga = saga
        self.trace_id = trace_id
        self.durable = durable

    @property
    def cost_usd(self) -> float | None:
        """What the run cost, USD; None as soon as one call had no known price."""
        return self.usage.cost_usd

    @property
    def priced_usd(self) -> float:
        """What everything with a known price cost, USD."""
        return self.usage.priced_usd

    @property
    def in_doubt(self) -> tuple[str, ...]:
        """Effects of which nobody knows whether they happened; they are not undone."""
        return self.saga.in_doubt

    @property
    def irreversible(self) -> tuple[str, ...]:
        """Effects that changed something no tool undoes."""
        return self.saga.irreversible

    def totals(self, by: Literal["agent", "model", "tool"]) -> dict[str, Totals]:
        """Calls, tokens and cost by agent, model or tool."""
        return self._ledger.totals(by)

    def __getitem__(self, key: str) -> Any:
        return self._state[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __repr__(self) -> str:
        return f"RunResult({self._state!r}, run_id={self.run_id!r})"
