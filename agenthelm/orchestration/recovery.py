"""After the fact: undoing a run on purpose, and finishing what a process that died left behind."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import anyio

from agenthelm._runtime.context import RunContext, entered
from agenthelm._runtime.groups import beside, in_child, shielded
from agenthelm.core.cost import Budget
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.tool import ToolRegistry
from agenthelm.exceptions import (
    CorruptRecordError,
    LeaseLostError,
    PlanError,
    RunBusyError,
    RunNotFoundError,
    StorageError,
)
from agenthelm.orchestration.fold import load
from agenthelm.orchestration.journal import Journal, run_of, stream_of
from agenthelm.orchestration.means import Means
from agenthelm.orchestration.plan import Plan
from agenthelm.orchestration.results import SagaResult, SagaStatus
from agenthelm.orchestration.resumption import Resumption
from agenthelm.orchestration.state import EffectState, RunState, as_found
from agenthelm.orchestration.unwind import GRACE_SECONDS, Unwinder
from agenthelm.telling import describe
from agenthelm.tracing import names, spans

__all__ = ["DIED", "Recovery"]

DIED = "its process died"
"""How the reason of a run begins that was undone because it had no process any more."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Claims runs and ends them.

    Attributes:
        executor: Its registry must hold the tools of the runs; its storage their journals.
        grace: Seconds for one compensation, its retries included.
        identity: What all of it is done under; each run brings its own id, session and tenant.
        budget: What a resumed run may spend from then on, if it was begun without a budget.
    """

    executor: ToolExecutor
    grace: float = GRACE_SECONDS
    identity: RunContext = field(default_factory=lambda: RunContext(run_id="recovery", session_id="", namespace=""))
    budget: Budget | None = None

    def preview(self, state: RunState, *, refuse: bool = False) -> list[tuple[EffectState, str | None]]:
        """What undoing a run would undo, in that order, each with the reason if it can't be.

        Raises:
            PlanError: Tools that it takes are not registered here, and that is to be refused.
        """
        if state.status in ("rolled_back", "failed"):
            return []
        if refuse:
            self._refuse_missing(state, state.effects.values())
        return Unwinder(self.executor, self._journal(state), recorded=True).preview(state.effects.values())

    async def undo(self, run_id: str, *, namespace: str | None = None) -> SagaResult:
        """Undo a run on purpose; see `Orchestrator.undo`."""
        state = await load(self.executor.storage, run_id, namespace=namespace)
        if state.status in ("rolled_back", "failed"):
            return as_found(state)
        if state.status is None and not state.claimable(self.executor.clock.wall()):
            raise RunBusyError(run_id, owner=str(state.owner))
        self._refuse_missing(state, state.effects.values())
        return await shielded(self._take, state, "undone on purpose")

    async def recover(
        self, run_id: str | None = None, *, resume: bool = False, namespace: str | None = None
    ) -> list[SagaResult]:
        """Finish what dead processes left; see `Orchestrator.recover`."""
        if run_id is None:
            return await self._recover_all(resume, namespace)
        state = await load(self.executor.storage, run_id, namespace=namespace)
        if state.status is not None:
            return []
        if not state.claimable(self.executor.clock.wall()):
            raise RunBusyError(run_id, owner=str(state.owner))
        self._refuse_missing(state, _to_be_undone(state), one_by_one=resume)
        return [await self._take_over(state, resume)]

    async def retry(self, run_id: str, *, namespace: str | None = None) -> SagaResult:
        """Try once more to undo what could not be undone; see `Orchestrator.retry`."""
        state = await load(self.executor.storage, run_id, namespace=namespace)
        if state.status is None:
            if recovered := await self.recover(run_id):
                return recovered[0]
            state = await load(self.executor.storage, run_id)  # somebody ended it just now
        if not any(s.failed_to_undo for s in state.effects.values()):
            return as_found(state)
        kept = _apart_from_stuck(state)
        self._refuse_missing(state, state.begun() if kept else state.effects.values(), again=True)
        return await shielded(self._take, state, "tried again on purpose", kept, True)

    async def resolve(
        self, run_id: str, step: str, *, outcome: Literal["done", "undone"], namespace: str | None = None
    ) -> SagaResult:
        """Record a human's word on what became of an effect; see `Orchestrator.resolve`."""
        state = await load(self.executor.storage, run_id, namespace=namespace)
        dead = state.status is None and state.claimable(self.executor.clock.wall())
        if state.status is None and not dead:
            raise RunBusyError(run_id, owner=str(state.owner))
        if dead and outcome != "undone":
            raise RunBusyError(
                run_id,
                owner=str(state.owner),
                advice=f"that is gone or silent: end the run first, with `agenthelm saga recover {run_id}` or recover(); "
                "before that it can only be said what was undone by hand",
            )
        chosen = _meant(state, step, outcome, dead=dead)
        try:
            # All of it at once, and nobody holds the run after that: one that has ended is never taken for a dead one and
            # undone, and a dead one can be recovered at once. Whoever only seemed dead writes nothing more into it.
            await self._journal(state).resolved(
                [entry.effect.id for entry in chosen],
                outcome,
                by="a human",
                status=_status_without(state, chosen),
                error=state.reason,
                expel=dead,
            )
        except LeaseLostError as taken:
            raise RunBusyError(run_id, owner="another process, which claimed it just now") from taken
        return as_found(await load(self.executor.storage, run_id))

    # -- how ----------------------------------------------------------------------------------------------------------

    def _journal(self, state: RunState) -> Journal:
        executor = self.executor
        return Journal(executor.storage, state.run_id, executor.clock, position=state.position, epoch=state.epoch)

    async def _recover_all(self, resume: bool, namespace: str | None) -> list[SagaResult]:
        """Finish all that can be claimed; what can't be read, or undone here, is left alone and named."""
        results: list[SagaResult] = []
        states: list[RunState] = []
        for info in await self.executor.storage.streams(where={"state": "open"}, prefix=stream_of("")):
            try:
                states.append(await load(self.executor.storage, run_of(info.name), namespace=namespace))
            except RunNotFoundError:  # another tenant's, or dropped just now
                continue
            except CorruptRecordError as error:  # of this run nothing may be concluded; the others are not to blame
                if namespace is None:  # whose it is can't be read either
                    results.append(_left_alone(run_of(info.name), error))
        for state in states:
            if state.status is not None or not state.claimable(self.executor.clock.wall()):
                continue
            try:
                self._refuse_missing(state, _to_be_undone(state), one_by_one=resume)
            except PlanError as unknown:  # whoever has its tools may recover it
                _log.info("%s", unknown)
                results.append(_left_alone(state.run_id, unknown))
                continue
            try:
                results.append(await self._take_over(state, resume))
            except (LeaseLostError, RunBusyError, RunNotFoundError) as taken:  # another process goes on with it
                _log.warning("%s", taken)
        return results

    def _refuse_missing(
        self, state: RunState, effects: Iterable[EffectState], *, again: bool = False, one_by_one: bool = False
    ) -> None:
        """Refuse to undo, before the run is claimed, what would get stuck only because of what is loaded here.

        Args:
            state: The run.
            effects: What is to be undone of it.
            again: Whether that is also what got stuck inside a call that was undone since.
            one_by_one: Whether what was done inside a call may have to be undone without that call.

        Raises:
            PlanError: Naming what is missing.
        """
        means = Means(self.executor.tools, recorded=True)
        if not one_by_one:
            effects = Unwinder(self.executor, self._journal(state), recorded=True, again=again).needing(effects)
        lacking = {effect.effect.id: missing for effect in effects if (missing := means.missing(effect))}
        if lacking:
            found = dict.fromkeys(lacking.values())
            raise PlanError(
                f"run {state.run_id!r} can't be undone here and was left as it is: {', '.join(found)} "
                f"{'is' if len(found) == 1 else 'are'} not registered; load the app that defines them, "
                f"or undo {', '.join(lacking)} by hand and say so with "
                f"`agenthelm saga resolve {state.run_id} {next(iter(lacking))} --as undone`"
            )

    async def _claim(self, state: RunState, *, kept: SagaStatus | None = None) -> Journal:
        """Take a run over; ``kept``: its end, when only a part of it is undone.

        Raises:
            RunBusyError: Somebody else was first.
            RunNotFoundError: Its journal was dropped meanwhile.
        """
        journal = self._journal(state)
        try:
            await journal.claimed(kept)
        except LeaseLostError as taken:
            raise RunBusyError(state.run_id, owner="another process, which claimed it just now") from taken
        except StorageError:
            await load(self.executor.storage, state.run_id)
            raise
        state.status, state.kept = None, kept
        return journal

    async def _take(
        self, state: RunState, reason: str, kept: SagaStatus | None = None, again: bool = False
    ) -> SagaResult:
        """Claim a run and undo it, or what of it got stuck. Shielded, as nobody would end a run that is only claimed.

        Raises:
            RunBusyError: Somebody else was first.
        """
        journal = await self._claim(state, kept=kept)
        return await beside(journal.keep, self._unwind, state, journal, reason, again)

    async def _take_over(self, state: RunState, resume: bool) -> SagaResult:
        """Claim a run that somebody left, and end it.

        Raises:
            RunBusyError: Somebody else was first.
        """

        async def end() -> SagaResult:
            journal = await self._claim(state, kept=state.kept)
            return await beside(journal.keep, self._finish, state, journal, resume)

        with entered(self._as(state)):
            return await in_child(end)

    async def _finish(self, state: RunState, journal: Journal, resume: bool) -> SagaResult:
        """End a claimed run: go on with it where that is asked for and possible, and undo it otherwise."""
        if state.closed_at is not None:  # it had ended, and whoever undid it, or a part of it, died
            return await self._unwind(state, journal, "undone on purpose")
        reason = DIED
        if resume and not state.decided and state.kind == "steps" and state.plan is not None:
            try:
                plan, budget = _resumable(state, self.executor.tools)
                plan.check_tools(self.executor.tools)
            except PlanError as unfit:  # what it would do further could perhaps not be undone
                reason = f"{DIED}, and it can't go on: {unfit}"
            else:
                if (result := await self._go_on(state, journal, plan, budget)) is not None:
                    return result
        return await self._give_up(state, journal, reason)

    async def _go_on(self, state: RunState, journal: Journal, plan: Plan, budget: Budget | None) -> SagaResult | None:
        """Resume a plan of steps; None where what it has done can't be relied on."""
        own = budget or self.budget
        resumption = Resumption(self.executor, self.grace, self._as(state), own, state, journal)
        try:
            results = await resumption.results(plan)
        except anyio.get_cancelled_exc_class():
            await self._give_up(state, journal, "cancelled before it could go on")
            raise
        return None if results is None else await resumption.go_on(plan, results)

    async def _give_up(self, state: RunState, journal: Journal, reason: str) -> SagaResult:
        """End a run that does not go on: undo it, or leave it as it is if that was asked for."""
        if state.decided or state.rollback:
            return await self._unwind(state, journal, reason)
        return await shielded(self._leave, state, journal)

    async def _leave(self, state: RunState, journal: Journal) -> SagaResult:
        """Leave standing what stands, but for nested runs that were being undone when the process died."""
        begun = state.begun()
        unwinder = Unwinder(self.executor, journal, self.grace, recorded=True)
        if any(not entry.settled for entry in begun):
            await unwinder.unwind(begun)
        return await self._close(state, journal, unwinder.undone, status="stopped")

    async def _unwind(self, state: RunState, journal: Journal, reason: str, again: bool = False) -> SagaResult:
        with entered(self._as(state)), spans.workflow(
            f"undo {state.name}", run_id=state.run_id, session_id=state.session_id, namespace=state.namespace,
            links=((state.trace_id, state.span_id, "continues"),),
        ) as span:  # fmt: skip
            unwinder = Unwinder(self.executor, journal, self.grace, recorded=True, again=again)

            async def undo() -> SagaResult:
                if not state.decided and state.kept is None:
                    await journal.append("unwinding", scope="", reason=reason)
                    state.reason = reason
                await unwinder.unwind(state.begun() if state.kept else list(state.effects.values()))
                return await self._close(state, journal, unwinder.undone)

            result = await shielded(undo)
            span.set(names.SAGA_STATUS, result.status)
            return result

    async def _close(
        self, state: RunState, journal: Journal, undone: list[str], *, status: SagaStatus | None = None
    ) -> SagaResult:
        stuck = any(s.failed_to_undo for s in state.effects.values())
        status = status or ("failed" if stuck else state.kept or "rolled_back")
        await journal.closed(status, state.reason)
        state.status, state.undone = status, undone
        return as_found(state)

    def _as(self, state: RunState) -> RunContext:
        return self.identity.evolve(run_id=state.run_id, session_id=state.session_id, namespace=state.namespace)


