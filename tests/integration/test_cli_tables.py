"""Tables and help pages at terminals of every width: names and ids that are copied stay whole, and lines fit."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from agenthelm.cli._tables import When, print_table
from tests.support.apps import AGENTS
from tests.support.cli import Cli

WIDTHS = ("40", "60", "80", "100", "200")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env.update(AGENTHELM_MODEL="offline", AGENTHELM_APP="app.py")
    cli.write("app.py", AGENTS)
    return cli


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", ["saga list", "traces list"])
def test_the_id_of_a_run_is_never_broken(cli: Cli, command: str, columns: str) -> None:
    cli("run", "a long trip", "-a", "planner,teller")
    cli("run", "x", "-a", "planner", "-i", "fail=oh", code=1)
    runs = [run["run_id"] for run in json.loads(cli("saga", "list", "--json").stdout)]
    lines = cli(*command.split(), COLUMNS=columns).stdout.splitlines()
    for run in runs:
        assert any(run in line for line in lines)
    assert max(map(len, lines)) <= int(columns)
    if columns == "80":
        assert "(UTC)  " in lines[0]  # a table with a head, not a line for each value


def test_a_pipe_has_a_line_for_each_row_however_long(cli: Cli) -> None:
    words = "x" * 190 + " " + "y" * 190
    cli.write("app.py", f"from agenthelm import tool\n\n@tool\ndef book() -> None:\n    '{words}'\n")
    assert sum(words in line for line in cli("tools", "list").stdout.splitlines()) == 1


def printed(width: int, *arguments: object, **options: object) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True, markup=False)
    print_table(*arguments, console=console, **options)  # type: ignore[arg-type]
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [Text.from_ansi(line).plain.rstrip() for line in lines]


COLUMNS = ("#number", "!when", "what", "#cost", "?", "!run")
ROWS = (
    (3, When("2026-11-26 17:43:09"), "a long story", "$1", Text("█████"), "run-of-today"),
    (2, When("2026-11-26 17:43:08"), "short", "", Text("█"), "run-of-today"),
    (1, When("2025-01-02 03:04:05"), None, "$2", Text("██"), "run-of-last-year"),
)


def test_where_there_is_room_nothing_is_left_out() -> None:
    lines = printed(79, COLUMNS, ROWS, heading="run")
    assert lines[3] == "      3   2026-11-26 17:43:09   a long story     $1   █████   run-of-today"
    assert len(lines) == 7


def test_where_there_is_little_it_is_the_year_the_picture_and_the_text_that_give_way() -> None:
    assert printed(45, COLUMNS, ROWS, heading="run") == [
        "number  when            what          cost",
        "run run-of-today",
        "     3  11-26 17:43:09  a long story    $1",
        "     2  11-26 17:43:08  short",
        "run run-of-last-year",
        "     1  01-02 03:04:05                  $2",
    ]
    assert printed(40, COLUMNS, ROWS[:1], heading="run") == [
        "number  when            what        cost",
        "run run-of-today",
        "     3  11-26 17:43:09  a long        $1",
        "                        story",
    ]


def test_where_there_is_none_each_value_has_a_line() -> None:
    assert printed(20, COLUMNS, ROWS[1:], heading="run") == [
        "number  2",
        "when    2026-11-26 17:43:08",
        "what    short",
        "        █",
        "run     run-of-today",
        "",
        "number  1",
        "when    2025-01-02 03:04:05",
        "cost    $2",
        "        ██",
        "run     run-of-last-year",
    ]


COMMANDS = (
    "", "run", "list-agents", "describe", "tools list", "tools show", "saga list", "saga show", "saga run", "saga undo",
    "saga recover", "saga retry", "saga resolve", "saga prune", "traces list", "traces filter", "traces show",
    "traces export", "traces stats", "cost report", "cost models", "memory get", "memory set", "memory list",
    "memory search", "memory remember", "memory forget", "memory stats", "init", "doctor",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_page_shows_whole_options_in_80_columns(cli: Cli, command: str) -> None:
    page = cli(*command.split(), "--help", COLUMNS="80").stdout
    assert "… " not in page.replace("timeout, … ", "").replace("rolled_back, … ", "").replace("│ … ", "│ ")
    assert "…" not in "".join(line[:28] for line in page.splitlines())
    assert "9223372036854775807" not in page
    assert "[[" not in page
    assert ("--install-completion" in page) is (command == "")
