"""Tools: plain functions with a contract, and the registries that hold them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, overload

from agenthelm._runtime.retry import Backoff
from agenthelm.core.binding import KEY_PARAMETER, Binding, Parameter, missing_parameters
from agenthelm.core.contract import ToolContract, check_contract
from agenthelm.exceptions import PlanError, ToolContractError, UnknownToolError, nearest

__all__ = ["TOOL_REGISTRY", "Backoff", "Tool", "ToolContract", "ToolRegistry", "tool"]

F = TypeVar("F", bound=Callable[..., Any])
_ATTRIBUTE = "__agenthelm_tool__"
_COMPENSATION_EXTRAS = frozenset({"result", KEY_PARAMETER})


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with its contract, bound and ready to be called by the executor.

    Attributes:
        name: Its name in registries.
        function: The plain function.
        contract: What it promises.
        description: The first paragraph of its docstring.
        binding: Its validated signature.
        is_async: Whether calling the function gives something to await.
        fingerprint: Digest of what undoing relies on; when it has changed, a journal may no longer fit the code.
    """

    name: str
    function: Callable[..., Any]
    contract: ToolContract
    description: str
    binding: Binding = field(repr=False, compare=False)
    is_async: bool = False
    fingerprint: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        contract = self.contract
        parameters = sorted((p.name, p.required) for p in self.parameters.values())
        facts = (self.name, parameters, contract.compensating_tool, contract.idempotent, contract.verify is not None)
        object.__setattr__(self, "fingerprint", hashlib.sha256(repr(facts).encode()).hexdigest()[:16])

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Its parameters by name, in order; the idempotency key included."""
        return self.binding.parameters

    @property
    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the arguments a caller gives."""
        return self.binding.json_schema()

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        contract: ToolContract | None = None,
        *,
        name: str | None = None,
        idempotent: bool | None = None,
        localns: dict[str, Any] | None = None,
    ) -> Tool:
        """Make a tool of a function.

        Args:
            function: A sync or async function; positional-only and keyword-only parameters, defaults and ``**kwargs``
                are fine, ``*args`` are not.
            contract: Its contract; a bare one when not given.
            name: Its name; the function's by default.
            idempotent: Overrides the rule that a tool with an idempotency key is idempotent.
            localns: Names visible where the function was defined.

        Raises:
            ToolContractError: The function or the contract contradicts itself.
        """
        known: Tool | None = getattr(function, _ATTRIBUTE, None)
        if contract is None and known is not None:
            return known
        name = name or str(getattr(function, "__name__", type(function).__name__))
        contract = contract or ToolContract()
        is_async = _is_async(function)
        binding = Binding(name, function, inputs=contract.inputs, outputs=contract.outputs, localns=localns)
        contract = replace(contract, idempotent=binding.takes_key if idempotent is None else idempotent)
        check_contract(name, contract, is_async=is_async)
        _check_predicates(name, contract, binding)
        description = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").strip()
        return cls(name, function, contract, description, binding, is_async)


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _check_predicates(name: str, contract: ToolContract, binding: Binding) -> None:
    """Refuse functions in the contract that ask for what no call can give them."""
    available = {*binding.parameters, KEY_PARAMETER}
    for label in ("requires_approval", "verify"):
        function = getattr(contract, label)
        if callable(function) and not binding.open_ended and (missing := missing_parameters(function, available)):
            raise ToolContractError(
                f"tool {name!r}: {label} takes {missing[0]!r}, which is no argument of the tool."
                f"{nearest(missing[0], available)}",
                tool_name=name,
            )


def compensation_problem(forward: Tool, compensator: Tool) -> str | None:
    """Why a compensator could not be called for a tool, or None when it can.

    A compensator receives, by parameter name, the forward arguments, then the fields of the result, ``result``, and
    ``idempotency_key``.
    """
    fields = forward.binding.declared_fields()
    for parameter in compensator.parameters.values():
        if not parameter.required or parameter.name in _COMPENSATION_EXTRAS:
            continue
        from_result = fields is None or parameter.name in fields
        forwarded = forward.parameters.get(parameter.name)
        declared = fields is not None and parameter.name in fields
        secret_argument = forwarded is not None and parameter.name in forward.binding.guarded
        if (secret_argument and not declared) or (
            forwarded is None and parameter.name in forward.binding.secret_fields
        ):
            return (
                f"needs {parameter.name!r}, a secret that no journal may hold; let it take the idempotency key or a "
                f"field of the result instead"
            )
        if forwarded is None and not from_result:
            return (
                f"needs {parameter.name!r}, which is neither an argument of {forward.name!r} nor a field of its "
                f"declared result"
            )
    return None


def needs_result(forward: Tool, compensator: Tool) -> bool:
    """Whether a compensator can only be called once the forward call's result is known."""
    return any(
        p.required and p.name != KEY_PARAMETER and p.name not in forward.parameters
        for p in compensator.parameters.values()
    )


class ToolRegistry(Mapping[str, Tool]):
    """Tools by name.

    Args:
        tools: Functions or tools to begin with.
    """

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        self._checked: set[tuple[str, str]] = set()
        """Tools, and what undoes them, of which it is known that it could."""
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
                f"({present.function.__module__}.{present.function.__qualname__}); rename one of them",
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
        """Tools that carry all these tags and all these side effects."""
        want_tags, want_effects = set(tags), set(side_effects)
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
            if compensator is None:
                continue
            problem = compensation_problem(forward, compensator)
            if problem is not None and "secret" in problem:
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
    return f".{nearest(name, known)}" if nearest(name, known) else ""


def _same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are one definition, executed twice (a reloaded module, a notebook cell)."""
    if one is other:
        return True
    name, module = getattr(one, "__qualname__", None), getattr(one, "__module__", None)
    return (
        name is not None
        and "<locals>" not in name
        and (name, module) == (getattr(other, "__qualname__", None), getattr(other, "__module__", None))
    )


TOOL_REGISTRY = ToolRegistry()
"""Where ``@tool`` registers by default, and what an orchestrator uses by default."""


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
    contract = ToolContract(**_normalised(fields)) if fields else ToolContract()

    def decorate(target: F) -> F:
        entry = Tool.from_function(target, contract, name=name, idempotent=idempotent, localns=localns)
        (TOOL_REGISTRY if registry is None else registry).register(entry)
        try:
            setattr(target, _ATTRIBUTE, entry)
        except AttributeError:
            pass  # a bound method or a builtin carries no attributes; registries find it by name all the same
        return target

    return decorate if function is None else decorate(function)


def _normalised(fields: dict[str, Any]) -> dict[str, Any]:
    """Accept one exception class or string where the contract holds a tuple, and functions as compensators."""
    known = ToolContract.__dataclass_fields__
    for key in fields:
        if key not in known:
            raise ToolContractError(f"@tool has no field {key!r}.{nearest(key, known)}", tool_name="?")
    out = dict(fields)
    for key in ("side_effects", "tags", "retry_on", "unknown_on"):
        if key in out:
            value = out[key]
            out[key] = (value,) if isinstance(value, (str, type)) else tuple(value)
    if out.get("backoff", ...) is None:
        del out["backoff"]
    compensator = out.get("compensating_tool")
    if callable(compensator):
        known_tool: Tool | None = getattr(compensator, _ATTRIBUTE, None)
        out["compensating_tool"] = known_tool.name if known_tool else compensator.__name__
    return out
