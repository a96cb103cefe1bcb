"""What only shows at a terminal: the live view, prompts that the view makes room for, colours, and Ctrl-C in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.apps import AGENTS, HANGING, WORLD
from tests.support.cli import Cli
from tests.support.terminal import at_terminal

RUN = ("run", "Lisbon", "--app", "app.py", "-a", "planner", "--model", "offline")
HANG = ("run", "a hotel", "--app", "hanging.py", "-a", "waiter", "--model", "offline")
QUESTION = "or a reason to deny: "
ERASED = "\x1b[2K"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("app.py", AGENTS)
    cli.write("world.py", WORLD)
    cli.write("hanging.py", HANGING)
    return cli


def world(cli: Cli) -> dict[str, str]:
    return json.loads((cli.folder / "world.json").read_text())  # type: ignore[no-any-return]


def test_the_live_view_shows_agents_time_and_cost_and_leaves_the_cursor_visible(cli: Cli) -> None:
    code, shown, raw = at_terminal([*RUN[:5], "planner,teller", *RUN[6:]], folder=cli.folder, answers={})
    assert code == 0
    assert "✓ planner" in shown
    assert "✓ teller" in shown
    assert "$0" in shown
    assert raw.rfind("\x1b[?25h") > raw.rfind("\x1b[?25l") >= 0
    assert "also in the result: city, details" in shown


def test_the_live_view_shows_the_steps_of_a_plan(cli: Cli) -> None:
    cli.write(
        "trip.yaml",
        "- {tool: book, id: flight, arguments: {what: flight}}\n- {tool: explode, id: car, arguments: {why: no cars}}\n",
    )
    code, shown, _ = at_terminal(["saga", "run", "trip.yaml", "--app", "world.py"], folder=cli.folder, answers={})
    assert code == 1
    for line in ("✓ book (flight)", "✗ explode (car)", "↶ undone: book (flight)"):
        assert line in shown


def test_what_an_agent_remembers_is_shown_and_does_not_drive_the_terminal(cli: Cli) -> None:
    cli("memory", "set", "note", "two\nlines \x1b[2J")
    code, _, raw = at_terminal(["memory", "get", "note"], folder=cli.folder, answers={})
    assert (code, raw) == (0, "two\r\nlines \\x1b[2J\r\n")
    assert cli("memory", "get", "note").stdout == "two\nlines \x1b[2J\n"


def test_a_terminal_that_can_not_draw_is_told_line_by_line(cli: Cli) -> None:
    code, shown, raw = at_terminal(RUN, folder=cli.folder, answers={}, env={"TERM": "dumb"})
    assert code == 0
    assert "planner started" in shown
    assert "\x1b" not in raw


def test_an_approval_is_asked_for_and_given(cli: Cli) -> None:
    code, shown, _ = at_terminal([*RUN, "-i", "mail=true"], folder=cli.folder, answers={QUESTION: "y\n"})
    assert code == 0
    assert "Approval needed: send_mail" in shown
    assert '"ada@example.org"' in shown
    assert world(cli)["mail"] == "ada@example.org"
    assert "can't be taken back: send_mail" in shown


def test_a_prompt_has_the_screen_to_itself_and_the_view_comes_back_once(cli: Cli) -> None:
    _, _, raw = at_terminal([*RUN, "-i", "mail=true"], folder=cli.folder, answers={QUESTION: "y\n"})
    before, _, after = raw.partition("Approval needed")
    assert ERASED in before[before.rindex("planner") :]
    assert ERASED not in after[after.rindex("planner") :]


def test_a_run_that_does_not_begin_leaves_nothing_of_the_view(cli: Cli) -> None:
    cli.write("trip.yaml", "- {tool: book, arguments: {what: hotel}}\n")
    run = ["saga", "run", "trip.yaml", "--app", "world.py", "--run-id", "trip-1"]
    cli(*run)
    code, _, raw = at_terminal(run, folder=cli.folder, answers={})
    view, _, _ = raw.partition("error: there is a run 'trip-1' already")
    assert code == 2
    assert ERASED in view[view.rindex(" ms") :]


def test_a_reason_to_deny_reaches_the_agent_and_the_record(cli: Cli) -> None:
    code, shown, _ = at_terminal(
        [*RUN, "-i", "mail=true"], folder=cli.folder, answers={QUESTION: "Ada is on holiday\n"}
    )
    assert code == 1
    assert "Ada is on holiday" in shown
    assert list(world(cli).values()) == ["cancelled"]
    denied = json.loads(cli("traces", "filter", "--status", "denied", "--json").stdout)
    assert denied[0]["approval_reason"] == "Ada is on holiday"


def test_ctrl_c_at_a_prompt_unwinds(cli: Cli) -> None:
    code, shown, raw = at_terminal([*RUN, "-i", "mail=true"], folder=cli.folder, answers={QUESTION: "\x03"})
    assert code == 130
    assert "interrupted: undoing what was done" in shown
    assert list(world(cli).values()) == ["cancelled"]
    assert raw.rfind("\x1b[?25h") > raw.rfind("\x1b[?25l")


def test_ctrl_c_twice_puts_the_terminal_right(cli: Cli) -> None:
    code, shown, raw = at_terminal(
        (*HANG, "-i", "tool=hang_in_thread"),
        folder=cli.folder,
        answers={cli.folder / "waiting": "\x03", "stops at once": "\x03"},
    )
    assert code == 130
    assert "`agenthelm saga recover` finishes it" in shown
    assert raw.rfind("\x1b[?25h") > raw.rfind("\x1b[?25l")


@pytest.mark.parametrize(
    ("answer", "code", "state", "ending"),
    [
        ("y\n", 0, "cancelled", "rolled_back"),
        ("\n", 1, "hotel", "[y/N] \r\nleft as it is"),
        ("\x04", 1, "hotel", "[y/N] \r\nleft as it is"),
        ("\x03", 130, "hotel", "[y/N] ^C"),
    ],
)
def test_undo_asks_before_it_acts(cli: Cli, answer: str, code: int, state: str, ending: str) -> None:
    cli.write("trip.yaml", "- {tool: book, arguments: {what: hotel}}\n")
    cli("saga", "run", "trip.yaml", "--app", "world.py")
    ended, shown, _ = at_terminal(
        ["saga", "undo", "last", "--app", "world.py"], folder=cli.folder, answers={"[y/N] ": answer}
    )
    assert ended == code
    assert "undo book by cancel" in shown
    assert shown.endswith(f"{ending}\r\n")
    assert list(world(cli).values()) == [state]


@pytest.mark.parametrize("run", [(*RUN, "-i", "mail=true"), (*HANG, "-i", "tool=wait_for_ever")])
def test_a_terminal_that_is_closed_unwinds(cli: Cli, run: tuple[str, ...]) -> None:
    seen = QUESTION if "mail=true" in run else "wait_for_ever"
    code, _, _ = at_terminal(run, folder=cli.folder, answers={seen: ""})
    assert code == 129
    assert list(world(cli).values()) == ["cancelled"]
    assert json.loads(cli("saga", "list", "--json").stdout)[0]["status"] == "rolled_back"
