"""The saga scope: the one mechanism that undoes effects when what it encloses does not complete."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio import CancelScope

from agenthelm._runtime.context import RunContext, StopMark, current_run, entered
from agenthelm._runtime.groups import beside, in_child, shielded
from agenthelm.core.cost import Budget
from agenthelm.core.executor import ToolExecutor, using
from agenthelm.exceptions import LeaseLostError, RunExistsError, SagaError, StorageError
from agenthelm.orchestration.journal import Journal, status_of
from agenthelm.orchestration.lease import Lease
from agenthelm.orchestration.live import LiveRun, ScopeLog
from agenthelm.orchestration.results import SagaResult, SagaStatus, StepRecord
from agenthelm.orchestration.state import Effects, EffectState, result_of, settle_repeated
from agenthelm.orchestration.unwind import GRACE_SECONDS, Unwinder
from agenthelm.telling import describe
from agenthelm.tracing import names, spans

__all__ = ["Opening", "SagaScope", "heard"]

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opening:
    """What a run's journal begins with.

    Attributes:
        name: What runs.
        kind: Whether it is a plan of steps, which can be resumed, or anything else, which can only be undone.
        plan: The plan's journal form.
        trace_id: The trace it belongs to.
        span_id: The span of the run.
    """

    name: str = "saga"
    kind: Literal["agents", "steps"] = "agents"
    plan: Any = None
    trace_id: str | None = None
    span_id: str | None = None


@dataclass(slots=True)
class SagaScope:
    """Undoes the effects of a ``with`` block that fails or is cancelled; nests.

    Inside another run it is a sub-saga of that run: same journal, same lease, and what it did joins the outer scope
    when it completes. Alone it is a run of its own.

    Attributes:
        executor: Calls tools inside; this scope gives it an effect log.
        context: The identity in force inside.
        opening: What the journal says about it.
        budget: What the block may spend.
        rollback: Whether a failure undoes anything.
        grace: Seconds for one compensation.
        protected: Whether the block runs in a child task already, where no native cancellation comes.
        journal: An existing journal, when a claimed run is resumed.
        states: The effects it already has, when it is resumed.
        steps: The steps that succeeded, for the result.
        errors: By step, what went wrong in those that the rest went on without, for the result.
        result: How it ended; there after the block.
        stop: Marked when nothing further may happen in the block, which then ends with the error it is marked with.
    """

    executor: ToolExecutor
    context: RunContext
    opening: Opening = field(default_factory=Opening)
    budget: Budget | None = None
    rollback: bool = True
    grace: float = GRACE_SECONDS
    protected: bool = False
    journal: Journal | None = None
    states: Effects = field(default_factory=Effects)
    steps: list[StepRecord] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    result: SagaResult | None = None
    stop: StopMark = field(default_factory=StopMark)
    _effects: ScopeLog = field(init=False)
    _outer: ScopeLog | None = field(init=False, default=None)
    _stack: ExitStack = field(init=False, default_factory=ExitStack)
    _lease: Lease | None = field(init=False, default=None)
    _elsewhere: bool = field(init=False, default=False)
    _entered: bool = field(init=False, default=False)
    _begun: bool = field(init=False, default=False)

    async def __aenter__(self) -> Self:
        if self._entered:
            raise SagaError(f"saga {self.opening.name!r} was entered before; make another one with saga(...)")
        self._entered = True
        outer = self.executor.effects
        budget = None if self.executor.passes_doors else self.budget
        ledger = self.executor.ledger.child("run", budget, stop=self.stop)
        if isinstance(outer, ScopeLog) and current_run() is not None:
            outer.refuse_late("saga {} was begun", self.opening.name)
            self._outer = outer
            run, path = outer.run, outer.run.inner_scope(outer.scope)
        else:
            run, path = await self._open(), ""
        # From here on nothing fails: the run is open and its lease is kept, and only leaving the block ends both.
        self._effects = ScopeLog(run, path, self.executor.tools, self.stop, self._outer, grace=self.grace)
        self.executor = self.executor.within(self._effects, ledger)
        self.context = self.context.evolve(run_id=run.journal.run_id, stops=(self.stop, *self.context.stops))
        self._stack.enter_context(entered(self.context))
        self._stack.enter_context(using(self.executor))
        self._begun = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended = error
        error = await self._or_cancelled(self._leave(error))
        final: BaseException | None = None
        try:
            final = await self._conclude(error)
        except anyio.get_cancelled_exc_class() as cancelled:
            error = cancelled
            if self._run.journal.lost is None:
                await self.take_back(cancelled)
                raise
        finally:
            await self._end_lease(error)
        final = self._run.journal.lost or final
        if isinstance(final, Exception):
            self._sign(final)
        if final is not None and final is not ended:
            raise final

    async def take_back(self, cancelled: BaseException) -> None:
        """Undo a run that succeeded when whoever waits for it was cancelled, and so never hears of that."""
        if not self.stands:
            return
        effects = list(self._run.states.values())
        journal = self._run.journal

        async def undo() -> None:
            try:
                await journal.claimed()
            except (LeaseLostError, StorageError) as broken:
                _log.error("run %s stands, and its caller was cancelled: %s", self.run_id, broken)
                return
            await beside(journal.keep, self._end, effects, cancelled)

        with suppress(anyio.get_cancelled_exc_class()):  # the caller raises the one it has
            await shielded(undo)

    @property
    def stands(self) -> bool:
        """Whether it is a run of its own that succeeded, and has done something that could be undone."""
        if self._outer is not None or self.result is None or self.result.exception is not None:
            return False
        return any(not state.settled for state in self._run.states.values())

    async def use(self, tool: str, /, **arguments: Any) -> Any:
        """Call a tool under its contract.

        Raises:
            SagaError: The scope was not entered, or could not be, so nothing would be undone.
            Exception: As from `Agent.ause`.
        """
        if not self._begun:
            raise SagaError(f"saga {self.opening.name!r} was not entered: use it inside of 'async with'")
        return await self.executor.call(tool, arguments)

    def describe(self, span: spans.SpanHandle) -> None:
        """Tell the run's span how it ended, what it cost, and how much it was allowed."""
        if self.result is None or not span.listening:
            return
        span.set(names.SAGA_STATUS, self.result.status)
        span.set(names.SAGA_UNDONE, len(self.result.undone) or None)
        span.set(names.SAGA_STUCK, len(self.result.stuck) or None)
        span.set(names.COST_USD, self.executor.ledger.cost_usd)
        for resource, name in names.BUDGET.items():
            span.set(name, getattr(self.budget, resource, None))

    @property
    def run_id(self) -> str:
        """The run it belongs to.

        Raises:
            SagaError: It has none yet: it was not entered, or could not be.
        """
        if not self._begun:
            raise SagaError(f"saga {self.opening.name!r} was not entered, and has a run id only then: use 'async with'")
        return self._run.journal.run_id

    @property
    def key(self) -> str:
        """What the keys of its steps begin with: the same when it is resumed, another in every nested run."""
        inside = self.context.effect or ""
        return f"{self.run_id}{self._effects.scope}{f'@{inside}' if inside else ''}"

    @property
    def _run(self) -> LiveRun:
        return self._effects.run

    # -- beginning ----------------------------------------------------------------------------------------------------

    async def _open(self) -> LiveRun:
        """Begin a run of its own: its journal, and the heartbeat that keeps its lease."""
        if self.journal is None:
            journal = Journal(self.executor.storage, self.context.run_id, self.executor.clock)
            trace_id, span_id = self.opening.trace_id, self.opening.span_id
            if trace_id is None:  # a block in the user's own code, inside the user's own span
                trace_id, span_id = spans.current()
            try:
                await journal.opened(
                    name=self.opening.name,
                    kind=self.opening.kind,
                    rollback=self.rollback,
                    session_id=self.context.session_id,
                    namespace=self.context.namespace,
                    plan=self.opening.plan,
                    trace_id=trace_id,
                    span_id=span_id,
                )
            except LeaseLostError:
                status = await status_of(journal.storage, journal.run_id)
                raise RunExistsError(journal.run_id, status=status) from None
            except anyio.get_cancelled_exc_class():
                # The record was written all the same; nobody would close it.
                await shielded(journal.closed, "rolled_back")
                raise
            _log.info("run %s began: %s", journal.run_id, self.opening.name)
        else:
            journal = self.journal
        self._lease = Lease(journal, self.stop)
        await self._lease.begin()
        left = self.opening.plan is not None or not self.rollback
        run = LiveRun(journal, self.executor.tools, self.states, left_standing=left)
        if self.states:
            run.go_on()
        return run

    # -- ending -------------------------------------------------------------------------------------------------------

    def _leave(self, error: BaseException | None) -> BaseException | None:
        """Put identity and executor out of force; returns what the block ends with so far."""
        # From another task the heartbeat's group can't be left, even if that task was given the same context.
        self._elsewhere = self._lease is not None and not self._lease.here
        try:
            self._stack.close()
        except ValueError:
            self._elsewhere = True  # another task's context: nothing can be put back there
        if self._elsewhere:
            misplaced = SagaError(
                f"saga {self.opening.name!r} was left in another task than it was entered in; enter and leave it in one task"
            )
            if error is None:
                return misplaced
            error.add_note(str(misplaced))
        return error

    async def _or_cancelled(self, error: BaseException | None) -> BaseException | None:
        """What the block ends with; a run's success must not stand where a cancellation keeps it from being heard of."""
        if error is None and self._outer is None:
            try:
                await anyio.lowlevel.checkpoint_if_cancelled()
            except anyio.get_cancelled_exc_class() as cancelled:
                return cancelled
        return error

    async def _conclude(self, error: BaseException | None) -> BaseException | None:
        """Decide what the block ends with and see to it, whatever is cancelled meanwhile; nothing for a run that was lost."""
        final = self._verdict(error)
        if self._run.journal.lost is not None:
            return final
        if not self.protected:
            return await shielded(self._finish, final)
        with CancelScope(shield=True):
            final = await self._finish(final)
        if final is None and self._outer is None:
            await anyio.lowlevel.checkpoint_if_cancelled()
        return final

    async def _end_lease(self, error: BaseException | None) -> None:
        try:
            if self._lease is not None:
                await self._lease.end(error, elsewhere=self._elsewhere)
        except anyio.get_cancelled_exc_class() as cancelled:
            await self.take_back(cancelled)
            raise

    def _verdict(self, error: BaseException | None) -> BaseException | None:
        """What the block ends with: a stop goes over whatever else was made of it, a cancellation over that."""
        if error is not None and not isinstance(error, Exception):
            return error
        for mark in self.context.stops:
            if mark.error is not None:
                return mark.error
        return error

    async def _finish(self, error: BaseException | None) -> BaseException | None:
        """Close the journal or undo the effects; returns what the block ends with."""
        scope = self._effects.scope
        self._run.ending.add(scope)
        try:
            await self._run.idle(scope)
            effects = self._run.states.in_scope(scope)
            try:
                self._effects.refuse_late("saga {} ended", self.opening.name)
            except SagaError as late:  # the scope around it has undone these effects, or let them stand
                await self._close("stopped", effects, error or late)
                return error or late
            self._effects.closed = True
            settle_repeated(effects)
            if error is None:
                try:
                    await self._close("success", effects)
                    return None
                except StorageError as broken:
                    error = broken  # what is not on record as done, whoever recovers it would undo
            await self._end(effects, error)
            return error
        finally:
            self._run.end(scope)

    async def _end(self, effects: list[EffectState], error: BaseException) -> None:
        """Undo what a block that did not complete has done, or let it stand."""
        if self.rollback:
            await self._unwind(effects, error)
        else:
            await self._close("stopped", effects, error)

    async def _unwind(self, effects: list[EffectState], error: BaseException) -> None:
        journal = self._run.journal
        unwinder = Unwinder(self.executor, journal, self.grace)
        settle_repeated(self._run.states.values(), undone=effects)
        if any(not state.settled for state in effects):
            decided = True
            try:
                await journal.append("unwinding", scope=self._effects.scope, reason=describe(error))
            except StorageError as broken:
                _log.error("journal of run %s: %s", journal.run_id, broken)
                decided = False
            if decided or not self._run.left_standing:
                # What is only ever undone may be undone even unrecorded, where that is harmless to repeat.
                await unwinder.unwind(effects)
            else:
                # Recovery may go on with this run, or let it stand, and must not rely on effects that were undone behind the
                # journal's back.
                for state in effects:
                    if not state.settled:
                        state.reason = (
                            "the decision to undo could not be recorded, so it is left for recovery, or for undo"
                        )
        stuck = any(state.failed_to_undo for state in effects)
        self._run.undone += unwinder.undone
        await self._close("failed" if stuck else "rolled_back", effects, error)

    async def _close(self, status: SagaStatus, effects: list[EffectState], error: BaseException | None = None) -> None:
        if status == "success" and any(state.failed_to_undo for state in effects):
            status = "failed"  # a nested scope failed and left something that could not be undone
        self.result = result_of(
            effects,
            status,
            steps=list(self.steps),
            error=None if error is None else describe(error),
            exception=error,
            errors=dict(self.errors),
            undone=self._run.undone_among(effects),
            run_id=self._run.journal.run_id,
        )
        if self._outer is None:
            _log.info("run %s ended: %s", self.run_id, status)
            try:
                await self._run.journal.closed(status, self.result.error)
            except StorageError as broken:
                if error is None:
                    raise
                _log.error("journal of run %s: %s", self._run.journal.run_id, broken)

    def _sign(self, error: Exception) -> None:
        """Let the exception say which run it ended, and how that was undone."""
        for name, value in (("run_id", self._run.journal.run_id), ("saga", self.result)):
            try:
                setattr(error, name, value)
            except AttributeError:
                pass  # an exception with slots carries no more than it was made for
        if self.result is not None:
            for stuck in self.result.stuck:
                text = f"not undone: {stuck.tool} ({stuck.effect_id}): {stuck.reason}"
                if text not in getattr(error, "__notes__", ()):
                    error.add_note(text)


async def heard(
    function: Callable[[list[SagaScope]], Awaitable[T]],
    take_back: Callable[[SagaScope, BaseException], Awaitable[None]] = SagaScope.take_back,
) -> T:
    """Run something in a child task that opens a scope; should its success never be heard of, it is taken back.

    Args:
        function: Puts its scope into the list it is given.
        take_back: Undoes it when this task was cancelled after the scope had ended well.
    """
    begun: list[SagaScope] = []
    try:
        return await in_child(function, begun)
    except anyio.get_cancelled_exc_class() as cancelled:
        for scope in begun:
            await take_back(scope, cancelled)
        raise
