"""Finds events: what the options of ``traces`` and ``cost`` mean, and the pages they are read in."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from agenthelm.exceptions import ConfigError, RunNotFoundError, nearest

if TYPE_CHECKING:
    from agenthelm.core.storage.base import BaseStorage, StoredRecord

__all__ = ["OUTCOMES", "Reading", "conditions", "last_run", "one_of", "parse_when"]

OUTCOMES = ("success", "failed", "denied", "over_budget", "timeout", "cancelled", "invalid", "in_doubt")
"""As `EventOutcome`, whose module takes longer to import than most questions take to answer."""
KINDS = ("tool", "lm")

_SPAN = re.compile(r"(\d+)\s*(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PAGE = 2_000


def parse_when(text: str, *, option: str = "since", last: bool = False) -> datetime:
    """A point in time: ``7d`` ago, or a date or time in ISO form (UTC unless it says otherwise).

    Args:
        text: What was typed.
        option: After which option.
        last: Whether a date without a time stands for the end of that day, not for its beginning.

    Raises:
        ConfigError: It is neither.
    """
    if match := _SPAN.fullmatch(text.strip()):
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        except (OverflowError, ValueError):  # before any date there is, or more digits than Python reads
            return datetime(1970, 1, 1, tzinfo=UTC)
    if last:
        with suppress(ValueError):
            return datetime.combine(date.fromisoformat(text.strip()), time.max, UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--{option} takes a span like 30m, 12h, 7d, 2w, or a date like 2026-01-31, not {text!r}", setting=option
        ) from None


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
        ConfigError: A status, a kind, a time or a number that makes no sense.
    """
    from agenthelm.core.storage.base import Between

    one_of("status", status, OUTCOMES)
    one_of("kind", kind, KINDS)
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
        low = None if since is None else parse_when(since)
        high = None if until is None else parse_when(until, option="until", last=True)
        if low is not None and high is not None and low > high:
            raise ConfigError(
                f"--since {since} is later than --until {until}: nothing lies between them", setting="since"
            )
        where["timestamp"] = Between(*(None if end is None else end.isoformat() for end in (low, high)))
    for option, field, number in (
        ("longer-than", "execution_time", longer_than),
        ("cost-over", "estimated_cost_usd", cost_over),
    ):
        if number is not None:
            where[field] = Between(_above(number, option=option), None)
    return where


def one_of(option: str, value: str | None, known: Collection[str]) -> None:
    """Refuse the value of an option that is none of those it takes.

    Raises:
        ConfigError: With the nearest.
    """
    if value is not None and value not in known:
        raise ConfigError(
            f"--{option} must be one of {', '.join(known)}, not {value!r}.{nearest(value, known)}", setting=option
        )


def _above(number: float, *, option: str) -> float:
    """The least number that is more: the ranges of a storage include their ends."""
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"--{option} must be a number of at least 0, not {number:g}", setting=option)
    return math.nextafter(number, math.inf)


class Reading:
    """The events that fulfil ``where``, without those that can't be read.

    Args:
        storage: Where they are.
        where: What they fulfil.
    """

    def __init__(self, storage: BaseStorage, where: Mapping[str, Any]) -> None:
        self._storage = storage
        self._where = where
        self._left_out = 0

    @property
    def skipped(self) -> int:
        """How many events were left out so far."""
        return self._storage.skipped + self._left_out

    async def found_run(self) -> bool:
        """Whether the run that is looked for has a journal: one that called nothing has no events, and is there all the same."""
        from agenthelm.orchestration.journal import stream_of

        run = self._where.get("run_id")
        return run is not None and bool(await self._storage.read(stream_of(run), limit=1))

    async def latest(self, limit: int | None, *, after: int | None = None) -> list[StoredRecord]:
        """The latest, newest first; those older than ``after``, where it is given."""
        from agenthelm.core.storage.base import EVENTS

        found = await self._storage.read(EVENTS, where=self._where, limit=limit, newest_first=True, after=after)
        return self._sound(found)

    async def pages(self, *, limit: int | None = None) -> AsyncIterator[list[StoredRecord]]:
        """Oldest first, a page at a time: a million of them take the memory of one page; only the latest ``limit``."""
        async for page in _latest_pages(self._storage, self._where, limit=limit):
            if sound := self._sound(page):
                yield sound

    def _sound(self, records: list[StoredRecord]) -> list[StoredRecord]:
        sound = [record for record in records if _is_event(record.data)]
        self._left_out += len(records) - len(sound)
        return sound


def _is_event(data: Mapping[str, Any]) -> bool:
    """Whether what was written by hand, say, has the shapes that are counted on."""
    for name in ("execution_time", "estimated_cost_usd"):
        number = data.get(name)
        if number is not None and not (isinstance(number, (int, float)) and math.isfinite(number)):
            return False
    return all(isinstance(data.get(name) or {}, dict) for name in ("inputs", "outputs", "token_usage"))


async def _latest_pages(
    storage: BaseStorage, where: Mapping[str, Any], *, limit: int | None
) -> AsyncIterator[list[StoredRecord]]:
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
    from agenthelm.cli import _journals
    from agenthelm.core.storage.base import EVENTS

    with suppress(RunNotFoundError):  # a run without effects has events all the same
        return await _journals.run_id(storage, run)
    events = await storage.read(EVENTS, limit=1, newest_first=True)
    if events and events[0].data.get("run_id"):
        return str(events[0].data["run_id"])
    raise RunNotFoundError(run)
