"""Reads journals for the commands, and drops those that nobody needs any more."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from agenthelm.exceptions import CorruptRecordError, RunNotFoundError, StorageError

if TYPE_CHECKING:
    from agenthelm.core.storage.base import BaseStorage, StreamInfo
    from agenthelm.orchestration.results import SagaResult, SagaStatus
    from agenthelm.orchestration.state import RunState

__all__ = ["OPEN", "ended", "prune", "read", "run_id", "runs"]

OPEN = "open"
"""What a journal is in until its run has ended."""


async def run_id(storage: BaseStorage, run: str) -> str:
    """The id of the run that was named; ``last`` is the latest with a journal.

    Raises:
        RunNotFoundError: There is none.
    """
    from agenthelm.orchestration.journal import run_of

    if run == "last":
        latest = await _latest(storage, state=None, limit=1)
        if not latest:
            raise RunNotFoundError(run)
        return run_of(latest[0].name)
    return run


async def _latest(storage: BaseStorage, *, state: str | None, limit: int) -> list[StreamInfo]:
    """The journals in a state, newest first, but for those whose pruning was interrupted."""
    from agenthelm.orchestration.journal import stream_of
    from agenthelm.orchestration.state import PRUNED

    journals = functools.partial(storage.streams, prefix=stream_of(""))
    if state is not None:
        return await journals(where={"state": state}, limit=limit)
    going = len(await journals(where={"state": PRUNED}))
    found = await journals(limit=limit + going)
    return [stream for stream in found if stream.state != PRUNED][:limit]


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
    from agenthelm.orchestration.results import SagaResult

    try:
        state = await read(storage, run)
    except (RunNotFoundError, StorageError):
        return None
    if state.status is None:
        return None
    stuck = tuple(effect.stuck() for effect in state.effects.values() if effect.status == "stuck")
    return SagaResult(cast("SagaStatus", state.status), error=state.reason, stuck=stuck, run_id=state.run_id)


async def runs(storage: BaseStorage, *, state: str | None, limit: int) -> AsyncIterator[RunState]:
    """The runs with a journal, newest first; of one that can't be read there is only that."""
    from agenthelm.orchestration.journal import run_of
    from agenthelm.orchestration.state import RunState

    for stream in await _latest(storage, state=state, limit=limit):
        try:
            run = await read(storage, run_of(stream.name))
        except RunNotFoundError:  # it was pruned just now
            continue
        except CorruptRecordError as error:
            run = RunState(run_of(stream.name), opened_at=stream.created_at, status="unreadable", reason=str(error))
        yield run


async def prune(storage: BaseStorage, *, before: float, dry_run: bool) -> list[str]:
    """Drop the journals of runs that were closed before then; open runs and stuck ones stay."""
    from agenthelm._runtime.retry import SystemClock
    from agenthelm.orchestration.journal import run_of, stream_of
    from agenthelm.orchestration.pruning import drop_journal

    dropped: list[str] = []
    for stream in await storage.streams(prefix=stream_of("")):
        if stream.updated_at >= before or stream.state in (OPEN, "failed", None):
            continue
        run_id = run_of(stream.name)
        if stream.state == "stopped" and (run := await ended(storage, run_id)) is not None and run.stuck:
            continue  # it stands as asked, but for a nested run that could not be undone
        if not dry_run and not await drop_journal(storage, run_id, SystemClock(), position=stream.position):
            continue
        dropped.append(run_id)
    return dropped
