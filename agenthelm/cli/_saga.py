"""Draws runs, and says what undoing them would do, for ``agenthelm saga``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agenthelm.cli._journals import OPEN

if TYPE_CHECKING:
    from rich.tree import Tree

    from agenthelm.core.storage.base import BaseStorage
    from agenthelm.core.tool import ToolRegistry
    from agenthelm.orchestration.state import EffectState, RunState

__all__ = [
    "STATES",
    "effect_names",
    "facts",
    "nothing_to_undo",
    "row",
    "too_early_to_recover",
    "tree",
    "undo_lines",
    "undo_preview",
    "what_to_do",
]

STATES = (OPEN, "success", "rolled_back", "stopped", "failed")
"""What a journal may be in, from its beginning to its end."""
_STYLES = {
    "finished": "green", "undone": "cyan", "accepted": "green", "failed": "dim", "in doubt": "bold yellow",
    "begun": "bold yellow", "undoing": "yellow", "stuck": "bold red",
}  # fmt: skip
_MARKS = {
    "finished": "✓", "undone": "↶", "accepted": "✓", "failed": "·", "in doubt": "?", "begun": "?", "undoing": "…",
    "stuck": "!",
}  # fmt: skip


def status(run: RunState) -> str:
    """A run's state in one phrase."""
    if run.status is not None:
        return run.status
    doing = "unwinding" if run.decided else "running"
    return f"{doing} ({run.owner})" if run.owner.fate() != "dead" else "interrupted: its process is gone"


def row(run: RunState) -> Sequence[object]:
    """A run in the list."""
    from agenthelm.cli._tables import When

    counts: dict[str, int] = {}
    for effect in run.effects.values():
        counts[effect.status] = counts.get(effect.status, 0) + 1
    effects = ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"
    return run.run_id, When(_when(run.opened_at)), run.name, status(run), effects


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S") if moment else ""


def facts(run: RunState, *, effects: bool = False) -> dict[str, Any]:
    """A run as JSON-compatible data; arguments and results stay in the journal."""
    from agenthelm.cli._console import scrubbed

    document: dict[str, Any] = {
        "run_id": run.run_id,
        "name": run.name,
        "kind": run.kind,
        "status": status(run),
        "open": run.status is None,
        "session_id": run.session_id,
        "namespace": run.namespace,
        "owner": str(run.owner),
        "opened_at": run.opened_at,
        "closed_at": run.closed_at,
        "reason": scrubbed(run.reason),
        "trace_id": run.trace_id,
    }
    if effects:
        document["effects"] = [
            {
                "effect_id": effect.effect.id,
                "tool": effect.effect.tool,
                "step": effect.effect.step,
                "agent": effect.effect.agent,
                "parent": effect.effect.parent,
                "status": effect.status,
                "error": scrubbed(effect.error),
                "reason": scrubbed(effect.reason),
                "compensating_tool": effect.effect.compensating_tool,
                "said_by": effect.said_by,
            }
            for effect in run.effects.values()
        ]
    return document


def tree(run: RunState) -> Tree:
    """A run's journal as a drawing."""
    from rich.text import Text
    from rich.tree import Tree

    from agenthelm.cli._console import clean, scrubbed

    head = Text.assemble(
        (f"run {clean(run.run_id)}", "bold"), f"  {clean(run.name)}  ", (status(run), _status_style(run))
    )
    head.append(f"  began {_when(run.opened_at)} UTC", "dim")
    if run.trace_id:
        head.append(f"  trace {run.trace_id}", "dim")
    drawn = Tree(head, guide_style="dim")
    branches: dict[str, Tree] = {}
    for effect in run.effects.values():
        above = branches.get(effect.effect.parent or "", drawn)
        branches[effect.effect.id] = above.add(_line(effect))
    if run.reason:
        drawn.add(Text(f"unwound because: {clean(scrubbed(run.reason), width=200)}", style="yellow"))
    if not run.effects:
        drawn.add(Text("no effects", style="dim"))
    return drawn


