"""One journal that can't be read keeps the command line from telling of no other."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.apps import WORLD
from tests.support.cli import Cli

DIES = """

@tool(side_effects=["booking:write"], compensating_tool="cancel")
def book_and_die(what: str, idempotency_key: str) -> dict:
    import os, signal
    put(idempotency_key, what)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("agenthelm.toml", 'app = "world.py"\n')
    cli.write("world.py", WORLD + DIES)
    cli.write(
        "plan.yaml", "- {tool: book, arguments: {what: flight}}\n- {tool: book_and_die, arguments: {what: hotel}}\n"
    )
    return cli


def test_the_others_are_listed_recovered_and_told_of(cli: Cli) -> None:
    for _ in range(2):
        cli.process("saga", "run", "plan.yaml", code=-9)
    good, bad = (run["run_id"] for run in json.loads(cli("saga", "list", "--json").stdout))
    with closing(sqlite3.connect(cli.folder / ".agenthelm" / "agenthelm.db", isolation_level=None)) as database:
        damaged = json.dumps({"type": "of a later version", "at": 1, "epoch": 0})
        database.execute("UPDATE records SET data = ? WHERE stream = ? AND position = 1", (damaged, f"run:{bad}"))
    listed = {run["run_id"]: run["status"] for run in json.loads(cli("saga", "list", "--json").stdout)}
    assert listed == {good: "interrupted: its process is gone", bad: "unreadable"}
    assert "unreadable" in cli("saga", "list").stdout
    assert "restore the storage from a copy" in cli("saga", "show", bad, code=1).stderr
    documents = json.loads(cli("saga", "recover", "--json", code=3).stdout)
    assert {document["run_id"]: document["status"] for document in documents} == {good: "rolled_back", bad: "failed"}
    told = cli("saga", "recover", code=3).lines
    assert ("restore the storage from a copy" in told[0], told[1:]) == (True, [f"run {bad}: left as it is"])
    assert cli("traces", "show", bad).stdout.count("book") == 1  # the one that had ended
    assert "wrote to its journal just now" in cli("saga", "prune", "--unreadable", bad, "--yes", code=1).stderr
    with closing(sqlite3.connect(cli.folder / ".agenthelm" / "agenthelm.db", isolation_level=None)) as database:
        database.execute("UPDATE streams SET updated_at = updated_at - 31")
    asked = cli("saga", "prune", "--unreadable", bad, code=2)
    assert "can't be read" in asked.lines[0]
    assert "what it did stays as it is" in asked.lines[1]
    assert "say --yes to go ahead" in asked.lines[2]
    assert "would drop 1 journal" in cli("saga", "prune", "--unreadable", bad, "--dry-run").stdout
    assert json.loads(cli("saga", "prune", "--unreadable", bad, "--yes", "--json").stdout)["dropped"] == [bad]
    assert "nothing to recover" in cli("saga", "recover").stderr
    assert "no run" in cli("saga", "prune", "--unreadable", bad, "--yes", code=2).stderr
    assert "can be read" in cli("saga", "prune", "--unreadable", good, "--yes", code=2).stderr
    assert cli("traces", "show", bad).stdout.count("book") == 1


@pytest.mark.parametrize("options", [[], ["--older-than", "1d", "--unreadable", "last"]])
def test_it_is_said_which_journals_are_pruned(options: list[str], cli: Cli) -> None:
    refused = cli("saga", "prune", *options, code=2)
    assert refused.lines == ["error: say which journals: either --older-than SPAN or --unreadable RUN"]
