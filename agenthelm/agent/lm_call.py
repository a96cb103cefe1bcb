"""The books of one LM call: its reservation, its attempts, its event, its span."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

import anyio
from dspy import lm15
from dspy.lm15 import FunctionTool, Request, Response, TextPart

from agenthelm._runtime.context import RunContext, current_run, new_call_id, raise_if_stopped, report
from agenthelm._runtime.groups import shielded
from agenthelm._runtime.progress import Progress
from agenthelm.agent.ending import check_ending
from agenthelm.agent.lm_errors import fate_of, is_retryable, remember_attempts
from agenthelm.agent.lm_span import tell_request, tell_response, tell_usage
from agenthelm.core.cost import Amount, Price, Reservation, TokenUsage
from agenthelm.core.event import utc
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.redaction import scrub
from agenthelm.core.storage.base import EVENTS, Record
from agenthelm.exceptions import BudgetExceededError, StorageError
from agenthelm.telling import describe
from agenthelm.tracing import names, spans

if TYPE_CHECKING:
    from types import TracebackType

    from agenthelm.agent.backends import Backend, Server
    from agenthelm.agent.metering import Meter

__all__ = ["ASSUMED_OUTPUT_TOKENS", "LMCall", "cached_answer", "plain_event"]

_log = logging.getLogger(__name__)

ASSUMED_OUTPUT_TOKENS = 1024
"""What is reserved for an answer whose request sets no ``max_tokens``. With ``max_tokens`` a budget is never overshot."""

_MEDIA_TOKENS = 4096
"""What is reserved for an image or a file that is only referred to."""

_MESSAGE_TOKENS = 16
"""What providers add around a message, a tool or a schema."""


def input_bound(request: Request) -> int:
    """An upper bound of a request's input tokens: no tokenizer makes more tokens than there are bytes."""
    system = request.system
    bound = 0 if system is None else _size(system) + _MESSAGE_TOKENS
    for message in request.messages:
        bound += _MESSAGE_TOKENS + sum(_part_size(part) for part in message.parts)
    for tool in request.tools:
        bound += _MESSAGE_TOKENS + len(repr(tool).encode())
    if request.config.response_format is not None:
        bound += len(repr(request.config.response_format).encode())
    return bound


def _size(system: Any) -> int:
    return _bytes(system) if isinstance(system, str) else sum(_part_size(part) for part in system)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _part_size(part: Any) -> int:
    if isinstance(part, TextPart):
        return _bytes(part.text)
    data = getattr(part, "data", None)
    if isinstance(data, str):
        return len(data)
    if hasattr(part, "media_type"):
        return _MEDIA_TOKENS
    text = getattr(part, "text", None)
    return _bytes(text) if isinstance(text, str) else len(repr(part).encode())


def usage_of(response: Response, model: str, verbatim: str | None) -> TokenUsage | None:
    """The tokens a response reports, counted the same way for every provider; None when it reports only one kind, or none."""
    used = response.usage
    if used.input_tokens is None or used.output_tokens is None:
        return None
    inputs, outputs = used.input_tokens, used.output_tokens
    cached, written = used.cache_read_tokens or 0, used.cache_write_tokens or 0
    reasoning = used.reasoning_tokens or 0
    # Providers differ: Anthropic's input leaves cached tokens out, Gemini's and xAI's output leaves reasoning out.
    if verbatim is not None and "anthropic" in verbatim:
        inputs += cached + written
    if verbatim in {"gemini", "vertex", "vertex-express", "xai"}:
        outputs += reasoning
    return TokenUsage(
        input_tokens=inputs,
        output_tokens=outputs,
        model=model,
        cached_input_tokens=min(cached, inputs),
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
    )


def _priceable(request: Request) -> bool:
    """Whether token prices are the whole bill: not with hosted tools, nor on another service tier."""
    tools = all(isinstance(tool, FunctionTool) for tool in request.tools)
    return tools and request.config.service_tier in (None, "default", "standard", "auto")


