"""Which runs a storage holds, how they ended, and dropping those that nobody needs any more."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Self

from agenthelm._runtime.retry import Clock, SystemClock
from agenthelm.core.storage.base import BaseStorage, StreamInfo
from agenthelm.exceptions import ConfigError, CorruptRecordError, RunNotFoundError
from agenthelm.orchestration import options
from agenthelm.orchestration.fold import load
from agenthelm.orchestration.journal import run_of, stream_of
from agenthelm.orchestration.pruning import prune_older
from agenthelm.orchestration.results import SagaResult, SagaStatus
from agenthelm.orchestration.state import PRUNED, UNREADABLE, RunState, as_found

__all__ = ["RunInfo", "Runs", "latest", "states"]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run, as its journal tells it.

    Attributes:
        run_id: The run.
        name: What ran: a flow's, an agent's or a plan's name.
        kind: Whether it is a plan of steps, which can be resumed, or anything else.
        session_id: The conversation it belongs to.
        namespace: The tenant it belongs to.
        began: When, UTC.
        ended: When, UTC, the last time if it was undone later; None while it is open.
        running: Whether it is open and its process lives, or may live; an open run that is not running is for
            `Orchestrator.recover`.
        trace_id: Its OpenTelemetry trace, 32 hex digits, where there is one.
        saga: How it ended; ``open`` if it has not, and ``failed`` with the reason if its journal can't be read.
    """

    run_id: str
    name: str
    kind: Literal["agents", "steps"]
    session_id: str
    namespace: str
    began: datetime
    ended: datetime | None
    running: bool
    trace_id: str | None
    saga: SagaResult

    @classmethod
    def of(cls, state: RunState, *, now: float) -> Self:
        """What a journal says, ``now`` by the wall clock."""
        unreadable, is_open = state.status == UNREADABLE, state.status is None
        return cls(
            state.run_id,
            state.name,
            state.kind,
            state.session_id,
            state.namespace,
            began=datetime.fromtimestamp(state.opened_at, UTC),
            ended=None if is_open or state.closed_at is None else datetime.fromtimestamp(state.closed_at, UTC),
            running=is_open and not state.claimable(now),
            trace_id=state.trace_id,
            saga=SagaResult("failed", error=state.reason, run_id=state.run_id) if unreadable else as_found(state),
        )


class Runs:
    """The runs whose journals a storage holds.

    Args:
        storage: Where they are.
        clock: Time; for tests.
    """

    def __init__(self, storage: BaseStorage, *, clock: Clock | None = None) -> None:
        self._storage = storage
        self._clock = clock or SystemClock()

    async def latest(
        self, limit: int = 50, *, status: SagaStatus | None = None, namespace: str | None = None
    ) -> list[RunInfo]:
        """The latest runs, newest first.

        Args:
            limit: At most so many.
            status: Only those that ended so; ``open`` for those that have not.
            namespace: Only those of this tenant; of all tenants by default. Journals are read, the latest first, until so
                many are found, so it takes long for a tenant with few runs among very many.

        Raises:
            ConfigError: An argument makes no sense.
            StorageError: The storage can't be read.
        """
        options.check_number("limit", limit, at_least=1, whole=True)
        if status is not None:
            options.choice("status", status, SagaStatus)
        found: list[RunInfo] = []
        among = states(self._storage, status=status, limit=limit if namespace is None else None)
        async with aclosing(among):
            async for state in among:
                if namespace in (None, state.namespace):
                    found.append(self._info(state))
                    if len(found) == limit:
                        break
        return found

    async def find(self, run_id: str, *, namespace: str | None = None) -> RunInfo:
        """One run.

        Args:
            run_id: The run.
            namespace: The tenant that asks, who has no runs but its own; None for whoever may see all.

        Raises:
            RunNotFoundError: There is no such run.
            CorruptRecordError: Its journal can't be read.
            StorageError: The storage can't be read.
        """
        return self._info(await load(self._storage, run_id, namespace=namespace))

    async def prune(self, older_than: timedelta) -> list[str]:
        """Drop the journals of runs that ended longer ago than that; they can't be undone any more then.

        Open runs stay, and those of which something could not be undone. Events stay, too.

        Returns:
            The ids of the runs whose journals were dropped.

        Raises:
            ConfigError: It is no length of time.
            StorageError: The storage can't be read or written.
        """
        if not isinstance(older_than, timedelta) or older_than < timedelta(0):
            raise ConfigError(
                f"older_than must be a length of time, such as timedelta(days=30), not {older_than!r:.80}",
                setting="older_than",
            )
        before = self._clock.wall() - older_than.total_seconds()
        return await prune_older(self._storage, self._clock, before=before)

    def _info(self, state: RunState) -> RunInfo:
        return RunInfo.of(state, now=self._clock.wall())


async def states(storage: BaseStorage, *, status: str | None, limit: int | None) -> AsyncGenerator[RunState]:
    """The runs with a journal, newest first; of one that can't be read there is only that."""
    for stream in await latest(storage, status=status, limit=limit):
        run_id = run_of(stream.name)
        try:
            state = await load(storage, run_id)
        except RunNotFoundError:  # it was pruned just now
            continue
        except CorruptRecordError as error:
            state = RunState(run_id, opened_at=stream.created_at, status=UNREADABLE, reason=str(error))
        yield state


async def latest(storage: BaseStorage, *, status: str | None, limit: int | None) -> list[StreamInfo]:
    """The latest journals, newest first, but for those whose pruning was interrupted."""
    journals = functools.partial(storage.streams, prefix=stream_of(""))
    if status is not None:
        return await journals(where={"state": status}, limit=limit)
    going = len(await journals(where={"state": PRUNED}))
    found = await journals(limit=None if limit is None else limit + going)
    return [stream for stream in found if stream.state != PRUNED][:limit]
