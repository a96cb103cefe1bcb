"""The effects of a run in this process: what the executor announces to, and what is undone from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from agenthelm._runtime.context import StopMark, current_run
from agenthelm.core.effects import Effect, LostResult, Outcome
from agenthelm.core.sensitive import is_plain
from agenthelm.core.tool import Tool, ToolRegistry
from agenthelm.exceptions import PlanError, SagaError, StorageError
from agenthelm.orchestration.journal import Journal, ResultForm
from agenthelm.orchestration.state import Effects, EffectState
from agenthelm.orchestration.unwind import GRACE_SECONDS
from agenthelm.telling import describe

__all__ = ["LiveRun", "ScopeLog"]


@dataclass(slots=True)
class LiveRun:
    """What all scopes of one run share.

    Attributes:
        journal: Where it is on record.
        tools: The registry by which all of it is undone: that of the outermost run.
        states: The effects so far.
        scopes: How many scopes were opened inside each scope.
        left_standing: Whether recovery may go on with it, or leave it as it is, instead of undoing it.
        flying: The effects whose calls are under way in this process; a resumed run has doubtful ones besides.
        ending: The scopes that are being closed or undone.
        undone: The effects that were undone in this process, in that order.
        numbered: The number of the last effect's id.
        changed: Set when an effect or a scope has ended; None while nobody waits for that.
    """

    journal: Journal
    tools: ToolRegistry
    states: Effects = field(default_factory=Effects)
    scopes: dict[str, int] = field(default_factory=dict)
    left_standing: bool = False
    flying: set[str] = field(default_factory=set)
    ending: set[str] = field(default_factory=set)
    undone: list[str] = field(default_factory=list)
    numbered: int = 0
    changed: anyio.Event | None = None

    def go_on(self) -> None:
        """Number effects and scopes on from those that a resumed run has already."""
        for effect_id, state in self.states.items():
            self.numbered = max(self.numbered, int(effect_id[1:]))
            path = state.scope
            while path:
                path, _, number = path.rpartition(".")
                self.scopes[path] = max(self.scopes.get(path, 0), int(number))

    def inner_scope(self, scope: str) -> str:
        """A fresh path below a scope."""
        self.scopes[scope] = number = self.scopes.get(scope, 0) + 1
        return f"{scope}.{number}"

    def undone_among(self, effects: Iterable[EffectState]) -> tuple[str, ...]:
        """Those effects that were undone, by whichever scope, in that order."""
        ids = {state.effect.id for state in effects}
        return tuple(effect for effect in self.undone if effect in ids)

    async def idle(self, scope: str) -> None:
        """Wait until no effect of a scope is in flight, and no scope inside it is being ended."""
        while self._busy(scope):
            if self.changed is None:
                self.changed = anyio.Event()
            await self.changed.wait()

    def end(self, scope: str) -> None:
        """A scope has ended; what waits for that may look again."""
        self.ending.discard(scope)
        self._tell()

    def _busy(self, scope: str) -> bool:
        if any(path.startswith(f"{scope}.") for path in self.ending):
            return True
        return bool(self.flying) and any(s.effect.id in self.flying for s in self.states.in_scope(scope))

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed.set()
            self.changed = None

    def ended(self, state: EffectState, outcome: Outcome) -> None:
        """An effect has ended; what waits for that may look again."""
        self.flying.discard(state.effect.id)
        self.states.complete(state, outcome)
        self._tell()


@dataclass(slots=True)
class ScopeLog:
    """The effect log of one scope: the saga's side of the executor's port.

    Attributes:
        run: The run.
        scope: The scope's path; ``""`` for the run itself.
        tools: Where compensators are looked up.
        stop: Marked when the journal can't be written: nothing further may happen then.
        outer: The scope it is in; None for the run itself.
        closed: Whether the scope is over, so that nothing may begin in it.
        grace: Seconds for one compensation, here and in the scopes inside that don't say.
    """

    run: LiveRun
    scope: str
    tools: ToolRegistry
    stop: StopMark
    outer: ScopeLog | None = None
    closed: bool = False
    grace: float = GRACE_SECONDS

    def refuse_late(self, what: str, name: str) -> None:
        """Refuse what comes after the end of the scope, or of one around it.

        Args:
            what: What that is, with ``{}`` for its name.
            name: Its name.

        Raises:
            SagaError: It has ended.
        """
        scope: ScopeLog | None = self
        while scope is not None:
            if scope.closed:
                raise SagaError(
                    f"{what.format(repr(name))} after its run {self.run.journal.run_id!r} had ended; don't let tasks outlive the run"
                )
            scope = scope.outer

    def next_id(self) -> str:
        """A fresh effect id of this run."""
        self.run.numbered += 1
        return f"e{self.run.numbered}"

    async def begin(self, effect: Effect) -> None:
        """Announce an effect; see `agenthelm.core.effects.EffectLog`."""
        run = self.run
        self.refuse_late("tool {} was called", effect.tool)
        tool = self._own(effect.tool)
        if effect.compensating_tool is not None:
            self._own(effect.compensating_tool)
        state = EffectState(effect, self.scope, len(run.states))
        if tool is not None:
            state.contract, state.origin, state.repeatable = tool.fingerprint, tool.origin, tool.contract.idempotent
        if not is_plain(effect.arguments.values()):
            # What is read only once, the call itself reads; nothing of it is left for undoing.
            state.withheld = frozenset(name for name, value in effect.arguments.items() if isinstance(value, Iterator))
        if (running := current_run()) is not None:
            state.attempt = running.attempt
        run.states[effect.id] = state
        run.flying.add(effect.id)
        try:
            await run.journal.begin(
                effect,
                scope=self.scope,
                contract=state.contract,
                origin=state.origin,
                repeatable=state.repeatable,
                attempt=state.attempt,
            )
        except Exception as error:
            if isinstance(error, StorageError):
                self.stop.set(error)
            del run.states[effect.id]
            run.ended(state, "failed")
            raise

    def _own(self, name: str) -> Tool | None:
        """A tool of this scope, if it has it; what the run could not undo is refused.

        Raises:
            PlanError: The outermost run has no such tool, or another one of that name.
        """
        known: Tool | None = self.run.tools.get(name)
        own: Tool | None = self.tools.get(name)
        if known is None or (own is not None and own.function is not known.function):
            raise PlanError(
                f"tool {name!r} is not the one by which run {self.run.journal.run_id!r} could undo what it does; "
                f"give it to the outermost run: Orchestrator(tools=...)"
            )
        return own

    async def finish(
        self,
        effect: Effect,
        outcome: Outcome,
        *,
        value: Any = None,
        error: BaseException | None = None,
        event: Mapping[str, Any],
    ) -> None:
        """Record how an effect ended; see `agenthelm.core.effects.EffectLog`."""
        state = self.run.states[effect.id]
        result = ResultForm()
        if isinstance(value, LostResult):
            result = ResultForm(opaque=True)
        elif outcome == "ok":
            result = ResultForm.of(value, effect)
            state.returned(value, result)
        state.error = describe(error) if error is not None else None
        state.attempts = event.get("retry_count", 0) + 1
        # Known here before it is known to be on record: unwinding goes by what happened.
        self.run.ended(state, outcome)
        try:
            await self.run.journal.finish(
                effect.id, outcome, result=result, error=state.error, event=event, attempts=state.attempts
            )
        except StorageError as broken:
            self.stop.set(broken)
            raise