def _left_alone(run_id: str, error: Exception) -> SagaResult:
    """The result of a run that is not touched, because of that."""
    return SagaResult("failed", error=describe(error), exception=error, run_id=run_id)


def _named(step: str, effects: list[EffectState]) -> list[EffectState]:
    """Those of the effects that somebody means: by id, else by step, else by tool if it is the only one."""
    of_tool = [s for s in effects if step == s.effect.tool]
    return (
        [s for s in effects if step == s.effect.id]
        or [s for s in effects if step == s.effect.step]
        or (of_tool if len(of_tool) == 1 else [])
    )


def _meant(state: RunState, step: str, outcome: str, *, dead: bool) -> list[EffectState]:
    """The effects on which somebody has a word.

    Args:
        state: The run.
        step: What they are called: the effect's id, its step, or its tool.
        outcome: The word.
        dead: Whether the run's process is gone, so that of what is open there nothing is known yet.

    Raises:
        PlanError: There are none on which that can be said.
    """
    left = [s for s in state.effects.values() if not s.settled]
    open_ones = [s for s in left if s.reason is not None or s.doubtful]
    chosen = [] if dead else _named(step, open_ones)
    if outcome == "undone":
        left = [s for s in left if s.reason is not None or s.undoing or s.outcome != "failed"]
        chosen = [s for s in left if step == s.effect.id] or chosen or _named(step, left)
    if not chosen:
        raise PlanError(_unnamed(state.run_id, step, outcome, left if outcome == "undone" else open_ones))
    return chosen


