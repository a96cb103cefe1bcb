"""Whoever watches a run can't keep it from being undone: an observer that raises, a terminal that is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agenthelm._runtime.progress import Progress
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.support.apps import WORLD
from tests.support.cli import Cli, environment
from tests.support.making import making


@pytest.mark.parametrize("kind", ["tool_started", "tool_finished", "unwinding", "undone"])
async def test_an_observer_that_raises_is_not_heard(kind: str) -> None:
    tools, world = ToolRegistry(), []

    making(tools, world)

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    def observer(progress: Progress) -> None:
        if progress.kind == kind:
            raise OSError("nobody is there")

    steps = [Step("make", {"name": name}, id=name) for name in "ab"]
    result = await Orchestrator(tools=tools, observer=observer).run_saga([*steps, Step("fail")])
    assert (result.status, result.error, world) == ("rolled_back", "ValueError: no", [])


def test_a_run_whose_reader_has_gone_is_undone_all_the_same(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    nap = "@tool\ndef nap() -> None:\n    import sys\n    sys.stdin.readline()\n"
    cli.write("world.py", f"{WORLD}\n\n{nap}")
    steps = ["{tool: book, id: a, arguments: {what: flight}}", "{tool: book_badly, arguments: {what: desk}}"]
    cli.write("plan.yaml", "".join(f"- {step}\n" for step in [*steps, "{tool: nap}", "{tool: explode}"]))
    process = subprocess.Popen(
        [sys.executable, "-m", "agenthelm.cli.main", "saga", "run", "plan.yaml", "--app", "world.py"],
        cwd=tmp_path, env=environment(tmp_path), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    assert "book" in process.stderr.readline()
    process.stderr.close()
    process.stdin.write("go on\n")
    process.stdin.close()
    process.wait(60)
    assert list(json.loads((tmp_path / "world.json").read_text()).values()) == ["cancelled"]
    (run,) = json.loads(cli("saga", "list", "--json").stdout)
    assert run["status"] == "failed"  # the desk is closed
