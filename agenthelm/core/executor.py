"""The only door to a tool: bind, approve, budget, journal, retry(deadline(call)), event."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

import anyio
import anyio.lowlevel

from agenthelm._runtime.context import (
    RunContext,
    current_run,
    entered,
    new_run_id,
    raise_if_stopped,
    report,
)
from agenthelm._runtime.frozen import changed
from agenthelm._runtime.progress import Progress
from agenthelm._runtime.retry import Clock, SystemClock
from agenthelm._runtime.workers import Workers, on_event_loop
from agenthelm.core.approval import approve
from agenthelm.core.attempts import Attempts, Verdict
from agenthelm.core.binding import KEY_PARAMETER
from agenthelm.core.call import Call
from agenthelm.core.cost import Amount, Budget, Ledger, Reservation
from agenthelm.core.effects import EffectLog, Outcome
from agenthelm.core.handlers import ApprovalHandler, AutoDeny
from agenthelm.core.process import charged_here
from agenthelm.core.redaction import Hook
from agenthelm.core.storage.base import EVENTS, BaseStorage, Record
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import TOOL_REGISTRY, Tool, ToolRegistry
from agenthelm.exceptions import StorageError, ToolOutputError, UnknownToolError
from agenthelm.tracing import spans

__all__ = ["ToolExecutor", "charge", "current_executor", "detached", "detached_context", "using"]

_ONE_CALL = Amount(tool_calls=1)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)  # without slots, for `changed`
class ToolExecutor:
    """Calls tools under their contracts. Frozen: a run, an agent or a tool's body gets a changed copy.

    Attributes:
        tools: The tools that code may call.
        storage: Where events go.
        approval_handler: Who decides on calls that need approval.
        ledger: Whose budget the next call is held to.
        workers: Threads and processes for sync tools.
        effects: Where effects are announced; None where nothing is to be undone.
        clock: Time and back-off.
        redact: A further hook over values before they reach an event: ``(name, value) -> value``.
        on_denial: ``"stop"`` makes a denial end the run; ``"observe"`` leaves it to the agent.
        approval_timeout: How long an approval may take and counts, in seconds; None for no limit.
        passes_doors: Whether stop marks and approvals don't apply: compensations and ``verify``.
        late: Set when nobody waits for further attempts any more.
        budgets: Budgets per agent, by its name; each holds for the whole run.
    """

    tools: ToolRegistry
    storage: BaseStorage
    approval_handler: ApprovalHandler = field(default_factory=AutoDeny)
    ledger: Ledger = field(default_factory=lambda: Ledger("run"))
    workers: Workers = field(default_factory=Workers)
    effects: EffectLog | None = None
    clock: Clock = field(default_factory=SystemClock)
    redact: Hook | None = None
    on_denial: Literal["observe", "stop"] = "observe"
    approval_timeout: float | None = None
    passes_doors: bool = False
    late: anyio.Event | None = None
    budgets: Mapping[str, Budget] = field(default_factory=dict)

    def for_agent(self, name: str) -> ToolExecutor:
        """This executor held to an agent's own budget too, where it has one."""
        budget = self.budgets.get(name)
        return self if budget is None else self._with_ledger(self.ledger.agent(name, budget))

    async def call(
        self,
        tool: str | Tool | Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        allowed: Collection[str] | None = None,
        key: str | None = None,
        compensating_tool: str | None = None,
        compensates: str | None = None,
        hidden: frozenset[str] = frozenset(),
        links: tuple[Any, ...] = (),
        reasoning: str = "",
    ) -> Any:
        """Call one tool under its whole contract.

        Args:
            tool: A name of the registry, or a tool or function of its own.
            arguments: By parameter name.
            allowed: The only names that may be called; for an LM's choice. None for all of the registry.
            key: The idempotency key, when the caller has one from an earlier try of the same step.
            compensating_tool: Undoes this call, in place of the contract's.
            compensates: The effect this call undoes.
            hidden: Arguments that are secret although this tool does not say so: the one that it undoes, or whose effect
                it looks for, does.
            links: Span contexts this call's span is linked to.
            reasoning: What the LM that chose the call said it is for; masked and capped, it is on record with the call.

        Returns:
            The validated result.

        Raises:
            UnknownToolError: There is no such tool, or it is not allowed.
            ToolInputError: The arguments don't fit; nothing was called.
            ApprovalDeniedError: Nobody approved; nothing was called.
            BudgetExceededError: A budget is used up; nothing was called.
            ToolTimeoutError: The last attempt passed its deadline.
            ToolOutputError: The tool ran; its result does not fit.
            StorageError: The record could not be written.
            Exception: Whatever the tool raised in its last attempt.
        """
        name = tool if isinstance(tool, str) else getattr(tool, "name", getattr(tool, "__name__", repr(tool)))
        # By position: a class that is called with names costs half as much again.
        call = Call(name, arguments, current_run(), self.clock, key, compensates, hidden, reasoning)
        with spans.tool(name, call_id=call.id, links=links) as span:
            call.span, call.ids = span, span.ids
            try:
                if not self.passes_doors:
                    raise_if_stopped()
                entry = self._resolve(tool, allowed)
                call.bind(entry, compensating_tool)
                if not self.passes_doors and (entry.contract.requires_approval or self.approval_handler.gates):
                    await approve(
                        call,
                        self.approval_handler,
                        timeout=self.approval_timeout,
                        on_denial=self.on_denial,
                        hook=self.redact,
                    )
                max_cost = entry.contract.max_cost
                hold = self.ledger.reserve(Amount(usd=max_cost, tool_calls=1) if max_cost else _ONE_CALL)
            except BaseException as error:
                await self._refused(call, error)
                raise
            self._report("tool_started", call)
            try:
                return await self._perform(call, entry, hold)
            finally:
                _log.debug("tool %s: %s (call %s)", call.name, call.outcome, call.id)
                self._report("tool_finished" if call.outcome == "success" else "tool_failed", call)

    async def _refused(self, call: Call, error: BaseException) -> None:
        """Put a call on record that never reached its tool."""
        call.ended()
        call.failed(error, doubt=False)
        _log.debug("tool %s: %s (call %s)", call.name, call.outcome, call.id)
        if call.tool is None:
            call.guarded = call.hidden.union(*(entry.binding.guarded for entry in self.tools.values()))
        try:
            await self._append_event(call)
        except StorageError:
            if not isinstance(error, StorageError):
                raise
            # The log is broken already, and that is why the call was refused.

    def inside(self, running: ToolExecutor | None) -> ToolExecutor:
        """This executor for a run of its own that what is running begins; one of a compensator passes every door, too."""
        if running is None or not running.passes_doors:
            return self
        return replace(self, passes_doors=True, ledger=running.ledger)

    def within(self, effects: EffectLog, ledger: Ledger) -> ToolExecutor:
        """This executor for a scope, which announces effects to its own log and is held to its own budget."""
        return changed(self, {"effects": effects, "ledger": ledger})

    def _with_ledger(self, ledger: Ledger) -> ToolExecutor:
        return changed(self, {"ledger": ledger})

    async def verify(self, tool: Tool, arguments: Mapping[str, Any], key: str) -> Verdict | None:
        """Ask a contract's ``verify`` whether an effect happened.

        Returns:
            Its verdict, or None when there is no ``verify`` (here) or it raised: the doubt stays.
        """
        rule = tool.contract.verify
        asked = self.tools.get(rule) if isinstance(rule, str) else tool.verifier
        if asked is None:
            return None
        available = {**arguments, KEY_PARAMETER: key}
        given = {
            name: value for name, value in available.items() if name in asked.parameters or asked.binding.open_ended
        }
        asking = replace(self, effects=None, passes_doors=True, ledger=self.ledger.unlimited())
        try:
            return Verdict.of(await asking.call(asked, given, hidden=tool.binding.sensitive_among(arguments)))
        except Exception:  # noqa: BLE001 - whatever it raised is on record; the doubt stays
            return None

    async def _perform(self, call: Call, entry: Tool, hold: Reservation) -> Any:
        """Journal, attempts, and the record of how it ended."""
        inside = _Inside(self, entry, hold)
        effects = self.effects if call.is_effect else None
        context = call.context
        attempts = Attempts(call, self.workers, inside.books, self.late)
        try:
            identity: Any = _UNCHANGED
            if effects is not None:
                effect = call.as_effect(effects.next_id())
                await effects.begin(effect)
                if context is not None:
                    identity = entered(context.evolve(effect=effect.id, attempt=1))
                # What is to be cancelled is better not begun than stopped half-way, when nobody knows what it did.
                await anyio.lowlevel.checkpoint_if_cancelled()
            token = _current.set(inside)
            try:
                with identity:
                    value = await attempts.run()
            finally:
                _current.reset(token)
                attempts.settle()
        except BaseException as error:
            call.ended()
            if call.attempts == 0 and isinstance(error, Exception):
                # Its beginning could not be recorded, so there is no end to record. And its id may be given to another call
                # by whoever has claimed the run.
                effects = call.effect_id = None
            verdict = await self._asked(call, entry, inside, effects, error) if attempts.doubt else None
            if verdict is not None and verdict.happened:
                return await self._happened(call, entry, inside, effects, verdict, error)
            doubt = attempts.doubt and verdict is None
            call.failed(error, doubt=doubt)
            await self._record(call, inside, effects, "doubt" if doubt else "failed", error=error)
            if call.cancellation is not None:
                raise call.cancellation from None
            raise
        return await self._close(call, entry, inside, effects, value)

    async def _asked(
        self, call: Call, entry: Tool, inside: _Inside, effects: EffectLog | None, error: BaseException
    ) -> Verdict | None:
        """What ``verify`` says of a call in doubt, where somebody waits for the answer; None for nothing."""
        if call.cancellation is not None or self.passes_doors or not isinstance(error, Exception):
            return None
        assert call.bound is not None and call.key is not None
        try:
            return await inside.executor.verify(entry, call.bound, call.key)
        except BaseException:  # cancelled while it was asked: the doubt stays, and goes on record
            call.failed(error, doubt=True)
            await self._record(call, inside, effects, "doubt", error=error)
            raise

    async def _happened(
        self,
        call: Call,
        entry: Tool,
        inside: _Inside,
        effects: EffectLog | None,
        verdict: Verdict,
        error: BaseException,
    ) -> Any:
        """``verify`` found the effect in place although the call raised."""
        if verdict.known:
            return await self._close(call, entry, inside, effects, verdict.value)
        try:
            value = entry.binding.check_result(None)
        except ToolOutputError:
            # It happened and its result is lost: the agent hears of the error, the journal of the effect.
            error.add_note(f"verify says that {entry.name} had its effect; its result is lost")
            call.failed(error, doubt=False)
            await self._record(call, inside, effects, "ok", value=None)
            raise error from None
        return await self._close(call, entry, inside, effects, value)

    async def _close(self, call: Call, entry: Tool, inside: _Inside, effects: EffectLog | None, value: Any) -> Any:
        """Record a call that happened, then hand over its validated value."""
        call.ended()
        invalid: ToolOutputError | None = None
        try:
            value = entry.binding.check_result(value)
        except ToolOutputError as error:
            invalid = error
        call.succeeded(value, invalid)
        await self._record(call, inside, effects, "ok", value=value)
        if call.cancellation is not None:
            raise call.cancellation  # it had to wait for the thread, and for the record of what the thread did
        if invalid is not None:
            raise invalid
        return value

    def _record(
        self,
        call: Call,
        inside: _Inside,
        effects: EffectLog | None,
        outcome: Outcome,
        *,
        value: Any = None,
        error: BaseException | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Settle the budget, then write event and journal in one commit; to be awaited at once."""
        call.cost_usd = inside.settle()
        if effects is None or call.effect is None:
            return self._append_event(call)
        return effects.finish(call.effect, outcome, value=value, error=error, event=call.event(self.redact))

    async def _append_event(self, call: Call) -> None:
        """Put a call on record; one that can't be ends the run, unless it undoes something."""
        try:
            await self.storage.append([Record(EVENTS, call.event(self.redact), None, True)])
        except StorageError as error:
            if self.passes_doors:
                _log.error("the event of %s could not be written: %s", call.name, error)
                return
            if call.context is not None and call.context.stops:
                call.context.stops[0].set(error)
            raise

    def _resolve(self, tool: str | Tool | Callable[..., Any], allowed: Collection[str] | None) -> Tool:
        if isinstance(tool, str):
            if allowed is not None and tool not in allowed:
                raise UnknownToolError(tool, allowed, where="the tools this agent was given")
            return self.tools.resolve(tool)
        return tool if isinstance(tool, Tool) else Tool.from_function(tool)

    def _report(self, kind: Literal["tool_started", "tool_finished", "tool_failed"], call: Call) -> None:
        context = call.context
        if context is not None and context.observer is not None:
            report(
                Progress(
                    kind,
                    call.name,
                    agent=context.agent,
                    error=call.error_state,
                    cost_usd=self.ledger.root.cost_usd,
                    run_id=context.run_id,
                    step=context.step,
                )
            )


class _Inside:
    """What is in force inside one call: made when it is first asked for, because most tools call and charge nothing.

    Args:
        outer: The executor of the call.
        entry: The tool.
        hold: What the call has reserved; where the contract has a ``max_cost``, money spent inside is drawn from it.
    """

    def __init__(self, outer: ToolExecutor, entry: Tool, hold: Reservation) -> None:
        self._outer = outer
        self._entry = entry
        self._hold = hold
        self._limited = entry.contract.max_cost is not None and not outer.passes_doors
        if self._limited:
            self.executor  # noqa: B018 - only one ledger may draw on a reservation, whichever thread asks first

    @property
    def executor(self) -> ToolExecutor:
        """The executor of the call, with a ledger of the call's own."""
        made: ToolExecutor | None = self.__dict__.get("made")
        if made is None:
            budget = Budget(usd=self._entry.contract.max_cost) if self._limited else None
            drawn_from = self._hold if self._limited else None
            ledger = self._outer.ledger.child(f"tool:{self._entry.name}", budget, drawn_from=drawn_from)
            # Threads of the tool may ask at once; the first one's is for all.
            made = self.__dict__.setdefault("made", self._outer._with_ledger(ledger))
        return made

    def books(self) -> Ledger:
        """The call's ledger."""
        return self.executor.ledger

    def settle(self) -> float | None:
        """Settle the reservation; returns what the tool itself charged, USD, or None if nobody knows."""
        if self._limited:
            self._hold.settle()
        else:
            self._hold.settle_call()
        return self.books().charged_usd if "made" in self.__dict__ else 0.0


_UNCHANGED: nullcontext[None] = nullcontext()
_current: ContextVar[ToolExecutor | _Inside | None] = ContextVar("agenthelm_executor", default=None)


def current_executor() -> ToolExecutor | None:
    """The executor in force, or None outside of any run."""
    running = _current.get()
    return running.executor if isinstance(running, _Inside) else running


class using:  # noqa: N801 - used like a function: `with using(executor):`
    """Puts an executor in force for a ``with`` block; child tasks and worker threads inherit it."""

    __slots__ = ("_executor", "_token")

    def __init__(self, executor: ToolExecutor) -> None:
        self._executor = executor
        self._token: Token[ToolExecutor | _Inside | None] | None = None

    def __enter__(self) -> None:
        self._token = _current.set(self._executor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _current.reset(self._token)


def detached(tools: ToolRegistry = TOOL_REGISTRY) -> ToolExecutor:
    """An executor for calls outside of any run: contracts hold, approvals are denied, nothing is undone or kept."""
    return ToolExecutor(tools, InMemoryStorage(), AutoDeny("outside of a run nobody can be asked for approval"))


def detached_context() -> RunContext:
    """A run identity for code outside of any run."""
    loop = anyio.lowlevel.current_token() if on_event_loop() else None
    return RunContext(run_id=f"detached-{new_run_id()}", session_id="detached", namespace="default", loop=loop)


def charge(usd: float) -> None:
    """Book money that the running tool spent, beside LM calls. Never raises: an excess shows at the next door.

    It knows the tool by context variables. A thread that the tool starts itself needs a copy of them, as from
    ``pool.submit(contextvars.copy_context().run, function, ...)``; without it nothing is booked, with a warning in the log.

    Args:
        usd: The amount in US dollars.
    """
    executor, run = current_executor(), current_run()
    if executor is not None:
        executor.ledger.charge(usd, agent=run.agent if run is not None else None)
    elif not charged_here(usd) and threading.current_thread() is not threading.main_thread():
        # Where a tool's function is merely called, the money is nobody's; in a thread that is more likely a mistake.
        _log.warning(
            "charge(%r) in a thread that belongs to no tool call: nothing was booked. If a tool started it, hand its "
            "context on: pool.submit(contextvars.copy_context().run, function, ...)",
            usd,
        )