class LMCall:
    """One call, from before its first attempt until it is on record.

    Enter it for the time of the call; `attempt` before each attempt, and then one of `answered` and `retry_after`.
    Afterwards `write` (or the meter's ``defer``) puts it on record.
    """

    def __init__(self, meter: Meter, backend: Backend, request: Request, executor: ToolExecutor) -> None:
        self.meter = meter
        self.executor = executor
        self.request = request
        self.run: RunContext | None = current_run()
        self.model: str = request.model
        self.verbatim: str | None = backend.verbatim
        self.server: Server | None = backend.server
        self.price: Price | None = meter.price(self.model, backend.price) if _priceable(request) else None
        inputs = input_bound(request)
        outputs = request.config.max_tokens or ASSUMED_OUTPUT_TOKENS
        usd = None if self.price is None else self.price.bound(inputs, outputs)
        self._bound = Amount(usd=usd, tokens=inputs + outputs, calls=1)
        self.id: str = new_call_id()
        self.attempts: int = 0
        self.calls: int = 0
        self.usage: TokenUsage | None = None
        self.cost_usd: float | None = 0.0
        self.estimated: bool = False
        self.outcome: str = "success"
        self.error_state: str | None = None
        self.error_type: str | None = None
        self.record: Record | None = None
        self._hold: Reservation | None = None
        self._starts = 0
        self._emitted = False
        self._clock = executor.clock
        self._context = contextvars.copy_context()
        self._span: Any = None
        self._started = 0.0
        self._wall = 0.0
        self._elapsed = 0.0

    @property
    def agent(self) -> str | None:
        """Who asks."""
        return self.run.agent if self.run is not None else None

    def __enter__(self) -> Self:
        provider, slash, _ = self.model.partition("/")
        address, port = self.server or (None, None)
        span = spans.chat(
            self.model,
            provider=provider if slash else None,
            server_address=address,
            server_port=port,
            session_id=self.run.session_id if self.run is not None else None,
        )
        # In a context of its own, because a stream's consumer would otherwise see the span between two events.
        self._span = self._context.run(span.__enter__)
        self._started = self._clock.monotonic()
        self._wall = self._clock.wall()
        tell_request(self._span, self.request)
        self._report("lm_started")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._elapsed = self._clock.monotonic() - self._started
        if self._hold is not None:  # cut off between the request and its answer
            self._keep()
        if error is not None:
            self._failed(error)
        self._tell_span()
        self.record = Record(EVENTS, self._event())
        self._context.run(self._span.__exit__, kind, error, traceback)
        _log.debug("model %s: %s (call %s)", self.model, self.outcome, self.id)
        self._report("lm_finished" if self.outcome == "success" else "lm_failed")

    def attempt(self) -> None:
        """Pass the stop marks and the budgets; raises what they raise."""
        executor = self.executor
        if not executor.passes_doors:
            raise_if_stopped()
        if self.attempts:
            self.check_deadline()
        self._hold = executor.ledger.reserve(self._bound, deny_unpriced=self.meter.unpriced == "deny")
        self.attempts += 1

    def answered(self, response: Response) -> None:
        """Settle an attempt to what its answer says it took.

        Raises:
            ModelCallError: The answer was cut off where that would not be seen.
        """
        self._settle(usage_of(response, self.model, self.verbatim))
        tell_response(self._span, self.request, response)
        check_ending(response.finish_reason, self.model)

    def _settle(self, usage: TokenUsage | None) -> None:
        hold, self._hold = self._hold, None
        assert hold is not None
        if usage is None:  # an answer that does not say what it took
            self._hold = hold
            self._keep()
            return
        cost = None if self.price is None else self.price.cost(usage)
        hold.settle(
            Amount(usd=cost, tokens=usage.input_tokens + usage.output_tokens, calls=1), usage=usage, agent=self.agent
        )
        self.usage = usage
        self._add(cost)

    def _keep(self) -> None:
        hold, self._hold = self._hold, None
        assert hold is not None
        hold.keep(agent=self.agent, model=self.model)
        self.estimated = True
        self._add(hold.amount.usd)

    def _add(self, usd: float | None) -> None:
        self.calls += 1
        self.cost_usd = None if usd is None or self.cost_usd is None else self.cost_usd + usd

    def retry_after(self, error: Exception) -> float:
        """Settle a failed attempt.

        Returns:
            Seconds to wait before the next one.

        Raises:
            Exception: The same error, when there is to be no next one.
        """
        hold, policy = self._hold, self.meter.policy
        remember_attempts(error, self.attempts)
        if hold is None:  # refused before it was made, or already answered
            raise error
        fate = fate_of(error)
        if fate == "lost":
            self._keep()
        else:
            self._hold = None
            if fate == "unsent":
                hold.release()
            else:
                hold.settle(Amount(calls=1), agent=self.agent, outcome="failed", model=self.model)
                self.calls += 1
        if self._emitted or self.attempts > policy.retries or not is_retryable(error):
            raise error
        delay = policy.backoff.delay(self.attempts, error=error)
        if policy.backoff.too_long(delay) or delay > self.remaining():
            raise error
        return delay

    def remaining(self) -> float:
        """Seconds until the call's deadline."""
        timeout = self.meter.policy.timeout
        return float("inf") if timeout is None else timeout - (self._clock.monotonic() - self._started)

    def check_deadline(self) -> None:
        """Raise if the call's deadline has passed; for code that can't be cancelled."""
        if self.remaining() <= 0:
            raise self.timed_out()

    def timed_out(self) -> Exception:
        """The error of a call that passed its deadline. No retry follows it."""
        error: Exception = lm15.TimeoutError(f"no answer within {self.meter.policy.timeout:g} s")
        remember_attempts(error, self.attempts)
        return error

    def event(self, event: Any) -> None:
        """Look at one event of a stream: its end says what it took, and whether it is one."""
        if event.type == "start":
            self._starts += 1
        elif event.type == "delta":
            self._emitted = True
        elif event.type == "end" and self._hold is not None:
            empty = Response(
                id=None, model=self.model, message=lm15.Message.assistant(""), finish_reason="stop",
                usage=event.usage or lm15.Usage(),
            )  # fmt: skip
            self._settle(usage_of(empty, self.model, self.verbatim))
            check_ending(event.finish_reason, self.model)

    def is_news(self, event: Any) -> bool:
        """Whether a stream's reader has not had this event from an attempt before: DSPy's takes one start only."""
        return event.type != "start" or self._starts == 1

    async def next_event(self, events: AsyncIterator[Any]) -> Any | None:
        """A stream's next event within the deadline, or None at its end."""
        left = self.remaining()
        with anyio.move_on_after(None if left == float("inf") else left):
            event = await anext(events, None)
            if event is not None:
                self.event(event)
            return event
        raise self.timed_out()

    async def write(self) -> None:
        """Put the call on record, through a cancellation if need be; one that can't be ends the run, unless it undoes."""
        if self.record is None:
            return
        write = self.meter.record
        try:
            if self.outcome == "success":
                await write(self.executor, self.record)
            else:
                await shielded(write, self.executor, self.record)
        except StorageError as error:
            if self.executor.passes_doors:
                _log.error("the event of %s could not be written: %s", self.model, error)
                return
            if self.run is not None and self.run.stops:
                self.run.stops[0].set(error)
            raise

    def _failed(self, error: BaseException) -> None:
        self.error_type = type(error).__name__
        self.error_state = scrub(describe(error))
        if not isinstance(error, Exception):
            self.outcome = "cancelled"
        elif isinstance(error, BudgetExceededError):
            self.outcome = "over_budget"
        else:
            self.outcome = "timeout" if isinstance(error, TimeoutError) else "failed"

    @property
    def cost_source(self) -> str | None:
        """Where the cost comes from, and whether it is an estimate."""
        if self.price is None:
            return None
        return f"{self.price.source}, estimated" if self.estimated else self.price.source

    def _tell_span(self) -> None:
        span, usage = self._span, self.usage
        if not span.listening:
            return
        if usage is not None:
            tell_usage(span, usage)
        span.set(names.COST_USD, self.cost_usd)
        span.set(names.COST_SOURCE, self.cost_source)
        if self.attempts > 1:
            span.set(names.RETRY_COUNT, self.attempts - 1)

    def _event(self) -> dict[str, Any]:
        trace_id, span_id = self._span.ids
        return {
            **_plain(self.id, self.model, self.executor, self.run, self._wall),
            "execution_time": round(self._elapsed, 9),
            "outcome": self.outcome,
            "error_state": self.error_state,
            "error_type": self.error_type,
            "calls": self.calls,
            "token_usage": None if self.usage is None else self.usage.model_dump(),
            "estimated_cost_usd": self.cost_usd,
            "cost_source": self.cost_source,
            "retry_count": max(0, self.attempts - 1),
            "trace_id": trace_id,
            "span_id": span_id,
        }

    def _report(self, kind: Any) -> None:
        run = self.run
        if run is not None and run.observer is not None:
            cost = None if kind == "lm_started" else self.executor.ledger.root.cost_usd
            report(
                Progress(kind, self.model, agent=run.agent, error=self.error_state, cost_usd=cost, run_id=run.run_id)
            )


