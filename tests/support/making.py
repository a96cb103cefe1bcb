"""The smallest world that can be undone: names in a list."""

from __future__ import annotations

from agenthelm.core.tool import ToolRegistry, tool


def making(tools: ToolRegistry, world: list[str]) -> None:
    """Register ``make``, which puts a name into the world, and ``unmake``, which undoes that by its result."""

    @tool(registry=tools, compensating_tool="unmake")
    async def make(name: str) -> dict[str, str]:
        world.append(name)
        return {"thing": name}

    @tool(registry=tools)
    async def unmake(thing: str) -> None:
        world.remove(thing)


def making_and_failing(world: list[str]) -> ToolRegistry:
    """The same two tools in a registry of their own, with ``fail``, which only raises a ``ValueError``."""
    tools = ToolRegistry()
    making(tools, world)

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    return tools
