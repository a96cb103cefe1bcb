"""An app that lacks the tool which a contract names as verify: it is named, and the rest is undone."""

from __future__ import annotations

import pytest

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import saga


@pytest.mark.parametrize("idempotent", [False, True])
async def test_the_rest_is_undone_and_what_is_missing_is_named(idempotent: bool) -> None:
    tools, world, storage = ToolRegistry(), [], InMemoryStorage()

    @tool(registry=tools, compensating_tool="unmake")
    async def make(name: str) -> dict[str, str]:
        world.append(name)
        return {"thing": name}

    @tool(registry=tools, idempotent=idempotent)
    async def unmake(name: str) -> None:
        world.remove(name)

    @tool(registry=tools)
    async def look(name: str) -> bool:
        raise RuntimeError("down")

    @tool(registry=tools, compensating_tool="unmake", verify="look")
    async def unsure(name: str) -> None:
        world.append(name)
        raise ConnectionError

    async with saga(tools=tools, storage=storage) as scope:
        await scope.use("make", name="a")
        with pytest.raises(ConnectionError):
            await scope.use("unsure", name="b")
    other = ToolRegistry(entry for name, entry in tools.items() if name != "look")
    result = await Orchestrator(tools=other, storage=storage).undo(scope.run_id)
    assert world == ([] if idempotent else ["b"])
    assert [stuck.reason for stuck in result.stuck] == (
        [] if idempotent else ["its verify tool 'look' is not registered here; load the app that defines it"]
    )
