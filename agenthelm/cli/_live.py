"""Shows a run while it happens: a live panel on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agenthelm.cli._console import clean, err, escape_controls, sign
from agenthelm.cli._ending import to_stderr
from agenthelm.cli._units import dollars, seconds
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, Decision

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

    from agenthelm._runtime.progress import Progress

__all__ = ["View"]


@dataclass(slots=True)
class _Row:
    name: str
    started: float
    ended: float | None = None
    failed: bool = False
    doing: dict[str, int] = field(default_factory=dict)


class View:
    """Follows a run, or one after the other, by their progress. Its `observe` is the runs' observer.

    Args:
        quiet: Show nothing; for ``--quiet``.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.run_id: str | None = None
        self.runs: dict[str, None] = {}  # of all that one command works on; the one above is the latest
        self.undone: list[str] = []
        self.not_undone: list[str] = []
        self.quiet = quiet
        self._started = time.monotonic()
        self.cost: float | None = None
        self._rows: list[_Row] = []
        self._live: Live | None = None
        self._console = err()
        self._paused = 0

    @contextmanager
    def shown(self) -> Iterator[View]:
        """Show the run for a ``with`` block."""
        if self.quiet or not self._console.is_terminal or self._console.is_dumb_terminal:
            yield self
            return
        from rich.live import Live

        self._live = Live(self, console=self._console, refresh_per_second=8, transient=False, redirect_stdout=False)
        self._draw(self._live.start)
        try:
            yield self
        finally:
            self.restore()

    def restore(self) -> None:
        """Leave the terminal as it was found; may be called twice."""
        live, self._live = self._live, None
        if live is not None:
            live.transient = self.run_id is None  # nothing has begun
            self._draw(live.stop)

    @staticmethod
    def _draw(change: Callable[[], object]) -> None:
        """Start or stop to draw. A terminal that was closed meanwhile shows nothing, and must not fail the run."""
        with suppress(OSError):
            change()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Keep the terminal free for a prompt, and come back below it."""
        self._paused += 1
        if self._live is not None and self._paused == 1:
            self._live.transient = True
            self._draw(self._live.stop)
        try:
            yield
        finally:
            self._paused -= 1
            if self._live is not None and self._paused == 0:
                self._live.transient = False
                self._draw(functools.partial(self._live.start, refresh=True))

    def prompting(self, handler: ApprovalHandler) -> ApprovalHandler:
        """A handler that talks to the terminal, with this view out of its way."""
        return _Prompting(self, handler)

    def observe(self, progress: Progress) -> None:
        """Take note of progress; called on the event loop, never blocks for long."""
        if progress.run_id:
            self.run_id = progress.run_id
            self.runs[progress.run_id] = None
        if progress.cost_usd is not None:
            self.cost = progress.cost_usd
        self._update(progress)
        if self._live is None and not self.quiet and (line := _line(progress)):
            cost = f"  {dollars(self.cost)}" if self.cost else ""
            to_stderr(f"{time.monotonic() - self._started:7.1f}s  {escape_controls(line)}{cost}\n")

    def _update(self, progress: Progress) -> None:
        what, _, how = progress.kind.partition("_")
        if progress.kind == "undone":
            self.undone.append(progress.title)
        elif progress.kind == "undo_failed":
            self.not_undone.append(progress.title)
        elif what == "agent" or (what == "tool" and progress.step and not progress.agent):
            if how == "started":
                self._rows.append(_Row(progress.title, time.monotonic()))
            elif (row := self._row(progress.title)) is not None:
                row.ended, row.failed = time.monotonic(), how == "failed"
        elif what in ("tool", "lm") and progress.agent and (row := self._row(progress.agent)) is not None:
            doing = progress.name
            count = row.doing.get(doing, 0) + (1 if how == "started" else -1)
            row.doing[doing] = count
            if count <= 0:
                del row.doing[doing]

    def _row(self, name: str) -> _Row | None:
        return next((row for row in reversed(self._rows) if row.name == name and row.ended is None), None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        now = time.monotonic()
        for row in self._rows[-12:]:
            mark, style = ("●", "cyan") if row.ended is None else ("✗", "red") if row.failed else ("✓", "green")
            line = Text.assemble((f" {sign(mark, console.file)} ", style), clean(row.name, width=50))
            line.append(f"  {seconds((row.ended or now) - row.started)}", "dim")
            if row.ended is None and row.doing:
                line.append(f"  {clean(', '.join(row.doing), width=50)}", "dim")
            yield line
        for name in self.undone[-5:]:
            yield Text.assemble((f" {sign('↶', console.file)} ", "yellow"), f"undone: {clean(name, width=50)}")
        for name in self.not_undone:
            yield Text.assemble((" ! ", "bold red"), f"could not be undone: {clean(name, width=50)}")
        cost = f"  {dollars(self.cost)}" if self.cost is not None else ""
        yield Text(f"   {seconds(now - self._started)}{cost}", style="dim")


def _line(progress: Progress) -> str:
    by = f"{progress.agent}: " if progress.agent and progress.agent != progress.name else ""
    name = clean(progress.title, width=60)
    why = f": {clean(progress.error, width=160)}" if progress.error else ""
    match progress.kind:
        case "agent_started":
            return f"{name} started"
        case "agent_finished":
            return f"{name} finished"
        case "agent_failed":
            return f"{name} failed{why}"
        case "tool_started":
            return f"{by}{name}"
        case "tool_failed":
            return f"{by}{name} failed{why}"
        case "lm_failed":
            return f"{by}model call failed{why}"
        case "undone":
            return f"undone: {name}"
        case "undo_failed":
            return f"could not be undone: {name}{why}"
        case _:
            return ""


class _Prompting(ApprovalHandler):
    def __init__(self, view: View, handler: ApprovalHandler) -> None:
        self._view = view
        self._handler = handler

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        async with self._view.paused():
            return await self._handler.request_approval(request)
