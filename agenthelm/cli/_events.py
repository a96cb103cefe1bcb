"""Finds events: what the options of ``traces`` and ``cost`` mean, and the pages they are read in."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from agenthelm.exceptions import ConfigError, RunNotFoundError, nearest

if TYPE_CHECKING:
    from agenthelm.core.storage.base import BaseStorage, StoredRecord

__all__ = ["OUTCOMES", "conditions", "last_run", "pages", "parse_when"]

OUTCOMES = ("success", "failed", "denied", "over_budget", "timeout", "cancelled", "invalid", "in_doubt")

_SPAN = re.compile(r"(\d+)\s*(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PAGE = 2_000


def parse_when(text: str, *, option: str = "since") -> datetime:
    """A point in time: ``7d`` ago, or a date or time in ISO form (UTC unless it says otherwise).

    Raises:
        ConfigError: It is neither.
    """
    if match := _SPAN.fullmatch(text.strip()):
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        except OverflowError:
            return datetime(1970, 1, 1, tzinfo=UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"--{option} takes a span like 30m, 12h, 7d, 2w, or a date like 2026-01-31, not {text!r}", setting=option
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def conditions(
    *,
    run: str | None = None,
    agent: str | None = None,
    tool: str | None = None,
    session: str | None = None,
    kind: str | None = None,
    status: str | None = None,
    since: str | None = None,
    until: str | None = None,
    longer_than: float | None = None,
    cost_over: float | None = None,
) -> dict[str, Any]:
    """The ``where`` of a storage read.

    Raises:
        ConfigError: A status or a time that makes no sense.
    """
    from agenthelm.core.storage.base import Between

    if status is not None and status not in OUTCOMES:
        raise ConfigError(
            f"--status must be one of {', '.join(OUTCOMES)}, not {status!r}.{nearest(status, OUTCOMES)}",
            setting="status",
        )
    equal = {
        "run_id": run,
        "agent_name": agent,
        "tool_name": tool,
        "session_id": session,
        "kind": kind,
        "outcome": status,
    }
    where: dict[str, Any] = {field: value for field, value in equal.items() if value is not None}
    if since is not None or until is not None:
        where["timestamp"] = Between(
            parse_when(since).isoformat() if since else None,
            parse_when(until, option="until").isoformat() if until else None,
        )
    if longer_than is not None:
        where["execution_time"] = Between(longer_than, None)
    if cost_over is not None:
        where["estimated_cost_usd"] = Between(cost_over, None)
    return where


async def pages(
    storage: BaseStorage, where: Mapping[str, Any], *, limit: int | None = None
) -> AsyncIterator[list[StoredRecord]]:
    """The events that fulfil ``where``, oldest first, a page at a time: a million of them take the memory of one page.

    Args:
        storage: Where they are.
        where: What they fulfil.
        limit: Only the latest so many.
    """
    before: int | None = None
    if limit is not None and limit <= _PAGE:
        found = [record async for page in _pages(storage, where, limit=limit, newest_first=True) for record in page]
        yield found[::-1]
        return
    if limit is not None:
        async for page in _pages(storage, where, limit=limit, newest_first=True):
            before = page[-1].position - 1
        if before is None:
            return
    async for page in _pages(storage, where, limit=limit, newest_first=False, after=before):
        yield page


async def _pages(
    storage: BaseStorage, where: Mapping[str, Any], *, limit: int | None, newest_first: bool, after: int | None = None
) -> AsyncIterator[list[StoredRecord]]:
    from agenthelm.core.storage.base import EVENTS

    left = limit
    while left is None or left > 0:
        size, skipped = _PAGE if left is None else min(_PAGE, left), storage.skipped
        found = await storage.read(EVENTS, where=where, limit=size, newest_first=newest_first, after=after)
        if found:
            yield found
            after = found[-1].position
            left = None if left is None else left - len(found)
        # A page from which unreadable events were left out is short without being the last.
        if not found or len(found) + storage.skipped - skipped < size:
            return


async def last_run(storage: BaseStorage, run: str) -> str:
    """The run that was named; ``last`` is the latest one.

    Raises:
        RunNotFoundError: There is none.
    """
    if run != "last":
        return run
    from agenthelm.cli import _saga
    from agenthelm.core.storage.base import EVENTS

    with suppress(RunNotFoundError):  # a run without effects has events all the same
        return await _saga.run_id(storage, run)
    events = await storage.read(EVENTS, limit=1, newest_first=True)
    if events and events[0].data.get("run_id"):
        return str(events[0].data["run_id"])
    raise RunNotFoundError(run)