def _unnamed(run_id: str, step: str, outcome: str, effects: list[EffectState]) -> str:
    """Why nobody knows which of the effects somebody means, and what to call them."""
    several = any(step == s.effect.tool for s in effects)
    why = (
        f"{step!r} is the tool of several, so name one"
        if several
        else f"no effect, step or tool {step!r} left to resolve"
    )
    which = "not undone" if outcome == "undone" else "stuck or in doubt"
    named = ", ".join(f"{s.effect.id} ({s.effect.step or s.effect.tool})" for s in effects) or "none"
    return f"run {run_id!r}: {why}; {which}: {named}"


def _resumable(state: RunState, tools: ToolRegistry) -> tuple[Plan, Budget | None]:
    """The plan of a run and the budget it was begun with, from its journal.

    Raises:
        PlanError: They make no sense here.
    """
    try:
        plan, budget = Plan.from_data(state.plan["steps"], tools), state.plan.get("budget")
        return plan, None if budget is None else Budget(**budget)
    except PlanError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise PlanError(f"its plan can't be read: {describe(exc)}") from exc


def _to_be_undone(state: RunState) -> list[EffectState]:
    """What recovering a run that died would undo, unless it goes on with it."""
    if state.closed_at is not None:
        return state.begun() if state.kept else list(state.effects.values())
    return list(state.effects.values()) if state.decided or state.rollback else state.begun()


def _status_without(state: RunState, resolved: list[EffectState]) -> SagaStatus | None:
    """How a failed run ends anew once these effects are resolved; None for others, whose end stays what it was."""
    if state.status != "failed":
        return None
    stuck = any(s.failed_to_undo and all(s is not entry for entry in resolved) for s in state.effects.values())
    return "failed" if stuck else _apart_from_stuck(state) or "rolled_back"


def _apart_from_stuck(state: RunState) -> SagaStatus | None:
    """How a run ended but for a nested one that could not be undone; None if all of it was to be undone."""
    if state.decided:
        return None
    return "success" if state.status == "failed" else state.status  # type: ignore[return-value]
