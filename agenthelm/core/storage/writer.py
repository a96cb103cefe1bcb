"""Group commit: one thread per storage that writes what many tasks, loops and threads append."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import anyio
from anyio.lowlevel import EventLoopToken, current_token

from agenthelm._runtime.forks import Forked
from agenthelm._runtime.groups import wait_through
from agenthelm._runtime.wake import wake
from agenthelm.core.storage.codec import Entry
from agenthelm.exceptions import StalePositionError, StorageClosedError, StorageError
from agenthelm.telling import describe

__all__ = ["Append", "AppendResult", "UnavailableError", "Writer", "check", "place"]

AppendResult = dict[str, int] | StorageError
"""What became of one append: the new positions of the streams it touched, or why nothing of it was written."""


class UnavailableError(StorageError):
    """Nothing at all can be written just now, so appends that share a commit need not be tried one by one."""


class Append(NamedTuple):
    """One append on its way: all of it is written, or nothing."""

    entries: Sequence[Entry]
    expected: Mapping[str, int]


class Log(Protocol):
    """What a storage does on its writer thread; it must not refer back to the storage (see `Writer`)."""

    def commit(self, appends: Sequence[Append]) -> list[AppendResult]:
        """Write all appends in one durable step; one that is stale fails alone.

        Raises:
            StorageError: The step failed and nothing of it was written.
        """
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def check(append: Append, positions: Mapping[str, int]) -> None:
    """Check an append against the positions of its streams.

    Args:
        append: The append.
        positions: Of every stream it names (0 where absent).

    Raises:
        StalePositionError: A stream is not where the append expects it.
    """
    for stream, expected in append.expected.items():
        actual = positions.get(stream, 0)
        if actual != expected:
            raise StalePositionError(stream, expected=expected, actual=actual)


def place(append: Append, positions: dict[str, int]) -> dict[str, int]:
    """Check an append against the positions of its streams and move them on.

    Args:
        append: The append.
        positions: Of every stream it names (0 where absent); changed only when it may proceed.

    Raises:
        StalePositionError: A stream is not where the append expects it.
    """
    check(append, positions)
    touched: dict[str, int] = {}
    for entry in append.entries:
        touched[entry.stream] = positions[entry.stream] = positions.get(entry.stream, 0) + 1
    return touched


class Ticket:
    """A piece of work that was submitted; awaiting it waits for its end, through any cancellation. Await it once."""

    __slots__ = ("_done", "error", "value", "work")

    def __init__(self, work: Append | Callable[[], Any], done: anyio.Event) -> None:
        self.work: Append | Callable[[], Any] = work
        self.value: Any = None
        self.error: Exception | None = None
        self._done = done

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._done.is_set():
            yield from wait_through(self._done).__await__()
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            self.error = None  # the frame must not keep its own exception alive


class _Batch:
    """What has gathered while the writer was busy. The tasks of one event loop wait for it together."""

    __slots__ = ("_loops", "tickets")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self._loops: dict[int, tuple[EventLoopToken, anyio.Event]] = {}

    def add(self, work: Append | Callable[[], Any]) -> Ticket:
        token = current_token()
        loop = self._loops.get(id(token.native_token))
        if loop is None:
            loop = self._loops[id(token.native_token)] = (token, anyio.Event())
        ticket = Ticket(work, loop[1])
        self.tickets.append(ticket)
        return ticket

    def wake(self) -> None:
        for token, done in self._loops.values():
            wake(token, done.set)


class Writer(Forked):
    """The thread that owns a log. It starts with the first piece of work and ends with `stop`.

    Whatever has gathered while the last commit was under way goes into the next one, so concurrent appends share the
    price of a durable write. Work is done in the order of submission. Each event loop is woken once per batch.

    The thread is a daemon and refers to the log only: a storage that is dropped without ``aclose`` can be collected,
    and stops its thread then. In a fork there is nothing to write yet, and the first piece of work starts a thread there.
    """

    def __init__(self, log: Log, *, name: str) -> None:
        self._log = log
        self._name = name
        self._closed = False
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        """Begin with nothing to write: what the parent of a fork was given, the parent writes."""
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        self._gathering: _Batch | None = None
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, work: Append | Callable[[], Any]) -> Ticket:
        """Take an append, or a function to run on the thread between two commits.

        Raises:
            StorageClosedError: After `stop`.
            StorageError: The thread can't be started.
        """
        with self._guard:
            if self._closed:
                raise StorageClosedError(f"{self._name} was closed")
            if self._thread is None:
                self._thread = self._started()
            batch = self._gathering
            if batch is None:
                batch = self._gathering = _Batch()
                self._queue.put(batch)
            return batch.add(work)

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

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._serve, name=f"agenthelm {self._name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # the system allows no more threads, or the interpreter is ending
            raise StorageError(f"can't write {self._name}: {exc}") from None
        return thread

    def _serve(self) -> None:
        try:
            while (batch := self._queue.get()) is not None:
                with self._guard:
                    self._gathering = None  # which was this one: there is never more than one in the queue
                self._work(batch.tickets)
                batch.wake()
        finally:
            self._log.close()

    def _work(self, tickets: Sequence[Ticket]) -> None:
        appends: list[Ticket] = []
        for ticket in tickets:
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

    def _commit(self, tickets: Sequence[Ticket]) -> None:
        if not tickets:
            return
        appends = [ticket.work for ticket in tickets if isinstance(ticket.work, Append)]
        for ticket, result in zip(tickets, self._results(appends), strict=True):
            if isinstance(result, StorageError):
                ticket.error = result
            else:
                ticket.value = result

    def _results(self, appends: Sequence[Append]) -> list[AppendResult]:
        try:
            return self._log.commit(appends)
        except UnavailableError as exc:
            return [StorageError(str(exc)) for _ in appends]
        except Exception as exc:  # noqa: BLE001 - whatever it is, the tasks that wait must hear of it
            if len(appends) > 1:  # one of them may be to blame; the others must not suffer
                return [result for append in appends for result in self._results([append])]
            return [exc if isinstance(exc, StorageError) else StorageError(f"{self._name}: {describe(exc)}")]
