"""The prompt under a real pseudo-terminal: what is shown, what counts as an answer, and what ends the wait."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import IO

import anyio
import pytest
from rich.console import Console as RichConsole

from agenthelm.core import prompt
from agenthelm.core.handlers import CliHandler, Decision
from agenthelm.testing.approvals import approval_request

QUESTION = "a reason to deny: "


class Terminal:
    """The human's side of a pseudo-terminal."""

    def __init__(self, master: int, slave: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.master = master
        self.slave = slave
        self.screen = ""
        self.streams: list[IO[str]] = []
        self._monkeypatch = monkeypatch

    def attach(self) -> None:
        """Make it this process's terminal; in the test itself, because pytest puts its own streams back before."""
        for name, mode in (("stdin", "r"), ("stderr", "w")):
            self.streams.append(os.fdopen(os.dup(self.slave), mode))
            self._monkeypatch.setattr(sys, name, self.streams[-1])

    async def until(self, text: str, *, times: int = 1) -> str:
        """Wait until a text is on the screen so many times; give the screen without colours."""
        with anyio.fail_after(60):
            while self.plain.count(text) < times:
                await anyio.wait_readable(self.master)
                self.screen += os.read(self.master, 65_536).decode()
        return self.plain

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.screen)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal(master, slave, monkeypatch)
    yield made
    for close in (*(stream.close for stream in made.streams), lambda: os.close(slave), lambda: os.close(made.master)):
        try:
            close()
        except OSError:  # a test hung up
            pass


async def _answered(
    terminal: Terminal, answer: str, *, clock: Callable[[], float] = time.time, **changes: object
) -> Decision:
    terminal.attach()
    decisions: list[Decision] = []

    async def ask() -> None:
        request = approval_request(**changes)  # type: ignore[arg-type]
        decisions.append(await CliHandler(clock=clock).request_approval(request))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await terminal.until(QUESTION)
        terminal.type(answer)
    return decisions[0]


@pytest.mark.parametrize("answer", ["y\n", "YES\n", "  y \n"])
async def test_yes_approves_what_was_shown(terminal: Terminal, answer: str) -> None:
    decision = await _answered(terminal, answer)
    assert decision.approved
    assert decision.digest == approval_request().digest
    assert decision.approver == "the terminal"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("n\n", "denied at the terminal"), ("No\n", "denied at the terminal"), ("too dear\n", "too dear"),
        ("yes but cheaper\n", "yes but cheaper"), ("größer\n", "größer"), ("\n\n  \nlater\n", "later"),
    ],
)  # fmt: skip
async def test_anything_else_denies_with_its_reason(terminal: Terminal, answer: str, reason: str) -> None:
    decision = await _answered(terminal, answer)
    assert (decision.approved, decision.reason) == (False, reason)


async def test_the_call_is_shown_with_all_one_needs_to_decide(terminal: Terminal) -> None:
    await _answered(terminal, "n\n", clock=lambda: 1000.0, expires_at=1060.9)
    for fact in (
        "Approval needed: book_hotel", "city", '"Lisbon"', "nights", "Book a hotel.", "booking:write", "cancel_hotel",
        "planner", "run-1", "0.05 USD", "in 60 s", approval_request().digest[:16],
    ):  # fmt: skip
        assert fact in terminal.plain


async def test_what_nothing_undoes_is_said_to_be_so(terminal: Terminal) -> None:
    await _answered(terminal, "n\n", irreversible=True, compensating_tool=None)
    assert re.search(r"undone by.*nothing", terminal.plain)


async def test_data_can_neither_be_markup_nor_steer_the_terminal(terminal: Terminal) -> None:
    arguments = MappingProxyType(
        {"[red]x[/red]": "[/foo] [bold]b[/bold]", "e": "\x1b[2J\x1b[H\r\b", "bidi": "a\u202eb", "lines": "one\ntwo"}
    )
    await _answered(terminal, "n\n", arguments=arguments)
    assert "[red]x[/red]" in terminal.plain
    assert "[/foo] [bold]b[/bold]" in terminal.plain
    assert "\x1b[2J" not in terminal.screen
    assert "\u202e" not in terminal.screen
    assert "a\\u202eb" in terminal.plain
    assert '"one\\ntwo"' in terminal.plain


