"""Tools by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agenthelm.core.compensation import compensation_problem, secret_problem
from agenthelm.core.function import Tool, place_of
from agenthelm.exceptions import PlanError, ToolContractError, UnknownToolError, nearest

__all__ = ["TOOL_REGISTRY", "ToolRegistry"]


class ToolRegistry(Mapping[str, Tool]):
    """Tools by name.

    Args:
        tools: Functions or tools to begin with.
    """

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        self._checked: set[tuple[str, str]] = set()
        """Tools and their compensators that are known to fit, by name."""
        for item in tools:
            self.register(item)

    @classmethod
    def of(cls, tools: ToolRegistry | Iterable[Tool | Callable[..., Any]]) -> ToolRegistry:
        """The registry itself, or one made of functions."""
        return tools if isinstance(tools, ToolRegistry) else cls(tools)

    def register(self, item: Tool | Callable[..., Any], *, replace: bool = False) -> Tool:
        """Add a tool.

        Args:
            item: A tool, or a function, decorated or plain.
            replace: Let it take the place of another one of its name.

        Raises:
            ToolContractError: Another function has the name, or its compensation could never be called.
        """
        entry = item if isinstance(item, Tool) else Tool.from_function(item)
        present = self._tools.get(entry.name)
        if present is not None and not replace and not _same_definition(present.function, entry.function):
            raise ToolContractError(
                f"another function is registered as tool {entry.name!r} "
                f"({place_of(present.function)}); rename one of them",
                tool_name=entry.name,
            )
        self._check_secrets(entry)
        self._tools[entry.name] = entry
        self._checked.clear()
        return entry

    def get(self, name: str, default: Any = None) -> Any:
        """The tool of that name, or the default."""
        return self._tools.get(name, default)

    def filter(self, *, tags: Iterable[str] = (), side_effects: Iterable[str] = ()) -> list[Tool]:
        """Tools that carry all these tags and all these side effects; a string is one, as with ``@tool``."""
        want_tags, want_effects = ({them} if isinstance(them, str) else set(them) for them in (tags, side_effects))
        return [
            item
            for item in self._tools.values()
            if want_tags <= set(item.contract.tags) and want_effects <= set(item.contract.side_effects)
        ]

    def check(self) -> None:
        """Make sure that every compensation could be called; done before the first effect of a run.

        Raises:
            PlanError: A compensating tool or ``verify`` tool is unknown, or one can't be given what it requires.
        """
        for entry in self._tools.values():
            self.check_compensation(entry, entry.contract.compensating_tool)
            self.check_verify(entry)

    def check_verify(self, entry: Tool) -> None:
        """Make sure that whoever knows what a tool did can be asked.

        Raises:
            PlanError: Its ``verify`` tool is unknown.
        """
        verify = entry.contract.verify
        if isinstance(verify, str) and verify not in self._tools:
            raise PlanError(
                f"tool {entry.name!r} names {verify!r} as verify, but no such tool is registered"
                f"{_hint(verify, self._tools)}"
            )

    def check_compensation(self, entry: Tool, compensating_tool: str | None) -> None:
        """Make sure that one tool could be undone by another.

        Raises:
            PlanError: It could not.
        """
        if compensating_tool is None or (entry.name, compensating_tool) in self._checked:
            return
        compensator = self._tools.get(compensating_tool)
        if compensator is None:
            raise PlanError(
                f"tool {entry.name!r} is undone by {compensating_tool!r}, but no such tool is registered"
                f"{_hint(compensating_tool, self._tools)}"
            )
        if problem := compensation_problem(entry, compensator):
            raise PlanError(f"tool {entry.name!r} is undone by {compensating_tool!r}, which {problem}")
        if self._tools.get(entry.name) is entry:
            self._checked.add((entry.name, compensating_tool))

    def _check_secrets(self, entry: Tool) -> None:
        pairs = [(entry, self._tools.get(entry.contract.compensating_tool or ""))]
        pairs += [(other, entry) for other in self._tools.values() if other.contract.compensating_tool == entry.name]
        for forward, compensator in pairs:
            if compensator is not None and (problem := secret_problem(forward, compensator)) is not None:
                raise ToolContractError(
                    f"tool {forward.name!r} is undone by {compensator.name!r}, which {problem}", tool_name=forward.name
                )

    def copy(self) -> ToolRegistry:
        """A registry of its own with the same tools."""
        return ToolRegistry(self._tools.values())

    @contextmanager
    def isolated(self) -> Iterator[ToolRegistry]:
        """For tests: what is registered inside the ``with`` block is forgotten after it."""
        before = dict(self._tools)
        try:
            yield self
        finally:
            self._tools = before
            self._checked.clear()

    def resolve(self, name: str) -> Tool:
        """The tool of that name.

        Raises:
            UnknownToolError: With the nearest names.
        """
        entry = self._tools.get(name)
        if entry is None:
            raise UnknownToolError(name, self._tools)
        return entry

    def __getitem__(self, name: str) -> Tool:
        return self.resolve(name)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __repr__(self) -> str:
        return f"ToolRegistry({', '.join(self._tools)})"


def _hint(name: str, known: Iterable[str]) -> str:
    hint = nearest(name, known)
    return f".{hint}" if hint else ""


def _same_definition(one: Any, other: Any) -> bool:
    """Whether two functions are one definition, executed twice (a reloaded module, a notebook cell)."""
    if one == other:
        return True
    if not (hasattr(one, "__qualname__") and hasattr(other, "__qualname__")) or "<locals>" in one.__qualname__:
        return False
    if place_of(one) != place_of(other):
        return False
    # Methods are the same if what they are bound to is: an instance is itself, a class may be defined twice.
    owner, its = getattr(one, "__self__", None), getattr(other, "__self__", None)
    return owner is its or (isinstance(owner, type) and isinstance(its, type) and _same_definition(owner, its))


TOOL_REGISTRY = ToolRegistry()
"""Where ``@tool`` registers by default, and what an orchestrator uses by default."""
