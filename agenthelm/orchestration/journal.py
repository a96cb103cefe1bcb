"""The write-ahead record of a run's side effects: what recovery needs to undo or to resume.

One stream per run, ``run:{run_id}``, over the storage's append-with-expected-position. Each record is durable before
what it announces, or before what it reports is told to anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import anyio

from agenthelm._runtime.retry import Clock
from agenthelm.core.binding import Binding
from agenthelm.core.effects import Effect, Outcome
from agenthelm.core.sensitive import carries_secret
from agenthelm.core.storage.base import EVENTS, BaseStorage, Record
from agenthelm.exceptions import LeaseLostError, StalePositionError, StorageError
from agenthelm.orchestration.owner import Owner
from agenthelm.orchestration.values import encode
from agenthelm.tracing.marks import hidden_fields

__all__ = ["LEASE_SECONDS", "RENEW_SECONDS", "Journal", "ResultForm", "claims_of", "run_of", "status_of", "stream_of"]

LEASE_SECONDS = 30.0
"""A run whose journal is silent for so long may be claimed even if its owner can't be seen to be dead."""
RENEW_SECONDS = 10.0
"""How long an owner stays silent at most."""
_SOON = 0.05
"""How long it waits at least before it looks again whether to renew: clocks differ by a little, and appends take time."""

_log = logging.getLogger(__name__)

_PREFIX = "run:"
_CLAIMS = "claims:"


def stream_of(run_id: str) -> str:
    """The journal's stream of a run."""
    return f"{_PREFIX}{run_id}"


def run_of(stream: str) -> str:
    """The run of a journal's stream."""
    return stream.removeprefix(_PREFIX)


def claims_of(run_id: str) -> str:
    """The stream that counts the claims on a run, a record each: its length is the epoch of whoever holds the run."""
    return f"{_CLAIMS}{run_id}"


async def status_of(storage: BaseStorage, run_id: str) -> str:
    """How a run ended by the last record of its journal, whatever the others say; ``open`` if it has not."""
    newest = await storage.read(stream_of(run_id), limit=1, newest_first=True)
    if not newest:
        return "pruned"
    last = newest[0].data
    return str(last["status"] if last["type"] == "closed" else "pruned" if last["type"] == "pruned" else "open")


class ResultForm(NamedTuple):
    """What a journal holds of a result.

    Attributes:
        value: Its JSON form.
        opaque: Whether there is none.
        withheld: The fields that are left out of it.
    """

    value: Any = None
    opaque: bool = False
    withheld: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Any, about: Effect | Binding) -> ResultForm:
        """Without what must never be stored, by the value itself or by what is declared ``about`` it. Never raises."""
        try:
            return cls(opaque=True) if about.secret_result else cls._of(value, about)
        except Exception:  # noqa: BLE001 - what a value's own methods raise must not fail the call it is recorded for
            return cls(opaque=True)

    @classmethod
    def _of(cls, value: Any, about: Effect | Binding) -> ResultForm:
        result, possible = encode(value)
        if not possible:
            return cls(opaque=True)
        kind: type = type(value)
        secret = hidden_fields(kind) | about.secret_fields
        if not secret and not carries_secret(value):
            return cls(result)
        fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        if not isinstance(result, dict) or fields is None:
            return cls(opaque=True)
        withheld = [name for name in result if name in secret or name not in fields or carries_secret(fields[name])]
        return cls({name: item for name, item in result.items() if name not in withheld}, False, tuple(withheld))