async def test_no_part_of_a_value_is_invisible(terminal: Terminal) -> None:
    arguments = MappingProxyType({"to": "ann\u034f\ufe0f\u3164\u2800\U000e0141", "who": "Ærøskøbing 界"})
    await _answered(terminal, "n\n", arguments=arguments)
    assert '"ann\\u034f\\ufe0f\\u3164\\u2800\\U000e0141"' in terminal.plain
    assert "Ærøskøbing 界" in terminal.plain


async def test_no_argument_poses_as_what_is_known_of_the_call(terminal: Terminal) -> None:
    """A tool that takes any name leaves the names of arguments to a model."""
    arguments = MappingProxyType({"n" * 60: 1, "undone by": "refund", "may cost: 0 USD": 2, "digest": "0"})
    await _answered(terminal, "n\n", arguments=arguments)
    lines = [line.strip() for line in terminal.plain.splitlines()]
    given, told = lines[: lines.index("--")], lines[lines.index("--") :]
    assert given[-3:] == ['"undone by": "refund"', '"may cost: 0 USD": 2', 'digest: "0"']
    assert "undone by: cancel_hotel" in told


@pytest.mark.parametrize("columns", [1, 8, 39, 40, 80])
@pytest.mark.parametrize("name", ["n" * 90, "n" * 26, "界" * 40])
async def test_every_value_is_shown_however_long_a_name_and_however_narrow_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    arguments = MappingProxyType({"amount": 1_000_000, "to": "mallory", name: "x" * 300 + "the end"})
    await _answered(terminal, "n\n", arguments=arguments)
    shown = re.sub(r"[\s│┃]", "", terminal.plain)
    for text in ("1000000", '"mallory"', f'"{"x" * 300}theend"', name, "Bookahotel.", "cancel_hotel"):
        assert text in shown


async def test_what_was_typed_before_the_question_does_not_count(terminal: Terminal) -> None:
    terminal.attach()
    terminal.type("y\n")
    decision = await _answered(terminal, "n\n")
    assert not decision.approved


async def test_concurrent_requests_are_asked_one_after_the_other(terminal: Terminal) -> None:
    terminal.attach()
    decisions: dict[str, bool] = {}

    async def ask(name: str) -> None:
        decisions[name] = (await CliHandler().request_approval(approval_request(name))).approved

    async with anyio.create_task_group() as group:
        for name in ("one", "two", "three"):
            group.start_soon(ask, name)
        for count, answer in enumerate(["y\n", "n\n", "y\n"], 1):
            await terminal.until(QUESTION, times=count)
            assert terminal.plain.count("Approval needed") == count
            terminal.type(answer)
    shown = re.findall(r"Approval needed: (\w+)", terminal.plain)
    assert sorted(shown) == ["one", "three", "two"]
    assert [decisions[name] for name in shown] == [True, False, True]


async def test_event_loops_in_other_threads_are_asked_one_after_the_other_too(terminal: Terminal) -> None:
    terminal.attach()
    decisions: dict[str, Decision] = {}

    async def ask(name: str, expires_at: float | None = None) -> None:
        decisions[name] = await CliHandler().request_approval(approval_request(name, expires_at=expires_at))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "one")
        await terminal.until(QUESTION)
        soon = time.time() + 300  # should this fail, no thread may ask for ever
        group.start_soon(partial(anyio.to_thread.run_sync, anyio.run, ask, "two", soon, abandon_on_cancel=True))
        # It waits for its turn until it expires, and shows nothing meanwhile.
        await anyio.to_thread.run_sync(anyio.run, ask, "three", time.time() + 0.2)
        assert "expired before it could be asked" in decisions["three"].reason
        terminal.type("y\n")
        await terminal.until(QUESTION, times=2)
        terminal.type("no, not this\n")
    assert decisions["one"].approved
    assert decisions["two"].reason == "no, not this"
    assert re.findall(r"Approval needed: (\w+)", terminal.plain) == ["one", "two"]


