"""Where a run begins: inside the one in progress, or under an id of its own."""

from __future__ import annotations

import re

from agenthelm._runtime.context import RunContext, current_run, new_run_id, refuse_reimport
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.exceptions import ConfigError

__all__ = ["in_progress", "own_run_id", "refuse_run_id"]

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_LATEST = "last"
"""What the command line calls the latest run."""


def in_progress() -> tuple[ToolExecutor, RunContext] | None:
    """The executor and the identity of the run in progress, of which whatever begins here is a part; None outside of any."""
    executor, context = current_executor(), current_run()
    if executor is None or context is None or executor.effects is None:
        return None
    return executor, context


def own_run_id(asked: str | None) -> str:
    """The id of a run that begins: what was asked for, or a new one.

    Raises:
        ConfigError: It is no id that storages, memories and a shell can all hold.
        RuntimeError: No run begins here; see `refuse_reimport`.
    """
    if asked is None:
        return new_run_id()
    refuse_reimport()
    if asked == _LATEST:
        raise ConfigError(f"run_id can't be {_LATEST!r}, by which commands mean the latest run", setting="run_id")
    if not isinstance(asked, str) or not _RUN_ID.fullmatch(asked):
        raise ConfigError(
            "run_id must be a text of at most 128 letters, digits, and . _ : - after the first of them, "
            f"not {asked!r:.160}",
            setting="run_id",
        )
    return asked


def refuse_run_id(asked: str | None, context: RunContext) -> None:
    """Refuse an id for what is a part of the run in progress, and goes by its id.

    Raises:
        ConfigError: One was asked for.
    """
    if asked is not None:
        raise ConfigError(
            f"run_id: this begins inside of run {context.run_id!r} and is a part of it, so it has no id of its own; "
            "leave run_id out",
            setting="run_id",
        )
