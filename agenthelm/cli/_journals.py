"""Reads journals for the commands, by the names that people give runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthelm.exceptions import RunNotFoundError, StorageError

if TYPE_CHECKING:
    from agenthelm.core.storage.base import BaseStorage
    from agenthelm.orchestration.results import SagaResult
    from agenthelm.orchestration.state import RunState

__all__ = ["OPEN", "count_perhaps_dead", "ended", "lacking", "read", "run_id"]

OPEN = "open"
"""What a journal is in until its run has ended."""


async def run_id(storage: BaseStorage, run: str) -> str:
    """The id of the run that was named; ``last`` is the latest with a journal.

    Raises:
        RunNotFoundError: There is none.
    """
    from agenthelm.orchestration.journal import run_of
    from agenthelm.orchestration.runs import latest

    if run == "last":
        newest = await latest(storage, status=None, limit=1)
        if not newest:
            raise RunNotFoundError(run)
        return run_of(newest[0].name)
    return run


async def read(storage: BaseStorage, run: str) -> RunState:
    """A run's journal.

    Raises:
        RunNotFoundError: There is none.
        CorruptRecordError: It can't be read.
    """
    from agenthelm.orchestration.fold import load

    return await load(storage, await run_id(storage, run))


async def ended(storage: BaseStorage, run: str) -> SagaResult | None:
    """How a run ended by its journal; None if that can't be said."""
    from agenthelm.orchestration.state import as_found

    try:
        state = await read(storage, run)
    except (RunNotFoundError, StorageError):
        return None
    return None if state.status is None else as_found(state)


async def lacking(storage: BaseStorage, run: str) -> str | None:
    """What the events of a run lack of what it spent; None if that is nothing, or can't be said."""
    from agenthelm.orchestration.recovery import DIED

    try:
        state = await read(storage, run)
    except (RunNotFoundError, StorageError):
        return None
    if state.status is None:
        return "the run has not ended, so this may not be all"
    if (state.reason or "").startswith(DIED) or any(effect.outcome is None for effect in state.effects.values()):
        return f"{DIED}, and calls that were under way then are not counted"
    return None


async def count_perhaps_dead(storage: BaseStorage) -> int:
    """How many open runs may have lost their process, which can't be seen, and were heard of too lately to be claimed."""
    from agenthelm._runtime.retry import SystemClock
    from agenthelm.orchestration.runs import states

    now = SystemClock().wall()
    found = [run async for run in states(storage, status=OPEN, limit=None) if run.status is None]
    return sum(run.owner.fate() == "unknown" and not run.claimable(now) for run in found)