def _status_style(run: RunState) -> str:
    return {"success": "green", "rolled_back": "cyan", "failed": "bold red"}.get(run.status or "", "yellow")


def _line(effect: EffectState) -> Any:
    from rich.text import Text

    from agenthelm.cli._console import arguments_line, clean, scrubbed, sign

    style = _STYLES[effect.status]
    line = Text.assemble((f"{sign(_MARKS[effect.status])} ", style), clean(effect.effect.step or effect.effect.tool))
    shown = arguments_line(effect.effect.arguments)
    tool = f"  {effect.effect.tool}" if effect.effect.step not in (None, effect.effect.tool) else ""
    line.append(f"{tool}({shown})", "dim")
    line.append(f"  {effect.status}", style)
    if effect.covered:
        line.append("  with the call above", "dim")
    elif effect.settled and effect.said_by:
        line.append(f"  as {effect.said_by} said", "dim")
    elif effect.effect.compensating_tool:
        line.append(f"  {'by' if effect.undone else 'undone by'} {effect.effect.compensating_tool}", "dim")
    for problem in (effect.error, effect.reason):
        if problem:
            line.append(f"\n  {clean(scrubbed(problem), width=160)}", "red" if problem is effect.reason else "dim")
    line.append(f"  [{effect.effect.id}]", "dim")
    return line


def undo_preview(run: RunState, tools: ToolRegistry, storage: BaseStorage, *, refuse: bool) -> list[dict[str, Any]]:
    """What undoing a run would do, as JSON-compatible data, in the order in which it would; empty when it would do nothing.

    Raises:
        PlanError: Tools that it takes are missing, and that is to be refused.
    """
    from agenthelm.core.executor import ToolExecutor
    from agenthelm.orchestration.recovery import Recovery

    return [
        {
            "effect_id": effect.effect.id,
            "tool": effect.effect.tool,
            "step": effect.effect.step,
            "status": effect.status,
            "undone_by": effect.effect.compensating_tool,
            "problem": problem,
        }
        for effect, problem in Recovery(ToolExecutor(tools, storage)).preview(run, refuse=refuse)
    ]


def undo_lines(run: RunState, preview: Iterable[Mapping[str, Any]]) -> list[str]:
    """What undoing a run would do, in words."""
    names = effect_names(run)
    lines = []
    for row in preview:
        effect, by = run.effects[row["effect_id"]], row["undone_by"]
        note = ", in doubt," if effect.doubtful else ", which failed," if effect.outcome == "failed" else ""
        what = names[row["effect_id"]] + note
        if row["problem"] is not None:
            lines.append(f"CAN'T undo {what}: {row['problem']}")
        else:
            lines.append(f"undo {what} by {by}" if by else f"ask whether {what} happened: no tool undoes it")
    return lines


def nothing_to_undo(run: RunState) -> str:
    """Why undoing a run would do nothing."""
    if run.status != "failed":
        return "nothing to undo"
    return f"nothing to undo: what is left of run {run.run_id} is stuck; {what_to_do(run.run_id)}"


def too_early_to_recover(runs: int) -> str:
    """Why open runs are left alone for now."""
    from agenthelm.cli._units import count
    from agenthelm.orchestration.journal import LEASE_SECONDS

    return (
        f"left alone for now: {count(runs, 'open run')}, of which it can't be seen here whether the process is dead; "
        f"after {LEASE_SECONDS:g} s of silence it is taken to be, so try again then"
    )


def what_to_do(run_id: str) -> str:
    """What to do about what could not be undone."""
    return (
        f"try it again with 'agenthelm saga retry {run_id} --app APP', "
        f"or say what became of it with 'agenthelm saga resolve {run_id} STEP --as done|undone'"
    )


def effect_names(run: RunState) -> dict[str, str]:
    """Effect ids -> what a person calls them."""
    named = ((state.effect.id, state.effect.tool, state.effect.step) for state in run.effects.values())
    return {effect: tool if step in (None, tool) else f"{tool} ({step})" for effect, tool, step in named}