async def test_a_question_that_waits_for_another_loop_is_taken_back(terminal: Terminal) -> None:
    terminal.attach()

    async def ask_in_vain() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(CliHandler().request_approval, approval_request("two"))
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(CliHandler().request_approval, approval_request("one"))
            await terminal.until(QUESTION)
            await anyio.to_thread.run_sync(anyio.run, ask_in_vain, abandon_on_cancel=True)
            terminal.type("y\n")
            group.start_soon(CliHandler().request_approval, approval_request("three"))
            await terminal.until(QUESTION, times=2)
            terminal.type("n\n")
    assert re.findall(r"Approval needed: (\w+)", terminal.plain) == ["one", "three"]


async def test_a_request_that_expires_is_denied(terminal: Terminal) -> None:
    terminal.attach()
    # As late as it may become until the question is shown, it has not expired before that.
    decision = await CliHandler(clock=lambda: 1000.0).request_approval(approval_request(expires_at=1000.05))
    assert (decision.approved, decision.reason) == (False, "nobody answered before the request expired")


async def test_a_request_that_expired_while_it_waited_is_not_asked(terminal: Terminal) -> None:
    terminal.attach()
    decision = await CliHandler().request_approval(approval_request(expires_at=time.time() - 1))
    assert "expired before it could be asked" in decision.reason


async def test_cancelling_takes_the_question_back_and_leaves_no_thread(terminal: Terminal) -> None:
    terminal.attach()
    handler = CliHandler()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(handler.request_approval, approval_request())
            await terminal.until(QUESTION)
            group.cancel_scope.cancel()
        # Nothing was left behind that would eat this answer.
        async with anyio.create_task_group() as group:
            decisions: list[Decision] = []

            async def again() -> None:
                decisions.append(await handler.request_approval(approval_request()))

            group.start_soon(again)
            await terminal.until(QUESTION, times=2)
            terminal.type("y\n")
    assert decisions[0].approved


@pytest.mark.parametrize("backend", [{}, {"use_uvloop": True}], ids=["asyncio", "uvloop"])
def test_a_native_cancellation_takes_the_question_back_too(terminal: Terminal, backend: dict[str, bool]) -> None:
    async def main() -> None:
        terminal.attach()
        task = asyncio.create_task(CliHandler().request_approval(approval_request()))
        await terminal.until(QUESTION)
        task.cancel()
        with anyio.fail_after(60), pytest.raises(asyncio.CancelledError):
            await task

    anyio.run(main, backend_options=backend)


async def test_end_of_file_is_a_denial(terminal: Terminal) -> None:
    decision = await _answered(terminal, "\x04")
    assert (decision.approved, decision.reason) == (False, "the terminal was closed")


async def test_a_terminal_that_hangs_up_is_a_denial(terminal: Terminal) -> None:
    terminal.attach()
    decisions: list[Decision] = []

    async def ask() -> None:
        decisions.append(await CliHandler().request_approval(approval_request()))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await terminal.until(QUESTION)
        os.close(terminal.master)
    assert not decisions[0].approved


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
async def test_no_terminal_is_a_denial_with_the_reason(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    terminal.attach()
    monkeypatch.setattr(sys, stream, io.StringIO("y\n"))
    decision = await CliHandler().request_approval(approval_request())
    assert (decision.approved, decision.reason) == (False, "there is no terminal to ask at")


async def test_no_standard_streams_are_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert not (await CliHandler().request_approval(approval_request())).approved


@pytest.mark.parametrize("with_termios", [True, False])
@pytest.mark.parametrize(("typed", "approved"), [("y\n", True), ("\nno\n", False), ("", False)])
async def test_on_a_console_that_can_not_be_polled_the_answer_is_read_as_a_line(
    monkeypatch: pytest.MonkeyPatch, with_termios: bool, typed: str, approved: bool
) -> None:
    """As on Windows, where neither ``select`` nor ``termios`` know consoles."""

    class Console(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Console()
    monkeypatch.setattr(prompt, "sys", SimpleNamespace(platform="win32", stdin=Console(typed), stderr=screen))
    if not with_termios:
        monkeypatch.setitem(sys.modules, "termios", None)
    decision = await CliHandler(console=RichConsole(file=screen)).request_approval(approval_request())
    assert decision.approved is approved
    assert decision.reason == {
        "y\n": "approved at the terminal", "\nno\n": "denied at the terminal", "": "the terminal was closed"
    }[typed]  # fmt: skip
    assert screen.getvalue().count(QUESTION) == 1 + (typed == "\nno\n")
