"""Two apps in one folder whose tools have the same names: each run is undone by its own app, or left as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import Cli, environment

APP = """
import os
from pathlib import Path

from agenthelm import tool

LOG = Path(__file__).with_suffix(".log")


@tool(compensating_tool="cancel", idempotent=True)
def book(what: str) -> None:
    with LOG.open("a") as log:
        log.write(f"book {what}\\n")
    if os.environ.get("DIE"):
        os._exit(9)


@tool(idempotent=True)
def cancel(what: str) -> None:
    with LOG.open("a") as log:
        log.write(f"cancel {what}\\n")
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env["AGENTHELM_MODEL"] = "offline"
    for name in ("hotel.py", "car.py"):
        cli.write(name, APP)
    cli.write("plan.yaml", "- {tool: book, arguments: {what: it}}\n")
    return cli


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_run_is_not_undone_or_gone_on_with_by_another_apps_tools(
    cli: Cli, dies: bool, resume: tuple[str, ...]
) -> None:
    if dies:
        cli.process("saga", "run", "plan.yaml", "--app", "hotel.py", code=9, DIE="1")
        command: tuple[str, ...] = ("saga", "recover", *resume)
        refused, done = 3, ["book it", "book it"] if resume else ["book it", "cancel it"]
    else:
        cli("saga", "run", "plan.yaml", "--app", "hotel.py")
        command, refused, done = ("saga", "undo", "last", "--yes"), 2, ["book it", "cancel it"]
    told = cli(*command, "--app", "car.py", code=refused).stderr
    assert "tool 'book' of hotel.py is not registered; load the app that defines" in told
    assert not (cli.folder / "car.log").exists()
    cli(*command, "--app", "hotel.py")
    assert (cli.folder / "hotel.log").read_text().splitlines() == done


def test_a_program_and_the_command_line_mean_the_same_app(cli: Cli) -> None:
    program = "import anyio\nfrom agenthelm import Orchestrator, SqliteStorage, Step\n\n\nasync def main():\n"
    program += "    async with SqliteStorage('.agenthelm/agenthelm.db') as storage:\n"
    program += "        await Orchestrator(storage=storage).run_saga([Step('book', {'what': 'it'})])\n\n\n"
    program += "if __name__ == '__main__':\n    anyio.run(main)\n"
    cli.write("hotel.py", APP + program)
    subprocess.run([sys.executable, "hotel.py"], cwd=cli.folder, env=environment(cli.folder), check=True, timeout=120)
    cli("saga", "undo", "last", "--yes", "--app", "hotel.py")
    assert (cli.folder / "hotel.log").read_text().splitlines() == ["book it", "cancel it"]
