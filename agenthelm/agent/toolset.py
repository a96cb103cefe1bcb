"""The tools one agent was given: the only ones its LM may choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agenthelm.agent.home import executor_here
from agenthelm.core.binding import KEY_PARAMETER
from agenthelm.core.tool import TOOL_REGISTRY, Tool, ToolRegistry

__all__ = ["Toolset"]


class Toolset(Mapping[str, Tool]):
    """Tools by name; immutable, so the copies that optimizers make of an agent share it."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = dict(tools)

    @classmethod
    def of(cls, tools: ToolRegistry | Iterable[Tool | Callable[..., Any] | str]) -> Toolset:
        """Make a set of functions, tools, registered names, or a whole registry.

        Raises:
            UnknownToolError: A name that is not in `TOOL_REGISTRY`.
            ToolContractError: Two different tools share a name.
        """
        if isinstance(tools, (Toolset, ToolRegistry)):
            return cls(tools)
        chosen = ToolRegistry()
        for item in [tools] if isinstance(tools, str) else tools:
            chosen.register(TOOL_REGISTRY.resolve(item) if isinstance(item, str) else item)
        return cls(chosen)

    async def call(self, name: str, arguments: Mapping[str, Any], reasoning: str = "") -> Any:
        """Call one of them through the executor in force; ``reasoning`` goes on record with the call.

        An idempotency key among the arguments is ignored: under one that an LM made up, a second effect would be none.

        Raises:
            UnknownToolError: It is none of these, whatever else the orchestrator has.
            RuntimeError: The agent is at work in a run, and here is a thread that is not known to belong to it.
            Exception: As `ToolExecutor.call`.
        """
        executor = executor_here(self)
        if name not in self._tools:  # refused there, and on record
            return await executor.call(name, arguments, allowed=self._tools, reasoning=reasoning)
        mine, known = self._tools[name], executor.tools.get(name)
        # The registry's own entry is preferred, so that undoing finds the same one; never a stranger of that name.
        target = known if known is not None and known.function is mine.function else mine
        if target.binding.takes_key:
            arguments = {name: value for name, value in arguments.items() if name != KEY_PARAMETER}
        return await executor.call(target, arguments, reasoning=reasoning)

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __deepcopy__(self, memo: dict[int, Any]) -> Toolset:
        return self

    def __repr__(self) -> str:
        return f"Toolset({', '.join(self._tools)})"
