"""``@tool``: a plain function becomes a tool, under a contract, in a registry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from agenthelm._runtime.retry import Backoff
from agenthelm.core.contract import ToolContract
from agenthelm.core.function import Tool, known_tool, name_of, remember
from agenthelm.core.registry import TOOL_REGISTRY, ToolRegistry
from agenthelm.exceptions import ToolContractError, nearest

__all__ = ["TOOL_REGISTRY", "Backoff", "Tool", "ToolContract", "ToolRegistry", "tool"]

F = TypeVar("F", bound=Callable[..., Any])


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *,
    name: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    side_effects: Sequence[str] = (),
    max_cost: float | None = None,
    requires_approval: bool | Callable[..., bool] = False,
    retries: int = 0,
    retry_on: type[Exception] | Sequence[type[Exception]] = Exception,
    backoff: Backoff | None = None,
    compensating_tool: str | Callable[..., Any] | None = None,
    verify: str | Callable[..., Any] | None = None,
    unknown_on: type[Exception] | Sequence[type[Exception]] = (),
    timeout: float | None = None,
    tags: Sequence[str] = (),
    idempotent: bool | None = None,
    abandonable: bool = False,
    runs_in: Literal["thread", "process"] = "thread",
    registry: ToolRegistry | None = None,
) -> Callable[[F], F]: ...


def tool(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    registry: ToolRegistry | None = None,
    idempotent: bool | None = None,
    **fields: Any,
) -> F | Callable[[F], F]:
    """Register a function as a tool; the function itself is returned unchanged.

    Calling the function runs the function. The contract holds through the executor: `Agent.ause`, `Agent.use`, an LM's
    choice, a saga's step. Use it bare or with the fields of `ToolContract`.

    Args:
        function: The function, when the decorator is used bare.
        name: The tool's name; the function's by default.
        registry: Where it is registered; `TOOL_REGISTRY` by default.
        idempotent: Whether calling twice with one idempotency key is calling once; by default whether the function
            takes an ``idempotency_key``.
        **fields: The fields of `ToolContract`.

    Raises:
        ToolContractError: The contract contradicts itself, or the name is taken by another function.
    """
    frame = sys._getframe(1)
    localns = dict(frame.f_locals) if frame.f_locals is not frame.f_globals else None

    def decorate(target: F) -> F:
        contract = ToolContract(**_normalised(name_of(target, name), fields)) if fields else ToolContract()
        entry = Tool.from_function(target, contract, name=name, idempotent=idempotent, localns=localns)
        into = TOOL_REGISTRY if registry is None else registry
        replaced = into.get(entry.name)
        into.register(entry)
        remember(target, entry, replaced=replaced)
        return target

    return decorate if function is None else decorate(function)


def _normalised(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Accept one exception class or string where the contract holds a tuple, and functions as compensators."""
    known = ToolContract.__dataclass_fields__
    for key in fields:
        if key not in known:
            raise ToolContractError(f"tool {name!r}: @tool has no field {key!r}.{nearest(key, known)}", tool_name=name)
    out = dict(fields)
    for key in ("side_effects", "tags", "retry_on", "unknown_on"):
        if key in out:
            value = out[key]
            if isinstance(value, (str, type)):
                out[key] = (value,)
            elif isinstance(value, Iterable):
                out[key] = tuple(value)
    if out.get("backoff", ...) is None:
        del out["backoff"]
    compensator = out.get("compensating_tool")
    if callable(compensator):
        entry = known_tool(compensator)
        out["compensating_tool"] = entry.name if entry else getattr(compensator, "__name__", compensator)
    return out
