"""What a run tells whoever watches it live; neither an event nor a span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Something began or ended. Observers are plain functions, called on the event loop; they must not block.

    Attributes:
        kind: What happened.
        name: The agent, tool or model it happened to.
        agent: The agent at work, where that is not ``name``.
        error: One line, for what failed.
        cost_usd: What the run has cost so far, where it is known at that moment.
        run_id: The run.
        step: The step of a plan that it belongs to.
    """

    kind: Literal[
        "agent_started",
        "agent_finished",
        "agent_failed",
        "tool_started",
        "tool_finished",
        "tool_failed",
        "lm_started",
        "lm_finished",
        "lm_failed",
        "unwinding",
        "undone",
        "undo_failed",
    ]
    name: str
    agent: str | None = None
    error: str | None = None
    cost_usd: float | None = None
    run_id: str | None = None
    step: str | None = None

    @property
    def title(self) -> str:
        """The name, and which step that is where it says something else."""
        return self.name if self.step in (None, self.name) else f"{self.name} ({self.step})"
