"""Tools: plain functions with a contract, and the registries that hold them."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, overload

from agenthelm._runtime.retry import Backoff
from agenthelm.core.binding import KEY_PARAMETER, Binding, Parameter, missing_parameters, unwrapped
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
        known = _known(function) if contract is None else None
        if known is not None:
            if known.function is function:
                return known
            # `functools.wraps` copied the mark of what it wraps: under its contract, what wraps it is called.
            contract, name, idempotent = known.contract, name or known.name, known.contract.idempotent
        name = _name(function, name)
        contract = contract or ToolContract()
        _refuse_unfit(name, function)
        is_async = _is_kind(function, inspect.iscoroutinefunction)
        if idempotent is not None:
            contract = replace(contract, idempotent=idempotent)
        check_contract(name, contract, is_async=is_async)
        binding = Binding(name, function, inputs=contract.inputs, outputs=contract.outputs, localns=localns)
        if idempotent is None:
            contract = replace(contract, idempotent=binding.takes_key)
        _check_predicates(name, contract, binding)
        description = (inspect.getdoc(unwrapped(function)) or "").split("\n\n")[0].replace("\n", " ").strip()
        return cls(name, function, contract, description, binding, is_async)


def _name(function: Callable[..., Any], given: object) -> str:
    """What a tool is called."""
    name = given or getattr(function, "__name__", type(function).__name__)
    try:
        return str(name.encode().decode())  # type: ignore[attr-defined]
    except (AttributeError, UnicodeError) as exc:
        raise ToolContractError(f"a tool's name is a text, not {name!r}", tool_name=repr(name)) from exc


def _is_kind(function: Callable[..., Any], kind: Callable[[Any], bool]) -> bool:
    """Whether calling it is calling a function of that kind."""
    function = unwrapped(function)
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004


def _refuse_unfit(name: str, function: Callable[..., Any]) -> None:
    """Refuse functions of which calling them is not running them."""
    if _is_kind(function, inspect.isgeneratorfunction) or _is_kind(function, inspect.isasyncgenfunction):
        raise ToolContractError(
            f"tool {name!r} is a generator, which does nothing until somebody iterates it; return a list",
            tool_name=name,
        )
    inside = getattr(function, "__qualname__", "").rpartition(".")[0]
    if inspect.isfunction(function) and inside and not inside.endswith("<locals>"):
        first = function.__code__.co_varnames[: function.__code__.co_argcount][:1]
        if first in {("self",), ("cls",)}:
            raise ToolContractError(
                f"tool {name!r} is a method of {inside}, and there is no {first[0]!r} to call it with; register the "
                f"method of an instance: tool(...)(instance.{function.__name__})",
                tool_name=name,
            )


def _known(function: Callable[..., Any]) -> Tool | None:
    """The tool that ``@tool`` made of a function, or of what it wraps.

    Raises:
        ToolContractError: It made several, and which one is meant can't be known.
    """
    known: tuple[Tool, ...] = getattr(function, _ATTRIBUTE, ())
    if any((other.name, other.contract) != (known[0].name, known[0].contract) for other in known[1:]):
        raise ToolContractError(
            f"{_place(function)} is a tool with several contracts; pass the tool that is meant: registry[name]",
            tool_name=known[-1].name,
        )
    return known[-1] if known else None


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
                f"({_place(present.function)}); rename one of them",
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


def _place(function: Any) -> str:
    """Where a function is defined; of a callable object, its type."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _same_definition(one: Any, other: Any) -> bool:
    """Whether two functions are one definition, executed twice (a reloaded module, a notebook cell)."""
    if one == other:
        return True
    if not (hasattr(one, "__qualname__") and hasattr(other, "__qualname__")) or "<locals>" in one.__qualname__:
        return False
    if _place(one) != _place(other):
        return False
    # Methods are the same if what they are bound to is: an instance is itself, a class may be defined twice.
    owner, its = getattr(one, "__self__", None), getattr(other, "__self__", None)
    return owner is its or (isinstance(owner, type) and isinstance(its, type) and _same_definition(owner, its))


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

    def decorate(target: F) -> F:
        contract = ToolContract(**_normalised(_name(target, name), fields)) if fields else ToolContract()
        entry = Tool.from_function(target, contract, name=name, idempotent=idempotent, localns=localns)
        into = TOOL_REGISTRY if registry is None else registry
        replaced = into.get(entry.name)
        into.register(entry)
        earlier = [it for it in getattr(target, _ATTRIBUTE, ()) if it.function is target and it is not replaced]
        try:
            setattr(target, _ATTRIBUTE, (*earlier, entry))
        except AttributeError:
            pass  # a bound method or a builtin carries no attributes; registries find it by name all the same
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
        known_tool = _known(compensator)
        out["compensating_tool"] = known_tool.name if known_tool else getattr(compensator, "__name__", compensator)
    return out
