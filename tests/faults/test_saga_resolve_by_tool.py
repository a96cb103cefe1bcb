"""`saga resolve RUN STEP` takes the tool for a step if there is one effect of it, as its help says; `recover` takes `last`."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from agenthelm.core.storage import SqliteStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.saga import saga
from tests.support.apps import WORLD
from tests.support.cli import Cli


async def leave_doubt(path: Path, calls: int) -> None:
    tools = ToolRegistry()

    @tool(registry=tools, side_effects=["mail:send"])
    async def send() -> None:
        raise ConnectionError

    async with SqliteStorage(path) as storage, saga(tools=tools, storage=storage) as scope:
        for _ in range(calls):
            with pytest.raises(ConnectionError):
                await scope.use("send")


def test_a_tool_names_its_only_effect(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    anyio.run(leave_doubt, tmp_path / ".agenthelm" / "agenthelm.db", 1)
    assert "success" in cli("saga", "resolve", "last", "send", "--as", "undone").stderr


def test_and_of_two_effects_neither(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    anyio.run(leave_doubt, tmp_path / ".agenthelm" / "agenthelm.db", 2)
    assert "e1 (send), e2 (send)" in cli("saga", "resolve", "last", "send", "--as", "undone", code=2).stderr


def test_the_last_run_can_be_recovered_by_that_name(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    anyio.run(leave_doubt, tmp_path / ".agenthelm" / "agenthelm.db", 1)
    assert "nothing to recover" in cli("saga", "recover", "last", "--app", "world.py").stderr
