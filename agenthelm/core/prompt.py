"""Approvals at the terminal: the call is shown, and a person says yes, no, or why not."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
from anyio.lowlevel import RunVar

from agenthelm._runtime.forks import Forked
from agenthelm._runtime.groups import in_child
from agenthelm._runtime.workers import Workers
from agenthelm.core.decisions import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.tracing.scrub import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["CliHandler"]

APPROVER: Final = "the terminal"
_QUESTION: Final = "Approve? [y]es, [n]o, or a reason to deny: "
_LINE: Final = 4096
_NARROW: Final = 40
"""Columns below which the call is told in lines; the terminal breaks those by itself."""

_RULE: Final = "--"
"""What parts the arguments from what is known of the call, where there is no room for a table."""

_TURN: Final = 0.05
"""Seconds after which a thread looks again whether the terminal is free."""

_terminal: RunVar[anyio.Lock] = RunVar("agenthelm_terminal")
"""There is one terminal, so there is one prompt at a time, whoever asks in this event loop."""


class _Floor(Forked):
    """Who of all event loops may ask: a sync tool may run one of its own."""

    def __init__(self) -> None:
        self.in_child()
        super().__init__()

    def in_child(self) -> None:
        self.taken = threading.Lock()


_floor: Final = _Floor()


class CliHandler(ApprovalHandler):
    """Shows the call on standard error and reads the answer from the terminal.

    ``y`` or ``yes`` approves; ``n`` or ``no`` denies; any other text denies with that text as the reason, which the
    agent is told. An empty line is no answer: it is asked again. Concurrent requests are asked one after the other,
    and what was typed before the question appeared does not count. Without a terminal everything is denied, as it is
    when the terminal closes or the request expires.

    Args:
        console: Where to show the call; standard error by default.
        clock: Seconds since the epoch.
    """

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._clock = clock
        self._workers = Workers(1)

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        """Ask at the terminal. Cancelling takes the question back at once."""
        lock = _terminal.get(None)
        if lock is None:
            lock = anyio.Lock()
            _terminal.set(lock)
        async with lock:
            if not _is_terminal():
                return _denied("there is no terminal to ask at")
            if self._left(request) == 0:
                return _denied("the request expired before it could be asked")
            return await in_child(self._ask, request)

    async def _ask(self, request: ApprovalRequest) -> Decision:
        """Ask in a worker thread that a cancellation wakes: a thread left behind would eat the next answer."""
        stop, wake = os.pipe()

        async def on_cancel() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                os.write(wake, b"x")

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(on_cancel)
                decision = await self._workers.hop(self._dialogue, request, stop)
                await anyio.lowlevel.checkpoint_if_cancelled()
                group.cancel_scope.cancel()
            return decision
        finally:
            os.close(stop)
            os.close(wake)

    def _dialogue(self, request: ApprovalRequest, stop: int) -> Decision:
        floor = _floor.taken
        while not floor.acquire(blocking=False):
            if self._left(request) == 0:
                return _denied("the request expired before it could be asked")
            if _was_taken_back(stop, _TURN):
                return _denied("the question was taken back")
        try:
            return self._talk(self._console or _stderr(), request, stop)
        except OSError:  # the terminal hung up
            return _denied("the terminal was closed")
        finally:
            floor.release()

    def _talk(self, console: Console, request: ApprovalRequest, stop: int) -> Decision:
        _show(console, request, self._left(request))
        _forget_typed()
        while True:
            console.print(_QUESTION, end="", markup=False, highlight=False, soft_wrap=True)
            line = _read_line(stop, self._left(request))
            if isinstance(line, Decision):
                console.print()
                return line
            answer = line.strip()
            if answer.lower() in {"y", "yes"}:
                return Decision(True, reason="approved at the terminal", approver=APPROVER, digest=request.digest)
            if answer.lower() in {"n", "no"}:
                return _denied("denied at the terminal")
            if answer:
                return _denied(answer)

    def _left(self, request: ApprovalRequest) -> float | None:
        return None if request.expires_at is None else max(0.0, request.expires_at - self._clock())


def _denied(reason: str) -> Decision:
    return Decision(False, reason=reason, approver=APPROVER)


def _is_terminal() -> bool:
    """Whether a question would be seen, and could be answered."""
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):  # no standard streams at all, or closed ones
        return False


def _stderr() -> Console:
    from agenthelm.tracing.screen import Screen

    return Screen(stderr=True)


def _show(console: Console, request: ApprovalRequest, left: float | None) -> None:
    """The call with all that a person needs to decide. Plain texts throughout: data is never markup."""
    from rich.text import Text

    arguments = [(_label(name), _json(value)) for name, value in request.arguments.items()]
    facts: list[tuple[str, str]] = [
        ("does", request.reason),
        ("changes", ", ".join(request.side_effects)),
        ("undone by", request.compensating_tool or ("nothing" if request.irreversible else "")),
        ("asked by", ", ".join(part for part in (request.agent, request.run_id and f"run {request.run_id}") if part)),
        ("may cost", "" if request.max_cost is None else f"{request.max_cost:g} USD"),
        ("expires", "" if left is None else f"in {int(left)} s"),
        ("digest", request.digest[:16]),
    ]
    told = [(label, plain(fact)) for label, fact in facts if fact]
    title = f"Approval needed: {plain(request.tool_name)}"
    # A table would cut off what it has no room for, and nobody can say yes to what was not shown.
    if console.width < _NARROW or any(len(name) > console.width // 3 for name, _ in arguments):
        lines = [[f"{label}: {text}" for label, text in part] for part in (arguments, told)]
        for line in (title, *lines[0], _RULE, *lines[1]):
            console.print(Text(line), soft_wrap=True)
        return
    console.print(_table(title, arguments, told))


def _table(title: str, arguments: list[tuple[str, str]], facts: list[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in arguments:
        table.add_row(Text(name), Text(value))
    table.add_section()
    for label, fact in facts:
        table.add_row(Text(label, style="dim"), Text(fact))
    return table


def _label(name: str) -> str:
    """An argument's name; one that no parameter could have is quoted, so that it is not taken for a line of its own."""
    return name if name.isascii() and name.isidentifier() else _json(name)


def _json(value: Any) -> str:
    return plain(json.dumps(value, ensure_ascii=False, default=repr))


def _was_taken_back(stop: int, wait: float) -> bool:
    """Whether nobody waits for an answer any more; asked for so long."""
    if sys.platform == "win32":  # as in `_read_line`
        time.sleep(wait)
        return False
    return bool(select.select([stop], [], [], wait)[0])


def _forget_typed() -> None:
    try:
        import termios
    except ImportError:
        return
    try:
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
    except (termios.error, OSError, ValueError):
        pass  # then what was typed before is read; it is echoed beside the question


def _read_line(stop: int, left: float | None) -> str | Decision:
    """A line from the terminal, or the denial that there won't be one."""
    if sys.platform == "win32":  # select() knows no consoles there: neither expiry nor cancellation ends the wait
        return sys.stdin.readline() or _denied("the terminal was closed")
    source = sys.stdin.fileno()
    deadline = None if left is None else time.monotonic() + left
    typed = b""
    while not typed.endswith(b"\n"):
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([source, stop], [], [], wait)
        if stop in ready:
            return _denied("the question was taken back")
        if not ready:
            return _denied("nobody answered before the request expired")
        chunk = os.read(source, _LINE)
        if not chunk:
            return _denied("the terminal was closed")
        typed += chunk
    return typed.decode("utf-8", "replace")
