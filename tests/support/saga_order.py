"""Whether a journal tells of undos in the order that was promised, and of nothing begun once undoing was decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agenthelm.core.storage.base import StoredRecord
from agenthelm.orchestration.fold import fold


def wrong_order(records: Sequence[StoredRecord]) -> Iterator[str]:
    """The doubtful come first, latest begun first; the others follow in reverse order of completion."""
    rank: dict[str, tuple[int, int]] = {}
    last: dict[int, int] = {}
    started: set[str] = set()
    decided: set[str] = set()
    parents = {r.data["effect"]: r.data["parent"] for r in records if r.data["type"] == "begin"}
    for index, record in enumerate(records):
        kind, effect = record.data["type"], record.data.get("effect")
        if kind == "unwinding":
            decided.add(record.data["scope"])
            effects = fold("r", records[:index]).effects.in_scope(record.data["scope"])
            doubtful = sorted((s for s in effects if s.doubtful), key=lambda s: -s.order)
            finished = sorted((s for s in effects if not s.doubtful), key=lambda s: -s.completed)
            rank |= {s.effect.id: (index, n) for n, s in enumerate([*doubtful, *finished])}
        elif kind == "undoing" and effect not in started:
            started.add(effect)
            if effect not in rank:
                if parents[effect] is None:  # what a step did inside is undone before the step is called again
                    yield f"{effect} is undone without a decision"
                continue
            decision, place = rank[effect]
            if place < last.get(decision, -1):
                yield f"{effect} is undone too late"
            last[decision] = place
        elif kind == "begin" and any(f"{record.data['scope']}.".startswith(f"{scope}.") for scope in decided):
            yield f"{effect} begins after unwinding began"
