"""A process that is killed while it runs many sagas at once (``python -m tests.support.saga_leases FOLDER COUNT``)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio

from agenthelm._runtime.retry import SystemClock
from agenthelm.core.storage import SqliteStorage
from agenthelm.core.tool import tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.support.saga_world import World, tools_of

ROOT = Path(__file__).parents[2]


class Later(SystemClock):
    """A clock for which every living owner has been silent for longer than so many leases."""

    def __init__(self, leases: int = 1) -> None:
        self.ahead = leases * 31.0

    def wall(self) -> float:
        return time.time() + self.ahead


def leave_open(folder: Path, count: int) -> None:
    """Leave that many runs behind, each with three things made and no living owner."""
    process = subprocess.run([sys.executable, "-m", __name__, str(folder), str(count)], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL


def recovering(folder: Path) -> subprocess.Popen[str]:
    """A process that recovers what it finds, as soon as it is told to, and prints the runs it ended."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


async def _recover(folder: Path) -> None:
    async with SqliteStorage(folder / "journal.db") as storage:
        orchestrator = Orchestrator(storage=storage, tools=tools_of(World(folder / "world.db")))
        print("ready", flush=True)
        sys.stdin.readline()
        for result in await orchestrator.recover():
            print(result.run_id, result.status)


async def _leave_open(folder: Path, count: int) -> None:
    tools = tools_of(World(folder / "world.db"))
    arrived = 0

    @tool(registry=tools)
    async def wait_for_the_end() -> None:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            os.kill(os.getpid(), signal.SIGKILL)
        await anyio.sleep_forever()

    async with SqliteStorage(folder / "journal.db") as storage, anyio.create_task_group() as group:
        orchestrator = Orchestrator(storage=storage, tools=tools)
        for n in range(count):
            steps = [Step(kind, {"name": f"{kind} {n}"}) for kind in ("make", "book", "check")]
            group.start_soon(orchestrator.run_saga, [*steps, Step("wait_for_the_end")])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        anyio.run(_leave_open, Path(sys.argv[1]), int(sys.argv[2]))
    else:
        anyio.run(_recover, Path(sys.argv[1]))