def cached_answer(executor: ToolExecutor, model: str) -> Record:
    """Book and record an answer from DSPy's cache: a call that took nothing."""
    run = current_run()
    usage = TokenUsage(input_tokens=0, output_tokens=0, model=model)
    executor.ledger.reserve(Amount()).settle(usage=usage, agent=run.agent if run else None, outcome="cached")
    return plain_event(executor, model, outcome="success", estimated_cost_usd=0.0, cost_source="cache")


def plain_event(executor: ToolExecutor, model: str, **fields: Any) -> Record:
    """The event of an LM call that did not pass the door."""
    return Record(EVENTS, {**_plain(new_call_id(), model, executor, current_run(), executor.clock.wall()), **fields})


def _plain(call_id: str, model: str, executor: ToolExecutor, run: RunContext | None, began: float) -> dict[str, Any]:
    """What the event of any LM call has: which model, when, and who asked it."""
    tool = executor.ledger.tool
    return {
        "id": call_id,
        "kind": "lm",
        "timestamp": utc(began),
        "tool_name": model,
        "inputs": {} if tool is None else {"tool": tool},
        "outputs": {},
        "agent_name": run.agent if run else None,
        "session_id": run.session_id if run else None,
        "namespace": run.namespace if run else None,
        "run_id": run.run_id if run else None,
        "step": run.step if run else None,
        "effect_id": run.effect if run else None,
    }
