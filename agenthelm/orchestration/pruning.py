"""Dropping journals: of runs that have ended long ago, and of one of which nothing can be concluded any more."""

from __future__ import annotations

from agenthelm._runtime.retry import Clock
from agenthelm.core.storage.base import BaseStorage, StreamInfo
from agenthelm.exceptions import (
    CorruptRecordError,
    LeaseLostError,
    PlanError,
    RunBusyError,
    RunNotFoundError,
    StorageError,
)
from agenthelm.orchestration.fold import load
from agenthelm.orchestration.journal import LEASE_SECONDS, Journal, claims_of, run_of, stream_of
from agenthelm.orchestration.state import PRUNED

__all__ = ["prune_older", "prune_unreadable", "why_unreadable"]


async def drop_journal(storage: BaseStorage, run_id: str, clock: Clock, *, position: int) -> bool:
    """Drop a run's journal, and the claims on it.

    Args:
        storage: Where it is.
        run_id: The run.
        clock: Time of the record of it.
        position: The number of records it had when it was looked at.

    Returns:
        Whether it is dropped; not if somebody has written to it since, or dropped it.

    Raises:
        StorageError: That could not be written.
    """
    try:
        # Whoever claims it from here on fails; and if somebody has done so since it was looked at, this does.
        await Journal(storage, run_id, clock, position=position).append(PRUNED, state=PRUNED)
    except LeaseLostError:
        return False
    except StorageError:
        if await _info(storage, run_id) is not None:
            raise
        return False
    await storage.drop(claims_of(run_id))
    await storage.drop(stream_of(run_id))  # the last one, so that an interrupted pruning is seen and finished
    return True


async def prune_older(storage: BaseStorage, clock: Clock, *, before: float, dry_run: bool = False) -> list[str]:
    """Drop the journals of runs that were closed before then; open runs and stuck ones stay.

    Returns:
        The runs whose journals were dropped, or would be.
    """
    dropped: list[str] = []
    for stream in await storage.streams(prefix=stream_of("")):
        if stream.updated_at >= before or stream.state in ("open", "failed", None):
            continue
        run_id = run_of(stream.name)
        if stream.state == "stopped" and await _stuck(storage, run_id):
            continue  # it stands as asked, but for a nested run that could not be undone
        if dry_run or await drop_journal(storage, run_id, clock, position=stream.position):
            dropped.append(run_id)
    return dropped


async def _stuck(storage: BaseStorage, run_id: str) -> bool:
    try:
        state = await load(storage, run_id)
    except (RunNotFoundError, CorruptRecordError):
        return False
    return any(effect.failed_to_undo for effect in state.effects.values())


async def why_unreadable(storage: BaseStorage, run_id: str) -> CorruptRecordError:
    """Why a run's journal can't be read.

    Raises:
        RunNotFoundError: There is none.
        PlanError: It can be read.
    """
    try:
        await load(storage, run_id)
    except CorruptRecordError as error:
        return error
    raise PlanError(
        f"the journal of run {run_id!r} can be read, so it was left as it is; "
        f"`agenthelm saga show {run_id}` tells what can be done about the run"
    )


async def prune_unreadable(storage: BaseStorage, run_id: str, clock: Clock) -> None:
    """Drop the journal of a run that can't be read; see `Orchestrator.prune_unreadable`."""
    await why_unreadable(storage, run_id)
    info = await _info(storage, run_id)
    if info is None:  # the list of streams is damaged as well, and nobody can have written to this one
        await storage.drop(claims_of(run_id))
        await storage.drop(stream_of(run_id))
        return
    # Who holds it is not to be read either. But whoever does renews the lease; only silence tells.
    silent = info.state != "open" or clock.wall() - info.updated_at > LEASE_SECONDS
    if not silent or not await drop_journal(storage, run_id, clock, position=info.position):
        raise RunBusyError(run_id, owner="a process that wrote to its journal just now")


async def _info(storage: BaseStorage, run_id: str) -> StreamInfo | None:
    name = stream_of(run_id)
    return next((info for info in await storage.streams(prefix=name) if info.name == name), None)
