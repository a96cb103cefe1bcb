"""What happened in a run, as far as anybody can know. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agenthelm.copies import own
from agenthelm.core.effects import Effect, Outcome
from agenthelm.core.tool import Tool
from agenthelm.orchestration.journal import LEASE_SECONDS, ResultForm
from agenthelm.orchestration.owner import Owner
from agenthelm.orchestration.results import SagaResult, SagaStatus, StuckEffect
from agenthelm.orchestration.values import decode, encode

__all__ = ["PRUNED", "UNREADABLE", "EffectState", "Effects", "RunState", "as_found", "result_of", "settle_repeated"]

PRUNED = "pruned"
"""What a run is whose journal is about to be dropped, and still is when its pruning was interrupted: the run is gone."""
UNREADABLE = "unreadable"
"""What a run is of whose journal nothing can be concluded."""

EffectStatus = Literal["begun", "finished", "failed", "in doubt", "undoing", "undone", "stuck", "accepted"]


@dataclass(slots=True)
class EffectState:
    """One effect and what became of it.

    Attributes:
        effect: What was announced.
        scope: The path of the scope it belongs to; ``""`` is the run itself, ``".1.2"`` a scope inside a scope.
        order: Its place in the order of beginnings.
        outcome: How the call ended; None while, or because, it never returned.
        completed: Its place in the order of completions.
        recorded: Whether it was read from a journal, which holds its arguments and its result as JSON.
        result: What it returned; see `value`.
        has_result: Whether ``result`` is known.
        form: What the journal holds of the result, for as long as the result may be a live object; None for nothing.
        withheld: Arguments that the journal does not hold.
        left_out: Fields of the result that it does not hold; ``result`` is without them.
        repeatable: Whether its call, made again under its key, is still one effect.
        attempt: The attempt of the enclosing effect's call in which it was begun.
        attempts: How many attempts its own call took, as far as that is known; None if nothing is.
        contract: Fingerprint of the tool's contract when it was called.
        origin: The file that the tool was defined in; ``""`` if that is not known.
        error: What its call raised, in one line.
        undoing: Undos begun without a known end.
        undone: Whether it does not stand any more: undone, or found never to have happened.
        compensated: Whether its compensator ran, or a human did its work, which covers what the tool did inside as well.
        said_by: Whose word it is that it stands or does not: that of ``verify``, or of a human; None where it is no word.
        covered: Whether it was taken back by undoing a call inside which it was made.
        reason: Why the last undo failed.
        accepted: Whether it is let stand: a human said so of what was stuck, or it is one with a later call that succeeded.
    """

    effect: Effect
    scope: str
    order: int
    outcome: Outcome | None = None
    completed: int = -1
    recorded: bool = False
    result: Any = None
    has_result: bool = False
    form: Any = None
    withheld: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    repeatable: bool = True
    attempt: int = 1
    attempts: int | None = None
    contract: str = ""
    origin: str = ""
    error: str | None = None
    undoing: bool = False
    undone: bool = False
    compensated: bool = False
    said_by: str | None = None
    covered: bool = False
    reason: str | None = None
    accepted: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether nobody knows if the effect happened."""
        return self.outcome in (None, "doubt")

    @property
    def settled(self) -> bool:
        """Whether nothing is left to undo: it was undone, by itself or with an enclosing call, or let stand."""
        return self.undone or self.covered or self.accepted

    @property
    def status(self) -> EffectStatus:
        """One word for it."""
        if self.undone or self.covered:
            return "undone"
        if self.accepted:
            return "accepted"
        if self.reason is not None:
            return "stuck"
        if self.undoing:
            return "undoing"
        if self.outcome is None:
            return "begun"
        return {"ok": "finished", "failed": "failed", "doubt": "in doubt"}[self.outcome]  # type: ignore[return-value]

    @property
    def lost(self) -> frozenset[str]:
        """What a compensator would be given by these names, and the journal does not hold."""
        if not self.left_out:
            return self.withheld
        return self.withheld | ({"result", *self.left_out} - self.effect.arguments.keys())

    @property
    def irreversible(self) -> bool:
        """Whether it stands and no tool undoes it."""
        return self.effect.compensating_tool is None and not self.settled and self.outcome != "failed"

    @property
    def failed_to_undo(self) -> bool:
        """Whether it stands although it was to be undone."""
        return self.reason is not None and not self.settled

    def returned(self, value: Any, form: ResultForm | None = None) -> None:
        """Keep what the call returned, and what the journal says of that."""
        self.result, self.has_result, self.form = value, True, None
        if form is not None and (form.opaque or form.withheld):
            self.result = own(value)
        elif form is not None:
            self.form = form.value

    def arguments(self, tool: Tool) -> Mapping[str, Any]:
        """What the tool was called with, as far as that is known, as it was then."""
        given = {name: value for name, value in self.effect.arguments.items() if name not in self.withheld}
        if not self.recorded:
            return given
        kinds = {name: parameter.annotation for name, parameter in tool.parameters.items()}
        return {name: decode(kinds.get(name, Any), value) for name, value in given.items()}

    def value(self, tool: Tool) -> Any:
        """What the call returned, as it was then, whoever has changed the object since."""
        if self.recorded:
            return _typed_result(tool, self.result)
        if self.form is None or encode(self.result) == (self.form, True):
            return self.result
        return _typed_result(tool, self.form)

    def stuck(self) -> StuckEffect:
        """It, as a result names it."""
        return StuckEffect(self.effect.id, self.effect.tool, self.effect.step, self.reason or "it was not undone")


