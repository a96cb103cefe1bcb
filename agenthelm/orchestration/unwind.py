"""Undoing: which effects, in which order, by what; and never twice."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup

from agenthelm._runtime.context import RunContext, current_run, entered, report
from agenthelm._runtime.progress import Progress
from agenthelm.core.attempts import Verdict
from agenthelm.core.compensation import needs_result
from agenthelm.core.executor import ToolExecutor, using
from agenthelm.core.function import Tool
from agenthelm.exceptions import LeaseLostError, StorageError, ToolOutputError
from agenthelm.orchestration.journal import Journal
from agenthelm.orchestration.means import Means
from agenthelm.orchestration.state import EffectState
from agenthelm.telling import describe
from agenthelm.tracing.scrub import scrub

__all__ = ["GRACE_SECONDS", "Unwinder"]

GRACE_SECONDS = 30.0
"""How long one compensation may take, its retries included."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Unwinder:
    """Undoes effects, for a run of this process or for one found in a journal.

    Doubtful effects come first, the latest begun first; then the rest in reverse order of completion. One compensation
    runs at a time; one that hangs in a thread is left to end on its own and the others go on.

    Attributes:
        executor: Calls compensators; this room takes away its effect log, its budgets and its approvals.
        journal: Where each undo is announced and reported.
        grace: Seconds for one compensation, retries included.
        recorded: Whether the effects were read from a journal, so that contracts may have changed since.
        again: Whether a human has asked for another try: then also of what got stuck inside a call that was undone since.
        undone: Ids of what was undone, in order.
    """

    executor: ToolExecutor
    journal: Journal
    grace: float = GRACE_SECONDS
    recorded: bool = False
    again: bool = False
    undone: list[str] = field(init=False, default_factory=list)
    _states: dict[str, EffectState] = field(init=False, default_factory=dict)
    _inside: dict[str, list[EffectState]] = field(init=False, default_factory=dict)
    _verdicts: dict[str, Verdict | None] = field(init=False, default_factory=dict)
    _unanswered: set[str] = field(init=False, default_factory=set)
    _group: TaskGroup = field(init=False)
    _means: Means = field(init=False)

    def __post_init__(self) -> None:
        self._means = Means(self.executor.tools, self.recorded)

    async def unwind(self, effects: Iterable[EffectState]) -> None:
        """Undo effects; what can't be undone is left with its ``reason``. Must run where nothing cancels it.

        Raises:
            LeaseLostError: Another process has claimed the run and goes on with the rest.
        """
        states = list(effects)
        self._states = {state.effect.id: state for state in states}
        for state in states:
            if state.effect.parent is not None:
                self._inside.setdefault(state.effect.parent, []).append(state)
        context = current_run() or RunContext(run_id=self.journal.run_id, session_id="", namespace="")
        context = context.evolve(agent=None, step=None, effect=None, stops=())
        ledger = self.executor.ledger.unlimited()
        executor = replace(self.executor, effects=None, passes_doors=True, ledger=ledger)
        with entered(context), using(executor):
            async with anyio.create_task_group() as group:
                self._group = group
                await self._ask_enclosing(executor, states)
                for state in self._order(states):
                    if self.journal.lost is None and not state.settled and not self._covered(state):
                        await self._one(executor, state)
        if self.journal.lost is not None:
            raise self.journal.lost

    def preview(self, effects: Iterable[EffectState]) -> list[tuple[EffectState, str | None]]:
        """What `unwind` would undo, in that order, each with the reason if it can't be."""
        self._states = {state.effect.id: state for state in effects}
        found = [
            (state, self._means.problem(state))
            for state in self._order(list(self._states.values()))
            if not state.settled and not self._covered(state)
        ]
        return [(state, problem) for state, problem in found if problem != ""]

    def needing(self, effects: Iterable[EffectState]) -> list[EffectState]:
        """Those for which tools may be needed: all but what the compensator of an enclosing call is sure to cover."""
        self._states = {state.effect.id: state for state in effects}
        return [state for state in self._states.values() if not self._covered(state, surely=True)]

    def _order(self, states: list[EffectState]) -> list[EffectState]:
        doubtful = sorted((s for s in states if s.doubtful), key=lambda s: -s.order)
        return doubtful + sorted((s for s in states if not s.doubtful), key=lambda s: -s.completed)

    async def _ask_enclosing(self, executor: ToolExecutor, states: list[EffectState]) -> None:
        """Ask about doubtful calls that did something inside: whether that is undone one by one depends on them."""
        enclosing = {state.effect.parent for state in states if not state.settled}
        for state in self._order(states):
            if state.doubtful and not state.settled and not state.undoing and state.effect.id in enclosing:
                tool = self.executor.tools.get(state.effect.tool)
                if tool is None or self._means.problem(state) is not None:
                    continue
                verdict = await self._ask(executor, state, tool)
                if verdict is not None and not verdict.happened:
                    await self._did_not_happen(state)

    def _enclosing(self, state: EffectState) -> Iterator[tuple[EffectState, EffectState]]:
        """The calls inside which an effect was begun, inside out, each with what of it stands directly in that call."""
        inner = state
        while (parent := self._states.get(inner.effect.parent or "")) is not None:
            yield parent, inner
            inner = parent

    def _all_inside(self, state: EffectState) -> list[EffectState]:
        """The effects that were begun inside a call, however deep, by beginning."""
        found = list(self._inside.get(state.effect.id, ()))
        for inner in found:  # which grows meanwhile
            found += self._inside.get(inner.effect.id, ())
        return sorted(found, key=lambda inner: inner.order)

    def _covered(self, state: EffectState, *, surely: bool = False) -> bool:
        """Whether the compensator of an enclosing tool takes this effect back as well.

        Args:
            state: The effect.
            surely: Whether that must not depend on what a ``verify`` has yet to say.
        """
        if self.again and state.failed_to_undo:
            return False  # nobody knows whether it was, so it is tried only because somebody says so
        if state.undoing and state.reason is None and any(parent.compensated for parent, _ in self._enclosing(state)):
            return False  # that other try was begun after the enclosing call had been undone, and nobody has ended it
        return any(
            self._covers(parent, inner) and not (surely and self._is_to_be_asked_about(parent))
            for parent, inner in self._enclosing(state)
        )

    def _is_to_be_asked_about(self, state: EffectState) -> bool:
        tool = self.executor.tools.get(state.effect.tool)
        return state.doubtful and not state.settled and tool is not None and tool.contract.verify is not None

    def _covers(self, parent: EffectState, inner: EffectState) -> bool:
        compensator, tool = self._means.compensator(parent), self.executor.tools.get(parent.effect.tool)
        by_result = compensator is not None and tool is not None and needs_result(tool, compensator)
        if by_result and inner.attempt < (parent.attempts or 1):
            return False  # a result says what the attempt that returned it did, and nothing of those before it
        if parent.compensated or parent.undoing:
            return True  # it ran, or has begun to; nobody knows how far it got with what is inside
        if compensator is None or tool is None or parent.undone or isinstance(self._means.problem(parent), str):
            return False
        happened = parent.outcome == "ok" or self._verdicts.get(parent.effect.id) is not None
        if happened and (parent.has_result or not by_result):
            return True
        return compensator.contract.idempotent and not by_result

    # -- one effect ---------------------------------------------------------------------------------------------------

    async def _one(self, executor: ToolExecutor, state: EffectState) -> None:
        problem = self._means.problem(state)
        if problem is not None:
            if problem:
                await self._stuck(state, problem)
            return
        tool, compensator = self.executor.tools[state.effect.tool], self._means.compensator(state)
        if compensator is None:
            await self._only_verify(executor, state, tool)
            return
        if not await self._resolve_doubt(executor, state, tool, compensator):
            return
        done, late = anyio.Event(), anyio.Event()
        executor = replace(executor, late=late)
        scope = CancelScope()
        report(Progress("unwinding", compensator.name, run_id=self.journal.run_id, step=state.effect.step))
        self._group.start_soon(self._compensate, executor, state, compensator, scope, done)
        with anyio.move_on_after(self.grace):
            await done.wait()
        if done.is_set():
            return
        late.set()
        if compensator.is_async:
            scope.cancel()

    async def _resolve_doubt(self, executor: ToolExecutor, state: EffectState, tool: Tool, compensator: Tool) -> bool:
        """Whether to go on and compensate, once it is known, or does not matter, what happened and what it returned."""
        if state.undoing and not compensator.contract.idempotent:
            return await self._resume_undo(executor, state, tool)
        wants_result = needs_result(tool, compensator)
        # An undo that was begun is repeated whatever verify says: it may have got no further than what verify looks at.
        if (state.undoing or not state.doubtful) and (state.has_result or not wants_result):
            return True
        verdict = await self._ask(executor, state, tool)
        if not state.doubtful:
            if not state.has_result:
                await self._stuck(state, f"{compensator.name} needs the result, which is not on record")
            return state.has_result
        if verdict is not None and not verdict.happened:
            await self._did_not_happen(state)
            return False
        if wants_result and not state.has_result:
            known = self._unknown(state) if verdict is None else f"{tool.name} happened, as its verify says"
            await self._stuck(state, f"{known}, and {compensator.name} needs its result")
            return False
        if verdict is None and not compensator.contract.idempotent:
            await self._stuck(state, f"{self._unknown(state)}, and {compensator.name} is not idempotent")
            return False
        return True

    async def _ask(self, executor: ToolExecutor, state: EffectState, tool: Tool) -> Verdict | None:
        """What ``verify`` says about a doubtful effect; it is asked once."""
        if state.effect.id not in self._verdicts:
            verdict = await self._verdict(executor, state, tool)
            self._verdicts[state.effect.id] = verdict
            if verdict is not None and verdict.known:
                state.returned(verdict.value)
        return self._verdicts[state.effect.id]

    async def _verdict(self, executor: ToolExecutor, state: EffectState, tool: Tool) -> Verdict | None:
        """What ``verify`` says within the grace time; one that hangs in a thread is left to end on its own."""
        answers: list[Verdict | None] = []
        done, scope = anyio.Event(), CancelScope()

        async def ask() -> None:
            try:
                with scope:
                    answers.append(await executor.verify(tool, state.arguments(tool), state.effect.key))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - nothing cancels unwinding: it is a cancellation that leaked
                _log.warning("verify of %s did not end: %s", tool.name, describe(error))
            finally:
                done.set()

        self._group.start_soon(ask)
        with anyio.move_on_after(self.grace):
            await done.wait()
        if not done.is_set():
            self._unanswered.add(state.effect.id)
            scope.cancel()
            return None
        return answers[0] if answers else None

    def _unknown(self, state: EffectState) -> str:
        return f"nobody knows whether {state.effect.tool} happened{self._silence(state)}"

    def _silence(self, state: EffectState) -> str:
        """Why ``verify`` did not help, if it has not answered."""
        return f" (its verify did not answer within {self.grace:g} s)" if state.effect.id in self._unanswered else ""

    async def _only_verify(self, executor: ToolExecutor, state: EffectState, tool: Tool) -> None:
        """Nothing undoes this effect, but it may not have happened."""
        verdict = await self._ask(executor, state, tool)
        if verdict is not None and not verdict.happened:
            await self._did_not_happen(state)
        else:
            await self._stuck(state, "no tool undoes it")

    async def _resume_undo(self, executor: ToolExecutor, state: EffectState, tool: Tool) -> bool:
        """An undo was begun and its end is unknown: repeat it only if the effect still stands."""
        verdict = self._verdicts[state.effect.id] = await self._verdict(executor, state, tool)
        if verdict is None:
            silence = self._silence(state)
            await self._stuck(
                state, f"an undo of {state.effect.tool} was interrupted; nobody knows whether it worked{silence}"
            )
            return False
        if not verdict.happened:
            await self._mark_undone(state)
            return False
        if verdict.known:
            state.returned(verdict.value)
        return True

    async def _compensate(
        self, executor: ToolExecutor, state: EffectState, compensator: Tool, scope: CancelScope, done: anyio.Event
    ) -> None:
        """One compensation in a task of its own, announced before and reported after."""
        try:
            if await self._announce(state, compensator):
                await self._undo(executor, state, compensator, scope)
        finally:
            done.set()

    async def _announce(self, state: EffectState, compensator: Tool) -> bool:
        """Say that an undo begins; False if it may not."""
        announced = await self._report(state, "undoing", by=compensator.name)
        if self.journal.lost is not None:
            return False
        if not announced and not compensator.contract.idempotent:
            state.reason = "the journal can't be written, so it is left for recovery"
            return False
        state.undoing = True
        return True

    async def _undo(self, executor: ToolExecutor, state: EffectState, compensator: Tool, scope: CancelScope) -> None:
        effect = state.effect
        try:
            with scope:
                await executor.call(
                    compensator,
                    self._means.arguments(state, compensator),
                    key=effect.key,
                    compensates=effect.id,
                    hidden=self._means.hidden(state),
                    links=((effect.trace_id, effect.span_id, "undoes"),),
                )
        except Exception as error:  # noqa: BLE001 - one failed compensation never stops the others
            if isinstance(error, ToolOutputError) and error.ran and error.tool_name == compensator.name:
                _log.warning("%s; what it undid is undone", error)
                await self._mark_undone(state)
                return
            doubt = scope.cancel_called or compensator.contract.in_doubt_after(error)
            await self._stuck(state, f"{compensator.name} failed: {describe(error)}", doubt=doubt)
        except BaseException as error:  # a cancellation that is none of ours, which the scope keeps
            await self._stuck(state, f"{compensator.name} did not end: {describe(error)}", doubt=True)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            if scope.cancelled_caught:
                await self._stuck(state, f"{compensator.name} did not finish within {self.grace:g} s", doubt=True)
            else:
                await self._mark_undone(state)

    # -- the record ---------------------------------------------------------------------------------------------------

    async def _report(self, state: EffectState, kind: str, **data: Any) -> bool:
        """Write a record; False when the journal can't be written any more, or is somebody else's now."""
        try:
            await self.journal.append(kind, effect=state.effect.id, **data)
        except (LeaseLostError, StorageError) as error:
            _log.error("journal of run %s: %s", self.journal.run_id, error)
            return False
        return True

    async def _did_not_happen(self, state: EffectState) -> None:
        state.undone, state.reason = True, None
        await self._report(state, "resolved", **{"as": "undone"}, by="verify")

    async def _mark_undone(self, state: EffectState) -> None:
        state.undoing, state.undone, state.compensated, state.reason = False, True, True, None
        self.undone.append(state.effect.id)
        report(Progress("undone", state.effect.tool, run_id=self.journal.run_id, step=state.effect.step))
        covered = [
            other
            for other in self._all_inside(state)
            if not other.settled and other.reason is None and (other.outcome != "failed" or other.undoing)
            and any(parent is state and self._covers(parent, inner) for parent, inner in self._enclosing(other))
        ]  # fmt: skip
        for other in covered:
            other.covered = True
        await self._report(state, "undone", **({"covers": [other.effect.id for other in covered]} if covered else {}))

    async def _stuck(self, state: EffectState, reason: str, *, doubt: bool | None = None) -> None:
        """Leave an effect standing; ``doubt`` says whether its undo may have worked, None that nothing was learnt."""
        state.reason = reason
        state.undoing = state.undoing if doubt is None else doubt
        effect, told = state.effect, scrub(reason)
        _log.warning("run %s: %s could not be undone: %s", self.journal.run_id, effect.tool, told)
        report(Progress("undo_failed", effect.tool, error=told, run_id=self.journal.run_id, step=effect.step))
        await self._report(state, "undo_failed", error=reason, doubt=state.undoing)
