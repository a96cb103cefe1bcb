"""A run that went well can be taken back later, on purpose.

Its journal stays until it is pruned. Undoing twice is undoing once, and other runs are left alone.
"""

from __future__ import annotations

from typing import Any

from agenthelm import Agent, Orchestrator, ToolRegistry, tool

tools = ToolRegistry()
rooms: dict[str, str] = {}


@tool(compensating_tool="cancel", side_effects=["booking:write"], registry=tools)
def book(city: str, idempotency_key: str) -> None:
    rooms[idempotency_key] = city


@tool(idempotent=True, registry=tools)
def cancel(idempotency_key: str) -> None:
    rooms.pop(idempotency_key, None)


class Traveller(Agent):
    """A sync agent: `forward` runs in a thread, and its calls hop back to the event loop."""

    def forward(self, context: Any, task: str) -> dict[str, Any]:
        self.use("book", city=task)
        return {"city": task}


async def test_we_changed_our_mind() -> None:
    rooms.clear()
    async with Orchestrator(tools=tools) as orchestrator:
        lisbon = await orchestrator.run(Traveller(), "Lisbon")
        await orchestrator.run(Traveller(), "Porto")
        undone = await orchestrator.undo(lisbon.run_id)
        again = await orchestrator.undo(lisbon.run_id)
    assert (undone.status, again.status) == ("rolled_back", "rolled_back")
    assert list(rooms.values()) == ["Porto"]
