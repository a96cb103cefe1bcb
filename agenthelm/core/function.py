"""A function as a tool: under a contract, bound, and ready to be called by the executor."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agenthelm.core.binding import KEY_PARAMETER, Binding
from agenthelm.core.contract import ToolContract, check_contract
from agenthelm.core.signature import Parameter, Signature, missing_parameters, unwrapped
from agenthelm.exceptions import ToolContractError, nearest

__all__ = ["Tool", "known_tool", "name_of", "place_of", "remember"]

_ATTRIBUTE = "__agenthelm_tool__"


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
        verifier: The function that the contract's ``verify`` is, ready to be asked; None where it is a tool's name.
        fingerprint: Digest of what undoing relies on; when it has changed, a journal may no longer fit the code.
        origin: The file that defines it, without folder and ending; two apps may have tools of one name. ``""`` where
            there is none, as in a notebook.
    """

    name: str
    function: Callable[..., Any]
    contract: ToolContract
    description: str
    binding: Binding = field(repr=False, compare=False)
    is_async: bool = False
    verifier: Tool | None = field(default=None, repr=False, compare=False)
    fingerprint: str = field(init=False, repr=False, compare=False)
    origin: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        contract = self.contract
        parameters = sorted((p.name, p.required) for p in self.parameters.values())
        facts = (self.name, parameters, contract.compensating_tool, contract.idempotent, contract.verify is not None)
        object.__setattr__(self, "fingerprint", hashlib.sha256(repr(facts).encode()).hexdigest()[:16])
        object.__setattr__(self, "origin", _origin(self.function))

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
        known = known_tool(function) if contract is None else None
        if known is not None:
            if known.function is function:
                return known
            # `functools.wraps` copied the mark of what it wraps: under its contract, what wraps it is called.
            contract, name, idempotent = known.contract, name or known.name, known.contract.idempotent
        name = name_of(function, name)
        contract = contract or ToolContract()
        _refuse_unfit(name, function)
        is_async = _is_kind(function, inspect.iscoroutinefunction)
        if idempotent is not None:
            contract = replace(contract, idempotent=idempotent)
        check_contract(name, contract, is_async=is_async)
        if contract.runs_in == "process":
            _refuse_unreachable(name, function)
        signature = Signature(name, function, inputs=contract.inputs, outputs=contract.outputs, localns=localns)
        binding = Binding(signature)
        if idempotent is None:
            contract = replace(contract, idempotent=binding.takes_key)
        _check_predicates(name, contract, binding)
        description = (inspect.getdoc(unwrapped(function)) or "").split("\n\n")[0].replace("\n", " ").strip()
        return cls(name, function, contract, description, binding, is_async, _verifier(name, contract, localns))


def name_of(function: Callable[..., Any], given: object) -> str:
    """What a tool is called."""
    name = given or getattr(function, "__name__", type(function).__name__)
    try:
        return str(name.encode().decode())  # type: ignore[attr-defined]
    except (AttributeError, UnicodeError) as exc:
        raise ToolContractError(f"a tool's name is a text, not {name!r}", tool_name=repr(name)) from exc


def _is_kind(function: Callable[..., Any], kind: Callable[[Any], bool]) -> bool:
    """Whether calling it is calling a function of that kind."""
    function = unwrapped(function)
    return kind(function) or kind(getattr(type(function), "__call__", None))  # noqa: B004


def _refuse_unfit(name: str, function: Callable[..., Any]) -> None:
    """Refuse functions that calling does not run: generators, and methods without an instance."""
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


def _refuse_unreachable(name: str, function: Callable[..., Any]) -> None:
    """Refuse functions that a worker process could not import."""
    function = unwrapped(function)
    place = getattr(function, "__qualname__", type(function).__qualname__)
    if "<locals>" in place or "<lambda>" in place:
        raise ToolContractError(
            f"tool {name!r}: runs_in='process' is for functions that another process can import, and {place} is not; "
            f"define it with 'def' at the top level of a module",
            tool_name=name,
        )
    if getattr(function, "__module__", None) == "__main__" and not _main_is_a_file():
        raise ToolContractError(
            f"tool {name!r}: runs_in='process' is for functions that another process can import, and {place} is in no file; "
            "define it in a module",
            tool_name=name,
        )


def _main_is_a_file() -> bool:
    """Whether the program is one; what is typed in, as into a notebook, is none."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is not None and Path(file).is_file()


def known_tool(function: Callable[..., Any]) -> Tool | None:
    """The tool that ``@tool`` made of a function, or of what it wraps.

    Raises:
        ToolContractError: It made several, and which one is meant can't be known.
    """
    known: tuple[Tool, ...] = getattr(function, _ATTRIBUTE, ())
    if any((other.name, other.contract) != (known[0].name, known[0].contract) for other in known[1:]):
        raise ToolContractError(
            f"{place_of(function)} is a tool with several contracts; pass the tool that is meant: registry[name]",
            tool_name=known[-1].name,
        )
    return known[-1] if known else None


def remember(function: Callable[..., Any], entry: Tool, *, replaced: Tool | None) -> None:
    """Let a function know the tool that was made of it, so that it can be given in the tool's place."""
    earlier = [it for it in getattr(function, _ATTRIBUTE, ()) if it.function is function and it is not replaced]
    try:
        setattr(function, _ATTRIBUTE, (*earlier, entry))
    except AttributeError:
        pass  # a bound method or a builtin carries no attributes; registries find it by name all the same


def _check_predicates(name: str, contract: ToolContract, binding: Binding) -> None:
    """Refuse functions in the contract that ask for what no call can give them."""
    available = {*binding.parameters, KEY_PARAMETER}
    for label in ("requires_approval", "verify"):
        function = getattr(contract, label)
        if not callable(function):
            continue
        try:
            if isinstance(function, type):  # Python 3.14 reads `bool(object=False, /)`: no call would give it a value
                raise TypeError("it is a class, not a function")
            missing = missing_parameters(function, available)
        except (TypeError, ValueError) as exc:
            raise ToolContractError(
                f"tool {name!r}: the parameters of {label} can't be read ({exc})", tool_name=name
            ) from exc
        if missing and not binding.open_ended:
            raise ToolContractError(
                f"tool {name!r}: {label} takes {missing[0]!r}, which is no argument of the tool."
                f"{nearest(missing[0], available)}",
                tool_name=name,
            )


def _verifier(name: str, contract: ToolContract, localns: dict[str, Any] | None) -> Tool | None:
    """The function that says whether an effect happened, as a tool.

    Raises:
        ToolContractError: It could never be asked.
    """
    if contract.verify is None or isinstance(contract.verify, str):
        return None
    try:
        asked = Tool.from_function(contract.verify, ToolContract(), name=f"{name}.verify", localns=localns)
    except ToolContractError as exc:
        raise ToolContractError(f"tool {name!r}: verify could never be asked: {exc}", tool_name=name) from exc
    # A thread can't be stopped, so for a sync function a deadline would say nothing.
    return replace(asked, contract=replace(asked.contract, timeout=contract.timeout)) if asked.is_async else asked


def _origin(function: Callable[..., Any]) -> str:
    function = unwrapped(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)  # a method of a built-in type has none
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    path = Path(file or "")
    return path.parent.name if path.stem == "__init__" else path.stem


def place_of(function: Any) -> str:
    """Where a function is defined; of a callable object, its type."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
