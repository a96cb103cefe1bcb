"""Books LM calls that go round the door: of an LM that a predictor or a ``dspy.context`` brought along itself.

DSPy has no supported way to stand in the path of such an LM, so its calls can't be refused beforehand, given a deadline
or retried. They are counted all the same, and an excess stops the run at its next door.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from agenthelm._runtime.context import current_run
from agenthelm.agent.backends import declared_price
from agenthelm.agent.home import at_home
from agenthelm.agent.lm_call import ASSUMED_OUTPUT_TOKENS, plain_event
from agenthelm.agent.lm_errors import fate_of
from agenthelm.agent.metering import Meter, is_metered
from agenthelm.core.cost import Amount, Price, Reservation, TokenUsage
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.core.redaction import scrub
from agenthelm.exceptions import BudgetExceededError
from agenthelm.telling import describe

__all__ = ["StrayWatch"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tracker:
    """Takes the usage that DSPy reports for one call, and passes it on to whoever tracked it before."""

    outer: Any
    usage: dict[str, Any] = field(default_factory=dict)
    reported: bool = False

    def add_usage(self, lm: str, usage: dict[str, Any]) -> None:
        """DSPy calls this for every answer that did not come from its cache."""
        self.reported = True
        self.usage = usage
        if self.outer is not None:
            self.outer.add_usage(lm, usage)


@dataclass(frozen=True, slots=True)
class _Open:
    executor: ToolExecutor
    hold: Reservation
    price: Price | None
    tracker: _Tracker
    settings: AbstractContextManager[None]
    began: float
    model: str


class StrayWatch(BaseCallback):
    """A DSPy callback that is in force for the length of a run."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._open: dict[str, _Open] = {}
        self._warned: set[str] = set()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Reserve for a call that did not pass the door."""
        if not self._meter.closed and not is_metered(instance):
            began = at_home(self._began, instance, inputs)
            if began is not None:
                began.settings.__enter__()  # in this thread's own context, where the call looks for it
                self._open[call_id] = began

    def _began(self, instance: Any, inputs: dict[str, Any]) -> _Open | None:
        executor = current_executor()
        if executor is None:
            return None
        model = str(instance.model)
        if model not in self._warned:
            self._warned.add(model)
            _log.warning(
                "an LM that is not the run's (%r) was called: it is booked, but budgets can't refuse it beforehand. Give "
                "it to the agent as lm=, or to the Orchestrator as lm= or lms=.",
                model,
            )
        price = self._meter.price(model, declared_price(getattr(instance, "engine", None)))
        inputs_bound = len(repr(inputs))
        usd = None if price is None else price.bound(inputs_bound, ASSUMED_OUTPUT_TOKENS)
        bound = Amount(usd=usd, tokens=inputs_bound + ASSUMED_OUTPUT_TOKENS, calls=1)
        try:
            hold = executor.ledger.reserve(bound)
        except BudgetExceededError:  # the scope is marked stopped, and ends at its next door
            hold = executor.ledger.unlimited().reserve(bound)
        tracker = _Tracker(dspy.settings.usage_tracker)
        settings = dspy.context(usage_tracker=tracker)
        return _Open(executor, hold, price, tracker, settings, executor.clock.monotonic(), model)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Settle it to the usage that DSPy reported."""
        call = self._open.pop(call_id, None)
        if call is None:
            return
        call.settings.__exit__(None, None, None)
        at_home(self._ended, call, exception)

    def _ended(self, call: _Open, exception: BaseException | None) -> None:
        fields = {
            "outcome": "success",
            "cost_source": None if call.price is None else call.price.source,
            **_settled(call, exception),
        }
        if exception is not None:
            failed = "failed" if isinstance(exception, Exception) else "cancelled"
            fields.update(outcome=failed, error_type=type(exception).__name__, error_state=scrub(describe(exception)))
        fields["execution_time"] = round(call.executor.clock.monotonic() - call.began, 9)
        self._meter.defer(call.executor, plain_event(call.executor, call.model, **fields))


def _settled(call: _Open, exception: BaseException | None) -> dict[str, Any]:
    """Book a call that has ended; returns what its event says of calls and money."""
    run = current_run()
    agent = run.agent if run is not None else None
    hold, usage = call.hold, _usage(call.tracker.usage, call.model)
    fate = "lost" if exception is None else fate_of(exception)
    if exception is None and not call.tracker.reported:
        nothing = TokenUsage(input_tokens=0, output_tokens=0, model=call.model)
        hold.settle(usage=nothing, agent=agent, outcome="cached")
        return {"calls": 0, "estimated_cost_usd": 0.0, "cost_source": "cache"}
    if usage is not None:
        cost = None if call.price is None else call.price.cost(usage)
        amount = Amount(usd=cost, tokens=usage.input_tokens + usage.output_tokens, calls=1)
        hold.settle(amount, usage=usage, agent=agent)
        return {"calls": 1, "estimated_cost_usd": cost, "token_usage": usage.model_dump()}
    if fate == "unsent":
        hold.release()
        return {"calls": 0, "estimated_cost_usd": 0.0}
    if fate == "refused":
        hold.settle(Amount(calls=1), agent=agent, outcome="failed", model=call.model)
        return {"calls": 1, "estimated_cost_usd": 0.0}
    hold.keep(agent=agent, model=call.model)
    return {"calls": 1, "estimated_cost_usd": hold.amount.usd, "cost_source": "estimated"}


def _usage(usage: dict[str, Any], model: str) -> TokenUsage | None:
    if usage.get("prompt_tokens") is None or usage.get("completion_tokens") is None:
        return None

    def part(group: str, name: str) -> int:
        return int((usage.get(group) or {}).get(name) or 0)

    return TokenUsage(
        input_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        model=model,
        cached_input_tokens=part("prompt_tokens_details", "cached_tokens"),
        cache_write_tokens=part("prompt_tokens_details", "cache_creation_tokens"),
        reasoning_tokens=part("completion_tokens_details", "reasoning_tokens"),
    )
