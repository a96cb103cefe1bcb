"""More than ten scopes side by side: what is undone of the first is not what the tenth did."""

from __future__ import annotations

from contextlib import suppress

import anyio
import anyio.abc

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import saga

BRANCHES = [f"b{number}" for number in range(1, 13)]


async def test_what_could_not_be_undone_of_a_branch_is_tried_again_without_the_others() -> None:
    tools, storage, things, broken = ToolRegistry(), InMemoryStorage(), list[str](), [True]
    all_made = anyio.Event()

    @tool(registry=tools, compensating_tool="unmake")
    async def make(name: str) -> dict[str, str]:
        things.append(name)
        return {"thing": name}

    @tool(registry=tools)
    async def unmake(thing: str) -> None:
        if broken[0]:
            raise RuntimeError("out of order")
        things.remove(thing)

    async def branch(name: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with suppress(ValueError):
            async with saga(name) as inner:
                await inner.use("make", name=name)
                task_status.started()
                await all_made.wait()
                if name == "b1":
                    raise ValueError("no")

    async with saga(tools=tools, storage=storage) as scope, anyio.create_task_group() as group:
        for name in BRANCHES:  # numbered in this order
            await group.start(branch, name)
        all_made.set()
    assert scope.result is not None
    assert ([stuck.reason for stuck in scope.result.stuck], things) == (
        ["unmake failed: RuntimeError: out of order"],
        BRANCHES,
    )
    broken[0] = False
    result = await Orchestrator(tools=tools, storage=storage).retry(scope.run_id)
    assert (result.status, things) == ("success", BRANCHES[1:])
