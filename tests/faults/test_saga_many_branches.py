"""Scopes side by side, more than ten of them: what fails takes back what it did itself, not what the tenth did."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.abc
import pytest

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import saga

BRANCHES = [f"b{number}" for number in range(1, 13)]


class Desk:
    """A world in memory; what undoes can be out of order."""

    def __init__(self) -> None:
        self.things: list[str] = []
        self.broken = False
        self.tools = ToolRegistry()
        self.storage = InMemoryStorage()

        @tool(registry=self.tools, compensating_tool="unmake")
        async def make(name: str) -> dict[str, str]:
            self.things.append(name)
            return {"thing": name}

        @tool(registry=self.tools)
        async def unmake(thing: str) -> None:
            if self.broken:
                raise ValueError("broken")
            self.things.remove(thing)

    async def twelve_of_which_fails(self, failing: str) -> Any:
        """Twelve scopes that are open at once, numbered as they are called; returns the run they are in."""
        all_made = anyio.Event()

        async def branch(name: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
            try:
                async with saga(name) as inner:
                    await inner.use("make", name=name)
                    task_status.started()
                    await all_made.wait()
                    if name == failing:
                        raise ValueError(name)
            except ValueError:
                pass

        async with saga(tools=self.tools, storage=self.storage) as scope, anyio.create_task_group() as group:
            for name in BRANCHES:
                await group.start(branch, name)
            all_made.set()
        return scope


@pytest.mark.parametrize("failing", ["b1", "b2", "b11"])
async def test_a_branch_that_fails_takes_back_what_it_did_and_nothing_else(failing: str) -> None:
    desk = Desk()
    scope = await desk.twelve_of_which_fails(failing)
    assert desk.things == [name for name in BRANCHES if name != failing]
    assert scope.result.status == "success"


async def test_what_could_not_be_undone_of_a_branch_is_tried_again_without_the_others() -> None:
    desk = Desk()
    desk.broken = True
    scope = await desk.twelve_of_which_fails("b1")
    assert (scope.result.status, desk.things) == ("failed", BRANCHES)
    desk.broken = False
    result = await Orchestrator(tools=desk.tools, storage=desk.storage).retry(scope.run_id)
    assert (result.status, desk.things) == ("success", BRANCHES[1:])
