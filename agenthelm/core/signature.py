"""What a function takes and gives, read from its annotations: once, when it becomes a tool."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typing_extensions
from pydantic import ConfigDict, TypeAdapter, with_config
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo

from agenthelm.core.schemas import adapter, reads_once
from agenthelm.core.sensitive import is_sensitive
from agenthelm.exceptions import ToolContractError, nearest

__all__ = ["Parameter", "Signature", "call_by_name", "missing_parameters", "unwrapped"]

_EMPTY = inspect.Parameter.empty
# Before Python 3.13 there are two of each.
_UNPACK: tuple[object, ...] = (typing.Unpack, typing_extensions.Unpack)
_REQUIRED: tuple[object, ...] = (typing.Required, typing_extensions.Required)
_NOT_REQUIRED: tuple[object, ...] = (typing.NotRequired, typing_extensions.NotRequired)
_QUALIFIERS = (*_REQUIRED, *_NOT_REQUIRED, typing_extensions.ReadOnly)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool.

    Attributes:
        name: Its name.
        annotation: Its resolved type.
        required: Whether a call must give it.
        default: What it is when not given.
        sensitive: Whether its value must never be stored or shown.
    """

    name: str
    annotation: Any
    required: bool
    default: Any = None
    sensitive: bool = False


class Signature:
    """The parameters and the result of a function, with their types.

    Args:
        name: The tool's name, for messages.
        function: The function.
        inputs: Overrides of parameter types.
        outputs: Overrides of the result's fields.
        localns: Names visible where the function was defined, for annotations that name local types.

    Attributes:
        name: The tool's name.
        function: The function.
        parameters: By name, in order; those that a ``TypedDict`` behind ``**kwargs`` declares included.
        defaults: Of those that have one.
        open_ended: Whether it takes ``**kwargs`` of any name.
        rest: What its ``**kwargs`` are called, where they have a type; ``""`` otherwise.
        rest_type: That type.
        positional: The parameters that can't be given by name.
        result_type: What it is annotated to return.
        result_fields: The types that ``outputs=`` gives the fields of the result.

    Raises:
        ToolContractError: The signature can't be a contract.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        localns: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError) as exc:  # a class method before it is bound, or a builtin without a signature
            raise ToolContractError(f"tool {name!r}: its parameters can't be read ({exc})", tool_name=name) from exc
        hints = self._hints(function, localns)
        namespace = {**getattr(unwrapped(function), "__globals__", {}), **(localns or {})}
        try:
            override = {key: _named_type(key, spec, namespace) for key, spec in (inputs or {}).items()}
            fields = {key: _named_type(key, spec, namespace) for key, spec in (outputs or {}).items()}
        except TypeError as exc:
            raise ToolContractError(f"tool {name!r}: {exc}", tool_name=name) from exc
        self.parameters: dict[str, Parameter] = {}
        self.defaults: dict[str, Any] = {}
        self.open_ended: bool = False
        self.rest: str = ""
        self.rest_type: Any = Any
        self.positional: list[str] = []
        self.result_type: Any = hints.get("return", Any)
        self.result_fields: dict[str, Any] = fields
        given = function.keywords if isinstance(function, functools.partial) else {}
        for parameter in signature.parameters.values():
            if parameter.name not in given:
                self._add(parameter, hints, override)
        if unknown := [key for key in override if key not in self.parameters and not self.open_ended]:
            raise ToolContractError(
                f"tool {name!r}: inputs names {unknown[0]!r}, which is no parameter of the function."
                f"{nearest(unknown[0], self.parameters)}",
                tool_name=name,
            )

    def arguments_adapter(self) -> TypeAdapter[Any]:
        """What validates the arguments of a call, by name."""
        try:
            fields = {
                p.name: p.annotation if p.required else typing_extensions.NotRequired[p.annotation]
                for p in self.parameters.values()
            }
            # typing_extensions.TypedDict: pydantic refuses typing's own below Python 3.12.
            shape = typing_extensions.TypedDict(f"{self.name}_arguments", fields)  # type: ignore[misc]
        except TypeError as exc:
            raise self._senseless(exc) from exc
        extra: Any = "allow" if self.open_ended else "forbid"
        # A parameter with an alias goes by its own name as well: compensators are called by the names of parameters.
        config = ConfigDict(extra=extra, arbitrary_types_allowed=True, validate_by_name=True, loc_by_alias=False)
        return self._adapter(with_config(config)(shape), "a parameter", models=True)

    def result_adapter(self) -> TypeAdapter[Any] | None:
        """What validates a result; None where anything will do."""
        if self.result_fields:
            shape = typing_extensions.TypedDict(f"{self.name}_result", dict(self.result_fields))  # type: ignore[misc]  # noqa: UP013
            config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
            return self._adapter(with_config(config)(shape), "the result", models=False)
        if self.result_type is Any:
            return None
        kind = type(None) if self.result_type is None else self.result_type
        return self._adapter(kind, "the result", models=False)

    def rest_adapter(self) -> TypeAdapter[Any] | None:
        """What validates the values of ``**kwargs``; None where they have no type."""
        if not self.rest:
            return None
        return self._adapter(types.GenericAlias(dict, (str, self.rest_type)), "a parameter", models=True)

    def _hints(self, function: Callable[..., Any], localns: dict[str, Any] | None) -> dict[str, Any]:
        target = unwrapped(function)
        if not hasattr(target, "__annotations__"):
            target = type(target).__call__
        try:
            return typing.get_type_hints(target, localns=localns, include_extras=True)
        except NameError as exc:
            raise ToolContractError(
                f"tool {self.name!r}: an annotation names {exc.name!r}, which is not defined where the tool is; import it "
                f"outside of TYPE_CHECKING",
                tool_name=self.name,
            ) from exc
        except TypeError as exc:  # Final, ClassVar and their like as text
            raise self._senseless(exc) from exc

    def _senseless(self, error: TypeError) -> ToolContractError:
        return ToolContractError(
            f"tool {self.name!r}: an annotation can't be that of a parameter: {error}", tool_name=self.name
        )

    def _add(self, parameter: inspect.Parameter, hints: Mapping[str, Any], override: Mapping[str, Any]) -> None:
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise ToolContractError(
                f"tool {self.name!r}: *{parameter.name} has no names to validate; take a list instead",
                tool_name=self.name,
            )
        annotation = override.get(parameter.name, hints.get(parameter.name, Any))
        if parameter.kind is parameter.VAR_KEYWORD:
            self._add_rest(parameter.name, annotation)
            return
        if parameter.kind is parameter.POSITIONAL_ONLY:
            self.positional.append(parameter.name)
        default = parameter.default
        required = default is _EMPTY
        if isinstance(default, FieldInfo):  # pydantic applies it, and fills in the default that it holds
            annotation, required = Annotated[annotation, default], default.is_required()
            default = None if required or default.default_factory is not None else default.default
        elif not required:
            self.defaults[parameter.name] = default
        self._declare(parameter.name, annotation, required=required, default=None if required else default)

    def _add_rest(self, name: str, annotation: Any) -> None:
        """What ``**kwargs`` takes: anything, values of one type, or the fields of a ``TypedDict``."""
        if typing.get_origin(annotation) not in _UNPACK:
            self.open_ended = True
            if annotation is not Any:
                self.rest, self.rest_type = name, annotation
            return
        (shape,) = typing.get_args(annotation)
        for field, hint in typing_extensions.get_type_hints(shape, include_extras=True).items():
            kind, required = hint, field in shape.__required_keys__
            while (origin := typing.get_origin(kind)) in _QUALIFIERS:
                # It says more than `__required_keys__`, which can't read annotations that are texts.
                required = (required or origin in _REQUIRED) and origin not in _NOT_REQUIRED
                (kind,) = typing.get_args(kind)
            self._declare(field, kind, required=required)

    def _declare(self, name: str, annotation: Any, *, required: bool, default: Any = None) -> None:
        if reads_once(annotation):
            raise ToolContractError(
                f"tool {self.name!r}: {name!r} takes an iterator, which could be read only once, and is read before the "
                f"tool runs; take a list instead",
                tool_name=self.name,
            )
        self.parameters[name] = Parameter(
            name, annotation, required=required, default=default, sensitive=is_sensitive(annotation)
        )

    def _adapter(self, kind: Any, what: str, *, models: bool) -> TypeAdapter[Any]:
        """See `adapter`; ``what`` has that type."""
        try:
            return adapter(kind, models=models)
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as exc:
            raise ToolContractError(
                f"tool {self.name!r}: {what} has a type that can't be validated: {str(exc).splitlines()[0]}",
                tool_name=self.name,
            ) from exc


def _named_type(name: str, spec: Any, namespace: dict[str, Any]) -> Any:
    """The type behind one entry of ``inputs=``/``outputs=``: a type, or the name of one."""
    if not isinstance(spec, str):
        return spec
    known = {**vars(typing), **namespace}
    try:
        return eval(spec, {"__builtins__": __builtins__}, known)  # noqa: S307 - the developer's own decorator argument
    except Exception as exc:
        raise TypeError(
            f"{name!r} has the type {spec!r}, which can't be resolved ({type(exc).__name__}: {exc})"
        ) from exc


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is called in the end, behind ``functools.partial``."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def missing_parameters(function: Callable[..., Any], available: frozenset[str] | set[str]) -> list[str]:
    """Required parameters of a callable that ``available`` names can't supply."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is _EMPTY and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in available
    ]


def call_by_name(function: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call a function with those of the available values that it names as parameters."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function(**available)
    return function(**{p.name: available[p.name] for p in parameters if p.name in available})
