"""Where the event loop starts, and what signals do to it: the first unwinds, a second Ctrl-C or SIGTERM stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio
from anyio import CancelScope
from anyio.abc import TaskStatus

from agenthelm.cli._ending import end_process, to_stderr

__all__ = ["Interrupted", "interruptible", "run", "watch"]

T = TypeVar("T")

_FLUSH_SECONDS = 2.0
_HANGUP = getattr(signal, "SIGHUP", None)  # there is none on Windows


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
        document: Called at the end of it with the exit code: prints what stdout is for.
        signal: The first signal that came; None as long as none has.
        over: Whether the command has come to its end, and told it: then a signal stops nothing any more.
    """

    def __init__(self) -> None:
        self.first = "interrupted"
        self.flush: Callable[[], Awaitable[object]] | None = None
        self.deliver: Callable[[], object] = lambda: None
        self.last = "stopped"
        self.restore: Callable[[], object] = lambda: None
        self.document: Callable[[int], object] = lambda code: None
        self.signal: int | None = None
        self.over = False


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
    """For work that keeps the event loop busy, and undoes nothing when it ends half-way: a signal ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # where nobody may say what signals do
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in _watched_signals()}
    try:
        for signum in before:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else _end)
        yield
    finally:
        for signum, handler in before.items():
            if handler is not None:  # else it was not Python that said what becomes of it
                signal.signal(signum, handler)


def _watched_signals() -> list[signal.Signals]:
    """What interrupts a command; not a closed terminal, where ``nohup`` has said that it is to be ignored."""
    watched = [signal.SIGINT, signal.SIGTERM]
    if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
        watched.append(_HANGUP)
    return watched


def _end(signum: int, frame: Any) -> None:
    end_process(128 + signum, force=True)


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
                finally:
                    watch().over = True
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
        receiver = anyio.open_signal_receiver(*_watched_signals())
        with receiver as signals:
            task_status.started()
            async for signum in signals:
                received.append(signum)
                if len(received) == 1:
                    watch().signal = signum
                    _write(watch().first)
                    scope.cancel()
                elif signum != _HANGUP:  # a closed terminal is told by the kernel and by the shell
                    await _stop(signum)
    except NotImplementedError:  # an event loop without signal handlers (Windows): KeyboardInterrupt is all there is
        task_status.started()


async def _stop(signum: int) -> None:
    """End the process now, unless the command ends first; a thread that hangs can't be waited for."""
    current = watch()
    current.restore()
    with anyio.move_on_after(_FLUSH_SECONDS, shield=True):
        if current.flush is not None:
            await current.flush()
    if current.over:  # meanwhile; a second document, or another exit code, would contradict what it has told
        return
    current.deliver()
    _write(current.last)
    with suppress(OSError):  # nobody reads it any more
        current.document(128 + signum)
    end_process(128 + signum, force=True)


def _write(text: str) -> None:
    begin = "\r" if sys.stderr.isatty() else ""  # over the ^C that the terminal has written
    to_stderr(f"{begin}{text}\n")
