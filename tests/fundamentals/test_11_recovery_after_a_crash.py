"""What a killed process left behind is undone by the next one.

The journal is written ahead: a call that never returned is in doubt, and an idempotent compensator settles that. A run
whose process is known to be dead can be claimed at once, by one process only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agenthelm import Orchestrator, SqliteStorage, ToolRegistry, tool

tools = ToolRegistry()
ROOT = Path(__file__).resolve().parents[2]


@tool(compensating_tool="remove", side_effects=["file:write"], registry=tools)
async def make(folder: Path, last: bool, idempotency_key: str) -> None:
    (folder / idempotency_key.rpartition(":")[2]).touch()
    if last:
        os.kill(os.getpid(), signal.SIGKILL)


@tool(idempotent=True, registry=tools)
async def remove(folder: Path, idempotency_key: str) -> None:
    (folder / idempotency_key.rpartition(":")[2]).unlink(missing_ok=True)


PROGRAM = """
import runpy, sys
from pathlib import Path
import anyio
from agenthelm import SagaOrchestrator, ExecutionTracer, SqliteStorage, Step
here, folder = sys.argv[1], Path(sys.argv[2])
tracer = ExecutionTracer(SqliteStorage(folder / "log.db"), tools=runpy.run_path(here)["tools"])
steps = [Step("make", {"folder": folder, "last": name == "second"}, id=name) for name in ("first", "second", "third")]
anyio.run(SagaOrchestrator(tracer).execute, steps)
"""


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The folder in which a process died that was about to make three files."""
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    return tmp_path


def made(folder: Path) -> set[str]:
    return {"first", "second", "third"} & {path.name for path in folder.iterdir()}


async def test_a_killed_run_is_undone_by_somebody_else(left: Path) -> None:
    assert made(left) == {"first", "second"}
    storage = SqliteStorage(left / "log.db")
    async with storage, Orchestrator(storage=storage, tools=tools) as orchestrator:
        (result,) = await orchestrator.recover()
        assert await orchestrator.recover() == []
    assert (result.status, result.error, len(result.undone)) == ("rolled_back", "its process died", 2)
    assert made(left) == set()
