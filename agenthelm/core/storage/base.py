"""The storage port: an append-only log with named streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from anyio.abc import AsyncResource

__all__ = ["EVENTS", "BaseStorage", "Between", "Record", "StoredRecord", "StreamInfo", "Where"]

EVENTS = "events"
"""The stream of execution events. Every run's journal has a stream of its own, ``run:{run_id}``."""


@dataclass(frozen=True, slots=True)
class Between:
    """A closed range in a ``where``; None leaves that side open."""

    low: float | str | None = None
    high: float | str | None = None


Where = Mapping[str, "str | int | float | Between | None"]
"""Conditions that all hold: field of the record's data -> the value it equals, or a range it lies in."""


class Record(NamedTuple):
    """What is appended.

    Attributes:
        stream: The stream it goes to.
        data: JSON-compatible; the storage may keep a reference, so it must not be changed afterwards.
        state: The stream's state from this record on, by which `BaseStorage.streams` finds it; None leaves it.
        plain: Whether the data is known to be of JSON's own types at every depth; a storage need not look then.
    """

    stream: str
    data: Mapping[str, Any]
    state: str | None = None
    plain: bool = False


class StoredRecord(NamedTuple):
    """What is read: a record and its position in its stream, counted from 0."""

    stream: str
    position: int
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream at a glance.

    Attributes:
        name: Its name.
        position: How many records were ever appended to it.
        state: The state its last stateful record gave it.
        created_at: When its first record was appended, in seconds since the epoch.
        updated_at: When its last one was.
    """

    name: str
    position: int
    state: str | None
    created_at: float
    updated_at: float


class BaseStorage(AsyncResource):
    """An append-only log with named streams, shared by concurrent runs and, where durable, by processes.

    Implementations keep four promises, which ``agenthelm.testing.storage_contract`` checks:

    * an append is atomic over all its streams, and durable when it returns (``durable`` says whether that outlives
      the process);
    * appends of one event loop are applied in the order in which they were *submitted*, that is, first awaited;
    * an append that has been submitted is awaited to its end, whatever is cancelled; the cancellation comes after it;
    * nothing is shared with the caller: what is read is what was appended, as JSON would carry it.
    """

    durable: bool = True
    """Whether what is appended survives the process."""

    @abstractmethod
    async def append(self, records: Sequence[Record], expected: Mapping[str, int] | None = None) -> dict[str, int]:
        """Append records, all or none.

        Args:
            records: In order; they may go to several streams.
            expected: For each stream named here, the number of records ever appended to it must be this; streams not
                named append unconditionally.

        Returns:
            For each stream touched, its position after the append.

        Raises:
            StalePositionError: A stream has moved on; nothing was appended.
            StorageError: The log can't be written (full, read-only, damaged); nothing was appended.
            StorageClosedError: After `aclose`.
        """

    @abstractmethod
    async def read(
        self,
        stream: str,
        *,
        where: Where | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        after: int | None = None,
    ) -> list[StoredRecord]:
        """Read a stream; a stream that was never written is empty.

        Args:
            stream: The stream.
            where: Only records whose data fulfils this.
            limit: At most so many.
            newest_first: From the end.
            after: Start beyond this position in reading order: the last position of the page before (keyset paging).

        Raises:
            CorruptRecordError: A record before the last of a journal stream can't be read. Unreadable *events* are
                left out and counted in `skipped`.
        """

    @abstractmethod
    async def streams(
        self,
        *,
        where: Mapping[str, str] | None = None,
        prefix: str = "",
        limit: int | None = None,
        newest_first: bool = True,
    ) -> list[StreamInfo]:
        """List streams by their indexed state, by creation.

        Args:
            where: ``{"state": "open"}`` lists only streams in that state.
            prefix: Only streams whose name begins with it (exact characters, no pattern).
            limit: At most so many.
            newest_first: Latest created first.
        """

    @abstractmethod
    async def drop(self, stream: str) -> None:
        """Forget a stream with all its records; nothing happens if there is none."""

    @abstractmethod
    async def aclose(self) -> None:
        """Write what was submitted, let go of files and threads. May be called twice."""

    @property
    def skipped(self) -> int:
        """How many unreadable events were left out of reads so far."""
        return 0
