"""From a function's signature to validated arguments: done once at decoration, used on every call."""

from __future__ import annotations

import copy
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typing_extensions
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from agenthelm.core.effects import LostResult
from agenthelm.core.json_schema import SchemaWithoutSecrets
from agenthelm.core.lists import keep_lists, reads_once
from agenthelm.core.redaction import MASK, looks_secret
from agenthelm.core.sensitive import holds_secrets, is_sensitive, secret_fields, unmarked_fields
from agenthelm.exceptions import ToolContractError, ToolInputError, ToolOutputError, nearest
from agenthelm.tracing.marks import hidden

__all__ = ["KEY_PARAMETER", "Binding", "Parameter", "call_by_name", "missing_parameters", "own_copy"]

KEY_PARAMETER = "idempotency_key"
_EMPTY = inspect.Parameter.empty
_SCALARS = (str, int, float, bool, bytes, type(None))
_IMMUTABLE = frozenset(_SCALARS)


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


class Binding:
    """A function's parameters and result, ready to validate.

    Args:
        name: The tool's name, for messages.
        function: The function.
        inputs: Overrides of parameter types.
        outputs: Overrides of the result's fields.
        localns: Names visible where the function was defined, for annotations that name local types.

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
        self._function = function
        signature = inspect.signature(function)
        hints = self._hints(localns)
        namespace = {**getattr(function, "__globals__", {}), **(localns or {})}
        try:
            override = {key: _named_type(key, spec, namespace) for key, spec in (inputs or {}).items()}
            fields = {key: _named_type(key, spec, namespace) for key, spec in (outputs or {}).items()}
        except TypeError as exc:
            raise ToolContractError(f"tool {name!r}: {exc}", tool_name=name) from exc
        self.parameters: dict[str, Parameter] = {}
        self.open_ended: bool = False
        self._positional: list[str] = []
        for parameter in signature.parameters.values():
            self._add(parameter, hints, override)
        if unknown := [key for key in override if key not in self.parameters and not self.open_ended]:
            raise ToolContractError(
                f"tool {name!r}: inputs names {unknown[0]!r}, which is no parameter of the function."
                f"{nearest(unknown[0], self.parameters)}",
                tool_name=name,
            )
        self.takes_key: bool = KEY_PARAMETER in self.parameters
        self.sensitive: frozenset[str] = frozenset(p.name for p in self.parameters.values() if p.sensitive)
        self.guarded: frozenset[str] = frozenset(
            p.name for p in self.parameters.values() if holds_secrets(p.annotation)
        )
        self.defaults: dict[str, Any] = {p.name: p.default for p in self.parameters.values() if not p.required}
        self.result_type: Any = hints.get("return", Any)
        self.result_fields = fields
        self.secret_fields: frozenset[str] = (
            frozenset(name for name, kind in fields.items() if holds_secrets(kind))
            if fields
            else secret_fields(self.result_type)
        )
        self.secret_result: bool = not self.secret_fields and not fields and holds_secrets(self.result_type)
        self._hidden_fields = (
            frozenset(name for name, kind in fields.items() if hidden(kind))
            if fields
            else unmarked_fields(self.result_type)
        )
        self._hidden_result = not self._hidden_fields and not fields and hidden(self.result_type)
        self.hides: bool = self._hidden_result or bool(self._hidden_fields)
        self._arguments = self._arguments_adapter()
        self._result = self._result_adapter()

    # -- on every call ------------------------------------------------------------------------------------------------

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Validate and coerce arguments, and fill in defaults.

        Raises:
            ToolInputError: Naming each argument that does not fit.
            ToolContractError: A type inside a parameter's type is not defined.
        """
        try:
            bound: dict[str, Any] = self._arguments.validate_python(dict(arguments))
        except ValidationError as exc:
            raise ToolInputError(f"tool {self.name!r}: {self._explain(exc)}", tool_name=self.name) from None
        except PydanticUserError as exc:  # a type inside a type, which pydantic had hoped to find until now
            raise ToolContractError(
                f"tool {self.name!r}: a parameter has a type that can't be validated: {str(exc).splitlines()[0]}",
                tool_name=self.name,
            ) from exc
        if self.defaults:
            for key, value in self.defaults.items():
                if key not in bound:
                    bound[key] = value
        return bound

    def unfit(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The arguments that don't fit, and those that are missing, each with the reason."""
        try:
            self._arguments.validate_python(dict(arguments))
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_input=False)
            return {str(item["loc"][0]): self._reason(item) for item in reversed(errors)}
        except Exception:  # noqa: BLE001 - a validator that fails as none should; the call itself will say so
            return {}
        return {}

    def invoke(self, bound: Mapping[str, Any]) -> Any:
        """Call the function with bound arguments."""
        if not self._positional:
            return self._function(**bound)
        return self.prepared(bound)()

    def prepared(self, bound: Mapping[str, Any]) -> functools.partial[Any]:
        """The call as a value, which pickles if the function and its arguments do."""
        rest = dict(bound)
        return functools.partial(self._function, *[rest.pop(name) for name in self._positional if name in rest], **rest)

    def check_result(self, value: Any) -> Any:
        """Validate and coerce a result.

        Raises:
            ToolOutputError: It does not fit the contract; the tool has run all the same.
        """
        if isinstance(value, types.CoroutineType):
            value.close()
            raise ToolOutputError(
                f"tool {self.name!r} returned a coroutine that nobody awaits; define it with 'async def'",
                tool_name=self.name,
                ran=False,
            )
        if isinstance(value, LostResult):
            raise ToolOutputError(
                f"tool {self.name!r} ran, but its result can't leave its process: {value.reason}", tool_name=self.name
            )
        if self._result is None:
            return value
        wrapped = self._is_single_field(value)
        try:
            if wrapped:
                return self._result.validate_python({next(iter(self.result_fields)): value})[
                    next(iter(self.result_fields))
                ]
            return self._result.validate_python(value)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ToolOutputError(
                f"tool {self.name!r} returned something its contract does not allow{f' at {where}' if where else ''}: "
                f"{first['msg']}",
                tool_name=self.name,
            ) from None
        except Exception as exc:
            # An undefined type inside a type, or a validator that fails as none should: the tool has run all the same.
            raise ToolOutputError(
                f"tool {self.name!r} returned something that can't be validated: "
                f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}",
                tool_name=self.name,
            ) from exc

    def shown(self, value: Any) -> Any:
        """A result without what its declaration marks `Redacted` and the value itself knows nothing of."""
        if not self.hides or value is None:
            return value
        if self._hidden_result or not isinstance(value, Mapping):
            return MASK
        return {key: MASK if key in self._hidden_fields and item is not None else item for key, item in value.items()}

    def fields_of(self, value: Any) -> dict[str, Any]:
        """The fields of a result by name, as compensators receive them."""
        if isinstance(value, Mapping):
            return {str(key): item for key, item in value.items()}
        if self._is_single_field(value):
            return {next(iter(self.result_fields)): value}
        return {key: getattr(value, key) for key in _fields_of_type(type(value)) if hasattr(value, key)}

    # -- what others ask ----------------------------------------------------------------------------------------------

    def declared_fields(self) -> frozenset[str] | None:
        """Names a result is declared to have; None when the declaration does not say (a bare ``dict``, ``Any``)."""
        if self.result_fields:
            return frozenset(self.result_fields)
        kind = self.result_type
        origin = typing.get_origin(kind) or kind
        if isinstance(origin, type) and (names := _fields_of_type(origin)):
            return frozenset(names)
        if origin is Any or (isinstance(origin, type) and issubclass(origin, Mapping)):
            return None
        if origin in (typing.Union, types.UnionType):
            return None
        return frozenset()

    def json_schema(self) -> dict[str, Any]:
        """JSON schema of the arguments a caller gives; what the executor fills in is left out.

        Raises:
            ToolContractError: A parameter's type has no JSON schema.
        """
        try:
            schema = self._arguments.json_schema(schema_generator=SchemaWithoutSecrets)
        except PydanticUserError as exc:
            raise ToolContractError(
                f"tool {self.name!r} has a parameter without a JSON schema, so no LM can call it: {exc}",
                tool_name=self.name,
            ) from exc
        schema.pop("title", None)
        properties = schema.get("properties", {})
        properties.pop(KEY_PARAMETER, None)
        for name, prop in properties.items():
            prop.pop("title", None)
            parameter = self.parameters.get(name)
            if (
                parameter is not None
                and not parameter.required
                and isinstance(parameter.default, (*_SCALARS, list, dict))
                and name not in self.guarded
                and not looks_secret(name)
            ):
                prop.setdefault("default", parameter.default)
        if "required" in schema:
            schema["required"] = [name for name in schema["required"] if name != KEY_PARAMETER]
        return schema

    # -- once, at decoration ------------------------------------------------------------------------------------------

    def _hints(self, localns: dict[str, Any] | None) -> dict[str, Any]:
        target = self._function if hasattr(self._function, "__annotations__") else type(self._function).__call__
        try:
            return typing.get_type_hints(target, localns=localns, include_extras=True)
        except NameError as exc:
            raise ToolContractError(
                f"tool {self.name!r}: an annotation names {exc.name!r}, which is not defined where the tool is; import it "
                f"outside of TYPE_CHECKING",
                tool_name=self.name,
            ) from exc

    def _add(self, parameter: inspect.Parameter, hints: Mapping[str, Any], override: Mapping[str, Any]) -> None:
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise ToolContractError(
                f"tool {self.name!r}: *{parameter.name} has no names to validate; take a list instead",
                tool_name=self.name,
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            self.open_ended = True
            return
        if parameter.kind is parameter.POSITIONAL_ONLY:
            self._positional.append(parameter.name)
        annotation = override.get(parameter.name, hints.get(parameter.name, Any))
        if reads_once(annotation):
            raise ToolContractError(
                f"tool {self.name!r}: {parameter.name!r} takes an iterator, which could be read only once, and is read "
                f"before the tool runs; take a list instead",
                tool_name=self.name,
            )
        self.parameters[parameter.name] = Parameter(
            parameter.name,
            annotation,
            required=parameter.default is _EMPTY,
            default=None if parameter.default is _EMPTY else parameter.default,
            sensitive=is_sensitive(annotation),
        )

    def _arguments_adapter(self) -> TypeAdapter[Any]:
        fields = {
            p.name: p.annotation if p.required else typing_extensions.NotRequired[p.annotation]
            for p in self.parameters.values()
        }
        # typing_extensions.TypedDict: pydantic refuses typing's own below Python 3.12.
        shape = typing_extensions.TypedDict(f"{self.name}_arguments", fields)  # type: ignore[misc]
        extra: Any = "allow" if self.open_ended else "forbid"
        config = ConfigDict(extra=extra, arbitrary_types_allowed=True)
        return self._adapter(with_config(config)(shape), "a parameter")

    def _result_adapter(self) -> TypeAdapter[Any] | None:
        if self.result_fields:
            shape = typing_extensions.TypedDict(f"{self.name}_result", dict(self.result_fields))  # type: ignore[misc]  # noqa: UP013
            config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
            return self._adapter(with_config(config)(shape), "the result")
        if self.result_type is Any:
            return None
        kind = type(None) if self.result_type is None else self.result_type
        return self._adapter(kind, "the result")

    def _adapter(self, kind: Any, what: str) -> TypeAdapter[Any]:
        try:
            try:
                adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
            except PydanticUserError as exc:
                if exc.code != "type-adapter-config-unused":  # models and TypedDicts bring a config of their own
                    raise
                adapter = TypeAdapter(kind)
            keep_lists(adapter, models=what == "a parameter")
            return adapter
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as exc:
            raise ToolContractError(
                f"tool {self.name!r}: {what} has a type that can't be validated: {str(exc).splitlines()[0]}",
                tool_name=self.name,
            ) from exc

    def _is_single_field(self, value: Any) -> bool:
        return len(self.result_fields) == 1 and not isinstance(value, Mapping)

    def _explain(self, error: ValidationError) -> str:
        parts = [self._reason(item) for item in error.errors(include_url=False, include_input=False)]
        takes = ", ".join(name for name in self.parameters if name != KEY_PARAMETER) or "nothing"
        return f"{'; '.join(parts)} (it takes {takes})"

    def _reason(self, item: Any) -> str:
        """One error of a validation in words."""
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            return f"{where!r} is missing"
        if item["type"] == "extra_forbidden":
            return f"{where!r} is no parameter.{nearest(where, self.parameters)}".rstrip(".")
        return f"{where!r}: {item['msg']}"


def _fields_of_type(kind: type) -> list[str]:
    """The names of the fields of a model, a dataclass, a named tuple, or a class that annotates them."""
    for attribute in ("model_fields", "__dataclass_fields__"):
        if names := getattr(kind, attribute, None):
            return list(names)
    if issubclass(kind, tuple):
        return list(getattr(kind, "_fields", ()))
    if issubclass(kind, _SCALARS):
        return []
    return list(dict.fromkeys(name for base in reversed(kind.__mro__) for name in inspect.get_annotations(base)))


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


def own_copy(bound: dict[str, Any]) -> dict[str, Any]:
    """Bound arguments that nobody else can change; what can't be copied (handles, locks, clients) is shared."""
    if _IMMUTABLE.issuperset(map(type, bound.values())):
        return bound
    try:
        return copy.deepcopy(bound)
    except Exception:  # noqa: BLE001 - one of them can't be copied: the others can
        return {name: _own(value) for name, value in bound.items()}


def _own(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - shared as it is
        return value
