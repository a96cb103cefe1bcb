"""An app that lacks the tool which a contract names as verify: the run is left as it is, unless nobody need be asked."""

from __future__ import annotations

import pytest

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import PlanError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import saga


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_run_is_undone_without_its_verify_only_where_that_could_change_nothing(idempotent: bool) -> None:
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
    undoing = Orchestrator(tools=other, storage=storage).undo
    if idempotent:
        assert (await undoing(scope.run_id)).status == "rolled_back"
        assert world == []
    else:
        with pytest.raises(PlanError, match="the verify tool 'look' of 'unsure' is not registered"):
            await undoing(scope.run_id)
        assert world == ["a", "b"]