def _typed_result(tool: Tool, form: Any) -> Any:
    """A result of a tool from its JSON form."""
    fields = tool.binding.result_fields
    if not fields:
        return decode(tool.binding.result_type, form)
    if isinstance(form, Mapping):
        return {name: decode(fields.get(name, Any), item) for name, item in form.items()}
    return decode(next(iter(fields.values())), form)


class Effects(dict[str, EffectState]):
    """The effects of one run, by id, in order of beginning."""

    __slots__ = ("_completions",)

    def __init__(self) -> None:
        super().__init__()
        self._completions = 0

    def in_scope(self, scope: str) -> list[EffectState]:
        """Those of a scope and of all inside it, by beginning."""
        inside = f"{scope}."
        return [state for state in self.values() if state.scope == scope or state.scope.startswith(inside)]

    def inside(self, effect: EffectState) -> list[EffectState]:
        """Those that were begun inside a call, at any depth, by beginning."""
        inner, ids = [], {effect.effect.id}
        for other in self.values():
            if other.effect.parent in ids:
                ids.add(other.effect.id)
                inner.append(other)
        return inner

    def complete(self, effect: EffectState, outcome: Outcome) -> None:
        """One has ended, after all that have ended before."""
        effect.outcome = outcome
        effect.completed = self._completions
        self._completions += 1


@dataclass(slots=True)
class RunState:
    """A run, as its journal tells it.

    Attributes:
        run_id: The run.
        position: How many records there are.
        epoch: How often it was claimed.
        name: What runs.
        kind: Whether it is a plan of steps or anything else.
        rollback: Whether a failure undoes anything.
        session_id: The conversation it belongs to.
        namespace: The tenant it belongs to.
        plan: The plan, with its options; None if it can't be resumed.
        trace_id: The trace it belongs to.
        span_id: The span of the run.
        owner: The process that holds it, or held it last.
        opened_at: When it began.
        last_at: When something was recorded last.
        status: How it ended; None while it is open.
        closed_at: When it ended last, also if it was claimed after that.
        kept: How it will end again when whoever claimed it after its end is done; None if it is to be undone.
        unwinding: The scopes that it was decided to undo, in order of decision.
        reason: Why it was decided to undo the whole run; None if it was not.
        effects: What it did.
        undone: Ids of the effects that were undone, or found never to have happened, in the order in which that was said.
    """

    run_id: str
    position: int = 0
    epoch: int = 0
    name: str = ""
    kind: Literal["agents", "steps"] = "agents"
    rollback: bool = True
    session_id: str = ""
    namespace: str = ""
    plan: Any = None
    trace_id: str | None = None
    span_id: str | None = None
    owner: Owner = field(default_factory=lambda: Owner("", 0))
    opened_at: float = 0.0
    last_at: float = 0.0
    status: str | None = None
    closed_at: float | None = None
    kept: SagaStatus | None = None
    unwinding: list[str] = field(default_factory=list)
    reason: str | None = None
    effects: Effects = field(default_factory=Effects)
    undone: list[str] = field(default_factory=list)

    @property
    def decided(self) -> bool:
        """Whether it was decided to undo the whole run; then it is only ever undone."""
        return "" in self.unwinding

    def begun(self) -> list[EffectState]:
        """The effects of which it is decided to undo them, whatever becomes of the run, by beginning.

        They are those of nested scopes that failed, and those that somebody died undoing before the call that had made
        them was made again, with what goes with these.
        """
        undoing = [state for state in self.effects.values() if state.undoing]
        inside = {id(state) for scope in self.unwinding for state in self.effects.in_scope(scope)}
        inside |= {id(state) for outer in undoing for state in (outer, *self.effects.inside(outer))}
        return [state for state in self.effects.values() if id(state) in inside]

    def claimable(self, now: float) -> bool:
        """Whether the owner is known dead, or has been silent for the length of a lease."""
        return self.owner.fate() == "dead" or now - self.last_at > LEASE_SECONDS


def result_of(effects: Iterable[EffectState], status: SagaStatus, **facts: Any) -> SagaResult:
    """What a run hands back, as its effects are by now; ``facts`` are further fields of the result."""
    effects = list(effects)
    return SagaResult(
        status,
        stuck=tuple(state.stuck() for state in effects if state.failed_to_undo),
        in_doubt=tuple(s.effect.id for s in effects if s.doubtful and not s.settled and s.reason is None),
        irreversible=tuple(state.effect.id for state in effects if state.irreversible),
        **facts,
    )


def as_found(state: RunState) -> SagaResult:
    """A run's result as its journal tells it."""
    return result_of(
        state.effects.values(),
        state.status or "open",  # type: ignore[arg-type]
        error=state.reason,
        undone=tuple(state.undone),
        run_id=state.run_id,
    )


def settle_repeated(effects: Iterable[EffectState], undone: Iterable[EffectState] | None = None) -> None:
    """Let calls stand that are one effect with another one: made again under their key, with success.

    It is the last of them that is undone. If only some effects are going to be ``undone``, it is one of the others: who
    relies on that had it before.
    """
    inside = None if undone is None else {id(state) for state in undone}
    calls: dict[tuple[str, str], list[EffectState]] = {}
    for state in effects:
        if state.repeatable and not state.settled and (state.outcome == "ok" or state.doubtful):
            calls.setdefault((state.effect.tool, state.effect.key), []).append(state)
    for same in calls.values():
        succeeded = [state for state in same if state.outcome == "ok"]
        if len(same) == 1 or not succeeded:
            continue
        outside = [state for state in succeeded if inside is not None and id(state) not in inside]
        kept = (outside or succeeded)[-1]
        for state in same:
            if state is not kept and (inside is None or id(state) in inside):
                state.accepted = True
