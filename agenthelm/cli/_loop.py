"""Where the event loop starts, and what Ctrl-C does to it: the first unwinds, the second stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import anyio
from anyio import CancelScope
from anyio.abc import TaskStatus

from agenthelm.cli._ending import end_process, to_stderr

__all__ = ["Interrupted", "Watch", "interruptible", "run", "watch"]

T = TypeVar("T")

_FLUSH_SECONDS = 2.0


class Interrupted(Exception):  # noqa: N818 - not an error of anybody's
    """The command was interrupted by a signal and has unwound.

    Attributes:
        code: The exit code: 128 and the signal's number.
        saga: What became of the run's effects; set by whoever knows of a run.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted")
        self.code = 128 + signum
        self.saga: object | None = None


class Watch:
    """What the running command wants done when it is interrupted.

    Attributes:
        first: Said on the first signal, when the command is cancelled.
        flush: Awaited on the second signal, for two seconds at most, before the process ends.
        deliver: Called after that: hands over the telemetry that waits; takes two seconds at most.
        last: Said when the process ends on the second signal.
        restore: Called before anything is printed then: puts the terminal right.
        signal: The first signal that came; None as long as none has.
    """

    def __init__(self) -> None:
        self.first = "interrupted"
        self.flush: Callable[[], Awaitable[object]] | None = None
        self.deliver: Callable[[], object] = lambda: None
        self.last = "stopped"
        self.restore: Callable[[], object] = lambda: None
        self.signal: int | None = None


_watch: ContextVar[Watch] = ContextVar("agenthelm_cli_watch")


def watch() -> Watch:
    """The watch over the running command."""
    return _watch.get()


def run(function: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function to its end, with signals watched.

    Raises:
        Interrupted: It was cancelled by a signal.
    """
    return anyio.run(_watched, function)


@contextmanager
def interruptible() -> Iterator[None]:
    """For work that keeps the event loop busy, and undoes nothing when it ends half-way: Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # where nobody may say what signals do
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def _watched(function: Callable[[], Awaitable[T]]) -> T:
    token = _watch.set(Watch())
    received: list[int] = []
    value: list[T] = []
    error: list[BaseException] = []
    try:
        async with anyio.create_task_group() as group:
            with CancelScope() as scope:
                await group.start(_listen, scope, received)
                try:
                    value.append(await function())
                except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - raised again below, outside of the task group
                    error.append(exc)
            group.cancel_scope.cancel()
        if error:
            raise error[0]
        if not value:
            raise Interrupted(received[0])
        return value[0]
    finally:
        error.clear()
        _watch.reset(token)


async def _listen(scope: CancelScope, received: list[int], *, task_status: TaskStatus[None]) -> None:
    try:
        receiver = anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM)
        with receiver as signals:
            task_status.started()
            async for signum in signals:
                received.append(signum)
                if len(received) == 1:
                    watch().signal = signum
                    _write(watch().first)
                    scope.cancel()
                else:
                    await _stop(signum)
    except NotImplementedError:  # an event loop without signal handlers (Windows): KeyboardInterrupt is all there is
        task_status.started()


async def _stop(signum: int) -> None:
    """End the process now; a thread that hangs can't be waited for."""
    current = watch()
    current.restore()
    with anyio.move_on_after(_FLUSH_SECONDS, shield=True):
        if current.flush is not None:
            await current.flush()
    current.deliver()
    _write(current.last)
    end_process(128 + signum, force=True)


def _write(text: str) -> None:
    to_stderr(f"\r{text}\n")
