"""A run with thousands of effects: undoing each of them does not look at all the others."""

from __future__ import annotations

from contextlib import suppress

import pytest

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import saga
from agenthelm.orchestration.state import EffectState

EFFECTS = 200


@pytest.mark.parametrize("on_purpose", [False, True], ids=["failed", "on purpose"])
async def test_undoing_takes_as_many_steps_for_each_effect_however_many_there_are(
    on_purpose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools, storage, things = ToolRegistry(), InMemoryStorage(), list[int]()
    looked = 0
    settled = EffectState.settled.fget
    assert settled is not None

    def look(state: EffectState) -> bool:
        nonlocal looked
        looked += 1
        return bool(settled(state))

    @tool(registry=tools, compensating_tool="unmake")
    async def make(number: int) -> None:
        things.append(number)

    @tool(registry=tools)
    async def unmake(number: int) -> None:
        assert things.pop() == number

    monkeypatch.setattr(EffectState, "settled", property(look))
    with suppress(ValueError):
        async with saga(tools=tools, storage=storage) as scope:
            for number in range(EFFECTS):
                await scope.use("make", number=number)
            if not on_purpose:
                raise ValueError("no")
    if on_purpose:
        await Orchestrator(tools=tools, storage=storage).undo(scope.run_id)
    assert things == []
    assert looked < 30 * EFFECTS
