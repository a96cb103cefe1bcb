"""A run's journal, read into what happened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, get_args

from agenthelm.core.effects import Effect, Outcome
from agenthelm.core.storage.base import BaseStorage, StoredRecord
from agenthelm.exceptions import CorruptRecordError, RunNotFoundError
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.owner import Owner
from agenthelm.orchestration.results import SagaStatus
from agenthelm.orchestration.state import PRUNED, EffectState, RunState, settle_repeated

__all__ = ["fold", "load"]

_TEXT, _MAYBE_TEXT = (str,), (str, NoneType)
_SHAPE: Mapping[str, tuple[type, ...]] = {
    "at": (int, float), "epoch": (int,), "name": _TEXT, "kind": _TEXT, "rollback": (bool,), "session_id": _TEXT,
    "namespace": _TEXT, "plan": (dict, NoneType), "trace_id": _MAYBE_TEXT, "span_id": _MAYBE_TEXT, "kept": _MAYBE_TEXT,
    "effect": _TEXT, "tool": _TEXT, "arguments": (dict,), "withheld": (list,), "key": _TEXT, "parent": _MAYBE_TEXT,
    "step": _MAYBE_TEXT, "agent": _MAYBE_TEXT, "digest": _TEXT, "compensating_tool": _MAYBE_TEXT, "scope": _TEXT,
    "contract": _TEXT, "origin": _TEXT, "repeatable": (bool,), "attempt": (int,), "outcome": _TEXT, "opaque": (bool,),
    "error": _MAYBE_TEXT, "attempts": (int, NoneType), "reason": _MAYBE_TEXT, "covers": (list,), "doubt": (bool,),
    "by": _TEXT, "as": _TEXT, "status": _TEXT,
}  # fmt: skip
"""What the fields of records are; who acts on a journal relies on it."""
_VALUES: Mapping[str, tuple[str, ...]] = {
    "kind": ("agents", "steps"), "outcome": get_args(Outcome), "as": ("done", "undone"), "status": get_args(SagaStatus),
}  # fmt: skip
_LATEST = 2e11  # the calendar ends soon after that


async def load(storage: BaseStorage, run_id: str, *, namespace: str | None = None) -> RunState:
    """Read one run's journal; of one tenant only, where a namespace is given.

    Raises:
        RunNotFoundError: There is none, or it is another tenant's.
        CorruptRecordError: It can't be read.
    """
    records = await storage.read(stream_of(run_id))
    state = fold(run_id, records)
    if not records or state.status == PRUNED or namespace not in (None, state.namespace):
        raise RunNotFoundError(run_id)
    return state


def fold(run_id: str, records: Iterable[StoredRecord]) -> RunState:
    """What the records of a journal say. Pure; no I/O.

    Raises:
        CorruptRecordError: A record makes no sense where it stands.
    """
    state = RunState(run_id)
    for record in records:
        try:
            _check(record.data)
            _apply(state, record.data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise CorruptRecordError(
                record.stream, position=record.position, detail=f"{type(exc).__name__}: {exc}"
            ) from exc
        state.position = record.position + 1
    if not state.decided:
        settle_repeated(state.effects.values(), undone=state.begun())
    settle_repeated(state.effects.values())
    return state


def _check(data: Mapping[str, Any]) -> None:
    """Refuse a record that is none of ours: damaged, or of a version that means something else by it."""
    for name, value in data.items():
        if not isinstance(value, _SHAPE.get(name, (object,))) or value not in _VALUES.get(name, (value,)):
            raise ValueError(f"{name} is {value!r:.40}")
    if not math.isfinite(data["at"]) or abs(data["at"]) > _LATEST:
        raise ValueError(f"at is {data['at']!r:.40}")


def _apply(state: RunState, data: Mapping[str, Any]) -> None:
    kind = data["type"]
    at = float(data["at"])
    if kind != "resolved" or data["by"] == "verify":  # what a human says is no sign of life of whoever holds the run
        state.last_at = at
    state.epoch = int(data["epoch"])
    if kind in ("opened", "claimed"):
        state.owner = Owner.from_data(data["owner"])
        state.status, state.kept = None, data.get("kept")
        if kind == "opened":
            state.opened_at = state.last_at
            for name in ("name", "kind", "rollback", "session_id", "namespace", "plan", "trace_id", "span_id"):
                setattr(state, name, data[name])
    elif kind == "begin":
        _begin(state, data)
    elif kind == "unwinding":
        state.unwinding.append(data["scope"])
        if state.decided:
            state.reason = data.get("reason")
        # Now, as whoever undoes it does: later on it can't be seen that what is undone by then was one with another call.
        settle_repeated(state.effects.values(), None if state.decided else state.effects.in_scope(data["scope"]))
    elif kind == "closed":
        state.status = data["status"]
        state.closed_at = state.last_at
    elif kind == PRUNED:
        state.status = PRUNED
    elif kind != "renewed":
        _about_effect(state, kind, state.effects[data["effect"]], data)


def _begin(state: RunState, data: Mapping[str, Any]) -> None:
    effect = Effect(
        id=data["effect"],
        tool=data["tool"],
        arguments=dict(data["arguments"]),
        key=data["key"],
        parent=data["parent"],
        step=data["step"],
        agent=data["agent"],
        digest=data["digest"],
        compensating_tool=data["compensating_tool"],
        trace_id=data["trace_id"],
        span_id=data["span_id"],
    )
    attempt = data.get("attempt", 1)
    state.effects[effect.id] = EffectState(
        effect,
        scope=data["scope"],
        order=len(state.effects),
        withheld=frozenset(data["withheld"]),
        contract=data["contract"],
        origin=data.get("origin", ""),
        recorded=True,
        repeatable=data.get("repeatable", True),
        attempt=attempt,
    )
    outer = state.effects.get(effect.parent or "")
    if outer is not None:  # which may never return, and say how many attempts it took
        outer.attempts = max(attempt, outer.attempts or 1)


def _about_effect(state: RunState, kind: str, effect: EffectState, data: Mapping[str, Any]) -> None:
    if kind == "finish":
        state.effects.complete(effect, data["outcome"])
        effect.has_result = data["outcome"] == "ok" and not data["opaque"]
        effect.result = data["result"]
        effect.left_out = frozenset(data.get("withheld", ()))
        effect.error = data["error"]
        effect.attempts = data.get("attempts") or effect.attempts
    elif kind == "undoing":
        effect.undoing = True
        effect.reason = None
    elif kind == "undone":
        effect.undoing, effect.undone, effect.compensated, effect.reason = False, True, True, None
        effect.said_by = None
        state.undone.append(effect.effect.id)
        for covered in data.get("covers", ()):
            state.effects[covered].covered = True
    elif kind == "undo_failed":
        effect.undoing = bool(data.get("doubt"))
        effect.reason = data["error"]
    elif kind == "resolved":
        effect.undone, effect.said_by = data["as"] == "undone", data["by"]
        # Of a call that never returned and that nobody has tried to undo, it is said of that call alone.
        alone = effect.doubtful and not effect.undoing and (state.status is None or effect.reason is None)
        effect.compensated = effect.undone and data["by"] != "verify" and not alone
        if data["as"] == "done" and effect.reason is None:
            state.effects.complete(effect, "ok")  # nobody has tried to undo it yet, and it can be
        else:
            effect.accepted = data["as"] == "done"
        effect.reason, effect.undoing = None, False
        if effect.undone:
            state.undone.append(effect.effect.id)
        if effect.compensated:
            for inner in state.effects.inside(effect):
                inner.covered = inner.covered or (inner.reason is None and inner.outcome != "failed")
    else:
        raise ValueError(f"unknown record type {kind!r}")
