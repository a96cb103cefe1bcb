"""Group commit: one thread per storage that writes what many tasks, loops and threads append."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import anyio
from anyio.lowlevel import EventLoopToken, current_token

from agenthelm._runtime.groups import wait_through
from agenthelm._runtime.wake import wake
from agenthelm.core.storage.codec import Entry
from agenthelm.exceptions import StalePositionError, StorageClosedError, StorageError, describe

__all__ = ["Append", "Log", "Outcome", "UnavailableError", "Writer", "place"]

Outcome = dict[str, int] | StorageError
"""What became of one append: the new positions of the streams it touched, or why nothing of it was written."""


class UnavailableError(StorageError):
    """Nothing at all can be written just now, so appends that share a commit need not be tried one by one."""


@dataclass(frozen=True, slots=True)
class Append:
    """One append on its way: all of it is written, or nothing."""

    entries: Sequence[Entry]
    expected: Mapping[str, int]


class Log(Protocol):
    """What a storage does on its writer thread; it must not refer back to the storage (see `Writer`)."""

    def commit(self, appends: Sequence[Append]) -> list[Outcome]:
        """Write all appends in one durable step; one that is stale fails alone.

        Raises:
            StorageError: The step failed and nothing of it was written.
        """
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def place(append: Append, positions: dict[str, int]) -> dict[str, int]:
    """Check an append against the positions of its streams and move them on.

    Args:
        append: The append.
        positions: Of every stream it names (0 where absent); changed only when it may proceed.

    Raises:
        StalePositionError: A stream is not where the append expects it.
    """
    for stream, expected in append.expected.items():
        actual = positions.get(stream, 0)
        if actual != expected:
            raise StalePositionError(stream, expected=expected, actual=actual)
    touched: dict[str, int] = {}
    for entry in append.entries:
        touched[entry.stream] = positions[entry.stream] = positions.get(entry.stream, 0) + 1
    return touched


@dataclass(slots=True, eq=False)
class _Ticket:
    """A piece of work, and the task that waits for it."""

    work: Append | Callable[[], Any]
    token: EventLoopToken = field(default_factory=current_token)
    done: anyio.Event = field(default_factory=anyio.Event)
    value: Any = None
    error: Exception | None = None

    async def result(self) -> Any:
        await wait_through(self.done)
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            self.error = None  # the frame must not keep its own exception alive


class Writer:
    """The thread that owns a log. It starts with the first piece of work and ends with `stop`.

    Whatever has gathered while the last commit was under way goes into the next one, so concurrent appends share the
    price of a durable write. Work is done in the order of submission. Each event loop is woken once per batch.

    The thread is a daemon and refers to the log only: a storage that is dropped without ``aclose`` can be collected,
    and stops its thread then.
    """

    def __init__(self, log: Log, *, name: str) -> None:
        self._log = log
        self._name = name
        self._queue: SimpleQueue[_Ticket | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def append(self, append: Append) -> dict[str, int]:
        """Submit an append before the first suspension, and wait for it through any cancellation."""
        positions: dict[str, int] = await self._submit(append).result()
        return positions

    async def call(self, function: Callable[[], Any]) -> Any:
        """Run a function on the thread, between two commits."""
        return await self._submit(function).result()

    def stop(self) -> None:
        """Take no more work; the thread ends when it has done what it was given. Returns at once."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._queue.put(None)

    def join(self) -> None:
        """Wait in this thread for the end of the writer's, after `stop`."""
        if self._thread is not None:
            self._thread.join()

    @property
    def closed(self) -> bool:
        """Whether `stop` was called."""
        return self._closed

    def _submit(self, work: Append | Callable[[], Any]) -> _Ticket:
        ticket = _Ticket(work)
        with self._guard:
            if self._closed:
                raise StorageClosedError(f"{self._name} was closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=f"agenthelm {self._name}", daemon=True)
                self._thread.start()
            self._queue.put(ticket)
        return ticket

    def _serve(self) -> None:
        going = True
        try:
            while going:
                batch = [self._queue.get()]
                # Nobody else takes from the queue, so what it holds now can be had without waiting.
                batch += [self._queue.get_nowait() for _ in range(self._queue.qsize())]
                if None in batch:  # nothing is ever put behind it
                    batch.remove(None)
                    going = False
                self._work([ticket for ticket in batch if ticket is not None])
        finally:
            self._log.close()

    def _work(self, batch: Sequence[_Ticket]) -> None:
        appends: list[_Ticket] = []
        for ticket in batch:
            if isinstance(ticket.work, Append):
                appends.append(ticket)
                continue
            self._commit(appends)
            appends = []
            try:
                ticket.value = ticket.work()
            except Exception as exc:  # noqa: BLE001 - raised again where it is awaited
                ticket.error = exc
        self._commit(appends)
        self._wake(batch)

    def _commit(self, tickets: Sequence[_Ticket]) -> None:
        if not tickets:
            return
        appends = [ticket.work for ticket in tickets if isinstance(ticket.work, Append)]
        for ticket, outcome in zip(tickets, self._outcomes(appends), strict=True):
            if isinstance(outcome, StorageError):
                ticket.error = outcome
            else:
                ticket.value = outcome

    def _outcomes(self, appends: Sequence[Append]) -> list[Outcome]:
        try:
            return self._log.commit(appends)
        except UnavailableError as exc:
            return [StorageError(str(exc)) for _ in appends]
        except Exception as exc:  # noqa: BLE001 - whatever it is, the tasks that wait must hear of it
            if len(appends) > 1:  # one of them may be to blame; the others must not suffer
                return [outcome for append in appends for outcome in self._outcomes([append])]
            return [exc if isinstance(exc, StorageError) else StorageError(f"{self._name}: {describe(exc)}")]

    @staticmethod
    def _wake(batch: Sequence[_Ticket]) -> None:
        loops: dict[int, tuple[EventLoopToken, list[anyio.Event]]] = {}
        for ticket in batch:
            loops.setdefault(id(ticket.token.native_token), (ticket.token, []))[1].append(ticket.done)
        for token, events in loops.values():
            wake(token, _set_all, events)


def _set_all(events: Sequence[anyio.Event]) -> None:
    for event in events:
        event.set()
