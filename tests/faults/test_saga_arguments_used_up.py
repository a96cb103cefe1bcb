"""What a call has used up is given to no compensator: it would undo nothing and say that it did."""

from __future__ import annotations

from typing import Any

import pytest

from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.saga import saga


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_an_iterator_is_not_taken_for_what_it_held(how: str) -> None:
    tools, world = ToolRegistry(), list[str]()

    def make(names: Any) -> None:
        world.extend(names)

    async def make_async(names: Any) -> None:
        make(names)

    tool(registry=tools, name="make_all", compensating_tool="unmake_all")(make if how == "sync" else make_async)

    @tool(registry=tools)
    async def unmake_all(names: Any) -> None:
        for name in names:
            world.remove(name)

    with pytest.raises(ValueError, match="no"):
        async with saga(tools=tools) as scope:
            await scope.use("make_all", names=iter(["a", "b"]))
            raise ValueError("no")
    assert scope.result is not None
    (stuck,) = scope.result.stuck
    assert (scope.result.status, world) == ("failed", ["a", "b"])
    assert "unmake_all needs 'names'" in stuck.reason