class Journal:
    """Appends to one run's journal, for as long as this process holds the run.

    Positions are handed out in the order of submission. One failed append fails all later ones, because a gap would
    make what follows it unreadable; and a stale position means that another process has claimed the run.

    Concurrent branches have several appends under way at once. A claim that keeps the first of them out also fills its
    place, and the second would find the log just as long as it expects it. So whatever is submitted behind another
    append also expects that nobody has claimed the run since.

    `append`, `begin` and `finish` hand back the coroutine that writes, to be awaited at once.

    Args:
        storage: Where the log is.
        run_id: The run.
        clock: Time of the records.
        position: The number of records that are there already.
        epoch: How many claims there were on the run; 0 for its first owner.
    """

    def __init__(
        self,
        storage: BaseStorage,
        run_id: str,
        clock: Clock,
        *,
        position: int = 0,
        epoch: int = 0,
    ) -> None:
        self.storage = storage
        self.run_id = run_id
        self.stream: str = stream_of(run_id)
        self.epoch: int = epoch
        self.broken: StorageError | None = None
        self.lost: LeaseLostError | None = None
        self._last_append = clock.monotonic()
        self._clock = clock
        self._position = position
        self._under_way = 0
        self.on_lost: Callable[[LeaseLostError], None] | None = None
        """Called once when the run turns out to be somebody else's."""

    def append(
        self, kind: str, /, *, beside: Record | None = None, state: str | None = None, **data: Any
    ) -> Coroutine[Any, Any, None]:
        """Append one record, and what goes ``beside`` it to another stream, in one commit.

        Raises:
            LeaseLostError: Another process holds the run now.
            StorageError: The log can't be written, or an earlier record of this run could not.
        """
        return self._write([self._record(kind, data, state)], beside)

    def _record(self, kind: str, data: Mapping[str, Any], state: str | None = None) -> Record:
        """One record of this run."""
        return Record(self.stream, {"type": kind, "at": self._clock.wall(), "epoch": self.epoch, **data}, state, True)

    async def _write(self, records: list[Record], beside: Record | None = None) -> None:
        """Append records of this run and what goes beside them, all of them or none."""
        if self.lost is not None:
            raise self.lost
        if self.broken is not None:
            raise self.broken
        expected = {self.stream: self._position}
        if self._under_way:
            expected = {claims_of(self.run_id): self.epoch, **expected}
        self._position += len(records)
        if beside is not None:
            records.append(beside)
        self._under_way += 1
        try:
            await self.storage.append(records, expected)
        except StalePositionError as stale:
            if stale.stream == self.stream and stale.actual < stale.expected:
                # No claim makes a log shorter: one of ours is missing, and its failure may be told after this one.
                self.broken = self.broken or StorageError(f"an earlier record of run {self.run_id!r} was not written")
            if self.broken is not None:
                raise self.broken from stale
            self.lost = self.lost or LeaseLostError(self.run_id)
            if self.on_lost is not None:
                callback, self.on_lost = self.on_lost, None
                callback(self.lost)
            raise self.lost from stale
        except StorageError as error:
            self.broken = self.broken or error
            raise
        finally:
            self._under_way -= 1
        self._last_append = self._clock.monotonic()

    def due(self) -> float:
        """Seconds until the lease is to be renewed, if nothing else is written by then."""
        return max(_SOON, RENEW_SECONDS - (self._clock.monotonic() - self._last_append))

    async def renew(self) -> None:
        """Renew the lease if that is due; raises as `append`.

        What is being written renews it as well. And it may be the end of the run, behind which no record belongs.
        """
        if not self._under_way and self._clock.monotonic() - self._last_append >= RENEW_SECONDS:
            await self.append("renewed")

    async def keep(self) -> None:
        """Renew the lease whenever that is due, for as long as this runs and the run is ours."""
        while True:
            await anyio.sleep(self.due())
            try:
                await self.renew()
            except (LeaseLostError, StorageError) as error:  # whoever works under the lease meets it, too
                _log.warning("lease of run %s: %s", self.run_id, error)
                return

    async def opened(
        self,
        *,
        name: str,
        kind: Literal["agents", "steps"],
        rollback: bool,
        session_id: str,
        namespace: str,
        plan: Any = None,
        trace_id: str | None = None,
        span_id: str | None = None,
    ) -> None:
        """Begin a run's journal."""
        await self.append(
            "opened",
            state="open",
            owner=Owner.here().data(),
            name=name,
            kind=kind,
            rollback=rollback,
            session_id=session_id,
            namespace=namespace,
            plan=plan,
            trace_id=trace_id,
            span_id=span_id,
        )

    def begin(
        self, effect: Effect, *, scope: str, contract: str, origin: str = "", repeatable: bool = True, attempt: int = 1
    ) -> Coroutine[Any, Any, None]:
        """Announce an effect, in full but for what must never be stored."""
        arguments: dict[str, Any] = {}
        withheld = []
        for name, value in effect.arguments.items():
            form, possible = (None, False) if name in effect.sensitive else encode(value)
            if possible and not carries_secret(value):
                arguments[name] = form
            else:
                withheld.append(name)
        data = {
            "effect": effect.id,
            "tool": effect.tool,
            "arguments": arguments,
            "withheld": withheld,
            "key": effect.key,
            "parent": effect.parent,
            "step": effect.step,
            "agent": effect.agent,
            "digest": effect.digest,
            "compensating_tool": effect.compensating_tool,
            "scope": scope,
            "contract": contract,
            "origin": origin,
            "repeatable": repeatable,
            "attempt": attempt,
            "trace_id": effect.trace_id,
            "span_id": effect.span_id,
        }
        return self._write([self._record("begin", data)])

    async def claimed(self, kept: str | None = None) -> None:
        """Take a run over; ``kept``: how it ends again, when only a part of it is undone."""
        self.epoch += 1
        await self.append("claimed", beside=self._claim(), owner=Owner.here().data(), kept=kept, state="open")

    def _claim(self) -> Record:
        """What counts a claim, by which nothing that its former owner has under way gets into the journal behind it."""
        return Record(claims_of(self.run_id), {"epoch": self.epoch}, "claimed")

    async def closed(self, status: str, error: str | None = None) -> None:
        """End a run's journal.

        An end that is on record counts, also when the storage has reported that it is not: nobody looks after the run
        any more.
        """
        position = self._position
        try:
            await self.append("closed", state=status, status=status, error=error)
        except StorageError:
            if not await self._ends_at(position):
                raise

    async def _ends_at(self, position: int) -> bool:
        try:
            newest = await self.storage.read(self.stream, limit=1, newest_first=True)
        except StorageError:
            return False
        return any(record.position == position and record.data["type"] == "closed" for record in newest)

    async def resolved(
        self,
        effect_ids: Iterable[str],
        outcome: Literal["done", "undone"],
        *,
        by: str,
        status: str | None = None,
        error: str | None = None,
        expel: bool = False,
    ) -> None:
        """Report that somebody knows better than the journal what became of effects.

        Args:
            effect_ids: The effects.
            outcome: Whether they stand, or don't.
            by: Who says so.
            status: How the run, which had ended, ends anew with that.
            error: Why, with ``status``.
            expel: Whether whoever held the run, and may only have been silent, loses it by that; nobody holds it then.
        """
        claim = None
        if expel:
            self.epoch += 1
            claim = self._claim()
        records = [self._record("resolved", {"effect": effect_id, "by": by, "as": outcome}) for effect_id in effect_ids]
        if status is not None:
            records.append(self._record("closed", {"status": status, "error": error}, status))
        await self._write(records, claim)

    def finish(
        self,
        effect_id: str,
        outcome: Outcome,
        *,
        result: ResultForm,
        error: str | None,
        event: Mapping[str, Any] | None = None,
        attempts: int | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Report how an effect ended; its event goes into the same commit."""
        data = {
            "effect": effect_id,
            "outcome": outcome,
            "result": result.value,
            "opaque": result.opaque,
            "withheld": list(result.withheld),
            "error": error,
            "attempts": attempts,
        }
        beside = None if event is None else Record(EVENTS, event, None, True)
        return self._write([self._record("finish", data)], beside)
